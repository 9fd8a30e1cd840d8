"""MaxMin (Anil, Lucas, Grosse 2019): each pair of channels (a, b) becomes (max(a, b), min(a, b))."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def maxmin(x: Tensor, pairing: str, dim: int) -> Tensor:
    """Swaps the pairs with b > a: ties keep their order, so that each output has exactly one gradient."""
    return exchange(x, None, pairing, dim)


def exchange(x: Tensor, swap: Tensor | None, pairing: str, dim: int) -> Tensor:
    """Swaps the pairs whose boolean in ``swap`` is true; without booleans the pairs with b > a."""
    pairs = x.shape[dim] // 2
    paired, rest = x.split((2 * pairs, x.shape[dim] - 2 * pairs), dim)
    if pairing == "adjacent":
        # Not unflatten and flatten, for which autograd's batched gradients have no rule.
        a, b = paired.reshape(*x.shape[:dim], pairs, 2, *x.shape[dim + 1 :]).unbind(dim + 1)
    else:
        a, b = paired.chunk(2, dim) if pairs else (paired, paired)
    swap = b > a if swap is None else swap
    high, low = torch.where(swap, b, a), torch.where(swap, a, b)
    if pairing == "adjacent":
        sorted_pairs = torch.stack((high, low), dim + 1).reshape(paired.shape)
    else:
        sorted_pairs = torch.cat((high, low), dim) if pairs else paired
    return torch.cat((sorted_pairs, rest), dim) if rest.shape[dim] else sorted_pairs


def unpack(mask: Tensor, shape: Sequence[int], channels_last: bool, dim: int) -> Tensor:
    """Returns the bits of the kernels' mask as booleans for :func:`exchange`, one per pair of an x of this shape."""
    pairs = shape[dim] // 2
    runs = (*shape[:dim], *shape[dim + 1 :], pairs) if channels_last else (*shape[:dim], pairs, *shape[dim + 1 :])
    # Each run of pairs along memory starts a new byte.
    length = pairs if channels_last or math.prod(shape[dim + 1 :]) == 1 else math.prod(shape[dim + 1 :])
    if mask.numel() == 0:
        return mask.new_zeros(runs, dtype=torch.bool).movedim(-1 if channels_last else dim, dim)
    bits = mask.view(-1, (length + 7) // 8, 1) >> torch.arange(8, dtype=torch.uint8, device=mask.device) & 1
    swap = bits.flatten(1)[:, :length].reshape(runs).bool()
    return swap.movedim(-1, dim) if channels_last else swap
