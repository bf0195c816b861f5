"""Signs of life that ranks give one another, and what follows from them when a run stands still or fails."""

import json
import sys
import threading
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Life:
    """What a rank tells of itself.

    Attributes:
        beat: counts up while the process runs.
        step: the optimiser step it is in.
        calls: collective operations it has begun.
        place: where its main thread is.
        failure: the exception it ends with.
        knows: that the run has failed.
        left: that it has done its part.
    """

    beat: int = 0
    step: int = 0
    calls: int = 0
    place: str = "its start"
    failure: str = ""
    knows: bool = False
    left: bool = False

    @property
    def whereabouts(self) -> str:
        """How far it got."""
        return f"step {self.step}, {self.calls} collectives, {'after its end' if self.left else 'in ' + self.place}"

    @property
    def ends(self) -> bool:
        """Whether it ends by itself."""
        return self.left or bool(self.failure)

    def write(self) -> str:
        """As text for a key-value store."""
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, text: bytes) -> "Life":
        """From what `write` wrote."""
        return cls(**json.loads(text))


def main_place() -> str:
    """Where this process's main thread is in code that no library brought, such as `exchange.py:71 in finish`."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    frames = [frame for frame, _ in traceback.walk_stack(frame)] if frame else []
    own = [frame for frame in frames if "/lib/python" not in frame.f_code.co_filename]
    for innermost in [*own, *frames][:1]:
        return f"{Path(innermost.f_code.co_filename).name}:{innermost.f_lineno} in {innermost.f_code.co_name}"
    return "no Python code"


def silent_ranks(lives: Sequence[Life], quiet_seconds: Sequence[float], limit_seconds: float) -> list[int]:
    """Ranks whose last sign is older than the limit, but for those that end by themselves."""
    return [
        rank
        for rank, (life, seconds) in enumerate(zip(lives, quiet_seconds, strict=True))
        if seconds >= limit_seconds and not life.ends
    ]


def ranks_behind(lives: Sequence[Life]) -> list[int]:
    """Ranks that others wait for: they have begun fewer collectives and do not fail."""
    furthest = max(life.calls for life in lives)
    return [rank for rank, life in enumerate(lives) if life.calls < furthest and not life.failure]
