"""The pool at the end of a network."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from fastlip.nn._recorded import recorded_here, records_itself


class GlobalMaxPool2d(nn.AdaptiveMaxPool2d):
    """The largest value of each channel: (n, c, h, w) -> (n, c, 1, 1).

    Where torch is told to be deterministic it takes the maximum by ``amax``, whose gradient is divided among equal
    values: torch's pool has no deterministic backward on a GPU.
    """

    def __init__(self) -> None:
        super().__init__(1)

    @records_itself
    def forward(self, input: Tensor) -> Tensor:
        """The largest value of each channel."""
        if isinstance(input, fx.Proxy) and (call := recorded_here(self, GlobalMaxPool2d.forward, input)) is not None:
            return call
        if input.is_cuda and torch.are_deterministic_algorithms_enabled():
            return input.amax((-2, -1), keepdim=True)
        return super().forward(input)
