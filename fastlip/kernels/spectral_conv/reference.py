"""Circular convolution as a product at each frequency."""

from __future__ import annotations

import torch
from torch import Tensor

from fastlip.kernels.spectral_conv.frequencies import Size, half_plane

# dtype.to_real() would stop torch.compile.
REAL = {torch.complex64: torch.float32, torch.complex128: torch.float64}


def spectral_conv(x: Tensor, Q: Tensor, bias: Tensor | None, fft_size: Size, groups: int) -> Tensor:
    """IDFT(Q DFT(x)) + bias at this FFT size, cropped to the size of x; computed in the precision of Q."""
    if x.shape[0] == 0:  # MKL has no transform of nothing
        return spectral_conv(torch.cat((x, x.new_zeros(1, *x.shape[1:]))), Q, bias, fft_size, groups)[:0]
    axes = tuple(range(-len(fft_size), 0))
    X = torch.fft.rfftn(x.to(REAL[Q.dtype]), s=fft_size, dim=axes).flatten(2)  # (n, cin, frequencies of rfftn)
    X = X.permute(2, 1, 0).unflatten(1, (groups, -1))  # (frequency, group, cin / groups, n)
    Y = half_plane(Q, fft_size).unflatten(1, (groups, -1)) @ X
    Y = Y.flatten(1, 2).permute(2, 1, 0).unflatten(2, (*fft_size[:-1], -1))
    y = torch.fft.irfftn(Y, s=fft_size, dim=axes)
    for axis in axes:
        y = y.narrow(axis, 0, x.shape[axis])
    y = y if bias is None else y + bias.to(y.dtype).view(-1, *[1] * len(fft_size))
    return y.to(x.dtype)
