"""Seconds of steps that alternate, and an allocator setting that does not disturb them."""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable

import torch


def alternate(steps: dict[str, Callable[[], None]], rounds: int, device: str) -> dict[str, list[float]]:
    """Seconds of each step. Every round runs all steps in turn; the first round warms up and does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 1):
        for name, step in steps.items():
            _wait(device)
            started = time.perf_counter()
            step()
            _wait(device)
            if turn:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def _wait(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def keep_pages() -> bool:
    """Makes glibc's allocator keep freed memory, as fresh pages would dominate timings; returns whether it does."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    # Trim threshold, top pad, and the size above which memory comes from mmap (at most 32 MiB).
    options = ((-1, 2**31 - 1), (-2, 256 << 20), (-3, 32 << 20))
    return mallopt is not None and all(mallopt(option, value) for option, value in options)
