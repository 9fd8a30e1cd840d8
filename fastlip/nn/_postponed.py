"""A parametrization's gradient as one step of the backward: only where it is asked for, and in full precision."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from fastlip.kernels.common import one_step

if TYPE_CHECKING:
    from fastlip.nn.base import LipschitzLayer


def in_one_step(
    layer: LipschitzLayer, context: tuple[Hashable, ...], kept: Sequence[Tensor] | None = None
) -> tuple[Tensor, ...]:
    """The effective weights, with the gradient of ``layer._parametrize(*context)`` for the layer's parameters.

    With weights that are ``kept`` the parametrization runs in the backward, and only there: what differentiates for
    the images alone, as attacks do, does not pay for it. Without, it runs now, and its graph waits for the backward.
    """
    twin = layer._replicate_for_data_parallel()  # the layer as it is now, whatever happens to it before the backward
    twin._buffers = {}
    names = {**layer._parameters, **layer._buffers, **layer.__dict__}  # not what a child computes
    values = {name: getattr(layer, name) for name in layer._registered() if name in names}
    twin.__dict__.update(dict.fromkeys(values))
    places = [(twin, name) for name, value in values.items() if isinstance(value, Tensor)]
    tensors = [values[name] for _, name in places]
    for child, name, tensor in _of_children(twin):
        places.append((child, name))
        tensors.append(tensor)

    def weights(*sources: Tensor) -> tuple[Tensor, ...]:
        for (module, name), source in zip(places, sources, strict=True):
            module.__dict__[name] = source
        found = twin._compute(context)
        for module, name in places:
            module.__dict__[name] = None
        return found

    kept = kept if kept is None else tuple(weight.detach() for weight in kept)
    return one_step.in_one_step(weights, tensors, kept)


def _of_children(twin: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """Twins of a twin's children, which take their places, and the name and value of each parameter."""
    for key, child in twin._modules.items():
        if child is None:
            continue
        other = twin._modules[key] = child._replicate_for_data_parallel()
        other.__dict__.update(dict.fromkeys(child._parameters))
        yield from ((other, name, value) for name, value in child._parameters.items() if value is not None)
        yield from _of_children(other)
