"""spectral_conv in C++ (csrc/spectral_conv): complex64 and complex128, any image, torus and groups."""

from __future__ import annotations

import torch
from torch import Tensor

from fastlip.kernels.common import binding
from fastlip.kernels.spectral_conv.api import ACTIVATIONS, dense_format, empty_gradients, empty_images
from fastlip.kernels.spectral_conv.frequencies import Size
from fastlip.kernels.spectral_conv.reference import REAL

binding.require()

_NAMES = {torch.complex64: "float32", torch.complex128: "float64"}
_DTYPES = {torch.float32: "float32", torch.float64: "float64"}


def supports(x: Tensor, Q: Tensor, bias: Tensor | None, torus: Size, groups: int) -> str:
    """Empty, or why these kernels cannot run."""
    if 0 in Q.shape:
        return "there are no channels"
    return binding.missing(f"spectral_conv_forward_{_NAMES[Q.dtype]}", x.device)


def unprofitable(x: Tensor, Q: Tensor, bias: Tensor | None, torus: Size, groups: int) -> str:
    """Empty, or why the reference is faster."""
    if max(Q.shape[1] // groups, Q.shape[2]) <= 2:
        return "vectors across the channels of a group would be nearly empty"
    return ""


def spectral_conv_forward(x: Tensor, Q: Tensor, bias: Tensor | None, torus: Size, groups: int) -> Tensor:
    """IDFT(Q DFT(x)) + bias."""
    x, Q = _dense(x, Q), Q.resolve_conj().contiguous()
    bias = bias if bias is None else bias.contiguous()
    n, cin, height, width = x.shape
    cout, last = Q.shape[1], dense_format(x)
    y = torch.empty((n, cout, height, width), dtype=x.dtype, device=x.device, memory_format=last)
    kernel = binding.kernel(f"spectral_conv_forward_{_NAMES[Q.dtype]}", x.device)
    sizes = (n, groups, cin, cout, height, width, *torus)
    address = 0 if bias is None else bias.data_ptr()
    kernel(x.data_ptr(), Q.data_ptr(), address, y.data_ptr(), *sizes, last is torch.channels_last)
    return y


def spectral_conv_fixed(
    x: Tensor,
    panels: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    outputs: int,
    torus: Size,
    activation: str,
    channels_last: bool,
    factor: float,
) -> Tensor:
    """activation(factor Q * x + bias), or of what it leaves of a residual."""
    images = x.contiguous(memory_format=dense_format(x))
    bias = bias if bias is None else bias.contiguous()
    y = empty_images(x, outputs, channels_last)
    if residual is not None:
        residual = residual.contiguous(memory_format=dense_format(y))
    n, inputs, height, width = x.shape
    pointers = (0 if tensor is None else tensor.data_ptr() for tensor in (images, panels, bias, residual, y))
    sizes = (n, inputs, outputs, height, width, *torus)
    kernel = binding.kernel(f"spectral_conv_fixed_{_DTYPES[x.dtype]}", x.device)
    x_channels_last = dense_format(images) is torch.channels_last
    kernel(*pointers, factor, ACTIVATIONS[activation], *sizes, x_channels_last, channels_last)
    return y


def lanes(dtype: torch.dtype) -> int:
    """How many channels of a real dtype make one vector of the kernels."""
    count = torch.empty((), dtype=torch.int64)
    binding.kernel(f"spectral_conv_lanes_{_DTYPES[dtype]}", count.device)(count.data_ptr())
    return int(count)


def spectral_conv_backward(
    gradient: Tensor, x: Tensor, Q: Tensor, torus: Size, groups: int, wanted: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, Q and the bias; those that are not wanted are empty."""
    images, gradient, Q = _dense(x, Q), _dense(gradient, Q), Q.resolve_conj().contiguous()
    results = empty_gradients(images, Q, wanted)
    n, cin, height, width = x.shape
    if n == 0:
        return results[0].to(x.dtype), results[1].zero_(), results[2].zero_()
    kernel = binding.kernel(f"spectral_conv_backward_{_NAMES[Q.dtype]}", x.device)
    targets = (value.data_ptr() if want else 0 for value, want in zip(results, wanted, strict=True))
    sizes = (n, groups, cin, Q.shape[1], height, width, *torus)
    formats = (dense_format(value) is torch.channels_last for value in (gradient, images))
    kernel(gradient.data_ptr(), images.data_ptr(), Q.data_ptr(), *targets, *sizes, *formats)
    return results[0].to(x.dtype), results[1], results[2]


def _dense(x: Tensor, Q: Tensor) -> Tensor:
    """x in the precision of Q, in a memory format that kernels read."""
    return x.to(REAL[Q.dtype]).contiguous(memory_format=dense_format(x))
