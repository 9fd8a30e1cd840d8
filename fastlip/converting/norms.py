"""The replacement of normalisation: centering, which is 1-Lipschitz."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastlip.nn import BatchCentering, LayerCentering

# Per channel: from the batch in training, from running means in evaluation.
CHANNEL_NORMS = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.GroupNorm),
)

_UNCHANGED = 0.05  # of the norm: roundings of 16-bit types, and the eps of the variance, stay below


def is_layer_norm(module: nn.Module) -> bool:
    """Whether a module is a layer norm: torch's, or one that calls itself so, as those of many image networks do.

    A module that holds others, such as a norm with an activation, is followed into its forward.
    """
    if next(module.children(), None) is not None:
        return False
    return isinstance(module, nn.LayerNorm) or "LayerNorm" in type(module).__name__


@torch.no_grad()
def normalised_dims(module: nn.Module, x: Tensor, channel: int) -> tuple[int, ...]:
    """The dimensions, counted from the end, over which a layer norm takes means for inputs like x.

    A subclass may permute its input, as those of image networks do: the norm does not change where a constant is
    added along the dimensions that it normalises, which is tried. ``channel``: the dimension to assume otherwise.
    """
    shape = getattr(module, "normalized_shape", ())
    if type(module).forward is nn.LayerNorm.forward:
        return tuple(range(-len(shape), 0))
    generator = torch.Generator(x.device).manual_seed(0)
    probe = torch.randn(x.shape, generator=generator, device=x.device, dtype=torch.float32)
    y = module(probe.to(x.dtype)).float()
    trailing = [tuple(range(-count, 0)) for count in range(1, x.dim())]
    for dims in [(channel,), (1 - x.dim(),), *trailing]:
        sizes = [1 if dim - x.dim() in dims else size for dim, size in enumerate(x.shape)]
        moved = probe + torch.randn(sizes, generator=generator, device=x.device)
        if (module(moved.to(x.dtype)).float() - y).norm() <= _UNCHANGED * y.norm():
            return dims
    return (channel,)


def centre_channels(channels: int, like: Tensor) -> nn.Module:
    """A module that subtracts each channel's mean over the batch."""
    return BatchCentering(channels, device=like.device, dtype=like.dtype)


def centre_samples(channels: int, dims: tuple[int, ...]) -> nn.Module:
    """A module that subtracts each sample's mean over these dimensions, which count from the end.

    ``channels``: the size of dimension 1.
    """
    return LayerCentering(channels, dims, bias=False)
