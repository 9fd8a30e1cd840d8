"""polar in C++ (on_cpu.py) and CUDA C++ (on_cuda.py), by what is compiled for the tensor's device."""

from __future__ import annotations

from types import ModuleType

from torch import Tensor

from fastlip.kernels.common import binding
from fastlip.kernels.polar import on_cpu, on_cuda

binding.require()


def supports(V: Tensor, reals: int) -> str:
    """Empty, or why these kernels cannot run."""
    return _of(V).supports(V, reals)


def unprofitable(V: Tensor, reals: int) -> str:
    """Empty, or why the reference is faster: on a CPU only."""
    return on_cpu.unprofitable(V, reals) if _of(V) is on_cpu else ""


def polar_forward(V: Tensor, reals: int) -> tuple[Tensor, Tensor]:
    """Q, and which matrices were decomposed, on a GPU perturbed."""
    return _of(V).polar_forward(V, reals)


def polar_backward(gradient: Tensor, V: Tensor, Q: Tensor, failed: Tensor, reals: int) -> Tensor:
    """The gradient of V."""
    return _of(V).polar_backward(gradient, V, Q, failed, reals)


def _of(V: Tensor) -> ModuleType:
    return on_cpu if binding.missing(on_cuda.KERNEL, V.device) else on_cuda
