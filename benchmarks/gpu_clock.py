"""Seconds of kernels on a GPU, from replays of CUDA graphs, and what the device reaches: copies and products.

Python's clock and events around Python's calls measure the host where kernels take less than 100 µs. A graph of the
step is replayed instead, after a write that leaves nothing of the step's tensors in the L2 cache.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from fastlip.kernels.common import capture

_WARM_UPS = 3
_COPIED = 1 << 28  # floats: 1 GiB, more than any cache
_SIDE = 8192  # of the matrices whose product is timed
PRECISIONS = ("ieee", "tf32")


class Clock:
    """Times steps on one device.

    Args:
        device: where they run; without CUDA they are timed by Python's clock, to exercise what calls this.
        rounds: number of replays, of which the median counts.
    """

    def __init__(self, device: torch.device, rounds: int):
        self.device = device
        self.rounds = rounds
        cuda = device.type == "cuda"
        self._flush = torch.empty(2 * self._cache_bytes() // 4, device=device) if cuda else None

    def seconds(self, step: Callable[[], Any]) -> float:
        """Seconds of a step; of one that waits for the device, and so cannot be captured, with what the host does."""
        return self.timed(step)[0]

    def timed(self, step: Callable[[], Any]) -> tuple[float, str]:
        """Seconds of a step, and how they were measured: ``"graph"``, ``"events"``, or ``"host"`` without a GPU."""
        if self._flush is None:
            return min(_seconds_of(step) for _ in range(self.rounds)), "host"
        with capture.on_side_stream():
            for _ in range(_WARM_UPS):
                step()
        torch.cuda.synchronize()
        try:
            run, _ = capture.captured(step)
        except RuntimeError:  # the host waits within the step
            torch.cuda.synchronize()
            return self._between_events(step), "events"
        return self._between_events(run), "graph"

    def _between_events(self, run: Callable[[], Any]) -> float:
        found = []
        for _ in range(self.rounds):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            if self._flush is not None:
                self._flush.zero_()  # also keeps the device busy while the host launches what follows
            start.record()
            run()
            end.record()
            end.synchronize()
            found.append(start.elapsed_time(end) / 1e3)
        return statistics.median(found)

    def _cache_bytes(self) -> int:
        return torch.cuda.get_device_properties(self.device).L2_cache_size


def _seconds_of(step: Callable[[], Any]) -> float:
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def reached(clock: Clock, small: bool = False) -> dict[str, float]:
    """What this device reaches: bytes/s of a copy, read and written, and FLOP/s of products of each precision.

    Args:
        clock: of the device.
        small: of tensors of a few kilobytes, to exercise this.
    """
    count, side = (1 << 10, 16) if small else (_COPIED, _SIDE)
    found = {"copy bytes/s": 8 * count / _seconds_of_copy(clock, count)}
    A = torch.randn(side, side, device=clock.device)
    for precision in PRECISIONS:
        with precision_of_products(precision):
            found[f"{precision} flop/s"] = 2 * side**3 / clock.seconds(lambda: A @ A)
    B = A.bfloat16()
    found["bf16 flop/s"] = 2 * side**3 / clock.seconds(lambda: B @ B)
    return found


def _seconds_of_copy(clock: Clock, count: int) -> float:
    source = torch.ones(count, device=clock.device)
    target = torch.empty_like(source)
    return clock.seconds(lambda: target.copy_(source))


class precision_of_products:  # noqa: N801
    """A context in which float32 products and convolutions of the GPU are ``"ieee"`` or ``"tf32"``.

    Parametrizations and bounds are IEEE whatever it says.
    """

    def __init__(self, precision: str):
        self.precision = precision

    def __enter__(self) -> None:
        settings = torch.backends.cuda.matmul, torch.backends.cudnn.conv
        self._before = [setting.fp32_precision for setting in settings]
        for setting in settings:
            setting.fp32_precision = self.precision

    def __exit__(self, *_: object) -> None:
        settings = torch.backends.cuda.matmul, torch.backends.cudnn.conv
        for setting, before in zip(settings, self._before, strict=True):
            setting.fp32_precision = before


def about(device: torch.device) -> dict[str, Any]:
    """What the device and torch say of themselves."""
    versions = {"torch": torch.__version__, "cuda": torch.version.cuda}
    if device.type != "cuda":
        return {"device": str(device), **versions}
    properties = torch.cuda.get_device_properties(device)
    return {
        "device": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory bytes": properties.total_memory,
        "L2 bytes": properties.L2_cache_size,
        "shared memory bytes of a block": properties.shared_memory_per_block_optin,
        **versions,
    }
