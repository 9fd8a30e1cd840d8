"""BCOP: orthogonal convolutions as products of projectors, and Björck's orthogonal dense layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastlip import ops
from fastlip.kernels.block_conv.reference import alternating_axes
from fastlip.nn._base import MatrixLinear, at_least_float32, decomposed_dtype
from fastlip.nn._conv import KernelConv2d
from fastlip.nn.method import Method


class BCOPConv2d(KernelConv2d):
    r"""Convolution with an orthogonal kernel, O (P_1 + (I - P_1) z_x)(P_2 + (I - P_2) z_y)...: a drop-in
    ``torch.nn.Conv2d``.

    .. math:: O = \mathrm{polar}(M_0), \qquad V_i = \mathrm{polar}(M_i)_{:,\,:\lfloor c/2 \rfloor}, \qquad
              P_i = V_i V_i^T

    with c = max(in_channels, out_channels) / groups and 1 + (kh - 1) + (kw - 1) matrices M_i per group; the
    projectors lie along the width and the height in turn. Li, Haque, Anil, Lucas, Grosse, Jacobsen, *Preventing
    Gradient Attenuation in Lipschitz Constrained Convolutional Networks*, NeurIPS 2019. The polar factor is exact,
    the limit of the paper's Björck iteration. A 1 x 1 kernel is O itself.

    Guarantee: orthogonal with circular padding, stride 1 and in_channels = out_channels (all singular values 1);
    rows or columns of an orthogonal convolution if the channels differ; Lipschitz constant at most 1 for every
    kernel size, stride, dilation and groups, circular or zero padding (any amount of zeros; circular up to
    dilation * (kernel_size - 1) in total per axis).
    Cost: one convolution, and the polar factors and 13 products (3 x 3) of c x c matrices; in eval mode the kernel
    is computed once.

    Args: as ``torch.nn.Conv2d``, and ``backend``. Initialised with O = I (random orthogonal if the channels
    differ) and one random projector P per group, which alternates with I - P along each axis: for odd kernels and
    even c they cancel to a Dirac kernel in the centre, from which deep networks learn faster than from random
    matrices, the paper's choice. Bias 0.

    Shapes: (n, in_channels, h, w) or (in_channels, h, w) to the shapes of ``torch.nn.Conv2d``; "same" keeps h, w.
    Parameters: ``raw_matrices`` (groups, kh + kw - 1, c, c), ``bias`` (out_channels). ``weight`` is the effective
    kernel, differentiable in training. Raises ValueError for other padding modes.
    """

    orthogonal = True

    def make_parameters(self, device: Any, dtype: Any) -> None:
        """raw_matrices."""
        size = max(self.in_channels, self.out_channels) // self.groups
        shape = (self.groups, sum(self.kernel_size) - 1, size, size)
        self.raw_matrices = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        """O = I or random orthogonal, projectors that cancel in pairs; bias 0."""
        axes = alternating_axes(self.kernel_size)
        half = self.raw_matrices.shape[-1] // 2
        with torch.no_grad():
            for group in self.raw_matrices:
                group[0] = _identity_or_orthogonal(self.in_channels == self.out_channels, group[0])
                basis = _identity_or_orthogonal(False, group[0])
                for i, axis in enumerate(axes):
                    complement = axes[:i].count(axis) % 2
                    group[1 + i] = basis.roll(-half * complement, dims=1)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def parametrize(self) -> tuple[Tensor, ...]:
        """(kernel,) in conv2d's layout."""
        Q = ops.polar(at_least_float32(self.raw_matrices), backend=self.backend)
        cin, cout = self.in_channels // self.groups, self.out_channels // self.groups
        if self.kernel_size == (1, 1):
            return (Q[:, 0, :cout, :cin].flatten(0, 1)[:, :, None, None],)
        V = Q[:, 1:, :, : Q.shape[-1] // 2]
        axes = alternating_axes(self.kernel_size)
        K = ops.block_conv(Q[:, 0, :cin], V @ V.mT, axes, backend=self.backend)
        # As published, the chain acts on output channels: the kernel's matrices are transposed.
        return (K[..., :cout].permute(0, 4, 3, 1, 2).flatten(0, 1),)


class BjorckLinear(MatrixLinear):
    r"""Dense layer y = Q x + b with orthonormal rows (wide) or columns (tall), Q = polar(W).

    The limit of Björck's iteration Q <- 3/2 Q - 1/2 Q Q^T Q, computed exactly (Anil, Lucas, Grosse, *Sorting out
    Lipschitz function approximation*, ICML 2019). Lipschitz constant 1.

    Args and shapes as ``torch.nn.Linear``, and ``backend``. Parameters: ``raw_weight`` (out_features,
    in_features), initialised orthogonal (identity if square), ``bias``, initialised 0. ``weight`` is Q.
    Cost: one polar factor per training step; in eval mode it is computed once.
    """

    orthogonal = True

    def make_parameters(self, device: Any, dtype: Any) -> None:
        """raw_weight."""
        shape = (self.out_features, self.in_features)
        self.raw_weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        """Identity (square) or an orthogonal matrix; bias 0."""
        with torch.no_grad():
            square = self.in_features == self.out_features
            self.raw_weight.copy_(_identity_or_orthogonal(square, self.raw_weight))
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def parametrize(self) -> tuple[Tensor, ...]:
        """(Q,): the polar factor."""
        return (ops.polar(at_least_float32(self.raw_weight), backend=self.backend),)


def _identity_or_orthogonal(identity: bool, like: Tensor) -> Tensor:
    matrix = torch.eye(*like.shape, dtype=decomposed_dtype())
    return (matrix if identity else nn.init.orthogonal_(matrix)).to(like)


METHOD = Method(
    "bcop",
    BCOPConv2d,
    BjorckLinear,
    dense_head=True,
    settings={"digits": {"optimizer.lr": 0.02, "loss.temperature": 0.1}},
    # deel-torchlip has one orthogonalised convolution, that of the reshaped kernel.
    peers={
        "orthogonium": "orthogonium.layers.conv.AOC:AdaptiveOrthoConv2d",
        "deel-torchlip": "deel.torchlip:SpectralConv2d",
    },
)
