"""Polar factors of a convolution's matrices, one per frequency, from the kernel's taps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastlip.kernels.common.dispatch import Op
from fastlip.kernels.common.literals import Backend
from fastlip.kernels.common.precision import full_precision
from fastlip.kernels.spectral_conv.frequencies import COMPLEX, Size, count_frequencies
from fastlip.kernels.spectral_polar import reference

OP = Op("spectral_polar", backends=("native", "triton"))


def spectral_polar(
    weight: Tensor, size: Size, dilation: Size | None = None, groups: int = 1, *, backend: Backend = "auto"
) -> Tensor:
    r"""Returns the polar factors of the matrices by which a circular convolution acts, one per frequency.

    .. math:: Q_k = V_k (V_k^H V_k)^{-1/2}, \qquad V_k = \sum_\tau W_\tau e^{2\pi i \langle k, p(\tau) \rangle}

    It is LOT's orthogonal convolution (Xu, Li, Li, *LOT: Layer-wise Orthogonal Training on Improving l2 Certified
    Robustness*, NeurIPS 2022). The result equals ``fastlip.ops.polar`` of ``fastlip.ops.kernel_spectrum(weight, size,
    dilation)``, group by group and real at self-conjugate frequencies. The kernels save the weight and Q, which
    ``spectral_conv`` saves as well.

    Args:
        weight: (cout, cin / groups, kh, kw), float32 or float64; of volumes (cout, cin / groups, kd, kh, kw).
        size: FFT size, the (h, w) of the circular image; of volumes (d, h, w).
        dilation: distance between two taps, (vertical, horizontal); default None: 1 along each axis.
        groups: number of groups of channels, as in ``torch.nn.functional.conv2d``; default 1.
        backend: ``"auto"`` (default), ``"reference"``, ``"native"`` or ``"triton"``.

    Returns:
        Q: (F, cout, cin / groups), complex, at the unique frequencies, as ``fastlip.ops.spectral_conv`` takes it.

    Raises:
        TypeError: weight is not of float32 or float64.
        ValueError: weight is empty or does not have four or five dimensions, sizes do not fit it, groups do not
            divide its rows, or the backend is unknown or cannot run here.

    >>> Q = fastlip.ops.spectral_polar(torch.randn(3, 3, 3, 3), (4, 4))
    >>> Q.shape, bool(torch.allclose(Q.mH @ Q, torch.eye(3, dtype=Q.dtype), atol=1e-5))
    (torch.Size([10, 3, 3]), True)
    """
    if weight.dtype not in COMPLEX:
        raise TypeError(f"weight: got {weight.dtype}, allowed are {', '.join(map(str, COMPLEX))}")
    if weight.dim() not in (4, 5) or 0 in weight.shape or weight.shape[0] % groups:
        raise ValueError(
            f"weight: got shape {tuple(weight.shape)}, expected (cout, cin / groups, kh, kw) or (cout, cin / groups, "
            f"kd, kh, kw), groups={groups}"
        )
    axes = weight.dim() - 2
    dilation = dilation or (1,) * axes
    for name, value in (("size", size), ("dilation", dilation)):
        if len(value) != axes:
            raise ValueError(f"{name}={value!r}: expected {axes} ints for weight of shape {tuple(weight.shape)}")
    return OPERATOR(weight, size, dilation, groups, backend)


def _fake(weight: Tensor, size: Size, dilation: Size, groups: int, backend: Backend) -> tuple[Tensor, Tensor]:
    frequencies = count_frequencies(size)
    perturbed = weight.new_empty(groups * frequencies if backend == "triton" else 0, dtype=torch.bool)
    return weight.new_empty((frequencies, *weight.shape[:2]), dtype=COMPLEX[weight.dtype]), perturbed


def _fake_backward(gradient: Tensor, Q: Tensor, perturbed: Tensor, weight: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(weight, memory_format=torch.contiguous_format)


def _gradient(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Any, ...]:
    return _backward.outputs(gradient, *ctx.saved_tensors, *ctx.options), None, None, None, None


# spectral_polar(weight, size, dilation, groups, backend).
OPERATOR = OP.main(
    "spectral_polar_forward(Tensor weight, int[] size, int[] dilation, int groups, str backend) -> (Tensor Q, Tensor"
    " perturbed)",
    reference=reference.spectral_polar,
    precision=full_precision,
    nested=True,
    fake=_fake,
    saves=("Q", "perturbed", "weight"),
    keeps=("size", "dilation", "groups", "backend"),
    backward=_gradient,
)
_backward = OP.define(
    "spectral_polar_backward(Tensor gradient, Tensor Q, Tensor perturbed, Tensor weight, int[] size, int[] dilation,"
    " int groups, str backend) -> Tensor",
    fake=_fake_backward,
)
