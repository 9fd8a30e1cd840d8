"""A circular convolution by its spectrum against conv2d with a 3 x 3 kernel on the same images, batch 256.

The matrices are given: what a layer pays to make them is another op's. "ratio" alternates both in one run.
"""

import statistics
import time

import pytest
import torch
import torch.nn.functional as F

from fastlip import ops
from fastlip.kernels.common.dispatch import registered
from fastlip.kernels.spectral_conv.api import unique_frequencies

BATCH, ROUNDS = 256, 9
SHAPES = ((64, 4), (64, 8), (64, 16), (64, 32), (128, 4), (128, 8), (128, 16), (256, 4), (256, 8), (512, 4))
SMALL = ((16, 32), (32, 16))  # of the narrowest network: no bound is promised
LIMITS = {"forward": 0.7, "training": 0.6}


def inputs(channels, side, memory_format):
    x = torch.randn(BATCH, channels, side, side).to(memory_format=memory_format)
    frequencies = len(unique_frequencies((side, side)))
    Q = torch.randn(frequencies, channels, channels, dtype=torch.complex64) / channels**0.5
    weight, bias = torch.randn(channels, channels, 3, 3), torch.randn(channels)
    cotangent = torch.randn_like(x)
    leaves = [value.requires_grad_() for value in (x, Q, weight, bias)]
    return leaves, cotangent


def steps(mode, leaves, cotangent):
    x, Q, weight, bias = leaves

    def spectral():
        return ops.spectral_conv(x, Q, bias, backend="native")

    def plain():
        return F.conv2d(x, weight, bias, padding=1)

    def step(function, matrices):
        if mode == "forward":
            with torch.no_grad():
                function()
        else:
            torch.autograd.grad(function(), (x, matrices, bias), cotangent)

    return (lambda: step(spectral, Q)), (lambda: step(plain, weight))


def seconds(step):
    begin = time.perf_counter()
    step()
    return time.perf_counter() - begin


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("mode", LIMITS)
@pytest.mark.parametrize(("channels", "side"), [*SHAPES, *SMALL])
def test_ratio_to_conv2d(channels, side, mode, layout, benchmark, gate):
    if reason := registered["spectral_conv"].status("native"):
        pytest.skip(reason)
    gate("spectral_conv", "native")
    memory_format = torch.contiguous_format if layout == "contiguous" else torch.channels_last
    spectral, plain = steps(mode, *inputs(channels, side, memory_format))
    pairs = [(seconds(spectral), seconds(plain)) for _ in range(ROUNDS + 2)][2:]
    ours, theirs = (statistics.median(times) for times in zip(*pairs, strict=True))
    benchmark.group = f"spectral_conv against conv2d: {mode}, {layout}"
    benchmark.extra_info |= {"ratio": ours / theirs, "conv2d ms": theirs * 1e3, "threads": torch.get_num_threads()}
    benchmark.pedantic(spectral, rounds=3, iterations=1)
    if layout == "contiguous" and (channels, side) in SHAPES:
        assert ours / theirs <= LIMITS[mode], f"{ours / theirs:.2f} times conv2d"
