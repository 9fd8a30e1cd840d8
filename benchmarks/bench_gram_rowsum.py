"""gram_rowsum and maxmin against their references, forward and backward: the factors that they owe, case by case.

Blocks of calls alternate, and a ratio is the median over the blocks. Beside it stands the ratio when single calls
alternate: each then finds the caches full of the other's code, and torch's own share of a small call doubles.
"""

import re
import statistics
import subprocess
import sys
import time

import pytest
import torch

from fastlip import ops, testing

FACTOR, CHANNELS = 2.5, 128  # required up to this number of channels; above, and without weights: never slower
MAXMIN_FACTOR = 3
MEMORY_SHARE = 0.05

PEAK = """
import re, sys, torch
from fastlip import ops

def kilobytes(key):
    return int(re.search(key + r":\\s+(\\d+)", open("/proc/self/status").read())[1])

def step(channels):
    weight = torch.randn(channels, channels, 3, 3, requires_grad=True)
    before = kilobytes("VmRSS")
    (gradient,) = torch.autograd.grad(ops.gram_rowsum(weight, backend=sys.argv[1]).sum(), weight)
    return kilobytes("VmHWM") - before - gradient.nbytes / 1024

step(32)
print("extra kilobytes:", step(512))
"""


def owed(case):
    shape, groups = case.shapes["weight"], case.options.get("groups", 1)
    return FACTOR if 0 not in shape and shape[1] * groups <= CHANNELS else 1


CASES = [
    pytest.param(case, id=case_name)
    for bench in (True, False)
    for op_name, case_name, case in testing.op_cases(bench)
    if op_name == "gram_rowsum"
]


@pytest.mark.parametrize("case", CASES)
def test_gram_rowsum(case, benchmark, gate):
    found = ratio("gram_rowsum", case, benchmark, gate)
    assert found >= owed(case), f"reference / native: {found:.2f}"


def test_maxmin(benchmark, gate):
    found = ratio("maxmin", testing.cases_of("maxmin").CASES["net_256x64x32"], benchmark, gate)
    assert found >= MAXMIN_FACTOR, f"reference / native: {found:.2f}"


def test_peak_memory_of_512_channels(benchmark):
    """Beyond the weight and its gradient, each backend in a process of its own."""
    if sys.platform != "linux":
        pytest.skip("reads /proc")
    need_native("gram_rowsum")
    extra = {name: peak(name) for name in ("reference", "native")}
    benchmark.extra_info["extra kilobytes"] = extra
    weight = torch.randn(32, 32, 3, 3)
    benchmark(lambda: ops.gram_rowsum(weight, backend="native"))
    assert extra["native"] <= MEMORY_SHARE * extra["reference"], extra


def peak(backend):
    process = subprocess.run([sys.executable, "-c", PEAK, backend], capture_output=True, text=True, check=True)
    return float(re.search(r"extra kilobytes: (.*)", process.stdout)[1])


def need_native(op_name):
    if reason := testing.op(op_name).status("native"):
        pytest.skip(reason)


def ratio(op_name, case, benchmark, gate):
    """Seconds of the reference / seconds of the kernels, by blocks; both ratios go into the report."""
    need_native(op_name)
    gate(op_name, "native")
    torch.manual_seed(0)
    steps = [step(op_name, backend, case) for backend in ("reference", "native")]
    calls = max(1, min(40, int(5e-3 / seconds(steps[1], 3))))
    found = alternate(steps, calls)
    benchmark.extra_info["reference / native"] = found
    benchmark.extra_info["single calls alternate"] = alternate(steps, 1)
    benchmark.pedantic(steps[1], rounds=5, iterations=1)
    return found


def step(op_name, backend, case):
    leaves = {name: tensor.requires_grad_() for name, tensor in case.make(torch.float32).items()}
    cotangent = torch.randn_like(testing.call(op_name, backend, case, leaves))

    def run():
        output = testing.call(op_name, backend, case, leaves)
        torch.autograd.grad(output, list(leaves.values()), cotangent, allow_unused=True)

    return run


def seconds(run, calls):
    started = time.perf_counter()
    for _ in range(calls):
        run()
    return time.perf_counter() - started


def alternate(steps, calls):
    """The median ratio over rounds that take about half a second together, but for slow cases."""
    once = sum(seconds(run, calls) for run in steps)
    rounds = max(5, min(200, int(0.5 / once)))
    return statistics.median(seconds(steps[0], calls) / seconds(steps[1], calls) for _ in range(rounds))
