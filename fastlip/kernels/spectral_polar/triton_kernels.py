"""spectral_polar by polar's iterations, in CUDA C++ where matrices fit on the chip, else in Triton: nothing waits."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastlip.kernels.polar import on_cuda
from fastlip.kernels.polar import triton_kernels as polar
from fastlip.kernels.polar.newton_schulz import completed_adjoint
from fastlip.kernels.spectral_conv.frequencies import Size, kernel_spectrum, kernel_spectrum_adjoint, own_frequencies

AOT = [entry for entry in polar.AOT if entry.constants.get("COMPLEX")]


def supports(weight: Tensor, *_: Any) -> str:
    """Empty, or why these kernels cannot run."""
    return polar.supports(weight, 0)


def spectral_polar_forward(weight: Tensor, size: Size, dilation: Size, groups: int) -> tuple[Tensor, Tensor]:
    """The factors at each frequency, and which were perturbed."""
    V, reals = _matrices(kernel_spectrum(weight, size, dilation), groups), groups * own_frequencies(size)
    Q, perturbed = (on_cuda if _is_on_chip(V) else polar).completed(V, reals)
    return Q.view(-1, *weight.shape[:2]), perturbed


def spectral_polar_backward(
    gradient: Tensor, Q: Tensor, perturbed: Tensor, weight: Tensor, size: Size, dilation: Size, groups: int
) -> Tensor:
    """The gradient of the weight, whose matrices are computed again."""
    V = _matrices(kernel_spectrum(weight, size, dilation), groups)
    adjoint = (on_cuda if _is_on_chip(V) else polar).adjoint
    G, factors, reals = _matrices(gradient, groups), _matrices(Q, groups), groups * own_frequencies(size)
    of_spectrum = completed_adjoint(adjoint, G, V, factors, perturbed, reals)
    return kernel_spectrum_adjoint(of_spectrum.view(-1, *weight.shape[:2]), weight.shape, size, dilation)


def _is_on_chip(V: Tensor) -> bool:
    """Whether the kernels in CUDA C++ run."""
    return V.is_cuda and len(V) > 0 and not on_cuda.supports(V, 0)


def _matrices(spectrum: Tensor, groups: int) -> Tensor:
    """(F groups, cout / groups, cin / groups), contiguous numbers as they are in memory."""
    flat = spectrum.unflatten(1, (groups, -1)).flatten(0, 1)
    return flat.contiguous().resolve_conj().resolve_neg()
