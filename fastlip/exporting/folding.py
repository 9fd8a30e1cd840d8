"""Adds the shifts of centering layers to the biases of the layers before them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from fastlip.exporting import plain
from fastlip.inspection.running import is_sequence
from fastlip.nn._calls import is_touched

_CONVOLUTIONS = nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d
_FROZEN = plain.Convolution, plain.SpectralConvolution, plain.Exponential


def fold_shifts(model: nn.Module) -> nn.Module:
    """Removes each :class:`plain.Shift` right after a layer with a bias in a sequence. In place, returns the model.

    Only where nothing but the sequence can call either: a module of another package may call parts of its sequences.
    """
    uses = Counter(id(child) for module in model.modules() for child in module._modules.values())
    for sequence in list(_sequences(model)):
        before = None
        for name, module in list(sequence._modules.items()):
            if module is None:
                continue
            if before is not None and uses[id(module)] == uses[id(sequence._modules[before])] == 1:
                folded = _folded(sequence._modules[before], module)
                if folded is not None:
                    sequence._modules[before] = folded
                    del sequence._modules[name]
                    uses[id(folded)] = 1
                    continue
            before = name
    return model


def _sequences(module: nn.Module) -> Iterator[nn.Module]:
    """The sequences that the model applies as a whole."""
    if is_sequence(module) and not is_touched(module):
        yield module
    elif not isinstance(module, fx.GraphModule):
        return
    for child in module.children():
        yield from _sequences(child)


def _folded(layer: Any, shift: nn.Module) -> nn.Module | None:
    """The layer with the shift in its bias; None if it has no bias to which it can be added."""
    found = (
        plain.thaw(shift) if isinstance(shift, fx.GraphModule) and plain.frozen_kind(shift) is plain.Shift else None
    )
    if layer is None or not isinstance(found, plain.Shift) or is_touched(layer) or is_touched(shift):
        return None
    added, kind = found.shift.detach(), type(layer)
    # A dense layer's outputs are the last dimension, a shift's channels dimension 1.
    if kind in _CONVOLUTIONS or (kind is nn.Linear and found.rank == 1):
        layer.register_parameter("bias", nn.Parameter(_sum(layer.bias, added)))
        return layer
    if plain.frozen_kind(layer) not in _FROZEN or not isinstance(layer, fx.GraphModule):
        return None
    thawed = plain.thaw(layer)
    if thawed is None:
        return None
    tensors: dict[str, Tensor | None] = {name: getattr(thawed, name) for name in thawed.TENSORS}
    bias = _sum(tensors["bias"], added)
    return plain.freeze(type(thawed)({**tensors, "bias": bias}, **thawed.config))


def _sum(bias: Tensor | None, added: Tensor) -> Tensor:
    if bias is None:
        return added.clone()
    wide = torch.promote_types(bias.dtype, torch.float32)
    return (bias.detach().to(wide) + added.to(wide)).to(bias.dtype)
