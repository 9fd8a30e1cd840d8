"""The polar factors of a kernel's matrices, from the spectrum."""

from __future__ import annotations

from torch import Tensor

from fastlip.kernels.common.literals import Backend
from fastlip.kernels.polar.api import polar
from fastlip.kernels.spectral_conv.frequencies import Size, kernel_spectrum, own_frequencies


def spectral_polar(weight: Tensor, size: Size, dilation: Size, groups: int, backend: Backend) -> Tensor:
    """Q_k = V_k (V_kᴴ V_k)^{-1/2} of the matrices V_k of each group, (F, cout, cin / groups)."""
    spectrum = kernel_spectrum(weight, size, dilation).unflatten(1, (groups, -1))
    return polar(spectrum, own_frequencies(size), backend=backend).flatten(1, 2)
