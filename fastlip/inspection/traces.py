"""Running a model without leaving anything in it, or in the random generators."""

from __future__ import annotations

import copy
import random
import sys
from collections import OrderedDict, deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

_CONTAINERS = frozenset({list, dict, set, OrderedDict, deque})
_ABSENT = object()


@contextmanager
def no_trace(model: nn.Module) -> Iterator[None]:
    """Restores on exit: attributes, the content of lists and dictionaries among them, buffers, random generators."""
    devices = {tensor.device.index for tensor in model.parameters() if tensor.is_cuda}
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[index for index in devices if index is not None]))
        stack.callback(random.setstate, random.getstate())
        if numpy := sys.modules.get("numpy"):
            stack.callback(numpy.random.set_state, numpy.random.get_state())
        stack.callback(_restore, _states_of(model))
        yield


class _State(NamedTuple):
    """A module's attributes, the containers among them with their content, and its buffers with their values."""

    own: dict[str, Any]
    attributes: dict[str, Any]
    containers: list[tuple[Any, Any]]
    buffers: list[tuple[Tensor, Tensor, int | None]]


def _states_of(model: nn.Module) -> list[_State]:
    states = []
    for module in model.modules():
        own, containers, buffers = vars(module), [], []
        for value in own.values():
            if type(value) in _CONTAINERS:
                containers.append((value, copy.copy(value)))
        for tensor in module.buffers(recurse=False):
            buffers.append((tensor, tensor.detach().clone(), _version(tensor)))
        states.append(_State(own, dict(own), containers, buffers))
    return states


def _restore(states: list[_State]) -> None:
    """Puts back what is no longer as it was."""
    for own, attributes, containers, buffers in states:
        for name in own.keys() - attributes.keys():
            del own[name]
        for name, value in attributes.items():
            if own.get(name, _ABSENT) is not value:
                own[name] = value
        for container, content in containers:
            # The same objects in the same order; comparing with == would run the code of others.
            if isinstance(container, dict):
                now, before = container.values(), content.values()
                changed = list(map(id, now)) != list(map(id, before)) or list(container) != list(content)
            else:
                changed = list(map(id, container)) != list(map(id, content))
            if changed:
                container.clear()
                add: Any = getattr(container, "extend", None) or container.update
                add(content)
        for tensor, value, version in buffers:
            if version is None or _version(tensor) != version:
                with torch.no_grad():
                    tensor.copy_(value)


def _version(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version
