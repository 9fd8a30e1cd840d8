"""What SLL and CPL share: x - W^T diag(scale) relu(W x + b) between paddings and truncations, and its bound."""

from __future__ import annotations

import math
from collections.abc import Hashable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlip import ops
from fastlip.kernels.common.padding import Pads
from fastlip.kernels.sdp_residual.api import folded
from fastlip.kernels.spectral_conv.api import spectral_conv_fixed
from fastlip.nn import _spectra
from fastlip.nn._base import LipschitzLayer, LipschitzLinear, as_it_runs, check_positive_int, make_bias
from fastlip.nn._cache import CACHED_CONTEXTS
from fastlip.nn._conv import GEOMETRY, LipschitzConv2d

# A scale is a quotient by sums of products, rounded at each step: they are enlarged by this many roundings.
_ROUNDINGS = 8
# At bias 0 the layer does not depend on |W|, and its gradient grows as 1 / |W|: a small W learns faster.
_GAIN = 0.1


def safe_scale(denominator: Tensor, stored: torch.dtype) -> Tensor:
    """2 / denominator, rounded towards 0 by a few eps of its own and of the dtype it will be stored in.

    0, with gradient 0, where the denominator is 0 or so small that the scale or its gradient would overflow.
    """
    info, storage = torch.finfo(denominator.dtype), torch.finfo(stored)
    enlarged = denominator * (1 + _ROUNDINGS * info.eps + storage.eps)
    divisible = enlarged > 4 * max(math.sqrt(info.tiny), 1 / storage.max)
    return 2 / torch.where(divisible, enlarged, 1) * divisible


def residual_bound(first_norm: float, defect: float) -> float:
    r"""Bound of the norm of I - W_2 D W for every mask 0 <= D <= 1, from norms relative to some S > 0.

    first_norm = |S^{1/2} W|, defect = |(W_2^T - S W)^T S^{-1/2}|: W_2 is rounded, and not exactly W^T S.
    With w = D W x and t = |S^{1/2} w| one has \|x - W_2 w\|^2 <= 1 + 2 defect t - (2 - |W_2 S^{-1/2}|^2) t^2
    for unit x, and t <= first_norm.
    """
    curvature = 2 - (first_norm + defect) ** 2
    t = first_norm if curvature <= 0 else min(first_norm, defect / curvature)
    return math.sqrt(max(1.0, 1 + 2 * defect * t - curvature * t * t))


def effective_norms(
    weight: Tensor, scale: Tensor, image_size: tuple[int, int] | None = None, **geometry: Any
) -> tuple[float, float]:
    """(first_norm, defect) of residual_bound for the weights as sdp_residual uses them."""
    column = scale.view(-1, *[1] * (weight.dim() - 1))
    first, second, column = (
        as_it_runs(weight),
        as_it_runs(column * weight),
        column.detach().to("cpu", torch.float64),
    )
    root = column.sqrt()
    # Where the scale is 0 both weights drop out.
    error = torch.where(root > 0, (second - column * first) / root.where(root > 0, 1), 0)
    first_norm = ops.spectral_norm(root * first, image_size, **geometry)
    # The rows' Gram bounds the tiny defect well enough, in any geometry.
    defect = ops.gram_rowsum(error, groups=geometry.get("groups", 1)).max().sqrt()
    return float(first_norm), float(defect)


class _Residual(LipschitzLayer):
    """A layer with a kernel and a scale that is computed from it, which must be of the same kernel."""

    def at_rest(self, *context: Hashable) -> tuple[Any, Tensor]:
        """The layer whose kernel and bias are to be used, and their scale.

        In evaluation a copy, kept as long as the parameters hold the same bits: whatever other threads write
        meanwhile, the scale is that of the kernel.
        """
        if self.supplied is not None or not self.may_cache():
            return self, self.effective(*context)[0]
        layer = self.snapshot()
        return layer, self.derive("scale", context, (layer,), lambda: layer._compute(context)[0], CACHED_CONTEXTS)


