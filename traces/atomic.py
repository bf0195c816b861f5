"""Files that are either whole or absent, whatever kills the process that writes them."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then move it into place.

    The folder is made where it is missing. On an error it is removed again and `path` stays as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # a leading dot keeps a half-written file out of every glob that readers use
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_bytes_atomically(path: Path, content: bytes) -> None:
    """Write bytes whole or not at all."""
    write_atomically(path, lambda file: file.write(content))


def write_text_atomically(path: Path, text: str) -> None:
    """Write UTF-8 text whole or not at all."""
    write_bytes_atomically(path, text.encode())
