"""Which parts are native, what may be called MegaBlocks, and what is said where it is missing."""

import sys

import pytest
import torch

from models.megablocks import (
    MegaBlocksExperts,
    StockDMoE,
    check_label,
    load,
    may_be_called_megablocks,
    native,
    native_parts,
)
from routers.topk import TopK

installed = pytest.mark.skipif(not native.is_installed(), reason="MegaBlocks is not installed: make megablocks")


@pytest.fixture
def on_cuda(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Pretends to a CUDA device; the set holds the packages that are then found."""
    found = {"megablocks"}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(native, "find_spec", lambda name: name if name in found else None)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    return found


class TestLabel:
    @pytest.mark.parametrize(
        ("parts", "allowed"),
        [
            ({"ops": True, "kernels": True, "gemm": True}, True),
            ({"ops": False, "kernels": True, "gemm": True}, True),
            ({"ops": True, "kernels": False, "gemm": True}, False),
            ({"ops": True, "kernels": True, "gemm": False}, False),
        ],
    )
    def test_takes_the_kernels_and_the_products(self, parts, allowed):
        assert may_be_called_megablocks(parts) is allowed

    def test_refusal_names_the_stand_ins(self):
        with pytest.raises(ValueError, match=r"whose ops, gemm are torch stand-ins .* `make megablocks`"):
            check_label({"ops": False, "kernels": True, "gemm": False})
        check_label({"ops": False, "kernels": True, "gemm": True})


class TestParts:
    @pytest.mark.parametrize("mlp_impl", ["grouped", "sparse"])
    def test_nothing_is_native_without_cuda(self, mlp_impl, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert native_parts(mlp_impl) == {"ops": False, "kernels": False, "gemm": False}

    def test_each_is_found_by_itself(self, on_cuda):
        assert native_parts() == {"ops": False, "kernels": True, "gemm": False}
        on_cuda.add("grouped_gemm")
        assert native_parts() == {"ops": False, "kernels": True, "gemm": True}
        on_cuda.add("megablocks_ops")
        assert native_parts()["ops"]

    def test_block_sparse_products_are_tritons(self, on_cuda):
        assert native_parts("sparse")["gemm"]
        assert not native_parts("grouped")["gemm"]

    def test_interpreted_kernels_run_but_are_not_native(self, on_cuda, monkeypatch):
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        assert not native_parts("sparse")["kernels"]
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert native.triton_runs()

    def test_nothing_is_native_where_it_is_not_installed(self, on_cuda):
        on_cuda.clear()
        assert not any(native_parts("sparse").values())


class TestMissing:
    @pytest.mark.parametrize(
        "build",
        [load, lambda: MegaBlocksExperts(4, 8, 32), lambda: StockDMoE(TopK(8, 4, 0, top_k=2), 8, 32)],
        ids=["load", "experts", "layer"],
    )
    def test_one_sentence_names_the_command(self, build, monkeypatch):
        monkeypatch.setattr(native, "find_spec", lambda name: None)
        with pytest.raises(ImportError, match=r"^MegaBlocks is not installed; `make megablocks` installs it$"):
            build()

    def test_broken_installation_is_named_too(self, monkeypatch):
        def broken() -> None:
            raise ImportError("No module named 'triton'")

        monkeypatch.setattr(native, "is_installed", lambda: True)
        monkeypatch.setattr(native, "_import", broken)
        with pytest.raises(ImportError, match=r"cannot be imported \(No module named 'triton'\); `make megablocks`"):
            load()


@installed
def test_loading_leaves_no_stand_in_behind():
    load()
    load()
    assert "megablocks" in sys.modules
    assert getattr(sys.modules.get("megablocks_ops"), "__name__", "megablocks_ops") == "megablocks_ops"
