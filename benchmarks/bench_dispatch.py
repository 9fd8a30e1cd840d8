"""What a call costs besides its kernel, on tensors of few numbers; and a small layer's call next to torch's layer."""

import time
import timeit

import pytest
import torch
from torch import nn

from fastlip import nn as lip
from fastlip import ops, testing

LIMIT = 20e-6
ROUNDS, CALLS = 40, 100


def microseconds(*functions):
    """Per call, the smallest of many rounds in which the functions take turns: time of this thread, in which another
    process's share of the core does not count."""
    best = [float("inf")] * len(functions)
    for _ in range(ROUNDS):
        for i, function in enumerate(functions):
            best[i] = min(best[i], timeit.timeit(function, number=CALLS, timer=time.thread_time) / CALLS * 1e6)
    return best


# op: shape of its tensor, and the kernel's further arguments.
OPS = {"maxmin": ((2, 4), ("adjacent", 1)), "gram_rowsum": ((4, 4), (None, 1))}


@pytest.mark.parametrize("name", list(OPS))
def test_overhead_of_a_call(name, benchmark, gate):
    if reason := testing.op(name).status("native"):
        pytest.skip(reason)
    gate(name, "native")
    shape, options = OPS[name]
    tensor, function = torch.zeros(shape, requires_grad=True), getattr(ops, name)
    kernel = getattr(testing.op(name).modules["native"], f"{name}_forward")

    def call():
        return function(tensor, backend="native")

    whole, inner = microseconds(call, lambda: kernel(tensor, *options))
    benchmark.extra_info["overhead in microseconds"] = whole - inner
    benchmark(call)
    assert (whole - inner) * 1e-6 < LIMIT, f"{whole - inner:.1f} µs"


LAYERS = {
    "AOLConv2d": (lambda: lip.AOLConv2d(8, 8, 3, padding=1), lambda: nn.Conv2d(8, 8, 3, padding=1)),
    "AOLLinear": (lambda: lip.AOLLinear(8, 8), lambda: nn.Linear(8, 8)),
    "SLLConv2d": (lambda: lip.SLLConv2d(8, 8, 3), lambda: nn.Conv2d(8, 8, 3, padding=1)),
    "CayleyConv2d": (lambda: lip.CayleyConv2d(8, 8, 3), lambda: nn.Conv2d(8, 8, 3, padding=1)),
    "CayleyLinear": (lambda: lip.CayleyLinear(8, 8), lambda: nn.Linear(8, 8)),
    "MaxMin": (lip.MaxMin, nn.ReLU),
}


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("name", list(LAYERS))
def test_a_small_layers_call_next_to_torchs(name, mode, benchmark):
    torch.manual_seed(0)
    ours, theirs = (make().train(mode == "train") for make in LAYERS[name])
    x = torch.randn(2, 8) if name.endswith("Linear") else torch.randn(2, 8, 8, 8)
    with torch.set_grad_enabled(mode == "train"):
        layer, plain = microseconds(lambda: ours(x), lambda: theirs(x))
        benchmark.extra_info.update({"microseconds": layer, "torch's": plain, "ratio": layer / plain})
        benchmark(lambda: ours(x))
