"""spectral_polar by polar's kernels in C++ (csrc/polar): single and double precision."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastlip.kernels.common import binding
from fastlip.kernels.polar.on_cpu import adjoints, factors
from fastlip.kernels.polar.on_cpu import supports as polar_supports
from fastlip.kernels.spectral_conv.frequencies import Size, kernel_spectrum, kernel_spectrum_adjoint, own_frequencies

binding.require()

KERNELS = "polar_"


def supports(weight: Tensor, *_: Any) -> str:
    """Empty, or why these kernels cannot run."""
    return polar_supports(weight, 0)


def spectral_polar_forward(weight: Tensor, size: Size, dilation: Size, groups: int) -> tuple[Tensor, Tensor]:
    """The factors at each frequency; none is perturbed."""
    V = _spectrum(weight, size, dilation, groups)
    Q = torch.empty_like(V)
    for part in _parts(size):
        Q[part] = factors(_matrices(V, part))[0]
    return Q.flatten(1, 2), weight.new_empty(0, dtype=torch.bool)


def spectral_polar_backward(
    gradient: Tensor, Q: Tensor, perturbed: Tensor, weight: Tensor, size: Size, dilation: Size, groups: int
) -> Tensor:
    """The gradient of the weight, whose matrices are computed again."""
    V = _spectrum(weight, size, dilation, groups)
    gradient, Q = gradient.unflatten(1, (groups, -1)), Q.unflatten(1, (groups, -1))
    of_spectrum = torch.empty_like(V)
    for part in _parts(size):
        of_spectrum[part] = adjoints(*(_matrices(tensor, part) for tensor in (gradient, V, Q)))
    return kernel_spectrum_adjoint(of_spectrum.flatten(1, 2), weight.shape, size, dilation)


def _spectrum(weight: Tensor, size: Size, dilation: Size, groups: int) -> Tensor:
    return kernel_spectrum(weight, size, dilation).unflatten(1, (groups, -1))


def _parts(size: Size) -> tuple[slice, slice]:
    """The self-conjugate frequencies, and the others."""
    own = own_frequencies(size)
    return slice(own), slice(own, None)


def _matrices(tensor: Tensor, part: slice) -> Tensor:
    """Real ones of the self-conjugate frequencies."""
    return tensor[part].real if part.start is None else tensor[part]
