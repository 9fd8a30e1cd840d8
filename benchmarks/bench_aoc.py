"""An AOC layer's training and evaluation step next to orthogonium's, where it is installed, and plain nn.Conv2d.

Circular padding, weights away from their initialisation; orthogonium's layers with its default orthogonalisation.
"""

import pytest
import torch
from torch import nn

import fastlip
from fastlip.nn import AOCConv2d

# (batch, side), then the layer's arguments.
LAYERS = {
    "16 channels, 32x32": ((256, 32), (16, 16, 3), {}),
    "64 channels, 8x8": ((256, 8), (64, 64, 3), {}),
    "256 channels, 4x4": ((64, 4), (256, 256, 3), {}),
    "64 to 128, stride 2": ((64, 16), (64, 128, 4), {"stride": 2}),
    "64 channels, 4 groups": ((64, 16), (64, 64, 5), {"groups": 4}),
}
CONTESTANTS = ("fused", "reference", "orthogonium", "plain")


def layer_of(contestant, arguments, options):
    if contestant == "plain":
        return nn.Conv2d(*arguments, padding=arguments[2] // 2, **options)
    if contestant == "orthogonium":
        layers = pytest.importorskip("orthogonium.layers.conv.AOC", reason="orthogonium is not installed")
        return layers.AdaptiveOrthoConv2d(*arguments, padding=(arguments[2] - 1) // 2, **options)
    layer = AOCConv2d(*arguments, **options)
    with torch.no_grad():  # away from R = I and equal projectors
        for parameter in layer.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return fastlip.fuse(layer) if contestant == "fused" else fastlip.unfuse(layer)


@pytest.mark.parametrize("contestant", CONTESTANTS)
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("mode", ["training", "evaluation"])
def test_step(mode, name, contestant, benchmark, gate):
    gate("block_conv", "native")
    gate("cayley", "native")
    (batch, side), arguments, options = LAYERS[name]
    layer = layer_of(contestant, arguments, options).train(mode == "training")
    x = torch.randn(batch, arguments[0], side, side, requires_grad=mode == "training")

    inputs = [x, *(parameter for parameter in layer.parameters() if parameter.requires_grad)]

    def train():
        torch.autograd.grad(layer(x).square().sum(), inputs)

    def evaluate():
        with torch.no_grad():
            layer(x)

    benchmark.group = f"{mode}: {name}"
    step = train if mode == "training" else evaluate
    benchmark.pedantic(step, rounds=7, iterations=1, warmup_rounds=2)
