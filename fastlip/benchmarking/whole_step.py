"""A whole step as one program, for ``fastlip bench``: compiled by torch, or captured in a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import torch

from fastlip.benchmarking.literals import PlainForm, Program
from fastlip.kernels.common import capture

PROGRAMS: tuple[Program, ...] = get_args(Program)
COMPILED, CAPTURED = PROGRAMS
PLAIN_COMPILED: PlainForm = "plain compiled"
_WARM_UPS = 3  # they compile kernels, and create tables and the optimiser's state


def why_not(program: str, device: str) -> str:
    """Why steps on this device cannot run as this program; empty if they can."""
    if program == CAPTURED and torch.device(device).type != "cuda":
        return f"{CAPTURED} needs a CUDA device, got {device}"
    return ""


def compiled(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function; compiled as one graph for the contestants of whom that is the form."""
    if name not in (COMPILED, PLAIN_COMPILED):
        return function
    return torch.compile(function, fullgraph=True, dynamic=False)


def captured(name: str, step: Callable[[], Any]) -> Callable[[], Any]:
    """The step; for the contestant of that name its kernels, captured on fixed memory and launched by one call."""
    if name != CAPTURED:
        return step
    with capture.on_side_stream():
        for _ in range(_WARM_UPS):
            step()
    return capture.captured(step)[0]
