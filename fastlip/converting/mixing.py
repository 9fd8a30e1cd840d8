"""The weight with which a sum is mixed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastlip.kernels.common.literals import Device


class Share(nn.Module):
    """A learnt number s in (0, 1), sigmoid of its parameter, 1/2 at first: a sum f + g becomes s f + (1 - s) g."""

    def __init__(self, device: Device = None, dtype: torch.dtype | None = None):
        super().__init__()
        self.logit = nn.Parameter(torch.zeros(1, device=device, dtype=dtype))

    def forward(self) -> Tensor:
        """(1,): s."""
        return self.logit.sigmoid()
