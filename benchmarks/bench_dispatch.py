"""What a call costs beside its kernel: dispatch, the saved mask and the graph, on a tensor of eight numbers."""

import time
import timeit

import pytest
import torch

from fastlip import ops
from fastlip.kernels.maxmin.api import OP

LIMIT = 20e-6


def test_overhead_of_a_call(benchmark, gate):
    if OP.status("native"):
        pytest.skip(OP.status("native"))
    gate("maxmin", "native")
    x = torch.zeros(2, 4, requires_grad=True)
    kernel = OP.modules["native"].maxmin_forward

    def seconds(function):
        # Time of this thread: another process's share of the core does not count.
        return min(timeit.repeat(function, number=500, repeat=60, timer=time.thread_time)) / 500

    overhead = seconds(lambda: ops.maxmin(x, backend="native")) - seconds(lambda: kernel(x, "adjacent", 1))
    benchmark.extra_info["overhead in microseconds"] = overhead * 1e6
    benchmark(lambda: ops.maxmin(x, backend="native"))
    assert overhead < LIMIT, f"{overhead * 1e6:.1f} µs"
