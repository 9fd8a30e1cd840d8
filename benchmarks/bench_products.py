"""GFLOP/s of our product of real matrices (``csrc/linear``) and of torch's, on one thread, in float32.

``python benchmarks/bench_products.py``: the products X Wᵀ, Y W and Yᵀ X of dense layers at some
sizes; the best of 40 calls.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch

from fastlip.kernels.common import binding
from fastlip.kernels.common.products import is_faster, product

SIZES = ((256, 64, 64), (400, 128, 128), (64, 256, 256), (256, 256, 256), (256, 1024, 1024), (1024, 1024, 1024))


def rate(call: Callable[[], object], flops: int) -> float:
    """GFLOP/s of the fastest of 40 calls."""
    times = []
    for _ in range(40):
        begun = time.perf_counter()
        call()
        times.append(time.perf_counter() - begun)
    return flops / min(times) / 1e9


def main() -> None:
    """Prints a line for each size."""
    binding.require()
    torch.set_num_threads(1)
    print(f'"auto" takes our product here: {is_faster()}')
    for m, k, n in SIZES:
        a, b, out = torch.randn(m, k), torch.randn(k, n), torch.empty(m, n)
        layouts = {"X Wᵀ": (a, b.T.contiguous().T), "Y W": (a, b), "Yᵀ X": (a.T.contiguous().T, b)}
        for name, (left, right) in layouts.items():
            ours = rate(partial(product, left, right, out=out, least=0), 2 * m * k * n)
            torchs = rate(partial(torch.mm, left, right, out=out), 2 * m * k * n)
            print(f"{m:5} x {k:4} x {n:4}  {name:5}  {ours:6.0f}   torch {torchs:6.0f}")


if __name__ == "__main__":
    main()
