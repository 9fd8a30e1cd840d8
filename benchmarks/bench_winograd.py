"""Winograd's convolutions next to torch's for channels-last images: in training, in evaluation, and both gradients.

pytest --benchmark-only benchmarks/bench_winograd.py
"""

import pytest
import torch

from fastlip.kernels.common import winograd
from fastlip.kernels.common.geometry import ConvGeometry

# (batch, channels, side): the layers of the ConvNets XS at batch 256 and S at batch 64.
LAYERS = [
    (256, 16, 32),
    (256, 32, 16),
    (256, 64, 8),
    (256, 128, 4),
    (64, 32, 32),
    (64, 64, 16),
    (64, 128, 8),
    (64, 256, 4),
]
GEOMETRY = ConvGeometry((3, 3))


def by_winograd(x, weight, gradient):
    size = x.shape[2], x.shape[3]
    return {
        "forward": lambda: winograd.convolve(x, weight, GEOMETRY, size),
        "evaluation": lambda: winograd.convolve(x, weight, GEOMETRY, size, tile=winograd.EVALUATION),
        "gradients": lambda: winograd.gradients(x, gradient, weight, GEOMETRY, True, True),
    }


def by_torch(x, weight, gradient):
    weight = weight.contiguous(memory_format=torch.channels_last)
    options = None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, True, False]
    return {
        "forward": lambda: torch.conv2d(x, weight, padding=1),
        "evaluation": lambda: torch.conv2d(x, weight, padding=1),
        "gradients": lambda: torch.ops.aten.convolution_backward(gradient, x, weight, *options),
    }


CONTESTANTS = {"winograd": by_winograd, "torch": by_torch}


@pytest.mark.parametrize("contestant", CONTESTANTS)
@pytest.mark.parametrize("layer", LAYERS, ids=str)
@pytest.mark.parametrize("step", ["forward", "evaluation", "gradients"])
def test_step(step, layer, contestant, benchmark):
    batch, channels, side = layer
    x, gradient = torch.randn(2, batch, channels, side, side)
    x, gradient = (image.contiguous(memory_format=torch.channels_last) for image in (x, gradient))
    if not winograd.fits(x, GEOMETRY):
        pytest.skip("the kernels are not built")
    benchmark.group = f"{step} of {layer}"
    run = CONTESTANTS[contestant](x, torch.randn(channels, channels, 3, 3), gradient)[step]
    benchmark.pedantic(run, rounds=9, iterations=1, warmup_rounds=2)
