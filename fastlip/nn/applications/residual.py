"""Residual layers x - W^T diag(scale) relu(W x + b): the effective weight is the scale of each inner channel."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastlip import ops
from fastlip.kernels.common.channels_last import adjoint
from fastlip.kernels.common.geometry import ConvGeometry
from fastlip.kernels.common.rearrange import space_to_depth
from fastlip.kernels.sdp_residual.api import OPERATOR as SDP_RESIDUAL
from fastlip.kernels.sdp_residual.api import folded, residual_under_autocast
from fastlip.kernels.spectral_conv.api import spectral_conv_fixed
from fastlip.nn._cache import CACHED_CONTEXTS, may_cache
from fastlip.nn._channels import first_channels, pad_channels
from fastlip.nn.applications import spectra, training_spectra
from fastlip.nn.applications.application import Application, ConvApplication
from fastlip.nn.applications.dense import describe_dense
from fastlip.nn.base import LipschitzLayer, as_it_runs
from fastlip.nn.fusion import Fusion

# A scale is a quotient by sums of products, rounded at each step: they are enlarged by this many roundings.
_ROUNDINGS = 8
# Inner channels up to which relu(W x + b) is computed again in the backward of a step on a CPU: few channels have
# large images, which fill the memory, and Winograd's convolutions of 3 x 3 taps are cheap.
_FEW_CHANNELS, _SIDES = 64, (3, 3)


@dataclass(frozen=True)
class ResidualConvolution(ConvApplication):
    """The residual map with the layer's ``kernel``, ``bias`` and the scale ``_effective(*context)``.

    The residual map acts on ``width`` channels: a stride s first moves s x s patches into channels, images that s
    does not divide being padded with zeros at their end, the position in the patch before the channel. Fewer
    channels than out_channels are padded with zeros, more are truncated after the layer, within each group. All
    three are 1-Lipschitz.

    Args:
        width: the number of channels on which the residual map acts.
        inner_channels: rows of W.
        sized: whether the scale depends on the image's size, which is its context then.
    """

    width: int = 0
    inner_channels: int = 0
    sized: bool = False
    inner: ConvGeometry = field(init=False, repr=False)  # that of W: stride 1

    def __post_init__(self) -> None:
        inner = replace(self.geometry, stride=(1,) * self.geometry.axes)
        object.__setattr__(self, "inner", inner)  # the dataclass is frozen

    def __call__(self, layer: Any, x: Tensor, pairing: Any = "none") -> Tensor:
        """The residual map of x, between its paddings and truncation, and MaxMin after it if a pairing is given."""
        layer._check_input(x, layer.in_channels, self.geometry.axes)
        images = x if self.width == layer.in_channels else self._widened(layer, x)
        context = tuple(images.shape[-self.geometry.axes :]) if self.sized else ()
        source, scale = at_rest(layer, context)
        if self.width == layer.out_channels:
            return self._map(layer, source, images, scale, pairing)
        y, axes = self._map(layer, source, images, scale, "none"), self.geometry.axes
        y = first_channels(y, layer.out_channels, layer.groups, axes)
        return y if pairing == "none" else ops.maxmin(y, pairing, -1 - axes, backend=layer.backend)

    def context(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The context of the scale, besides the parameters, for images of this shape after the stride."""
        return tuple(shape[-self.geometry.axes :]) if self.sized else ()

    def _map(self, layer: Any, source: Any, x: Tensor, scale: Tensor, pairing: Any) -> Tensor:
        """maxmin(x - W^T diag(scale) relu(W x + b)), by the kernel's spectrum where that is cheaper.

        W and b are those of the layer ``source`` that :func:`at_rest` gave.
        """
        geometry, kernel, bias = self.geometry, source.kernel, source.bias
        second = None
        fft_size = self._fft_size(layer, x) if layer.training or source is not layer else None
        if fft_size:
            if layer.training:
                return self._train_by_spectrum(layer, x, scale, fft_size, pairing)
            return self._by_spectrum(layer, source, x, scale, fft_size, pairing)
        if source is not layer:
            if geometry.groups == 1 and geometry.axes == 2 and layer.backend != "reference":
                second = layer._cache.derive("folded", (), (kernel, scale), partial(folded, kernel, scale))
        elif not layer.training:
            # A view, where only the images' gradient may be asked for: of a leaf, torch does not say whether it is.
            kernel = kernel.view_as(kernel)
        recompute = layer.recompute
        if recompute is None:
            few = self.inner_channels <= _FEW_CHANNELS and layer.training and x.is_cpu
            recompute = geometry.taps == 1 or (few and geometry.kernel_size == _SIDES)
        lowered = x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)
        call = residual_under_autocast if lowered else SDP_RESIDUAL
        return call(x, kernel, bias, scale, second, recompute, layer.training, self.inner, pairing, layer.backend)

    def _fft_size(self, layer: Any, x: Tensor) -> Any:
        """The FFT size at which the kernel is applied to x; None: convolutions are cheaper, or asked for."""
        # An even kernel's transpose reaches to other sides than the kernel.
        if layer.training and (layer.recompute is True or not self.geometry.symmetric):
            return None
        return spectra.fft_size_for(layer, self.geometry, (self.width, self.inner_channels), x)

    def _train_by_spectrum(self, layer: Any, x: Tensor, scale: Tensor, fft_size: Any, pairing: Any) -> Tensor:
        kernel = layer.kernel
        second = adjoint(scale[:, None, None, None] * kernel)
        options = fft_size, self.inner.dilation
        h = training_spectra.apply_in_training(x, kernel, layer.bias, *options).relu()
        y = x - training_spectra.apply_in_training(h, second, None, *options)
        return y if pairing == "none" else ops.maxmin(y, pairing, 1, backend=layer.backend)

    def _by_spectrum(self, layer: Any, source: Any, x: Tensor, scale: Tensor, fft_size: Any, pairing: str) -> Tensor:
        kernel = source.kernel
        x = x.contiguous(memory_format=torch.channels_last)
        compute = partial(spectra.spectra_of, kernel, fft_size, self.geometry.dilation, scale)
        first, second = layer._cache.derive("spectra", fft_size, (kernel, scale), compute)
        h = spectral_conv_fixed(x, first, source.bias, activation="relu")
        return spectra.apply(h, second, None, pairing, residual=x)

    def _widened(self, layer: Any, x: Tensor) -> Tensor:
        """Moves each stride x stride patch into channels, and pads the channels of each group to its width."""
        groups = self.geometry.groups
        images = space_to_depth(x, self.geometry.stride, groups, position_first=True)
        return pad_channels(images, self.width, groups, self.geometry.axes)

    def bound(self, layer: Any, input_shape: tuple[int, ...]) -> float:
        """At least the Lipschitz constant of the residual map, at least 1: from the norm of its scaled kernel."""
        size, geometry = self.strided_size(input_shape), self.geometry
        arguments: dict[str, Any] = {"pads": geometry.pads, "dilation": geometry.dilation}
        arguments |= {"groups": geometry.groups, "padding_mode": geometry.padding_mode}
        with torch.no_grad():
            source, scale = at_rest(layer, self.context(size))
            return residual_bound(*effective_norms(source.kernel, scale, size, **arguments))

    def fused(self, layer: LipschitzLayer, activation: Any) -> Fusion | None:
        """With MaxMin in the last pass of the residual map."""
        if self.geometry.axes != 2:
            return None
        return Fusion(lambda x: True, lambda x, _: self(layer, x, activation.pairing))

    def describe(self, layer: Any) -> str:
        """The arguments of ``torch.nn.Conv2d``, the inner channels, and the backend."""
        return f"{super().describe(layer)}, inner_channels={self.inner_channels}"


