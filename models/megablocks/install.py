"""Install MegaBlocks beside the torch that is there, `make megablocks`: python -m models.megablocks.install

MegaBlocks 0.10.0 pins torch 2.7 and numpy < 2.1, so pip must not follow its requirements. On a CPU torch it builds as
pure Python, and stand-ins do the rest. On a CUDA torch its extension and grouped_gemm (over cuBLAS) are compiled, 2-3
minutes each; for CUDA 13 and later with a header that gives it an argument back which CCCL 3 took away.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch

MEGABLOCKS = ("stanford-stk==0.7.1", "megablocks==0.10.0")
TRITON, GROUPED_GEMM = "triton==3.7.1", "grouped_gemm==0.3.0"
BUILD_TOOLS = ("setuptools", "wheel", "packaging", "ninja")


class Step(NamedTuple):
    """One call of pip: what it installs, and what it adds to the environment."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str]


class Toolkit(NamedTuple):
    """What compiles for CUDA here.

    Attributes:
        home: CUDA's folder.
        version: torch's CUDA, such as "13.0".
        architectures: as TORCH_CUDA_ARCH_LIST has them, such as "9.0".
    """

    home: str
    version: str
    architectures: str


def steps(toolkit: Toolkit | None, has_triton: bool) -> list[Step]:
    """The calls of pip, first to last; without a toolkit nothing is compiled."""
    as_it_is = ("--no-build-isolation", "--no-deps")
    packages = MEGABLOCKS if has_triton else (*MEGABLOCKS, TRITON)
    tools = Step(BUILD_TOOLS, {})
    if toolkit is None:
        return [tools, Step((*as_it_is, *packages), {})]
    building = {"CUDA_HOME": toolkit.home, "TORCH_CUDA_ARCH_LIST": toolkit.architectures, "CPATH": _include_path()}
    return [
        tools,
        Step((*as_it_is, *packages), building | _compatibility(toolkit.version)),
        Step((*as_it_is, GROUPED_GEMM), building),
    ]


def find_toolkit() -> Toolkit | None:
    """CUDA's compiler, where torch is for CUDA and a compiler is there.

    Raises:
        ValueError: no device is visible and TORCH_CUDA_ARCH_LIST does not say what to compile for.
    """
    home = _cuda_home()
    if torch.version.cuda is None or home is None:
        return None
    architectures = os.environ.get("TORCH_CUDA_ARCH_LIST")
    if not architectures:
        if not torch.cuda.is_available():
            raise ValueError("no CUDA device is visible: set TORCH_CUDA_ARCH_LIST to what to compile for, such as 9.0")
        architectures = "{}.{}".format(*torch.cuda.get_device_capability())
    return Toolkit(home, torch.version.cuda, architectures)


def _cuda_home() -> str | None:
    """CUDA's folder: as the environment says, else the usual one, else where nvcc lies."""
    given, nvcc = os.environ.get("CUDA_HOME"), shutil.which("nvcc")
    folders = [given, "/usr/local/cuda", nvcc and str(Path(nvcc).resolve().parents[1])]
    return next((folder for folder in folders if folder and Path(folder, "bin", "nvcc").exists()), None)


def _include_path() -> str:
    """Headers of CUDA's libraries where they came as wheels beside torch."""
    folders = sorted(Path(torch.__file__).parents[1].glob("nvidia/cu*/include"))
    return os.pathsep.join(filter(None, [*map(str, folders), os.environ.get("CPATH")]))


def _compatibility(cuda: str) -> dict[str, str]:
    if int(cuda.split(".")[0]) < 13:
        return {}
    header = Path(__file__).with_name("cub3_compat.h")
    return {"NVCC_APPEND_FLAGS": f"{os.environ.get('NVCC_APPEND_FLAGS', '')} -include {header}".strip()}


def main() -> int:
    toolkit = find_toolkit()
    if torch.version.cuda is not None and toolkit is None:
        print("no nvcc: MegaBlocks' extension and grouped_gemm are left out, torch stands in for them")
    for step in steps(toolkit, find_spec("triton") is not None):
        command = [sys.executable, "-m", "pip", "install", "-q", *step.arguments]
        print(" ".join(command), flush=True)
        subprocess.run(command, env={**os.environ, **step.environment}, check=True)
    report = "from models.megablocks import load, native_parts; load(); print('native parts:', native_parts())"
    return subprocess.run([sys.executable, "-c", report], check=True).returncode


if __name__ == "__main__":
    raise SystemExit(main())
