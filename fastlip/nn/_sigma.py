"""The norm sigma of a convolution for CPL: an upper bound by Gram iteration, and a power iteration for training."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastlip.kernels.common import gram
from fastlip.kernels.common.fourier import plane_angles
from fastlip.kernels.common.geometry import ConvGeometry
from fastlip.kernels.common.literals import PaddingMode
from fastlip.kernels.sdp_residual.reference import adjoint

# Frequencies per axis and unit of the kernel's degree: at 17, sampling loses less than 1 % of sigma.
_DENSITY = 17
# Of the FFT size at which the power iteration runs, per unit of the kernel's degree; and its steps at initialisation.
POWER_DENSITY = 6
POWER_STEPS = 10


def squared_norm_bound(weight: Tensor, sides: tuple[int, ...], groups: int) -> Tensor:
    """Upper bound of sigma^2 of each group's kernel over the frequencies of an FFT size, by Gram iteration.

    weight is (m, c / groups, kh, kw), or of volumes (m, c / groups, kd, kh, kw). Differentiable, with the gradient of
    the bound at the frequency that attains it.
    """
    size = weight.detach().abs().amax()
    taps = (weight / torch.where(size > 0, size, 1)).flatten(2).unflatten(0, (groups, -1))  # [g, m, c, t]
    waves = _waves(sides, tuple(weight.shape[2:]), weight)
    with torch.no_grad():
        real, imaginary = (torch.einsum("gmct,ft->fgmc", taps, wave) for wave in waves)
        every = gram.squared_norm_bound(real, imaginary)
        largest, worst = every.max(0)
    real, imaginary = (torch.einsum("gmct,gt->gmc", taps, wave[worst]) for wave in waves)
    bound = gram.norm_bound(torch.complex(real, imaginary)).square()
    rounding = 1 + (16 + taps.shape[-1] + taps.shape[-2]) * torch.finfo(bound.dtype).eps
    # The value is that of the comparison, whatever its last bits are at the worst frequency alone.
    return (bound + (largest - bound).detach().clamp_min(0)) * (size * size * rounding)


def _waves(sides: tuple[int, ...], kernel_size: tuple[int, ...], like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of k tau for half of the frequencies k and all taps tau: two matrices [f, t]."""
    lines = [torch.arange(count, device=like.device) for count in (*sides[:-1], sides[-1] // 2 + 1)]
    positions = [torch.arange(taps, device=like.device) for taps in kernel_size]
    angles = plane_angles(torch.cartesian_prod(*lines), positions, sides)
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def frequencies(side: int, kernel_size: int, dilation: int, padding_mode: PaddingMode) -> tuple[int, float]:
    """Along one axis, how many frequencies to look at, and how much sigma^2 may be larger in between.

    Circular: those of the image, exactly. Zeros: the convolution is a part of the circular one at an FFT
    size of this side. Dilation visits some frequencies of the undilated kernel at the same size. Never more than N =
    17 (kernel_size - 1): |W(f) v|^2 = p(f) is a trigonometric polynomial of degree d = kernel_size - 1 with
    values in [0, M], and p - M/2 falls from its maximum no faster than cos(d f) (M. Riesz), so that one of N
    equidistant samples is at least M cos^2(pi d / 2N).
    """
    degree = kernel_size - 1
    if degree == 0:
        return 1, 1.0
    samples, fft_size = _DENSITY * degree, fft_side(side, degree, dilation, padding_mode)
    if fft_size <= samples:
        return fft_size, 1.0
    return samples, 1 / math.cos(math.pi * degree / (2 * samples)) ** 2


def fft_side(side: int, degree: int, dilation: int, padding_mode: PaddingMode) -> int:
    """One side of the smallest FFT size at which a circular convolution contains the layer's."""
    return max(1, side if padding_mode == "circular" else side + -(-dilation * degree // 2))


@torch.no_grad()
def power_step(weight: Tensor, vector: Tensor, groups: int) -> Tensor:
    """W^T W v / |W^T W v| for each group's v, (groups, c / groups, h, w); a v that W maps to 0 stays."""
    geometry = ConvGeometry.like(weight, (1,) * (weight.dim() - 2), groups, "circular")
    image = adjoint(_convolve(weight, vector), weight, geometry).reshape_as(vector)
    norm = torch.linalg.vector_norm(image, dim=tuple(range(1, vector.dim())), keepdim=True)
    return torch.where(norm > 0, image / torch.where(norm > 0, norm, 1), vector)


def squared_norm_at(weight: Tensor, vector: Tensor) -> Tensor:
    """|W v|^2 of each group, with its gradient for W: sigma^2 from below, for a v of norm 1 at its FFT size."""
    return _convolve(weight, vector).reshape(len(vector), -1).square().sum(1)


def _convolve(weight: Tensor, vector: Tensor) -> Tensor:
    geometry = ConvGeometry.like(weight, (1,) * (weight.dim() - 2), len(vector), "circular")
    return geometry.convolve(vector.flatten(0, 1)[None], weight)


def is_recomputed() -> bool:
    """Whether this forward runs inside a backward: activation checkpointing repeats one that has run."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
