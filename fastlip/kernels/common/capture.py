"""CUDA graphs: whether one is being captured, and how one is made.

While a graph is captured its memory may not be kept, and the host must neither wait nor upload.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import torch
from torch import Tensor

# Tensors that are kept between calls, as long as they are; and those that graphs read in each replay, for good.
_kept: WeakValueDictionary[Hashable, Tensor] = WeakValueDictionary()
_read_by_graphs: dict[Hashable, Tensor] = {}
_Result = TypeVar("_Result")


def is_capturing(device: torch.device) -> bool:
    """Whether the device's current stream is being captured."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


@contextmanager
def on_side_stream() -> Iterator[None]:
    """A context for what runs before a capture, which is made on another stream than the current one."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream().wait_stream(stream)


def captured(step: Callable[[], _Result]) -> tuple[Callable[[], None], _Result]:
    """A function that launches a step's kernels by one call, and the step's result, whose memory each call fills.

    The step's kernels are captured, not run. It must have run before, on a side stream, with the same memory.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = step()
    return graph.replay, result


def kept(keep: Callable[..., Tensor], make: Callable[..., Tensor], device: torch.device, *arguments: Any) -> Tensor:
    """A tensor that depends on sizes only: ``keep(*arguments)``, which is ``make(*arguments)`` kept between calls.

    While a CUDA graph is captured, what was kept before is used, and kept for as long as the process runs. Where
    there is none, the graph makes it in each replay.

    Args:
        keep: makes and keeps it.
        make: makes it.
        device: of the tensor.
        arguments: of both functions.
    """
    if device.type != "cuda":
        return keep(*arguments)
    key = (make, device, *arguments)
    if not torch.cuda.is_current_stream_capturing():
        _kept[key] = value = keep(*arguments)
        return value
    found = _kept.get(key)
    return make(*arguments) if found is None else _read_by_graphs.setdefault(key, found)
