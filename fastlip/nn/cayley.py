"""Cayley layers (Trockman, Kolter, ICLR 2021)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from fastlip import ops
from fastlip.nn._base import at_least_float32
from fastlip.nn._orthogonal import OrthogonalConv2d, OrthogonalLinear
from fastlip.nn.method import Method


def normalize(raw_weight: Tensor, alpha: Tensor) -> Tensor:
    """M = alpha W / ||W||_F, in at least float32; W = 0 gives 0."""
    weight = at_least_float32(raw_weight)
    norm = torch.linalg.vector_norm(weight)
    return weight * (at_least_float32(alpha) / torch.where(norm > 0, norm, 1))


def reset(layer: CayleyConv2d | CayleyLinear) -> None:
    """The default of torch.nn for the weight, alpha at its norm, bias 0."""
    nn.init.kaiming_uniform_(layer.raw_weight, a=math.sqrt(5))
    with torch.no_grad():
        layer.alpha.fill_(torch.linalg.vector_norm(layer.raw_weight))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class CayleyConv2d(OrthogonalConv2d):
    r"""Orthogonal convolution: at each frequency k, the Cayley transform of the kernel's matrix.

    .. math:: M = \alpha W / \|W\|_F, \qquad
              Q_k = \mathrm{Cayley}(\hat M_k), \qquad \mathrm{Cayley}(\hat M) = (I + A)^{-1}(I - A),\;
              A = \hat M - \hat M^H

    for square matrices; tall and wide ones as in ``fastlip.ops.cayley``. The norm is that of all taps, so that
    alpha does not depend on the resolution; there is one alpha for all groups. W = 0 gives M = 0.
    Trockman, Kolter, *Orthogonalizing Convolutional Layers with the Cayley Transform*, ICLR 2021.

    Guarantee: circular padding, orthogonal (all singular values 1; with in_channels != out_channels, orthonormal
    rows or columns at every frequency), for every image size, kernel size, dilation and groups. Zero padding:
    Lipschitz constant at most 1 (the image is embedded in zeros on a torus larger by dilation * (kernel_size - 1),
    convolved there, and cropped). With a stride, the image's stride x stride patches become channels, then
    follows a convolution of ceil(kernel_size / stride) taps; an image whose side the stride does not divide is
    padded with zeros.
    Cost: in training one inverse per unique frequency (h w / 2 of them) and two Fourier transforms; in eval mode
    the inverses are computed once per image size. A kernel of one tap has one real matrix and no transform.

    Args: as ``torch.nn.Conv2d``, and ``backend``. padding is "same" (or ints that equal it), padding_mode
    "circular" (default) or "zeros", dilation 1 where stride exceeds 1. Initialised as ``torch.nn.Conv2d``,
    alpha at the Frobenius norm of the weight, bias 0.

    Shapes: (n, in_channels, h, w) or (in_channels, h, w) to (n, out_channels, ceil(h / stride), ceil(w / stride)).
    Parameters: ``raw_weight`` (out_channels, in_channels / groups * stride^2, *ceil(kernel_size / stride)),
    ``alpha`` (1), ``bias`` (out_channels). Raises ValueError for other paddings, padding modes and dilated
    strides.
    """

    def make_parameters(self, device: Any, dtype: Any) -> None:
        """raw_weight and alpha."""
        super().make_parameters(device, dtype)
        self.alpha = nn.Parameter(torch.empty(1, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        """The default of ``torch.nn.Conv2d``; alpha = ||raw_weight||_F; bias 0."""
        reset(self)

    def scaled_weight(self) -> Tensor:
        """M = alpha W / ||W||_F."""
        return normalize(self.raw_weight, self.alpha)

    def orthogonalize(self, V: Tensor, reals: int = 0) -> Tensor:
        """The Cayley transform, which is real where V is."""
        return ops.cayley(V, backend=self.backend)


class CayleyLinear(OrthogonalLinear):
    r"""Dense layer y = Q x + b with Q = Cayley(alpha W / ||W||_F): orthogonal, or orthonormal rows or columns.

    Trockman, Kolter, ICLR 2021. Lipschitz constant 1. Args and shapes as ``torch.nn.Linear``, and ``backend``.
    Parameters: ``raw_weight`` (out_features, in_features), initialised as ``torch.nn.Linear``, ``alpha`` (1),
    initially the norm of raw_weight, and ``bias``. ``weight`` is Q; in eval mode it is computed once.
    """

    def make_parameters(self, device: Any, dtype: Any) -> None:
        """raw_weight and alpha."""
        super().make_parameters(device, dtype)
        self.alpha = nn.Parameter(torch.empty(1, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        """The default of ``torch.nn.Linear``; alpha = ||raw_weight||_F; bias 0."""
        reset(self)

    def scaled_weight(self) -> Tensor:
        """M = alpha W / ||W||_F."""
        return normalize(self.raw_weight, self.alpha)

    def orthogonalize(self, V: Tensor) -> Tensor:
        """The Cayley transform."""
        return ops.cayley(V, backend=self.backend)


METHOD = Method(
    "cayley",
    CayleyConv2d,
    CayleyLinear,
    dense_head=True,
    settings={"digits": {"optimizer.lr": 0.02, "loss.temperature": 0.1}},
)
