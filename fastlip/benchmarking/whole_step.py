"""A whole step as one program, for ``fastlip bench``: compiled by torch, or captured in a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

COMPILED, CAPTURED = "fused compiled", "fused CUDA graph"
PROGRAMS = (COMPILED, CAPTURED)
_WARM_UPS = 3  # that compile kernels, make tables, and the optimiser's state


def why_not(program: str, device: str) -> str:
    """Why steps on this device cannot be such a program; empty if they can."""
    if program == CAPTURED and torch.device(device).type != "cuda":
        return f"{CAPTURED} needs a CUDA device, got {device}"
    return ""


def compiled(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, compiled in one graph for the contestant that is."""
    return torch.compile(function, fullgraph=True, dynamic=False) if name == COMPILED else function


def captured(name: str, step: Callable[[], Any]) -> Callable[[], Any]:
    """The step, captured for the contestant that is: its kernels on the same memory, all launched by one call."""
    if name != CAPTURED:
        return step
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UPS):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay
