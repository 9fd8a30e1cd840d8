"""Builds csrc/*/*_cuda.cu with the host compiler and tests/cuda_shim, and calls the kernels from Python."""

import ctypes
import hashlib
import shutil
import struct
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHIM = ROOT / "tests" / "cuda_shim"
SOURCES = [*sorted((ROOT / "csrc").glob("*/*_cuda.cu")), SHIM / "selftest_cuda.cu"]
FLAGS = ["-std=c++20", "-g1", "-fPIC", "-Icsrc", "-Itests/cuda_shim"]
FLAGS += ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
OPS = [source.parent.name for source in SOURCES[:-1]]


def build(name, *options):
    """The binary that these sources and options make; built anew only if one of them has changed."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ found")
    inputs = [*sorted((ROOT / "csrc").rglob("*.[ch]*")), *SOURCES, *sorted(SHIM.glob("*.[ch]*"))]
    content = b"".join(path.read_bytes() for path in inputs) + repr((FLAGS, options)).encode()
    folder = ROOT / "build" / "cuda_shim" / hashlib.sha256(content).hexdigest()[:16]
    target = folder / name
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        files = [*SOURCES, ROOT / "csrc/common/runtime.cpp", SHIM / "driver.cpp"]
        objects = [folder / f"{name}.{path.stem}.o" for path in files]
        commands = [
            [compiler, *FLAGS, *options, "-c", "-x", "c++", path, "-o", target]
            for path, target in zip(files, objects, strict=True)
        ]
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda command: subprocess.run(command, cwd=ROOT, check=True), commands))
        partial = folder / f"{name}.partial"
        subprocess.run([compiler, *FLAGS, *options, *objects, "-o", partial], cwd=ROOT, check=True)
        partial.rename(target)
    return target


class Kernels:
    """The kernels of the shared object, callable as those of fastlip's own modules are, without a stream."""

    def __init__(self, path):
        library = ctypes.CDLL(str(path))
        library.fastlip_kernel_name.restype = ctypes.c_char_p
        library.fastlip_kernel_name.argtypes = [ctypes.c_size_t]
        library.fastlip_kernel_kinds.restype = ctypes.c_char_p
        self.library = library
        self.names = []
        while (name := library.fastlip_kernel_name(len(self.names))) is not None:
            self.names.append(name.decode())

    def __getitem__(self, name):
        kinds = self.library.fastlip_kernel_kinds(name.encode()).decode()

        def call(*values):
            assert len(values) + 1 == len(kinds), f"{name} takes {kinds}, the last being the stream"
            packed = b"".join(
                struct.pack("<d" if kind == "d" else "<q", value)
                for kind, value in zip(kinds, (*values, 0), strict=True)
            )
            self.library.fastlip_call(name.encode(), ctypes.create_string_buffer(packed, len(packed)))

        return call


class Recorder:
    """Stands for every kernel and notes the calls as arguments of tests/cuda_shim/driver.cpp."""

    def __init__(self, kernels, monkeypatch):
        import torch

        self.kinds = {name: kernels.library.fastlip_kernel_kinds(name.encode()).decode() for name in kernels.names}
        self.buffers = {0: "p:0"}
        self.commands = []
        address_of = torch.Tensor.data_ptr

        def data_ptr(tensor):
            address = address_of(tensor)
            start = tensor.storage_offset() * tensor.element_size()
            kind = "f" if tensor.dtype in (torch.float32, torch.complex64) else "p"
            self.buffers[address] = f"{kind}:{tensor.untyped_storage().nbytes() - start}"
            return address

        monkeypatch.setattr(torch.Tensor, "data_ptr", data_ptr)

    def __getitem__(self, name):
        def call(*values):
            arguments = []
            for kind, value in zip(self.kinds[name], (*values, 0), strict=True):
                arguments.append(self.buffers[value] if kind == "p" else f"{kind}:{+value}")
            self.commands.append([name, *arguments])

        return call
