"""Runs a module with a CUDA device that computes nothing, so that fake CUDA tensors can be differentiated.

    python tools/gpu/fake_cuda.py MODULE [ARGUMENT ...]

Torch knows fake CUDA tensors without a GPU, but not their backward. This builds ``fake_cuda.cpp`` (3 s, once for each
torch) with g++, loads it before torch, and then runs the module as ``python -m`` does. ``watch.py`` says what a
program did to the device. It serves torch built for CUDA as well: autograd would ask that one's driver for a device.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.metadata
import os
import runpy
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SOURCE = HERE / "fake_cuda.cpp"
ACTIVE = "FASTLIP_FAKE_CUDA"  # set in the process that has the device
NO_COMPILER = "no g++ on PATH to build tools/gpu/fake_cuda.cpp with"


def torch_folder() -> Path:
    """Where torch is installed, found without importing it."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        raise SystemExit("torch is not installed")
    return Path(spec.origin).parent


def build() -> Path:
    """The library for the installed torch; built unless it was before."""
    torch = torch_folder()
    content = SOURCE.read_bytes() + importlib.metadata.version("torch").encode() + str(torch).encode()
    target = ROOT / "build" / "fake_cuda" / f"{hashlib.sha256(content).hexdigest()[:16]}.so"
    if target.exists():
        return target
    compiler = shutil.which("g++")
    if compiler is None:
        raise SystemExit(NO_COMPILER)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(f".{os.getpid()}")
    libraries = ["-Wl,--no-as-needed", "-lc10", "-ltorch_cpu", "-ltorch", f"-Wl,-rpath,{torch / 'lib'}"]
    include = [f"-I{torch / 'include'}", f"-I{torch / 'include/torch/csrc/api/include'}", f"-L{torch / 'lib'}"]
    command = [compiler, "-std=c++20", "-shared", "-fPIC", str(SOURCE), *include, *libraries, "-o", str(partial)]
    subprocess.run(command, check=True)
    partial.rename(target)
    return target


def load() -> None:
    """Loads the library; RuntimeError if torch is there already."""
    if "torch" in sys.modules:
        raise RuntimeError("fake_cuda must be loaded before torch")
    ctypes.CDLL(str(build()), ctypes.RTLD_GLOBAL)


def main() -> None:
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    load()
    os.environ[ACTIVE] = "1"
    sys.path[:0] = [str(ROOT), str(HERE)]
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
