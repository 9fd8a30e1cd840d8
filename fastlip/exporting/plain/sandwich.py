"""Sandwich layers W_2 phi(W_1 x + c) with phi(z) = s sigma(z / s): by matrices, or by a matrix per frequency."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fastlip.exporting.plain._module import PASSES, Plain, Shape
from fastlip.exporting.plain.spectral import SpectralConvolution
from fastlip.nn.applications.sandwich import SandwichActivation, sandwich_bound, stretched
from fastlip.nn.base import as_it_runs


class SandwichProducts(Plain):
    """Matrices for features (``groups`` is None), or kernels of one tap for images.

    ``spread`` is None for relu, which does not depend on it.
    """

    TENSORS = ("first", "second", "bias", "spread")
    first: Tensor
    second: Tensor
    bias: Tensor | None
    spread: Tensor | None
    activation: SandwichActivation
    groups: int | None

    def forward(self, x: Tensor) -> Tensor:
        """Both products, and the activation between them."""
        if self.groups is None:
            z = F.linear(x, self.first, self.bias)
            return F.linear(stretched(self.activation, z, self.spread), self.second)
        spread = None if self.spread is None else self.spread.view(-1, 1, 1)
        z = F.conv2d(x, self.first, self.bias, groups=self.groups)
        return F.conv2d(stretched(self.activation, z, spread), self.second, groups=self.groups)

    def lipschitz_bound(self, input_shape: Shape) -> float:
        """From the norms of both matrices."""
        first, second = as_it_runs(self.first), as_it_runs(self.second)
        if self.groups is not None:
            first, second = (one.flatten(1).unflatten(0, (self.groups, -1)) for one in (first, second))
        return sandwich_bound(first, second)

    def roundings(self, input_shape: Shape) -> float:
        """Sums over the inputs, and over the hidden features."""
        return PASSES * math.sqrt(max(self.first.shape[:2]))


class SandwichSpectra(SpectralConvolution):
    """Convolutions by a matrix per frequency: ``spectrum`` of W_1, ``second`` of W_2, as in SpectralConvolution."""

    TENSORS = ("spectrum", "second", "bias", "spread")
    second: Tensor
    spread: Tensor | None
    activation: SandwichActivation

    def forward(self, x: Tensor) -> Tensor:
        """Both convolutions, and the activation between them; images of another size are refused."""
        self.check_size(x)
        spread = None if self.spread is None else self.spread.view(-1, 1, 1)
        z = self.convolve(x.to(self.spectrum.dtype), self.spectrum)
        z = z if self.bias is None else z + self.bias.view(-1, 1, 1)
        return self.convolve(stretched(self.activation, z, spread), self.second).to(x.dtype)

    def matrices_of(self) -> tuple[Tensor, Tensor]:
        """W_1 and W_2, (frequencies, groups, outputs, inputs)."""
        spectrum, second = (torch.view_as_complex(Q.detach().contiguous()) for Q in (self.spectrum, self.second))
        return spectrum, second

    def lipschitz_bound(self, input_shape: Shape) -> float:
        """From the matrices of both: transforms, embedding and cropping add no norm."""
        return sandwich_bound(*self.matrices_of())

    def roundings(self, input_shape: Shape) -> float:
        """Twice those of a spectral convolution."""
        return 2 * super().roundings(input_shape)
