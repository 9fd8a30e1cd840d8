"""block_conv by torch's matrix products, one for all taps of a factor, and one pass between two (csrc/block_conv).

The backward recomputes the partial kernels. On devices without these passes they are torch's too.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastlip.ops import _native
from fastlip.ops._precision import without_autocast

_native.require()

_NAMES = {
    torch.float32: ("float32", 1),
    torch.float64: ("float64", 1),
    torch.complex64: ("float32", 2),
    torch.complex128: ("float64", 2),
}


def supports(kernel: Tensor, projectors: Tensor, axes: Sequence[int]) -> str:
    """Empty, or why these products cannot run."""
    if kernel.device.type == "meta":
        return "no products on the meta device"
    if kernel.dtype.itemsize < 4:
        return f"sixteen-bit products are not exact enough for {kernel.dtype}"
    return _native.missing("block_conv_longer_float32", kernel.device) if kernel.device.type == "cpu" else ""


def unprofitable(kernel: Tensor, projectors: Tensor, axes: Sequence[int]) -> str:
    """Empty, or why the reference is faster (README.md, "Native")."""
    if torch.compiler.is_compiling():
        return "the compiler makes faster code of the reference"
    return "" if axes and kernel.numel() else "there is nothing to multiply"


def block_conv_forward(kernel: Tensor, projectors: Tensor, axes: Sequence[int]) -> Tensor:
    """The kernel (..., kh, kw, m, c)."""
    with without_autocast(kernel.device):
        *_, K = _partial_kernels(kernel, projectors, axes)
        return _new(K, axes).reshape(*kernel.shape[:-4], *K.shape[1:])


def block_conv_backward(
    gradient: Tensor, kernel: Tensor, projectors: Tensor, axes: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """The gradients of the kernel and of the projectors."""
    with without_autocast(kernel.device):
        last = len(axes) - 1
        kernels = _partial_kernels(kernel, projectors[..., :last, :, :], axes[:last]) if axes else []
        matrices = _batched(projectors, 3)
        G = _plain(_batched(gradient, 4))
        for_projectors = torch.empty_like(matrices, memory_format=torch.contiguous_format)
        for i in reversed(range(len(axes))):
            K = kernels.pop()
            D, G = _shorter(G, axes[i])
            columns = D.flatten(1, 3)
            for_projectors[:, i] = torch.bmm(K.flatten(1, 3).mH, columns)
            G.flatten(1, 3).baddbmm_(columns, matrices[:, i].mH)
        return _new(G, axes).reshape(kernel.shape), for_projectors.reshape(projectors.shape)


def _partial_kernels(kernel: Tensor, projectors: Tensor, axes: Sequence[int]) -> list[Tensor]:
    """The kernels (b, h, w, m, c) before the first factor and after each."""
    kernels = [_plain(_batched(kernel, 4))]
    for P, axis in zip(_batched(projectors, 3).unbind(1), axes, strict=True):
        K = kernels[-1]
        kernels.append(_longer(K, torch.bmm(K.flatten(1, 3), P), axis))
    return kernels


def _longer(K: Tensor, KP: Tensor, axis: int) -> Tensor:
    """[K P, 0] + [0, K - K P] along the axis, K P given."""
    if K.device.type != "cpu":
        KP = KP.view_as(K)
        longer = F.pad(KP, (0, 0, 0, 0, 0, axis, 0, 1 - axis))
        longer.narrow(1 + axis, 1, K.shape[1 + axis]).add_(K - KP)
        return longer
    longer = K.new_empty(_with_taps(K, axis, 1))
    _launch("block_conv_longer", K, axis, K, KP, longer)
    return longer


def _shorter(G: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """What meets K P less what meets K - K P, and a copy of the latter."""
    if G.device.type != "cpu":
        to_product, to_rest = (G.narrow(1 + axis, start, G.shape[1 + axis] - 1) for start in (0, 1))
        return to_product - to_rest, to_rest.clone(memory_format=torch.contiguous_format)
    D = G.new_empty(_with_taps(G, axis, -1))
    rest = torch.empty_like(D)
    _launch("block_conv_shorter", D, axis, G, D, rest)
    return D, rest


def _with_taps(K: Tensor, axis: int, more: int) -> tuple[int, ...]:
    b, height, width, m, c = K.shape
    return (b, height, width + more, m, c) if axis else (b, height + more, width, m, c)


def _launch(name: str, shorter: Tensor, axis: int, *tensors: Tensor) -> None:
    kind, parts = _NAMES[shorter.dtype]
    b, height, width, m, c = shorter.shape
    sizes = (b * height, width, parts * m * c) if axis else (b, height, parts * width * m * c)
    _native.launch(f"{name}_{kind}", shorter.device, *(tensor.data_ptr() for tensor in tensors), *sizes)


def _new(tensor: Tensor, axes: Sequence[int]) -> Tensor:
    """Without factors a copy: an operator's output is never its input."""
    return tensor if axes else tensor.clone(memory_format=torch.contiguous_format)


def _batched(tensor: Tensor, dims: int) -> Tensor:
    """All leading dimensions, or none, as one."""
    count = tensor.shape[:-dims].numel()
    return tensor.reshape(count, *tensor.shape[-dims:])


def _plain(tensor: Tensor) -> Tensor:
    """Contiguous numbers as they are in memory, no conjugation or sign left to be done by who reads them."""
    return tensor.contiguous().resolve_conj().resolve_neg()
