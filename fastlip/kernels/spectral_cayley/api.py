"""Cayley transforms of a convolution's matrices, one per frequency, from the kernel's taps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastlip.kernels.common.checks import kind_of
from fastlip.kernels.common.dispatch import Op
from fastlip.kernels.common.fourier import Size, count_frequencies
from fastlip.kernels.common.literals import Backend
from fastlip.kernels.common.precision import full_precision
from fastlip.kernels.spectral_cayley import reference
from fastlip.kernels.spectral_conv.frequencies import COMPLEX

OP = Op("spectral_cayley", backends=("native",))


def spectral_cayley(
    weight: Tensor, fft_size: Size, dilation: Size | None = None, groups: int = 1, *, backend: Backend = "auto"
) -> Tensor:
    r"""Returns the Cayley transforms of the matrices by which a circular convolution acts, one per frequency.

    .. math:: Q_k = \mathrm{Cayley}(V_k), \qquad V_k = \sum_\tau W_\tau e^{2\pi i \langle k, p(\tau) \rangle}

    The result equals ``fastlip.ops.cayley`` of ``fastlip.ops.kernel_spectrum(weight, fft_size, dilation)``, group by
    group. It is the orthogonal convolution of Trockman, Kolter, *Orthogonalizing Convolutional Layers with the
    Cayley Transform*, ICLR 2021. The kernels save the weight and, for square matrices, Q, which ``spectral_conv``
    saves as well.

    Args:
        weight: (cout, cin / groups, kh, kw), float32 or float64; of volumes (cout, cin / groups, kd, kh, kw).
        fft_size: (h, w) of the circular image; of volumes (d, h, w).
        dilation: distance between two taps, (vertical, horizontal); default None: 1 along each axis.
        groups: number of groups of channels, as in ``torch.nn.functional.conv2d``; default 1.
        backend: ``"auto"`` (default), ``"reference"``, ``"native"`` (images only), or another backend of ``cayley``,
            which then transforms the spectrum.

    Returns:
        Q: (F, cout, cin / groups), complex, at the unique frequencies, as ``fastlip.ops.spectral_conv`` takes it.

    Raises:
        TypeError: weight is not of float32 or float64.
        ValueError: weight is empty or does not have four or five dimensions, sizes do not fit it, groups do not
            divide its rows, or the backend is unknown or cannot run here.

    >>> Q = fastlip.ops.spectral_cayley(torch.randn(3, 3, 3, 3), (4, 4))
    >>> Q.shape, bool(torch.allclose(Q.mH @ Q, torch.eye(3, dtype=Q.dtype), atol=1e-5))
    (torch.Size([10, 3, 3]), True)
    """
    if getattr(weight, "dtype", None) not in COMPLEX:
        got = kind_of(weight)
        raise TypeError(f"weight: got {got}, allowed are tensors of {', '.join(map(str, COMPLEX))}")
    if weight.dim() not in (4, 5) or 0 in weight.shape or weight.shape[0] % groups:
        raise ValueError(
            f"weight: got shape {tuple(weight.shape)}, expected (cout, cin / groups, kh, kw) or (cout, cin / groups, "
            f"kd, kh, kw), groups={groups}"
        )
    axes = weight.dim() - 2
    dilation = dilation or (1,) * axes
    for name, value in (("fft_size", fft_size), ("dilation", dilation)):
        if len(value) != axes:
            raise ValueError(f"{name}={value!r}: expected {axes} ints for weight of shape {tuple(weight.shape)}")
    return OPERATOR(weight, fft_size, dilation, groups, backend)


def _fake_forward(
    weight: Tensor, fft_size: Size, dilation: Size, groups: int, backend: Backend
) -> tuple[Tensor, Tensor]:
    frequencies, (rows, columns) = count_frequencies(fft_size), weight.shape[:2]
    smaller = min(rows // groups, columns)
    inverses = 0 if rows == groups * columns else (frequencies, groups, smaller, smaller)
    dtype = COMPLEX[weight.dtype]
    return weight.new_empty((frequencies, rows, columns), dtype=dtype), weight.new_empty(inverses, dtype=dtype)


def _fake_backward(gradient: Tensor, weight: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(weight, memory_format=torch.contiguous_format)


def _gradient(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Any, ...]:
    weight, Q, B = (*ctx.saved_tensors, None)[:3]
    return _backward.outputs(gradient, weight, Q, B, *ctx.options), None, None, None, None


# spectral_cayley(weight, fft_size, dilation, groups, backend).
OPERATOR = OP.main(
    "spectral_cayley_forward(Tensor weight, int[] fft_size, int[] dilation, int groups, str backend)"
    " -> (Tensor Q, Tensor B)",
    reference=reference.spectral_cayley,
    precision=full_precision,
    nested=True,
    fake=_fake_forward,
    saves=("weight", "Q unless B", "B if B"),
    keeps=("fft_size", "dilation", "groups", "backend"),
    backward=_gradient,
)
_backward = OP.define(
    "spectral_cayley_backward(Tensor gradient, Tensor weight, Tensor? Q, Tensor? B, int[] fft_size, int[] dilation,"
    " int groups, str backend) -> Tensor",
    fake=_fake_backward,
)