@dataclass(frozen=True)
class ResidualDense(Application):
    """The residual map with the matrix ``kernel``, ``bias`` and the scale ``_effective()``.

    It acts on ``width`` = max(in_features, out_features) features: fewer are padded with zeros before it, more are
    truncated after it. Both are 1-Lipschitz. ``inner_features``: rows of W.
    """

    width: int = 0
    inner_features: int = 0
    orthogonal: bool = False

    def __call__(self, layer: Any, x: Tensor) -> Tensor:
        """The residual map of x, padded before it or truncated after it."""
        layer._check_input(x, layer.in_features)
        if self.width > layer.in_features:
            x = F.pad(x, (0, self.width - layer.in_features))
        source, scale = at_rest(layer, ())
        kernel = source.kernel
        if source is layer and not layer.training:
            # A view, where only the gradient of x may be asked for: of a leaf, torch does not say whether it is.
            kernel = kernel.view_as(kernel)
        y = SDP_RESIDUAL(x, kernel, source.bias, scale, None, False, False, None, "none", layer.backend)
        return y if self.width == layer.out_features else y[..., : layer.out_features]

    def bound(self, layer: Any, input_shape: tuple[int, ...]) -> float:
        """At least the Lipschitz constant of the residual map, at least 1: from the norm of its scaled matrix."""
        with torch.no_grad():
            source, scale = at_rest(layer, ())
            return residual_bound(*effective_norms(source.kernel, scale))

    def describe(self, layer: Any) -> str:
        """The arguments of ``torch.nn.Linear``, the inner features, and the backend."""
        return f"{describe_dense(layer)}, inner_features={self.inner_features}"


def at_rest(layer: Any, context: tuple[int, ...]) -> tuple[Any, Tensor]:
    """The layer whose kernel and bias are to be used, and their scale.

    In evaluation a copy, kept as long as the parameters hold the same bits: whatever other threads write meanwhile,
    the scale is that of the kernel.
    """
    if layer.training or not may_cache(layer):
        return layer, layer._effective(*context)[0]
    twin = layer._cache.snapshot(layer)
    return twin, layer._cache.derive("scale", context, (twin,), lambda: twin._compute(context)[0], CACHED_CONTEXTS)


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
    weight: Tensor, scale: Tensor, image_size: tuple[int, ...] | None = None, **geometry: Any
) -> tuple[float, float]:
    """(first_norm, defect) of residual_bound for the weights as sdp_residual uses them."""
    column = scale.view(-1, *[1] * (weight.dim() - 1))
    first, second = as_it_runs(weight), as_it_runs(column * weight)
    column = column.detach().to("cpu", torch.float64)
    root = column.sqrt()
    # Where the scale is 0 both weights drop out.
    error = torch.where(root > 0, (second - column * first) / root.where(root > 0, 1), 0)
    first_norm = ops.spectral_norm(root * first, image_size, **geometry)
    # The rows' Gram bounds the tiny defect well enough, in any geometry.
    defect = ops.gram_rowsum(error, groups=geometry.get("groups", 1)).max().sqrt()
    return float(first_norm), float(defect)
