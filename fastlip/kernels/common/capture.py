"""CUDA graphs: whether one is being captured, and how one is made.

While a graph is captured its memory may not be kept, and the host must neither wait nor upload.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

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
    """What launches the kernels of a step by one call, and the step's result, whose memory each call fills.

    The step's kernels are captured, not run. It must have run before, on a side stream, with the same memory.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = step()
    return graph.replay, result
