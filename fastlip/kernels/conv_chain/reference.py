"""A chain of convolutions, each followed by MaxMin, as networks write it; autograd differentiates it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fastlip.kernels.common.geometry import ConvGeometry
from fastlip.kernels.maxmin.reference import exchange


def conv_chain(
    x: Tensor,
    weights: list[Tensor],
    biases: Sequence[Tensor | None],
    scales: list[Tensor],
    geometries: Sequence[ConvGeometry],
    pairing: str,
) -> Tensor:
    """x ← maxmin(W diag(s) ∗ x + b), layer after layer."""
    weights = scaled(weights, scales) if scales else weights
    for weight, bias, geometry in zip(weights, biases, geometries, strict=True):
        x = geometry.convolve(x, weight, bias)
        x = x if pairing == "none" else exchange(x, None, pairing, 1)
    return x


def scaled(weights: list[Tensor], scales: list[Tensor]) -> list[Tensor]:
    """W diag(s) of each layer; the weights themselves without scales."""
    if not scales:
        return weights
    return [weight * scale[:, None, None] for weight, scale in zip(weights, scales, strict=True)]
