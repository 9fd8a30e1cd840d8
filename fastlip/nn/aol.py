"""AOL: almost-orthogonal layers (Prach, Lampert, ECCV 2022)."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fastlip import ops
from fastlip.kernels.common.literals import Backend
from fastlip.nn._base import MatrixLinear, as_it_runs, at_least_float32, check_nonnegative, decomposed_dtype
from fastlip.nn._conv import KernelConv2d
from fastlip.nn.method import Method

# r is a sum of products, rounded at each step: enlarged by this many roundings, P stays within norm 1.
# Tensor cores do not round their sums but cut them off, which makes 3xTF32 sums of squares too small.
_ROUNDINGS, _ROUNDINGS_ON_GPU = 2, 8


def channel_scale(weight: Tensor, groups: int, epsilon: float, backend: Backend) -> Tensor:
    """(r + epsilon)^{-1/2} of each input channel, r_i = sum_{j, delta} |v_ij(delta)|; 0 where r_i = 0."""
    r = ops.gram_rowsum(weight, groups=groups, backend=backend)
    roundings = _ROUNDINGS_ON_GPU if r.is_cuda else _ROUNDINGS
    r = r * (1 + roundings * torch.finfo(r.dtype).eps) + epsilon
    return torch.where(r > 0, r, 1).rsqrt() * (r > 0)


def rescale(raw_weight: Tensor, groups: int, epsilon: float, backend: Backend) -> Tensor:
    """P = W (r + epsilon)^{-1/2} per input channel; r_i = 0 gives P = 0."""
    weight = at_least_float32(raw_weight)
    scale = channel_scale(weight, groups, epsilon, backend)
    per_group = scale.view(groups, 1, -1, *[1] * (weight.dim() - 2))
    return (weight.unflatten(0, (groups, -1)) * per_group).flatten(0, 1)


def certified_norm(layer: AOLConv2d | AOLLinear, exact: float, groups: int) -> float:
    """The smaller of a bound of P's norm and sqrt(max_i sum_{j, delta} |v_ij(delta)| q_j / q_i), q = r^{1/2}."""
    if exact <= 1:
        return exact
    r = ops.gram_rowsum(layer.raw_weight.detach().double(), groups=groups)
    psi = torch.where(r > 0, r, 1).log() / 2
    rows = ops.gram_rowsum(as_it_runs(layer.weight).to(r.device), psi, groups)
    length = layer.raw_weight.numel()
    return min(exact, rows.amax().sqrt().item() * (1 + length * torch.finfo(torch.float64).eps))


class AOLConv2d(KernelConv2d):
    r"""Convolution with a rescaled kernel, P = W diag(r)^{-1/2}: a drop-in ``torch.nn.Conv2d``.

    .. math:: r_i = \sum_{j,\delta} \Bigl|\sum_{o,\tau} W[o,i,\tau]\, W[o,j,\tau+\delta]\Bigr|, \qquad
              P[o,i,\tau] = W[o,i,\tau] / \sqrt{r_i}

    Prach, Lampert, *Almost-Orthogonal Layers for Efficient General-Purpose Lipschitz Networks*, ECCV 2022.

    Guarantee: Lipschitz constant at most 1, for every kernel size, stride, dilation and groups, circular or zero
    padding (any amount of zeros; circular up to dilation * (kernel_size - 1) in total per axis).
    Cost: one convolution, and c^3 k^4 / 4 multiply-adds for r; in eval mode r is computed once.

    Args: as ``torch.nn.Conv2d``; ``epsilon`` is added to r (default 0; the published code adds 1e-6); ``backend``.
    Initialised at the Dirac kernel (square) or at an orthogonal matrix in the kernel's centre, bias 0.

    Shapes: (n, in_channels, h, w) or (in_channels, h, w) to the shapes of ``torch.nn.Conv2d``; "same" keeps h, w.
    Parameters: ``raw_weight`` (out_channels, in_channels / groups, *kernel_size), ``bias`` (out_channels).
    ``weight`` is P, differentiable in training. Raises ValueError for other padding modes.
    """

    options = KernelConv2d.options | {"epsilon": partial(check_nonnegative, "epsilon")}

    def __init__(self, *args: Any, epsilon: float = 0.0, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.epsilon = epsilon

    def make_parameters(self, device: Any, dtype: Any) -> None:
        """raw_weight."""
        shape = (self.out_channels, self.in_channels // self.groups, *self.kernel_size)
        self.raw_weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        """Each group: identity (square) or orthogonal matrix at the kernel's centre; bias 0."""
        centre_orthogonal_(self.raw_weight, self.groups)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def parametrize(self) -> tuple[Tensor, ...]:
        """(P,): the rescaled kernel."""
        return (rescale(self.raw_weight, self.groups, self.epsilon, self.backend),)

    def factors(self) -> tuple[Tensor, Tensor | None]:
        """In training W and r^{-1/2}, so that the backward need not keep P as well; otherwise P from the cache."""
        exact = self.raw_weight.dtype in (torch.float32, torch.float64)
        if not self.training or self.groups > 1 or not exact:
            return super().factors()
        scale = channel_scale(at_least_float32(self.raw_weight), 1, self.epsilon, self.backend)
        return self.raw_weight, scale.to(self.raw_weight.dtype)

    @torch.no_grad()
    def lipschitz_bound(self, input_shape: tuple[int, ...]) -> float:
        """The norm of P on images of this shape, or the Gram row sums of P where they are smaller."""
        return certified_norm(self, super().lipschitz_bound(input_shape), self.groups)


class AOLLinear(MatrixLinear):
    r"""Dense layer y = P x + b with P = W diag(r)^{-1/2}, r_i = sum_j |(W^T W)_ij|. Lipschitz constant at most 1.

    Prach, Lampert, ECCV 2022. Args and shapes as ``torch.nn.Linear``, and ``backend``.
    Parameters: ``raw_weight`` (out_features, in_features), initialised orthogonal (identity if square), ``bias``.
    ``weight`` is P.
    """

    def make_parameters(self, device: Any, dtype: Any) -> None:
        """raw_weight."""
        shape = (self.out_features, self.in_features)
        self.raw_weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        """Identity (square) or an orthogonal matrix; bias 0."""
        centre_orthogonal_(self.raw_weight, 1)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def parametrize(self) -> tuple[Tensor, ...]:
        """(P,): the rescaled matrix."""
        return (rescale(self.raw_weight, 1, 0.0, self.backend),)

    @torch.no_grad()
    def lipschitz_bound(self, input_shape: tuple[int, ...]) -> float:
        """The norm of P, or its Gram row sums where they are smaller."""
        return certified_norm(self, super().lipschitz_bound(input_shape), 1)


def centre_orthogonal_(weight: Tensor, groups: int) -> None:
    """Fills a kernel, in place, with an orthogonal matrix per group at the centre tap; identity if square."""
    with torch.no_grad():
        weight.zero_()
        rows, columns = weight.shape[0] // groups, weight.shape[1]
        centre = tuple((size - 1) // 2 for size in weight.shape[2:])
        for group in weight.unflatten(0, (groups, rows)):
            matrix = torch.eye(rows, columns, dtype=decomposed_dtype())
            if rows != columns:
                nn.init.orthogonal_(matrix)
            group[(slice(None), slice(None), *centre)] = matrix.to(weight)


METHOD = Method(
    "aol",
    AOLConv2d,
    AOLLinear,
    # As published: between layers that start as the identity, the ends of a network mix the channels.
    orthogonal_ends="raw_weight",
    peers={"orthogonium": "orthogonium.layers.conv.AOL.aol:AOLConv2D"},
)
