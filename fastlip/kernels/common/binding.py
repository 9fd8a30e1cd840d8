"""Finds the compiled kernels: the CPU module for this machine's instruction set, and the CUDA module."""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType

import torch

from fastlip.kernels.common import gpu
from fastlip.kernels.common.compiled import constant

_REBUILD = "run `pip install -e .` in the source folder with a C++ compiler at hand"
# torch names what the machine runs; each module needs exactly the extensions that torch checks for that name.
_MODULE_OF_CAPABILITY = {"AVX512": "_native_avx512", "AVX2": "_native_avx2"}
_modules: dict[str, ModuleType] = {}

# The compiled kernels of each device type by name, filled once when its module is loaded. A ``native.py`` calls them
# without any function in between: ``CPU[name](address, ..., size, ...)``, and :func:`launch` elsewhere.
CPU: dict[str, Callable[..., None]] = {}
CUDA: dict[str, Callable[..., None]] = {}
_KERNELS = {"cpu": CPU, "cuda": CUDA}


def _torch_parallel_for() -> int:
    """Address of torch's own parallel loop, so that kernels share its threads."""
    folder = Path(torch.__file__).parent / "lib"
    name = next(name for name in ("libtorch_cpu.so", "libtorch_cpu.dylib") if (folder / name).exists())
    loop = ctypes.CDLL(str(folder / name)).torch_parallel_for
    return ctypes.cast(loop, ctypes.c_void_p).value or 0


def _load_cpu() -> ModuleType:
    return _load(_MODULE_OF_CAPABILITY.get(torch.backends.cpu.get_cpu_capability(), "_native_default"))


def _load(name: str) -> ModuleType:
    try:
        module = importlib.import_module(f"fastlip.{name}")
    except ModuleNotFoundError:
        raise ImportError(f"the extension fastlip.{name} is not built: {_REBUILD}") from None
    module.set_parallel_for(_torch_parallel_for())
    return module


def _load_cuda() -> ModuleType:
    if torch.version.cuda is None:
        raise ImportError("this torch is built without CUDA")
    try:
        module = importlib.import_module("fastlip._cuda")
    except ModuleNotFoundError:
        raise ImportError("the extension fastlip._cuda is not built: reinstall where nvcc is found") from None
    if reason := gpu.refusal_of_all() or gpu.driver_refusal(module):
        raise ImportError(reason)
    return module


def library(device_type: str) -> ModuleType:
    """The compiled module for a device type; ImportError says why there is none."""
    module = _modules.get(device_type)
    if module is None:
        loaders = {"cpu": _load_cpu, "cuda": _load_cuda}
        if device_type not in loaders:
            raise ImportError(f"no native kernels for device type {device_type!r}")
        module = _modules[device_type] = loaders[device_type]()
        _KERNELS[device_type].update((name, getattr(module, name)) for name in module.kernels)
    return module


def require() -> None:
    """ImportError unless some compiled module can be loaded: what a ``native.py`` calls when it is imported."""
    reasons = []
    for device_type in ("cpu", "cuda"):
        try:
            library(device_type)
            return
        except ImportError as error:
            reasons.append(str(error))
    raise ImportError("; ".join(reasons))


@cache
def _type_of(device: torch.device) -> str:
    # The attribute makes its string anew each time, which takes as long as a small kernel.
    return device.type


# Not traced: a compiled program would be guarded by what is loaded when it is made.
@constant
def missing(kernel: str, device: torch.device) -> str:
    """Why this kernel cannot be called on this device; empty if it can."""
    device_type = _type_of(device)
    if kernel in _KERNELS.get(device_type, ()):
        return ""
    try:
        module = library(device_type)
    except ImportError as error:
        return str(error)
    return "" if kernel in _KERNELS[device_type] else f"{module.__name__} has no kernel {kernel}: {_REBUILD}"


def kernel(name: str, device: torch.device) -> Callable[..., None]:
    """A compiled kernel: call it with addresses (``tensor.data_ptr()``), sizes and numbers."""
    if reason := missing(name, device):
        raise ImportError(reason)
    return _KERNELS[_type_of(device)][name]


def narrow_kernel(name: str) -> Callable[..., None]:
    """A compiled CPU kernel for little work: without 64-byte vectors, which slow the core down for some 20 µs."""
    best = kernel(name, torch.device("cpu"))
    if library("cpu").instruction_set != "avx512":
        return best
    try:
        return getattr(_load("_native_narrow"), name)
    except ImportError:  # a build that is older than this module: slower for little work, with the same result
        return best


def launch(name: str, device: torch.device, *arguments: float) -> None:
    """Runs a compiled kernel; CUDA kernels on the device's current stream, which they take as their last argument."""
    if _type_of(device) == "cpu":
        CPU[name](*arguments)
        return
    with torch.cuda.device(device):
        CUDA[name](*arguments, torch.cuda.current_stream(device).cuda_stream)
