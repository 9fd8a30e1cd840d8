"""A chain of convolutions, each followed by MaxMin, as networks write it; autograd differentiates it."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from fastlip.ops._padding import pad, same_pads
from fastlip.ops.maxmin import reference as maxmin


def conv_chain(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    scales: Sequence[Tensor],
    padding_mode: str,
    dilation: tuple[int, int],
    pairing: str,
) -> Tensor:
    """X ← maxmin(W diag(s) ∗ x + b), layer after layer."""
    if scales:
        weights = [weight * scale[:, None, None] for weight, scale in zip(weights, scales, strict=True)]
    for weight, bias in zip(weights, biases, strict=True):
        padded = pad(x, same_pads(weight.shape[2:], dilation), padding_mode)
        x = F.conv2d(padded, weight, bias, dilation=dilation)
        x = x if pairing == "none" else maxmin.maxmin(x, pairing, 1)
    return x
