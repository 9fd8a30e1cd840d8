"""polar in CUDA C++ (csrc/polar): one block iterates one matrix of at most 64 x 64 in its shared memory."""

from __future__ import annotations

import torch
from torch import Tensor

from fastlip.kernels.common import binding, gpu
from fastlip.kernels.common.compiled import constant
from fastlip.kernels.polar import newton_schulz
from fastlip.kernels.polar.newton_schulz import ADJOINT_STEPS, FINE, STEPS, TINY

KERNEL = "polar_on_chip_forward_float32"  # which devices have these kernels
_LARGEST = 64
_NAMES = {torch.float32: "float32", torch.complex64: "complex64"}


def supports(V: Tensor, reals: int) -> str:
    """Empty, or why these kernels cannot run."""
    if V.dtype not in _NAMES:
        return f"no kernel for dtype {V.dtype}"
    if reason := binding.missing(f"polar_on_chip_forward_{_NAMES[V.dtype]}", V.device):
        return reason
    rows, columns = V.shape[-2:]
    if max(rows, columns) > _LARGEST:
        return f"matrices of {rows} x {columns}: a block's shared memory holds at most {_LARGEST} x {_LARGEST}"
    if V.device.type != "cuda":  # the same kernels run on the CPU in tests
        return ""
    return _does_not_fit(shared_bytes(rows, columns, V.dtype), V.device)


# Not traced: what a device can do is no part of a graph.
@constant
def _does_not_fit(needed: int, device: torch.device) -> str:
    return gpu.does_not_fit("these matrices and their gradients", needed, device)


def shared_bytes(rows: int, columns: int, dtype: torch.dtype) -> int:
    """Shared memory of the backward, which takes more than the forward (csrc/polar/iteration.cuh, Chip::bytes)."""
    side = next(side for side in (16, 32, 64) if side >= max(rows, columns))
    tiles, warps = 5 if rows != columns else 4, max(1, side * side // 16 // 32)
    return 4 * (tiles * side * side * (2 if dtype.is_complex else 1) + 4 * warps)


def polar_forward(V: Tensor, reals: int) -> tuple[Tensor, Tensor]:
    """Q, and on the device, which matrices were perturbed."""
    return newton_schulz.forward(completed, V, reals)


def polar_backward(gradient: Tensor, V: Tensor, Q: Tensor, perturbed: Tensor, reals: int) -> Tensor:
    """The gradient of V."""
    return newton_schulz.backward(adjoint, gradient, V, Q, perturbed, reals)


def completed(V: Tensor, reals: int) -> tuple[Tensor, Tensor]:
    """Q of contiguous matrices (b, m, n), orthonormal for every finite V, and which were perturbed."""
    return newton_schulz.completed_factor(iterate, V, reals)


def iterate(V: Tensor, reals: int) -> tuple[Tensor, Tensor]:
    """Q of contiguous matrices (b, m, n), and for each the norm of QᴴQ - I; nothing waits."""
    Q, residual = torch.empty_like(V), torch.empty(len(V), dtype=torch.float32, device=V.device)
    _launch("forward", (V, Q, residual), V, reals, STEPS)
    return Q, residual


def adjoint(G: Tensor, V: Tensor, Q: Tensor, reals: int) -> Tensor:
    """The gradient of contiguous matrices (b, m, n); nothing waits."""
    result = torch.empty_like(V)
    _launch("backward", (G, V, Q, result), V, reals, ADJOINT_STEPS)
    return result


def _launch(direction: str, tensors: tuple[Tensor, ...], V: Tensor, reals: int, steps: int) -> None:
    addresses = [tensor.data_ptr() for tensor in tensors]
    name = f"polar_on_chip_{direction}_{_NAMES[V.dtype]}"
    binding.launch(name, V.device, *addresses, *V.shape, reals, steps, FINE, TINY)
