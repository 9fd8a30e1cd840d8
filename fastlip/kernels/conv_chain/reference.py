"""A chain of convolutions, each followed by MaxMin, as networks write it; autograd differentiates it."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from fastlip.kernels.common.literals import PaddingMode
from fastlip.kernels.common.padding import pad, same_pads
from fastlip.kernels.maxmin import reference as maxmin


def conv_chain(
    x: Tensor,
    weights: list[Tensor],
    biases: Sequence[Tensor | None],
    scales: list[Tensor],
    padding_mode: PaddingMode,
    dilation: tuple[int, int],
    pairing: str,
) -> Tensor:
    """X ← maxmin(W diag(s) ∗ x + b), layer after layer."""
    for weight, bias in zip(scaled(weights, scales), biases, strict=True):
        padded = pad(x, same_pads(weight.shape[2:], dilation), padding_mode)
        x = F.conv2d(padded, weight, bias, dilation=dilation)
        x = x if pairing == "none" else maxmin.maxmin(x, pairing, 1)
    return x


def scaled(weights: list[Tensor], scales: list[Tensor]) -> list[Tensor]:
    """W diag(s) of each layer; the weights themselves without scales."""
    if not scales:
        return weights
    return [weight * scale[:, None, None] for weight, scale in zip(weights, scales, strict=True)]
