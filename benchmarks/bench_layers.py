"""A convolution layer's training and evaluation step: fused, reference (eager, compiled), and plain nn.Conv2d."""

import pytest
import torch
from torch import nn

import fastlip
from fastlip import nn as lip

SHAPES = {"c16_s32": (256, 16, 32), "c64_s8": (256, 64, 8), "c256_s2": (256, 256, 2)}
METHODS = [name for name in lip.__all__ if name.endswith("Conv2d")]
CONTESTANTS = ("fused", "reference", "compiled reference", "plain")


def layer_of(method, channels, contestant):
    if contestant == "plain":
        return nn.Conv2d(channels, channels, 3, padding=1)
    layer = getattr(lip, method)(channels, channels, 3)
    with torch.no_grad():  # away from the initialisation, where iterations would end early
        for parameter in layer.parameters():
            parameter += 0.3 * parameter.std().nan_to_num() * torch.randn_like(parameter)
    if contestant == "fused":
        return fastlip.fuse(layer)
    layer = fastlip.unfuse(layer)
    if contestant == "compiled reference":
        torch._dynamo.reset()
        return torch.compile(layer, dynamic=False)
    return layer


@pytest.mark.parametrize("contestant", CONTESTANTS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("method", METHODS)
def test_training_step(method, shape, contestant, benchmark):
    batch, channels, side = SHAPES[shape]
    layer = layer_of(method, channels, contestant)
    x = torch.randn(batch, channels, side, side, requires_grad=True)
    cotangent = torch.randn(batch, channels, side, side)
    inputs = [x, *layer.parameters()]

    def step():
        torch.autograd.grad(layer(x), inputs, cotangent, allow_unused=True)

    benchmark.group = f"training {method} {shape}"
    benchmark.pedantic(step, rounds=7, iterations=1, warmup_rounds=2)


@pytest.mark.parametrize("contestant", CONTESTANTS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("method", METHODS)
def test_evaluation_step(method, shape, contestant, benchmark):
    batch, channels, side = SHAPES[shape]
    layer = layer_of(method, channels, contestant).eval()
    x = torch.randn(batch, channels, side, side)

    def step():
        with torch.no_grad():
            layer(x)

    benchmark.group = f"evaluation {method} {shape}"
    benchmark.pedantic(step, rounds=7, iterations=1, warmup_rounds=2)
