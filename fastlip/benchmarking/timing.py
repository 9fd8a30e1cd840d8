"""Seconds of steps that alternate, and an allocator setting that does not disturb them."""

from __future__ import annotations

import ctypes
import math
import sys
import time
from collections.abc import Callable, Mapping

import torch


def alternate(
    steps: Mapping[str, Callable[[], object]],
    rounds: int,
    device: str | torch.device,
    limit: float = math.inf,
    watch: Callable[[], None] | None = None,
) -> dict[str, list[float]]:
    """Seconds of each step. Every round runs all steps in turn; the first round warms up and does not count.

    Args:
        steps: the steps by name.
        rounds: number of rounds that count.
        device: device of the steps, which is waited for.
        limit: seconds after which no further round begins; one round counts in any case.
        watch: is called after each round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    begun = time.perf_counter()
    for turn in range(rounds + 1):
        for name, step in steps.items():
            started = _now(device)
            step()
            if turn:
                seconds[name].append(_now(device) - started)
        if watch is not None:
            watch()
        if turn and time.perf_counter() - begun > limit:
            break
    return seconds


def _now(device: str | torch.device) -> float:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def keep_pages() -> bool:
    """Makes glibc's allocator keep freed memory, as fresh pages would dominate timings; returns whether it does."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    # Trim threshold, top pad, and the size above which memory comes from mmap (at most 32 MiB).
    options = ((-1, 2**31 - 1), (-2, 256 << 20), (-3, 32 << 20))
    return mallopt is not None and all(mallopt(option, value) for option, value in options)
