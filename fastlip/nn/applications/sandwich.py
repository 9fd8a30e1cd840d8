"""Sandwich layers W_2 phi(W_1 x + c) with W_1 = sqrt(2) B, W_2 = sqrt(2) A^T: activations, operator and bound."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlip import ops
from fastlip.kernels.common.geometry import Pair
from fastlip.kernels.common.rearrange import space_to_depth
from fastlip.kernels.spectral_conv.api import spectral_conv_fixed
from fastlip.nn._cache import CACHED_CONTEXTS
from fastlip.nn.applications import spectra
from fastlip.nn.applications.application import Application
from fastlip.nn.applications.dense import affine, describe_dense
from fastlip.nn.applications.frequency import FrequencyConvolution, kept_size, largest_singular_value
from fastlip.nn.base import LipschitzLayer, as_it_runs
from fastlip.nn.fusion import Fusion

SandwichActivation = Literal["relu", "softplus", "tanh"]
# Each has slopes between 0 and 1. Its value at 0.
SANDWICH_ACTIVATIONS: dict[SandwichActivation, float] = {"relu": 0.0, "softplus": math.log(2), "tanh": 0.0}


def stretched(activation: SandwichActivation, z: Tensor, spread: Tensor | None) -> Tensor:
    """s sigma(z / s), elementwise, with the spread s; for relu, which does not depend on s, sigma(z)."""
    if activation == "relu":
        return z.relu()
    if spread is None:
        raise ValueError(f"spread: got None, expected a tensor for activation={activation!r}")
    spread = spread.to(z.dtype)
    t = z / spread
    # -logsigmoid(-t) is softplus(t) without the threshold at which torch's function jumps.
    return (t.tanh() if activation == "tanh" else -F.logsigmoid(-t)) * spread


def spread_and_shift_of(rest: Sequence[Tensor]) -> tuple[Tensor | None, Tensor | None]:
    """s and c of effective weights after W_1 and W_2: both, s alone, or none of them."""
    return (rest[0] if rest else None), (rest[1] if len(rest) > 1 else None)


def sandwich_bound(first: Tensor, second: Tensor) -> float:
    r"""A bound of \|W_2 D W_1\| for every diagonal 0 <= D <= 1: of batches of matrices W_1 and W_2, real or complex.

    With R = [W_2^H, W_1] the product is an off-diagonal block of R^H D R. As 0 <= R^H D R <= \|R\|^2, R^H D R
    minus \|R\|^2 / 2 has norm at most \|R\|^2 / 2, and so has the block. Nor does it exceed \|W_2\| \|W_1\|.
    """
    joint = largest_singular_value(torch.cat((second.mH, first), -1))
    return min(joint * joint / 2, largest_singular_value(first) * largest_singular_value(second))


@dataclass(frozen=True)
class SandwichDense(Application):
    """W_2 phi(W_1 x + c) with matrices: ``_effective()`` is (W_1, W_2, s, c).

    c is left out without a bias, and s too for relu without a bias.

    ``activation``: sigma, of which phi(z) = s sigma(z / s).
    """

    activation: SandwichActivation = "relu"
    orthogonal: bool = False

    def __call__(self, layer: Any, x: Tensor) -> Tensor:
        """The two products and the activation between them."""
        layer._check_input(x, layer.in_features)
        first, second, *rest = layer._effective()
        spread, shift = spread_and_shift_of(rest)
        inner = stretched(self.activation, affine(layer, x, first, shift), spread)
        return affine(layer, inner, second, None)

    @torch.no_grad()
    def bound(self, layer: Any, input_shape: tuple[int, ...]) -> float:
        """At least the Lipschitz constant: from the norms of both matrices, as products see them."""
        first, second, *_ = layer._effective()
        return sandwich_bound(as_it_runs(first), as_it_runs(second))

    def describe(self, layer: Any) -> str:
        """The arguments of ``torch.nn.Linear``, the activation, and the backend."""
        return f"{describe_dense(layer)}, activation={self.activation!r}"


@dataclass(frozen=True)
class SandwichConvolution(FrequencyConvolution):
    """The same with convolutions by one matrix per frequency: ``_effective(*fft_size)`` is (W_1, W_2, s, c).

    Padding, stride and FFT sizes are those of :class:`FrequencyConvolution`. With zero padding both convolutions
    embed their image in zeros and crop: hidden pixels outside the image are 0, as if D were 0 there.
    """

    activation: SandwichActivation = "relu"

    def __call__(self, layer: Any, x: Tensor) -> Tensor:
        """The two convolutions and the activation between them."""
        layer._check_input(x, layer.in_channels, self.geometry.axes)
        if not layer.training and (kept := kept_size(layer, self, x)):
            return self._by_kept(layer, x, kept)
        images = space_to_depth(x, self.geometry.stride)
        fft_size = self.fft_size(layer, images.shape[-2], images.shape[-1])
        first, second, *rest = layer._effective(*fft_size)
        spread, shift = spread_and_shift_of(rest)
        z = self._convolve(layer, images, first, shift, fft_size)
        return self._convolve(layer, self._hidden(z, spread), second, None, fft_size)

    def weight_shape(self, layer: Any) -> tuple[int, ...]:
        """The shape of the kernel of [A, B]: (out_channels, outputs and inputs of a group, *taps)."""
        outputs, inputs, *taps = super().weight_shape(layer)
        return outputs, outputs // self.geometry.groups + inputs, *taps

    def _convolve(self, layer: Any, x: Tensor, Q: Tensor, bias: Tensor | None, fft_size: tuple[int, ...]) -> Tensor:
        if not fft_size:
            return F.conv2d(x, Q, bias, groups=self.geometry.groups)
        size = fft_size[0], fft_size[1]
        return ops.spectral_conv(x, Q, bias, size, self.geometry.groups, backend=layer.backend)

    def _by_kept(self, layer: Any, x: Tensor, fft_size: Pair) -> Tensor:
        """In evaluation, by matrices that are kept as the kernels read them."""
        kept = layer._cache.recall(layer, ("spectra", fft_size), partial(_fixed, fft_size=fft_size), CACHED_CONTEXTS)
        first, second, *rest = kept
        spread, shift = spread_and_shift_of(rest)
        images = space_to_depth(x, self.geometry.stride)
        if self.activation == "relu":
            h = spectral_conv_fixed(images, first, shift, activation="relu")
        else:
            h = self._hidden(spectra.apply(images, first, shift), spread)
        return spectra.apply(h, second, None)

    def _hidden(self, z: Tensor, spread: Tensor | None) -> Tensor:
        return stretched(self.activation, z, None if spread is None else spread[:, None, None])

    def bound(self, layer: Any, input_shape: tuple[int, ...]) -> float:
        """At least the Lipschitz constant on images of this shape: from the matrices at each frequency."""
        with torch.no_grad():
            return sandwich_bound(*self.matrices_of(layer, input_shape))

    def matrices_of(self, layer: Any, input_shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """W_1 and W_2 for images of this shape, (frequencies, groups, ...), as they run, in double precision."""
        fft_size = self.fft_size(layer, *self.strided_size(input_shape))
        first, second, *_ = layer._effective(*fft_size)
        if not fft_size:
            first, second = (as_it_runs(one).flatten(1)[None] for one in (first, second))
        groups = self.geometry.groups
        first, second = (one.detach().unflatten(1, (groups, -1)) for one in (first, second))
        return first, second

    def fused(self, layer: LipschitzLayer, activation: nn.Module) -> Fusion | None:
        """None: an activation after the layer runs by itself."""
        return None

    def describe(self, layer: Any) -> str:
        """The arguments of ``torch.nn.Conv2d``, the activation, and the backend."""
        return f"{super().describe(layer)}, activation={self.activation!r}"


def _fixed(layer: Any, fft_size: Pair) -> tuple[Any, ...]:
    first, second, *rest = layer._compute(fft_size)
    return spectra.fix(layer, first, fft_size), spectra.fix(layer, second, fft_size), *rest
