"""Running a model without leaving anything behind in it, or in the random generators."""

from __future__ import annotations

import copy
import random
import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_CONTAINERS = (list, dict, set, OrderedDict, deque)


@contextmanager
def no_trace(model: nn.Module) -> Iterator[None]:
    """Attributes, what lists and dictionaries among them hold, buffers and random generators are as before then."""
    devices = {tensor.device.index for tensor in model.parameters() if tensor.is_cuda}
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[index for index in devices if index is not None]))
        stack.callback(random.setstate, random.getstate())
        if numpy := sys.modules.get("numpy"):
            stack.callback(numpy.random.set_state, numpy.random.get_state())
        for module in model.modules():
            stack.callback(_restore(module))
        yield


def _restore(module: nn.Module) -> Callable[[], None]:
    own = vars(module)
    attributes = dict(own)
    held = {name: copy.copy(value) for name, value in own.items() if type(value) in _CONTAINERS}
    buffers = [(tensor, tensor.detach().clone(), _version(tensor)) for tensor in module.buffers(recurse=False)]

    def restore() -> None:
        for name in [name for name in own if name not in attributes]:
            del own[name]
        for name, value in attributes.items():
            if own.get(name, restore) is not value:
                own[name] = value
        for name, content in held.items():
            if not _holds(attributes[name], content):
                attributes[name].clear()
                (attributes[name].update if hasattr(content, "update") else attributes[name].extend)(content)
        for tensor, before, version in buffers:
            if version is None or _version(tensor) != version:
                with torch.no_grad():
                    tensor.copy_(before)

    return restore


def _holds(container: Any, content: Any) -> bool:
    """Whether the same objects are in both, in this order."""
    if isinstance(container, dict):
        return list(map(id, container.values())) == list(map(id, content.values())) and list(container) == list(
            content
        )
    return list(map(id, container)) == list(map(id, content))


def _version(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version
