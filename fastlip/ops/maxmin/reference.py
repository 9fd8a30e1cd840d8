"""MaxMin (Anil, Lucas, Grosse 2019): each pair of channels (a, b) becomes (max(a, b), min(a, b))."""

from __future__ import annotations

import torch
from torch import Tensor


def maxmin(x: Tensor, pairing: str, dim: int) -> Tensor:
    """Swaps the pairs with b > a: ties keep their order, so that each output has exactly one gradient."""
    pairs = x.shape[dim] // 2
    paired, rest = x.split((2 * pairs, x.shape[dim] - 2 * pairs), dim)
    if pairing == "adjacent":
        a, b = paired.unflatten(dim, (pairs, 2)).unbind(dim + 1)
    else:
        a, b = paired.chunk(2, dim) if pairs else (paired, paired)
    swap = b > a
    high, low = torch.where(swap, b, a), torch.where(swap, a, b)
    if pairing == "adjacent":
        sorted_pairs = torch.stack((high, low), dim + 1).flatten(dim, dim + 1)
    else:
        sorted_pairs = torch.cat((high, low), dim) if pairs else paired
    return torch.cat((sorted_pairs, rest), dim) if rest.shape[dim] else sorted_pairs