class ResidualConv2d(_Residual, LipschitzConv2d):
    """Convolutional residual layer: ``parametrize`` of a method gives the scale of each inner channel.

    The residual map acts on ``width`` channels: a stride s first moves s x s patches into channels, images that s
    does not divide being padded with zeros at their end, the position in the patch before the channel. Fewer
    channels than out_channels are padded with zeros, more are truncated after the layer, within each group. All
    three are 1-Lipschitz.
    """

    fixed = (*GEOMETRY, "inner_channels", "width")
    padding_modes = ("zeros", "circular")

    def __init__(self, *args: Any, inner_channels: int | None = None, recompute: bool | None = None, **kwargs: Any):
        self._rows = 0 if inner_channels is None else check_positive_int("inner_channels", inner_channels)
        super().__init__(*args, **kwargs)
        self.recompute = recompute

    def _check_padding(self, padding: Any) -> Pads:
        if padding != "same":
            raise ValueError(f"padding={padding!r}: allowed is 'same': a residual layer keeps the image's size")
        return super()._check_padding(padding)

    def make_parameters(self, device: Any, dtype: Any) -> None:
        """Kernel and bias of the inner convolution."""
        self.width = max(self.in_channels * self.stride[0] * self.stride[1], self.out_channels)
        self.inner_channels = self._rows or self.width
        if self.inner_channels % self.groups:
            raise ValueError(f"inner_channels={self.inner_channels}: expected a multiple of groups={self.groups}")
        shape = (self.inner_channels, self.width // self.groups, *self.kernel_size)
        self.kernel = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.bias = make_bias(self.inner_channels, self.bias is not None, device, dtype)

    def reset_parameters(self) -> None:
        """A tenth of Xavier normal, each group by itself; bias 0."""
        with torch.no_grad():
            for group in self.kernel.unflatten(0, (self.groups, -1)):
                nn.init.xavier_normal_(group, _GAIN)
            if self.bias is not None:
                self.bias.zero_()

    def forward(self, x: Tensor, pairing: Any = "none") -> Tensor:
        """The residual map of x, between its paddings and truncation, and MaxMin behind it if a pairing is given."""
        self.check_input(x)
        images = self._widen(x)
        layer, scale = self.at_rest(*self.context(images.shape[-2:]))
        whole = self.width == self.out_channels
        y = self._residual_map(layer, images, scale, pairing if whole else "none")
        if whole:
            return y
        kept = self.out_channels // self.groups
        y = y.unflatten(-3, (self.groups, -1))[..., :kept, :, :].flatten(-4, -3)
        return y if pairing == "none" else ops.maxmin(y, pairing, -3, backend=self.backend)

    def _residual_map(self, layer: ResidualConv2d, x: Tensor, scale: Tensor, pairing: str) -> Tensor:
        """maxmin(x - W^T diag(scale) relu(W x + b)), in evaluation by the kernel's spectrum where that is cheaper.

        W and b are those of the layer that at_rest gave.
        """
        kernel, bias = layer.kernel, layer.bias
        if torus := _spectra.torus_for(self, x, (self.width, self.inner_channels)):
            x = x.contiguous(memory_format=torch.channels_last)
            compute = partial(_spectra.spectra_of, kernel, torus, self.dilation, scale)
            first, second = self.derive("spectra", torus, (kernel, scale), compute)
            h = spectral_conv_fixed(x, first, bias, activation="relu")
            return _spectra.apply(h, second, None, pairing, residual=x)
        second = None
        if layer is not self and self.groups == 1 and self.backend != "reference":
            second = self.derive("folded", (), (kernel, scale), partial(folded, kernel, scale))
        geometry = self.dilation, self.groups, self.padding_mode
        # A view, where only the images' gradient may be asked for: of a leaf, torch does not say whether it is.
        kernel = kernel.view_as(kernel) if layer is self and not self.training else kernel
        arguments = x, kernel, bias, scale, *geometry, pairing, self.recompute, second
        return ops.sdp_residual(*arguments, backend=self.backend)

    def context(self, image_size: tuple[int, ...]) -> tuple[int, ...]:
        """What the scale depends on beside the parameters, for images of this size after the stride."""
        return ()

    def lipschitz_bound(self, input_shape: tuple[int, ...]) -> float:
        """At least the Lipschitz constant of the residual map, at least 1: from the norm of its scaled kernel."""
        image = tuple(-(-side // step) for side, step in zip(input_shape[-2:], self.stride, strict=True))
        geometry = {
            "pads": self.pads,
            "dilation": self.dilation,
            "groups": self.groups,
            "padding_mode": self.padding_mode,
        }
        with torch.no_grad():
            layer, scale = self.at_rest(*self.context(image))
            return residual_bound(*effective_norms(layer.kernel, scale, (image[0], image[1]), **geometry))

    def _widen(self, x: Tensor) -> Tensor:
        """Moves each stride x stride patch into channels, and pads the channels of each group to its width."""
        (down, across), groups = self.stride, self.groups
        if self.width == self.in_channels:
            return x
        if self.stride != (1, 1):
            bottom, right = -x.shape[-2] % down, -x.shape[-1] % across
            x = F.pad(x, (0, right, 0, bottom)) if bottom or right else x
        patches = x.unflatten(-3, (groups, -1)).unflatten(-1, (-1, across)).unflatten(-3, (-1, down))
        channels = patches.movedim((-3, -1), (-5, -4)).flatten(-5, -3)  # group, (row, column, channel), h, w
        missing = self.width // groups - channels.shape[-3]
        return F.pad(channels, (0, 0, 0, 0, 0, missing)).flatten(-4, -3)

    def extra_repr(self) -> str:
        """The arguments that differ from layer to layer."""
        return f"{super().extra_repr()}, inner_channels={self.inner_channels}"


class ResidualLinear(_Residual, LipschitzLinear):
    """Dense residual layer: ``parametrize`` of a method gives the scale of each inner feature.

    The residual map acts on ``width`` = max(in_features, out_features) features: fewer are padded with zeros
    before it, more are truncated after it. Both are 1-Lipschitz.
    """

    fixed = (*LipschitzLinear.fixed, "inner_features", "width")

    def __init__(self, *args: Any, inner_features: int | None = None, **kwargs: Any):
        self._rows = 0 if inner_features is None else check_positive_int("inner_features", inner_features)
        super().__init__(*args, **kwargs)

    def make_parameters(self, device: Any, dtype: Any) -> None:
        """Kernel and bias of the inner map."""
        self.width = max(self.in_features, self.out_features)
        self.inner_features = self._rows or self.width
        self.kernel = nn.Parameter(torch.empty((self.inner_features, self.width), device=device, dtype=dtype))
        self.bias = make_bias(self.inner_features, self.bias is not None, device, dtype)

    def reset_parameters(self) -> None:
        """A tenth of Xavier normal; bias 0."""
        nn.init.xavier_normal_(self.kernel, _GAIN)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """The residual map of x, padded before it or truncated after it."""
        self.check_input(x)
        if self.width > self.in_features:
            x = F.pad(x, (0, self.width - self.in_features))
        layer, scale = self.at_rest()
        y = ops.sdp_residual(x, layer.kernel, layer.bias, scale, backend=self.backend)
        return y[..., : self.out_features]

    def lipschitz_bound(self, input_shape: tuple[int, ...]) -> float:
        """At least the Lipschitz constant of the residual map, at least 1: from the norm of its scaled matrix."""
        with torch.no_grad():
            layer, scale = self.at_rest()
            return residual_bound(*effective_norms(layer.kernel, scale))

    def extra_repr(self) -> str:
        """The arguments that differ from layer to layer."""
        return f"{super().extra_repr()}, inner_features={self.inner_features}"
