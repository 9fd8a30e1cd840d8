"""Shared by the Triton backends: when kernels can run, and how they are launched."""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from fastlip.kernels.common import gpu
from fastlip.kernels.common.compiled import constant

OPTIONS = {"enable_fp_fusion": True}  # named, because Triton warns that its default will change
_OLDEST = (3, 6)


class Compilation(NamedTuple):
    """How to compile a kernel ahead of time. Argument types as Triton writes them; a key is an argument's name.

    Pointers and the integers named in ``divisible`` are multiples of 16, as most are at run time.
    """

    kernel: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    num_warps: int = 4
    divisible: tuple[str, ...] = ()

    def name(self) -> str:
        """The kernel, its first pointer's type and its constants."""
        constants = ", ".join(f"{key}={value}" for key, value in self.constants.items())
        return f"{self.kernel.__name__}({next(iter(self.signature.values()))}, {constants})"


# Not traced: what a device can do is no part of a graph.
@constant
def _refusal(device: torch.device) -> str:
    return gpu.too_old(device) or gpu.triton_cannot_launch()


def why_not(tensor: Tensor, kernel: Any) -> str:
    """Empty, or why a kernel cannot run on this tensor's device."""
    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    if version < _OLDEST:
        return f"Triton {triton.__version__} is older than {_OLDEST[0]}.{_OLDEST[1]}"
    if isinstance(kernel, triton.JITFunction) and tensor.device.type != "cuda":
        return f"Triton kernels need a CUDA tensor or Triton's interpreter, got device {tensor.device}"
    return _refusal(tensor.device) if tensor.device.type == "cuda" else ""


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    device: torch.device,
    *arguments: Any,
    num_warps: int = 4,
    **constants: Any,
) -> None:
    """Runs a kernel on the device's current stream. Triton itself launches on the current device."""
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        kernel[grid](*arguments, **constants, num_warps=num_warps, **OPTIONS)
