"""Convolutions with one kernel as effective weight: ``conv2d``, or what is cheaper: Winograd's, or a spectrum."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastlip import ops
from fastlip.kernels.common import winograd
from fastlip.kernels.common.geometry import Pair
from fastlip.kernels.common.literals import PairingOrNone
from fastlip.kernels.spectral_norm.api import convolution_norm
from fastlip.nn.applications import spectra, training_spectra
from fastlip.nn.applications.application import ConvApplication
from fastlip.nn.base import as_it_runs
from fastlip.nn.fusion import Fusion, Link, style_of

# The devices on which a kernel's pass makes circular padding: there the backward of torch's is many passes.
_PASSES_PAD = ("cuda",)


@dataclass(frozen=True)
class KernelConvolution(ConvApplication):
    """P * x + bias with one kernel P: ``conv2d``, or where they are cheaper Winograd's convolution or its spectrum.

    ``whole_windows``: circular images whose sides the stride does not divide are refused, as windows would overlap.
    """

    whole_windows: bool = False

    def __call__(self, layer: Any, x: Tensor) -> Tensor:
        """P * x + bias."""
        layer._check_input(x, layer.in_channels, self.geometry.axes)
        if self.whole_windows:
            self._check_windows(x)
        geometry, channels = self.geometry, (layer.in_channels, layer.out_channels)
        if geometry.has_spectrum and (fft_size := spectra.fft_size_for(layer, geometry, channels, x)):
            return self.by_spectrum(layer, x, fft_size)
        weight = layer._effective()[0]
        if (layer.training or not x.is_cpu) and x.dim() == 4 and self._has_passes(layer, x):
            style = style_of(geometry)
            if style is not None:
                return ops.conv_chain(x, [weight], [layer.bias], None, *style, backend="auto")
        return self.convolve(x, weight, layer.bias)

    def _has_passes(self, layer: Any, x: Tensor) -> bool:
        """Whether the kernels of a chain apply one layer faster than torch does."""
        geometry = self.geometry
        if layer.backend == "reference":
            return False
        if x.device.type in _PASSES_PAD:
            return geometry.padding_mode == "circular" and geometry.taps > 1
        if not layer.training or torch.compiler.is_compiling():
            return False
        return winograd.takes(x, geometry, (x.shape[2], x.shape[3]), layer.in_channels, layer.out_channels)

    def _check_windows(self, x: Tensor) -> None:
        """Raises ValueError where circular windows would meet pixels repeatedly."""
        if self.geometry.padding_mode == "circular":
            left, right, top, bottom = self.geometry.pads
            for side, step, padding in zip(
                x.shape[-2:], self.geometry.stride, (top + bottom, left + right), strict=True
            ):
                if padding > 0 and side % step:
                    raise ValueError(
                        f"x: got shape {tuple(x.shape)}, expected sides that stride={self.geometry.stride} divides: "
                        "with circular padding windows would overlap, and no bound holds; allowed is "
                        "padding_mode='zeros'"
                    )

    def by_spectrum(self, layer: Any, x: Tensor, fft_size: Pair, pairing: PairingOrNone = "none") -> Tensor:
        """P * x + bias by the kernel's spectrum, and MaxMin after it if a pairing is given."""
        (weight,) = layer._effective()
        if layer.training:
            y = training_spectra.apply_in_training(x, weight, layer.bias, fft_size, self.geometry.dilation)
            return y if pairing == "none" else ops.maxmin(y, pairing, 1, backend=layer.backend)
        compute = partial(spectra.spectra_of, weight, fft_size, self.geometry.dilation)
        (spectrum,) = layer._cache.derive("spectra", fft_size, (weight,), compute)
        return spectra.apply(x, spectrum, layer.bias, pairing)

    @torch.no_grad()
    def bound(self, layer: Any, input_shape: tuple[int, ...]) -> float:
        """An upper bound of the norm of the convolution on images of this shape."""
        weight, image = as_it_runs(layer._effective()[0]), input_shape[-self.geometry.axes :]
        return convolution_norm(weight, image, self.geometry).item()

    def fused(self, layer: Any, activation: Any) -> Fusion | None:
        """With MaxMin: one pass after the convolution, and a run with others of the same style."""
        style = style_of(self.geometry, activation.pairing)
        if style is None:
            return None
        link = Link(
            style,
            self.geometry,
            layer.in_channels,
            layer.out_channels,
            layer.bias,
            layer.backend,
            layer.training,
            partial(_split, layer) if layer.training else layer._effective,
        )
        channels = layer.in_channels, layer.out_channels
        plan = partial(spectra.fft_size_for, layer, self.geometry, channels) if self.geometry.has_spectrum else None
        return Fusion(plan, partial(self._fused_by_spectrum, layer, style.pairing), link)

    def _fused_by_spectrum(self, layer: Any, pairing: PairingOrNone, x: Tensor, fft_size: Pair) -> Tensor:
        layer._check_input(x, layer.in_channels, 2)  # pairs run fused at stride 1, where no windows overlap
        return self.by_spectrum(layer, x, fft_size, pairing)


def _split(layer: Any) -> tuple[Tensor | None, ...]:
    """In training: the kernel, or W and the factors s of its input channels, if it is W diag(s).

    A method that has them, ``_factors``, need not keep both W and the kernel for the backward. Weights that are
    supplied come as one kernel.
    """
    return layer._factors() if layer._supplied is None and hasattr(layer, "_factors") else layer._effective()
