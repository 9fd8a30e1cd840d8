"""The library that stands in for a CUDA device (tools/gpu/fake_cuda.cpp): when it is loaded."""

import importlib
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("library", ["libtorch_cpu.so", "libtorch_cuda.so"])
def test_the_device_serves_every_build_of_torch(library, monkeypatch, tmp_path):
    """That for CUDA would ask a driver that is not there for a primary context, in each backward."""
    monkeypatch.syspath_prepend(str(ROOT / "tools" / "gpu"))
    fake_cuda = importlib.import_module("fake_cuda")
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / library).touch()
    loaded = []
    monkeypatch.setattr(fake_cuda, "torch_folder", lambda: tmp_path)
    monkeypatch.setattr(fake_cuda, "build", lambda: tmp_path / "fake.so")
    monkeypatch.setattr(fake_cuda.ctypes, "CDLL", lambda path, mode: loaded.append((path, mode)))
    with pytest.raises(RuntimeError, match="must be loaded before torch"):
        fake_cuda.load()
    monkeypatch.delitem(sys.modules, "torch")
    fake_cuda.load()
    assert loaded == [(str(tmp_path / "fake.so"), fake_cuda.ctypes.RTLD_GLOBAL)]
