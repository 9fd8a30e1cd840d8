"""Lookahead (Zhang et al., NeurIPS 2019, arXiv 1907.08610) for orthogonal matrices and other parameters.

After every k steps of the optimiser the slow weights S move by a fraction of the way to the weights W, and W
continues from there: S <- S + alpha (W - S), W <- S. Of orthogonal matrices S becomes the polar factor of that. For
alpha = 1/2 it is the middle of the shortest way from S to W on the manifold, while no angle between them reaches 180
degrees: I + exp(A) = exp(A / 2) (exp(-A / 2) + exp(A / 2)), whose second factor is symmetric and positive.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fastlip.kernels.common.capture import is_capturing
from fastlip.optim._rows import own_rows

SLOW = "slow"


def new_slow_weights(group: Mapping[str, Any], state: Mapping[Tensor, Any]) -> dict[Tensor, Tensor]:
    """Copies of the parameters that are about to take their first step, if the group has Lookahead.

    Args:
        group: of an optimiser.
        state: that of its parameters.
    """
    if not group["lookahead"]:
        return {}
    moving = [p for p in group["params"] if p.grad is not None]
    if any(is_capturing(p.device) for p in moving):
        raise ValueError(
            f"lookahead={group['lookahead']}: replays of a CUDA graph do not count steps; allowed is 0 in a capture"
        )
    return {p: p.detach().clone() for p in moving if SLOW not in state.get(p, {})}


def is_due(group: dict[str, Any]) -> bool:
    """Counts a step of the group, and returns whether its slow weights move now."""
    if not group["lookahead"]:
        return False
    group["ahead"] += any(p.grad is not None for p in group["params"])
    if group["ahead"] < group["lookahead"]:
        return False
    group["ahead"] = 0
    return True


def pairs_of(group: Mapping[str, Any], state: Mapping[Tensor, Any]) -> tuple[list[Tensor], list[Tensor]]:
    """The parameters of a group that have slow weights, and those, each as the rows that this process has."""
    found = [(p, state[p][SLOW]) for p in group["params"] if SLOW in state.get(p, {})]
    return [own_rows(p.detach()) for p, _ in found], [own_rows(slow) for _, slow in found]


def average_(weights: list[Tensor], slow: list[Tensor], alpha: float) -> None:
    """Replaces the weights by S + alpha (W - S)."""
    if weights:
        torch._foreach_copy_(weights, torch._foreach_lerp(slow, weights, alpha))
