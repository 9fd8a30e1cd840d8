"""The rules of sandwich layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastlip.exporting import plain
from fastlip.exporting.layers import patches
from fastlip.exporting.rules import Target, exported, in_sequence
from fastlip.kernels.spectral_conv.api import half_plane
from fastlip.nn.applications import SandwichConvolution, SandwichDense
from fastlip.nn.applications.sandwich import spread_and_shift_of


@exported.register(SandwichDense)
def _dense(layer: Any, target: Target) -> nn.Module:
    first, second, *rest = layer._effective()
    return _products(layer, first, second, rest, None)


@exported.register(SandwichConvolution)
def _convolution(layer: Any, target: Target) -> nn.Module:
    application = layer._application
    if application.taps == (1, 1):
        first, second, *rest = layer._effective()
        return in_sequence(patches(layer), _products(layer, first, second, rest, layer.groups))
    image = target.require_image(layer, application.geometry.stride)
    fft_size = application.fft_size(layer, *image)
    first, second, *rest = layer._effective(*fft_size)
    tensors = {"spectrum": _halved(layer, first, fft_size), "second": _halved(layer, second, fft_size)}
    spectra = plain.SandwichSpectra(
        tensors | _around(layer, rest),
        image=image,
        fft_size=fft_size,
        groups=layer.groups,
        fourier=target.fourier,
        activation=application.activation,
    )
    return in_sequence(patches(layer), plain.freeze(spectra))


def _products(layer: Any, first: Tensor, second: Tensor, rest: list[Tensor], groups: int | None) -> nn.Module:
    tensors = {"first": first, "second": second} | _around(layer, rest)
    return plain.freeze(plain.SandwichProducts(tensors, activation=layer._application.activation, groups=groups))


def _around(layer: Any, rest: list[Tensor]) -> dict[str, Tensor | None]:
    """The shift, and the spread where the activation reads it."""
    spread, shift = spread_and_shift_of(rest)
    return {"bias": shift, "spread": None if layer._application.activation == "relu" else spread}


def _halved(layer: Any, Q: Tensor, fft_size: tuple[int, int]) -> Tensor:
    matrices = half_plane(Q, fft_size).unflatten(1, (layer.groups, -1))
    return torch.view_as_real(matrices.resolve_conj())
