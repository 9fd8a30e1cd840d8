"""The matrices of a fixed circular convolution, laid out once for the kernels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastlip.kernels.spectral_conv.frequencies import Size, own_frequencies


@dataclass(frozen=True)
class FixedSpectrum:
    """Matrices Q for one FFT size, in vectors of output channels.

    ``panels`` (rows, lanes), real: for each frequency, for each vector of output channels, for each input channel the
    vector of real parts, then that of imaginary parts unless the frequency is its own conjugate. That is one row for
    each pixel of the FFT size, vector of outputs, and input.
    """

    panels: Tensor
    inputs: int
    outputs: int
    fft_size: Size


def fix_spectrum(Q: Tensor, fft_size: Size, lanes: int) -> FixedSpectrum:
    """Q, (F, cout, cin) complex as in ``spectral_conv``, in vectors of ``lanes`` channels; those left over are 0."""
    _, outputs, inputs = Q.shape
    parts = F.pad(torch.view_as_real(Q.resolve_conj()), (0, 0, 0, 0, 0, -outputs % lanes))
    panels = parts.unflatten(1, (-1, lanes)).permute(0, 1, 3, 4, 2)  # (F, vector, cin, part, lane)
    own = own_frequencies(fft_size)
    rows = panels[:own, :, :, 0].flatten(0, -2), panels[own:].flatten(0, -2)
    return FixedSpectrum(torch.cat(rows), inputs, outputs, fft_size)
