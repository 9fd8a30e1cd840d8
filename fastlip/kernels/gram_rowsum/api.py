"""Weighted absolute row sums of the Gram operator of a weight: the rescaling of AOL and SLL layers."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastlip.kernels.common.checks import kind_of
from fastlip.kernels.common.dispatch import Op
from fastlip.kernels.common.literals import Backend
from fastlip.kernels.common.precision import for_convolution, full_precision
from fastlip.kernels.gram_rowsum import reference

TILE = 32  # channels per tile of the Gram matrix, as in csrc/gram_rowsum
OP = Op("gram_rowsum")


def gram_rowsum(weight: Tensor, psi: Tensor | None = None, groups: int = 1, *, backend: Backend = "auto") -> Tensor:
    r"""Returns the weighted absolute row sums of a weight's Gram operator, the rescaling of AOL and SLL layers.

    .. math:: r_i = \sum_{j, \delta} |v_{ij\delta}| \, e^{\psi_j - \psi_i}, \qquad
              v_{ij\delta} = \sum_{o, \tau} W_{oi\tau} W_{oj,\tau + \delta}

    v is the Gram operator of a convolution over its input channels (of a matrix: WᵀW), and j runs over the group of
    i. The convolution has σ² ≤ max_i r_i for every ψ, with zero or circular padding, whatever its stride and
    dilation, and W·r^{-1/2} is 1-Lipschitz (Prach, Lampert, *Almost-Orthogonal Layers*, ECCV 2022). For
    ``W.transpose(0, 1)`` the result is T = diag(r) of an SLL layer x − 2WᵀT⁻¹σ(Wx + b) (Araujo et al., *A Unified
    Algebraic Perspective on Lipschitz Neural Networks*, ICLR 2023).

    A term with v = 0 is 0 even if the exponential overflows, and |v| has derivative 0 at v = 0. A channel without
    weights has r = 0.

    Args:
        weight: (cout, cin / groups), or (cout, cin / groups, *kernel) with one to three spatial dimensions; any
            floating dtype and strides.
        psi: (cin,), the logarithm of the weights of the channels; default None: zeros.
        groups: number of groups of channels, a divisor of cout; default 1.
        backend: ``"auto"`` (default), ``"reference"``, ``"native"`` or ``"triton"``.

    Returns:
        r: (cin,), in float64 if weight or psi is float64, otherwise in float32.

    Raises:
        TypeError: weight or psi is not a floating-point tensor.
        ValueError: shapes, groups or devices do not fit, or the backend is unknown or cannot run here.

    >>> fastlip.ops.gram_rowsum(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    tensor([21., 28.])
    """
    return OPERATOR(*_checked(weight, psi, groups), groups, backend)


def _reference(weight: Tensor, psi: Tensor | None, groups: int) -> Tensor:
    # A bound must not be computed in less than fp32, whatever autocast and TF32 settings say.
    dtype, wide = weight.dtype, for_convolution(weight)
    return reference.gram_rowsum(wide, psi if psi is None else psi.to(wide.dtype), groups).to(dtype)


def _checked(weight: Tensor, psi: Tensor | None, groups: int) -> tuple[Tensor, Tensor | None]:
    """The tensors in the dtype of the result."""
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        got = kind_of(weight)
        raise TypeError(f"weight: got {got}, expected a floating-point tensor")
    if not 2 <= weight.dim() <= 5 or (weight.numel() == 0 and 0 in weight.shape[2:]):
        raise ValueError(
            f"weight: got shape {tuple(weight.shape)}, expected (cout, cin/groups) or (cout, cin/groups, *kernel)"
            " with one to three spatial dimensions, none of them empty"
        )
    if groups != 1 and (groups < 1 or weight.shape[0] % groups):
        raise ValueError(f"groups={groups}: allowed are the divisors of cout={weight.shape[0]}")
    if psi is None:
        return (weight if weight.dtype in (torch.float32, torch.float64) else weight.float()), None
    if not isinstance(psi, Tensor) or not psi.is_floating_point():
        raise TypeError(f"psi: got {kind_of(psi)}, expected a floating-point tensor")
    if psi.dim() != 1 or psi.shape[0] != groups * weight.shape[1]:
        raise ValueError(f"psi: got shape {tuple(psi.shape)}, expected ({groups * weight.shape[1]},)")
    if psi.device != weight.device:
        raise ValueError(f"psi: got device {psi.device}, expected weight's, {weight.device}")
    double = torch.float64 in (weight.dtype, psi.dtype)
    dtype = torch.float64 if double else torch.float32
    return weight.to(dtype), psi.to(dtype)


def sign_words(shape: torch.Size, groups: int) -> int:
    """32-bit words that keep the signs of v: two bit planes per tile of the upper triangle and offset δ.

    The diagonal tiles keep half the offsets; only the last tile of a group has fewer than TILE rows.
    """
    channels = shape[1]
    if channels == 0 or shape[0] == 0:
        return 0
    offsets = math.prod(2 * k - 1 for k in shape[2:])
    half = (offsets + 1) // 2
    tiles = (channels + TILE - 1) // TILE
    last = channels - (tiles - 1) * TILE
    full = (tiles - 1) * half + tiles * (tiles - 1) // 2 * offsets
    return groups * 2 * (full * TILE + half * last)


def _fake_forward(weight: Tensor, psi: Tensor | None, groups: int, backend: Backend) -> tuple[Tensor, Tensor]:
    r = weight.new_empty(groups * weight.shape[1])
    return r, weight.new_empty(sign_words(weight.shape, groups), dtype=torch.int32)


def _fake_backward(gradient: Tensor, weight: Tensor, psi: Tensor | None, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(weight), weight.new_empty(0 if psi is None else psi.shape[0])


def _gradients(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor, Tensor | None, None, None]:
    weight, signs, psi, r = (*ctx.saved_tensors, None, None)[:4]
    weight_gradient, psi_gradient = _backward.outputs(gradient, weight, psi, r, signs, *ctx.options)
    return weight_gradient, None if psi is None else psi_gradient, None, None


# gram_rowsum(weight, psi, groups, backend), of a weight and psi of one dtype, float32 or float64.
OPERATOR = OP.main(
    "gram_rowsum_forward(Tensor weight, Tensor? psi, int groups, str backend) -> (Tensor r, Tensor signs)",
    reference=_reference,
    precision=full_precision,
    fake=_fake_forward,
    saves=("weight", "signs", "psi if psi", "r if psi"),
    keeps=("groups", "backend"),
    backward=_gradients,
)
_backward = OP.define(
    "gram_rowsum_backward(Tensor gradient, Tensor weight, Tensor? psi, Tensor? r, Tensor signs, int groups,"
    " str backend) -> (Tensor, Tensor)",
    fake=_fake_backward,
)
