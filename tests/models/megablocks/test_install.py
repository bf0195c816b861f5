"""What `make megablocks` tells pip, without calling it."""

from pathlib import Path

import pytest
import torch

from models.megablocks import install
from models.megablocks.install import GROUPED_GEMM, MEGABLOCKS, TRITON, Toolkit, find_toolkit, steps


def test_without_a_toolkit_nothing_is_compiled():
    tools, packages = steps(None, has_triton=False)
    assert "wheel" in tools.arguments
    assert packages.arguments == ("--no-build-isolation", "--no-deps", *MEGABLOCKS, TRITON)
    assert packages.environment == {}


def test_tritons_own_wheel_is_kept():
    assert TRITON not in steps(None, has_triton=True)[1].arguments


@pytest.mark.parametrize(("cuda", "needs_header"), [("12.8", False), ("13.0", True)])
def test_header_is_for_cuda_13(cuda, needs_header):
    _, megablocks, gemm = steps(Toolkit("/usr/local/cuda", cuda, "9.0"), has_triton=True)
    assert megablocks.environment["TORCH_CUDA_ARCH_LIST"] == gemm.environment["TORCH_CUDA_ARCH_LIST"] == "9.0"
    assert GROUPED_GEMM in gemm.arguments
    flags = megablocks.environment.get("NVCC_APPEND_FLAGS", "")
    assert ("-include" in flags) is needs_header
    assert "NVCC_APPEND_FLAGS" not in gemm.environment
    if needs_header:
        assert "DeviceScan" in Path(flags.split()[-1]).read_text(encoding="utf-8")


class TestToolkit:
    @pytest.fixture(autouse=True)
    def nvcc(self, tmp_path, monkeypatch):
        """A folder with a compiler in it, and a torch for CUDA."""
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin" / "nvcc").touch()
        monkeypatch.setenv("CUDA_HOME", str(tmp_path))
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)

    def test_compiles_for_what_it_is_told(self, monkeypatch, tmp_path):
        monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0;9.0")
        assert find_toolkit() == Toolkit(str(tmp_path), "13.0", "8.0;9.0")

    def test_compiles_for_the_device_that_is_there(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
        assert find_toolkit().architectures == "9.0"

    def test_without_a_device_it_must_be_told(self):
        with pytest.raises(ValueError, match="set TORCH_CUDA_ARCH_LIST to what to compile for"):
            find_toolkit()

    def test_torch_for_the_cpu_needs_none(self, monkeypatch):
        monkeypatch.setattr(torch.version, "cuda", None)
        assert find_toolkit() is None


def test_pip_is_called_step_by_step_and_the_result_is_shown(monkeypatch, capsys):
    calls = []

    def run(command, env=None, check=False):
        calls.append(command)
        return type("Done", (), {"returncode": 0})

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(install, "_cuda_home", lambda: None)
    monkeypatch.setattr(install.subprocess, "run", run)
    assert install.main() == 0
    assert "no nvcc" in capsys.readouterr().out
    assert [call[1:4] for call in calls[:2]] == [["-m", "pip", "install"]] * 2
    assert "native_parts()" in calls[-1][-1]
