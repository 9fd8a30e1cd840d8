"""Circular convolution as a product at each frequency."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastlip.kernels.spectral_conv.frequencies import Size, half_plane

# dtype.to_real() would stop torch.compile.
REAL = {torch.complex64: torch.float32, torch.complex128: torch.float64}


def spectral_conv(x: Tensor, Q: Tensor, bias: Tensor | None, fft_size: Size, groups: int) -> Tensor:
    """IDFT(Q DFT(x)) + bias at this FFT size, cropped to the size of x, in the precision of Q."""
    if x.shape[0] == 0:  # MKL has no transform of nothing
        return spectral_conv(F.pad(x, (0, 0, 0, 0, 0, 0, 0, 1)), Q, bias, fft_size, groups)[:0]
    height, width = x.shape[-2:]
    X = torch.fft.rfft2(x.to(REAL[Q.dtype]), s=fft_size)  # (n, cin, h, w // 2 + 1)
    X = X.flatten(-2).permute(2, 1, 0).unflatten(1, (groups, -1))  # (frequency, group, cin / groups, n)
    Y = half_plane(Q, fft_size).unflatten(1, (groups, -1)) @ X
    Y = Y.flatten(1, 2).permute(2, 1, 0).unflatten(2, (fft_size[0], -1))
    y = torch.fft.irfft2(Y, s=fft_size)[..., :height, :width]
    return y if bias is None else y + bias.to(y.dtype).view(-1, 1, 1)
