"""What takes the place of normalisation: centering, which is 1-Lipschitz."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastlip.nn._recorded import WholeModule

# Per channel: from the batch in training, from running means in evaluation.
CHANNEL_NORMS = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.GroupNorm),
)


def is_layer_norm(module: nn.Module) -> bool:
    """Whether a module is a layer norm: torch's, or one that calls itself so, as those of many image networks do."""
    return isinstance(module, nn.LayerNorm) or "LayerNorm" in type(module).__name__


def centre_channels(channels: int, like: Tensor) -> nn.Module:
    """A module that subtracts each channel's mean over the batch."""
    return RunningCentering(channels, device=like.device, dtype=like.dtype)


def centre_samples(channels: int, dims: tuple[int, ...]) -> nn.Module:
    """A module that subtracts each sample's mean over these dimensions, which count from the end.

    ``channels``: the size of dimension 1.
    """
    return OwnCentering(dims)


class RunningCentering(WholeModule):
    """Subtracts the mean of each channel (dimension 1): of the batch in training, the running mean in evaluation.

    A translation in evaluation. The running mean starts at 0. A learnt bias follows.
    """

    running_mean: Tensor

    def __init__(self, channels: int, momentum: float = 0.1, device: Any = None, dtype: Any = None):
        super().__init__()
        self.momentum = momentum
        self.bias = nn.Parameter(torch.zeros(channels, device=device, dtype=dtype))
        self.register_buffer("running_mean", torch.zeros(channels, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        """x minus the mean, plus the bias."""
        mean = self.running_mean
        if self.training:
            mean = x.mean([dim for dim in range(x.dim()) if dim != 1])
            with torch.no_grad():
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        return x + (self.bias - mean).to(x.dtype).view(-1, *[1] * (x.dim() - 2))

    def lipschitz_bound(self, input_shape: tuple[int, ...]) -> float:
        """1: a translation."""
        return 1.0

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{len(self.running_mean)}"


class OwnCentering(WholeModule):
    """Subtracts each sample's own mean over some dimensions: an orthogonal projection."""

    def __init__(self, dims: tuple[int, ...]):
        super().__init__()
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        """x minus its means."""
        return x - x.mean(self.dims, keepdim=True)

    def lipschitz_bound(self, input_shape: tuple[int, ...]) -> float:
        """1: an orthogonal projection."""
        return 1.0

    def extra_repr(self) -> str:
        """The arguments."""
        return f"dims={self.dims}"
