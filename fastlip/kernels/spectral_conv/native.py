"""spectral_conv in C++ (csrc/spectral_conv): complex64 and complex128, any image, fft_size and groups."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from fastlip.kernels.common import binding
from fastlip.kernels.common.binding import CPU
from fastlip.kernels.common.checks import VOLUMES
from fastlip.kernels.spectral_conv.api import ACTIVATIONS, dense, dense_format, empty_gradients, empty_images
from fastlip.kernels.spectral_conv.fixed import in_vectors
from fastlip.kernels.spectral_conv.frequencies import Size
from fastlip.kernels.spectral_conv.reference import REAL

binding.require()

_FORWARD = {torch.complex64: "spectral_conv_forward_float32", torch.complex128: "spectral_conv_forward_float64"}
_BACKWARD = {torch.complex64: "spectral_conv_backward_float32", torch.complex128: "spectral_conv_backward_float64"}
_FIXED = {torch.float32: "spectral_conv_fixed_float32", torch.float64: "spectral_conv_fixed_float64"}
_LANES = {torch.float32: "spectral_conv_lanes_float32", torch.float64: "spectral_conv_lanes_float64"}


def supports(x: Tensor, Q: Tensor, bias: Tensor | None, fft_size: Size, groups: int) -> str:
    """Empty, or why these kernels cannot run."""
    if len(fft_size) != 2:
        return VOLUMES
    if 0 in Q.shape:
        return "there are no channels"
    name = _FORWARD[Q.dtype]
    return "" if x.is_cpu and name in CPU else binding.missing(name, x.device)


def unprofitable(x: Tensor, Q: Tensor, bias: Tensor | None, fft_size: Size, groups: int) -> str:
    """Empty, or why the reference is faster."""
    if max(Q.shape[1] // groups, Q.shape[2]) <= 2:
        return "vectors across the channels of a group would be nearly empty"
    return ""


def spectral_conv_forward(
    x: Tensor, Q: Tensor, bias: Tensor | None, fft_size: Size, groups: int, bits: Tensor | None = None
) -> Tensor:
    """IDFT(Q DFT(x)) + bias in the memory format of x.

    Where there is memory for its ``bits``, MaxMin of that, in channels-last format: other layers of the network then
    read and write vectors of channels.
    """
    last, dtype = torch.contiguous_format, x.dtype
    if not x.is_contiguous() or x.dtype != REAL[Q.dtype]:
        x, last = _dense(x, Q), dense_format(x)
    Q, bias = Q.resolve_conj().contiguous(), bias if bias is None else bias.contiguous()
    n, cin, height, width = x.shape
    y_last = last if bits is None else torch.channels_last
    y = torch.empty((n, Q.shape[1], height, width), dtype=x.dtype, device=x.device, memory_format=y_last)
    sizes = (n, groups, cin, Q.shape[1], height, width, *fft_size)
    address = 0 if bias is None else bias.data_ptr()
    addresses = x.data_ptr(), Q.data_ptr(), address, y.data_ptr(), 0 if bits is None else bits.data_ptr()
    formats = last is torch.channels_last, y_last is torch.channels_last
    CPU[_FORWARD[Q.dtype]](*addresses, *sizes, *formats)
    return y.to(dtype)


def with_maxmin(x: Tensor, Q: Tensor, bias: Tensor | None, fft_size: Size) -> tuple[Tensor, Tensor]:
    """maxmin(IDFT(Q DFT(x)) + bias) of adjacent channels, and the bits that the backward reads; of one group."""
    n, _, height, width = x.shape
    bits = torch.empty((n, height, width, -(-Q.shape[1] // _lanes(x.dtype))), dtype=torch.uint8)
    return spectral_conv_forward(x, Q, bias, fft_size, 1, bits), bits


def spectral_conv_fixed(
    x: Tensor,
    panels: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    outputs: int,
    fft_size: Size,
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
    sizes = (n, inputs, outputs, height, width, *fft_size)
    x_channels_last = dense_format(images) is torch.channels_last
    CPU[_FIXED[x.dtype]](*pointers, factor, ACTIVATIONS[activation], *sizes, x_channels_last, channels_last)
    return y


def supports_fixed(x: Tensor) -> str:
    """Empty, or why these kernels cannot apply fixed matrices to x."""
    return "" if x.is_cpu else f"fixed matrices in C++ are applied on the CPU, got device {x.device}"


def panels(Q: Tensor, fft_size: Size) -> Tensor:
    """Q, (F, cout, cin), as these kernels read fixed matrices."""
    return in_vectors(Q, fft_size, _lanes(Q.real.dtype))


@cache
def _lanes(dtype: torch.dtype) -> int:
    """The channels of a vector."""
    count = torch.empty((), dtype=torch.int64)
    CPU[_LANES[dtype]](count.data_ptr())
    return int(count)


def spectral_conv_backward(
    gradient: Tensor,
    x: Tensor,
    Q: Tensor,
    fft_size: Size,
    groups: int,
    wanted: list[bool],
    bits: Tensor | None = None,
    of_cayley: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, Q and the bias; those that are not wanted are empty.

    ``bits``: of :func:`with_maxmin`. ``of_cayley``: Q = Cayley(M), and in place of the gradient of Q there is P, with
    which that of M is P - P^H; of one group.
    """
    images, gradient, Q = _dense(x, Q), _dense(gradient, Q), Q.resolve_conj().contiguous()
    results = empty_gradients(images, Q, wanted)
    n, cin, height, width = x.shape
    if n == 0:
        return results[0].to(x.dtype), results[1].zero_(), results[2].zero_()
    targets = (value.data_ptr() if want else 0 for value, want in zip(results, wanted, strict=True))
    sizes = (n, groups, cin, Q.shape[1], height, width, *fft_size)
    formats = (dense_format(value) is torch.channels_last for value in (gradient, images))
    addresses = gradient.data_ptr(), images.data_ptr(), Q.data_ptr(), 0 if bits is None else bits.data_ptr()
    CPU[_BACKWARD[Q.dtype]](*addresses, *targets, *sizes, *formats, of_cayley)
    return results[0].to(x.dtype), results[1], results[2]


def _dense(x: Tensor, Q: Tensor) -> Tensor:
    """x in the precision of Q, in a memory format that kernels read."""
    return dense(x, REAL[Q.dtype])
