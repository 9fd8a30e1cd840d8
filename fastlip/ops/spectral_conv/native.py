"""spectral_conv in C++ (csrc/spectral_conv): complex64 and complex128, any image, torus and groups."""

from __future__ import annotations

import torch
from torch import Tensor

from fastlip.ops import _native
from fastlip.ops.spectral_conv import dense_format, empty_gradients
from fastlip.ops.spectral_conv.frequencies import Size
from fastlip.ops.spectral_conv.reference import REAL

_native.require()

_NAMES = {torch.complex64: "float32", torch.complex128: "float64"}


def supports(x: Tensor, Q: Tensor, bias: Tensor | None, torus: Size, groups: int) -> str:
    """Empty, or why these kernels cannot run."""
    if 0 in Q.shape:
        return "there are no channels"
    return _native.missing(f"spectral_conv_forward_{_NAMES[Q.dtype]}", x.device.type)


def unprofitable(x: Tensor, Q: Tensor, bias: Tensor | None, torus: Size, groups: int) -> str:
    """Empty, or why the reference is faster."""
    if max(Q.shape[1] // groups, Q.shape[2]) <= 2:
        return "vectors across the channels of a group would be nearly empty"
    return ""


def spectral_conv_forward(x: Tensor, Q: Tensor, bias: Tensor | None, torus: Size, groups: int) -> Tensor:
    """IDFT(Q DFT(x)) + bias."""
    return _forward(x, Q, bias, torus, groups, dense_format(x), sorts=False)


def spectral_conv_maxmin(x: Tensor, Q: Tensor, bias: Tensor | None, torus: Size, groups: int) -> Tensor:
    """The same in channels-last, neighbouring channels in descending order: one group, an even number of them."""
    return _forward(x, Q, bias, torus, groups, torch.channels_last, sorts=True)


def _forward(
    x: Tensor,
    Q: Tensor,
    bias: Tensor | None,
    torus: Size,
    groups: int,
    memory_format: torch.memory_format,
    *,
    sorts: bool,
) -> Tensor:
    x, Q = _dense(x, Q), Q.resolve_conj().contiguous()
    bias = bias if bias is None else bias.contiguous()
    n, cin, height, width = x.shape
    y = torch.empty((n, Q.shape[1], height, width), dtype=x.dtype, device=x.device, memory_format=memory_format)
    kernel = _native.kernel(f"spectral_conv_forward_{_NAMES[Q.dtype]}", x.device.type)
    sizes = (n, groups, cin, Q.shape[1], height, width, *torus)
    formats = (value is torch.channels_last for value in (dense_format(x), memory_format))
    address = 0 if bias is None else bias.data_ptr()
    kernel(x.data_ptr(), Q.data_ptr(), address, y.data_ptr(), *sizes, *formats, sorts)
    return y


def spectral_conv_backward(
    gradient: Tensor, x: Tensor, Q: Tensor, torus: Size, groups: int, wanted: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, Q and the bias; those that are not wanted are empty."""
    images, gradient, Q = _dense(x, Q), _dense(gradient, Q), Q.resolve_conj().contiguous()
    results = empty_gradients(images, Q, wanted)
    n, cin, height, width = x.shape
    if n == 0:
        return results[0].to(x.dtype), results[1].zero_(), results[2].zero_()
    kernel = _native.kernel(f"spectral_conv_backward_{_NAMES[Q.dtype]}", x.device.type)
    targets = (value.data_ptr() if want else 0 for value, want in zip(results, wanted, strict=True))
    sizes = (n, groups, cin, Q.shape[1], height, width, *torus)
    formats = (dense_format(value) is torch.channels_last for value in (gradient, images))
    kernel(gradient.data_ptr(), images.data_ptr(), Q.data_ptr(), *targets, *sizes, *formats)
    return results[0].to(x.dtype), results[1], results[2]


def _dense(x: Tensor, Q: Tensor) -> Tensor:
    """x in the precision of Q, in a memory format that kernels read."""
    return x.to(REAL[Q.dtype]).contiguous(memory_format=dense_format(x))
