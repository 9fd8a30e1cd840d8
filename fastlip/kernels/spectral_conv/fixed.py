"""The matrices of a fixed circular convolution, laid out once for the kernels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastlip.kernels.spectral_conv.frequencies import Size, own_frequencies


@dataclass(frozen=True)
class FixedSpectrum:
    """Matrices Q for one FFT size, in ``panels`` as the kernels of ``backend`` read them.

    ``"native"``: :func:`in_vectors`. ``"triton"``: :func:`in_planes`.
    """

    panels: Tensor
    inputs: int
    outputs: int
    fft_size: Size
    backend: str


def in_vectors(Q: Tensor, fft_size: Size, lanes: int) -> Tensor:
    """Q, (F, cout, cin) complex, as (rows, lanes) real, in vectors of ``lanes`` output channels.

    For each frequency, for each vector of output channels, for each input channel the vector of real parts, then that
    of imaginary parts unless the frequency is its own conjugate. That is one row for each pixel of the FFT size,
    vector of outputs, and input. Channels left over in the last vector are 0.
    """
    parts = F.pad(torch.view_as_real(Q.resolve_conj()), (0, 0, 0, 0, 0, -Q.shape[1] % lanes))
    panels = parts.unflatten(1, (-1, lanes)).permute(0, 1, 3, 4, 2)  # (F, vector, cin, part, lane)
    own = own_frequencies(fft_size)
    return torch.cat((panels[:own, :, :, 0].flatten(0, -2), panels[own:].flatten(0, -2)))


def in_planes(Q: Tensor) -> Tensor:
    """Q, (F, cout, cin) complex, as (2, F, cin, cout) real: neighbouring output channels are neighbours in memory."""
    return torch.view_as_real(Q.resolve_conj()).permute(3, 0, 2, 1).contiguous()
