"""What takes the place of normalisation: centering, which is 1-Lipschitz."""

from __future__ import annotations

from torch import Tensor, nn

from fastlip.nn import BatchCentering, LayerCentering

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
    return BatchCentering(channels, device=like.device, dtype=like.dtype)


def centre_samples(channels: int, dims: tuple[int, ...]) -> nn.Module:
    """A module that subtracts each sample's mean over these dimensions, which count from the end.

    ``channels``: the size of dimension 1.
    """
    return LayerCentering(channels, dims, bias=False)
