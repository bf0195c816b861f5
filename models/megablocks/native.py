"""What of MegaBlocks runs natively on this machine, and stand-ins in torch for the rest.

MegaBlocks (Gale et al., 2022, arXiv 2211.15841) is Python over three native parts, all for CUDA: the extension
`megablocks_ops`, Triton kernels that move rows, and products of rows with experts (`grouped_gemm`, or Triton's
block-sparse ones). Where one is missing, `load` puts plain torch in its place, so that the layers' own code runs
anywhere; what such a run takes in seconds says nothing of MegaBlocks, and `check_label` refuses it that name.
"""

import importlib
import os
import sys
import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import torch

from models.megablocks import standin_kernels, standin_ops


def load() -> None:
    """Import MegaBlocks, with stand-ins for what this machine lacks; every use of it comes after.

    Raises:
        ImportError: it is not installed, or cannot be imported.
    """
    if not is_installed():
        raise ImportError("MegaBlocks is not installed; `make megablocks` installs it")
    try:
        _import()
    except ImportError as error:
        raise ImportError(f"MegaBlocks cannot be imported ({error}); `make megablocks` installs it anew") from None
    if not triton_runs():
        kernels = importlib.import_module("megablocks.backend.kernels")
        for kernel in (standin_kernels.gather, standin_kernels.scatter, standin_kernels.scatter_wgrad):
            setattr(kernels, kernel.__name__, kernel)
    if not _runs("grouped_gemm"):
        module: Any = importlib.import_module("megablocks.grouped_gemm_util")
        module.ops, module._grouped_gemm_is_available = SimpleNamespace(gmm=standin_kernels.gmm), True


def _import() -> None:
    """The first import binds the extension's functions for good: a stand-in need only be there meanwhile."""
    if "megablocks" in sys.modules:
        return
    stand_in = not _runs("megablocks_ops")
    if stand_in:
        sys.modules["megablocks_ops"] = standin_ops
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Grouped GEMM not available")
            importlib.import_module("megablocks")
    finally:
        if stand_in:
            del sys.modules["megablocks_ops"]


def is_installed() -> bool:
    """Whether MegaBlocks is there, with stand-ins or without."""
    return find_spec("megablocks") is not None


def triton_runs() -> bool:
    """Whether Triton's kernels can be called: on CUDA, or interpreted line by line for tests."""
    return torch.cuda.is_available() or is_interpreted()


def is_interpreted() -> bool:
    """Whether Triton was asked to interpret its kernels, which makes any machine run them, slowly."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def native_parts(mlp_impl: str = "grouped") -> dict[str, bool]:
    """Which parts of MegaBlocks are native here; part of every record of a run that uses it.

    Args:
        mlp_impl: whose products: "grouped" (grouped_gemm) or "sparse" (Triton, block-sparse).

    Returns:
        `ops` (the extension: sorting and counting), `kernels` (Triton: moving rows), `gemm` (the products).
    """
    kernels = is_installed() and torch.cuda.is_available() and not is_interpreted()
    gemm = {"grouped": _runs("grouped_gemm"), "sparse": kernels}[mlp_impl]
    return {"ops": _runs("megablocks_ops"), "kernels": kernels, "gemm": gemm}


def may_be_called_megablocks(parts: Mapping[str, bool]) -> bool:
    """Whether what was measured with these native parts is a measurement of MegaBlocks: its rows and its products."""
    return parts["kernels"] and parts["gemm"]


def check_label(parts: Mapping[str, bool]) -> None:
    """Refuse the label "megablocks" to a run of stand-ins.

    Raises:
        ValueError: names the parts that are none of MegaBlocks'.
    """
    if not may_be_called_megablocks(parts):
        missing = ", ".join(name for name, native in parts.items() if not native)
        raise ValueError(
            f"a run whose {missing} are torch stand-ins is no measurement of MegaBlocks; "
            "it needs a CUDA device and `make megablocks`"
        )


def _runs(extension: str) -> bool:
    return torch.cuda.is_available() and find_spec(extension) is not None
