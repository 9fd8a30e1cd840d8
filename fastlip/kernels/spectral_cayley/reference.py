"""The Cayley transforms of a kernel's matrices, from the spectrum."""

from __future__ import annotations

from torch import Tensor

from fastlip.kernels.cayley.api import cayley
from fastlip.kernels.common.fourier import Size
from fastlip.kernels.common.literals import Backend
from fastlip.kernels.spectral_conv.frequencies import kernel_spectrum


def spectral_cayley(weight: Tensor, fft_size: Size, dilation: Size, groups: int, backend: Backend) -> Tensor:
    """Q_k = Cayley(V_k) of the matrices V_k of each group, (F, cout, cin / groups)."""
    spectrum = kernel_spectrum(weight, fft_size, dilation).unflatten(1, (groups, -1))
    return cayley(spectrum, backend=backend).flatten(1, 2)
