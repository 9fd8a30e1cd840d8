"""The abilities of this machine's GPUs: asked before a kernel is chosen."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import sysconfig
from functools import cache
from pathlib import Path
from types import ModuleType

import torch

OLDEST = (8, 0)  # compute capability: TF32 and bfloat16 products, asynchronous copies


@cache
def shared_memory(device: torch.device) -> int:
    """Bytes of shared memory that a block may ask for."""
    properties = torch.cuda.get_device_properties(device)
    return getattr(properties, "shared_memory_per_block_optin", properties.shared_memory_per_block)


@cache
def capability(device: torch.device) -> tuple[int, int]:
    """The compute capability: (9, 0) of an H100."""
    properties = torch.cuda.get_device_properties(device)
    return properties.major, properties.minor


def is_generation(device: torch.device, major: int) -> bool:
    """Whether a GPU has this first number of its compute capability: 9 is Hopper, 12 the Blackwell of RTX 50."""
    return device.type == "cuda" and capability(device)[0] == major


@cache
def too_old(device: torch.device) -> str:
    """Empty, or why kernels cannot run on this GPU."""
    found = capability(device)
    if found >= OLDEST:
        return ""
    name = torch.cuda.get_device_properties(device).name
    return f"{name} has compute capability {found[0]}.{found[1]}, kernels need {OLDEST[0]}.0"


@cache
def triton_cannot_launch() -> str:
    """Empty, or what Triton lacks: it compiles a C module for this Python before its first launch on a GPU."""
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "Triton compiles what launches its kernels and finds no C compiler: install gcc, or set CC to one"
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")
    if not (header := Path(sysconfig.get_path("include", scheme)) / "Python.h").exists():
        return f"Triton compiles what launches its kernels and needs {header}: install Python's headers (python3-dev)"
    return ""


def does_not_fit(what: str, needed: int, device: torch.device) -> str:
    """Empty, or that a block of this device has too little shared memory, with the numbers."""
    if needed <= (found := shared_memory(device)):
        return ""
    return f"{what} take {needed} bytes of shared memory, a block of {device} has {found}"


def refusal_of_all() -> str:
    """Empty, or why one of the GPUs that torch sees cannot run the kernels of the CUDA extension."""
    if not torch.cuda.is_available():
        return ""
    devices = (torch.device("cuda", index) for index in range(torch.cuda.device_count()))
    return next(filter(None, map(too_old, devices)), "")


def driver_refusal(extension: ModuleType, driver: int | None = None) -> str:
    """Empty, or that the driver is older than the toolkit that the extension was built with.

    Within a major version of CUDA every driver will do. driver: 12080 stands for CUDA 12.8; None: the installed one.
    """
    built = re.search(r"(\d+)\.(\d+)", extension.instruction_set)
    found = _driver_version() if driver is None else driver
    if built is None or found == 0 or found // 1000 >= int(built[1]):
        return ""
    return (
        f"the driver supports CUDA {found // 1000}.{found % 1000 // 10}, fastlip._cuda was built with CUDA "
        f"{built[0]}: update the driver, or reinstall with an older nvcc"
    )


@cache
def _driver_version() -> int:
    """As the driver says it; 0 where there is none."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    version = ctypes.c_int(0)
    return version.value if library.cuDriverGetVersion(ctypes.byref(version)) == 0 else 0
