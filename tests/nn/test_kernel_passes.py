"""Circular layers with one kernel outside a chain: on a GPU in passes, here with the passes on the CPU."""

import copy

import pytest
import torch

from fastlip import nn as lip
from fastlip.nn.applications import kernel


def results(layer, x):
    x = x.detach().requires_grad_()
    y = layer(x)
    gradients = torch.autograd.grad(y, [x, *layer.parameters()], torch.linspace(-1, 1, y.numel()).view(y.shape).to(y))
    return y.detach(), *gradients


@pytest.mark.parametrize("make", [lip.AOLConv2d, lip.BCOPConv2d, lip.AOCConv2d])
@pytest.mark.parametrize(
    "options", [{}, {"bias": False}, {"kernel_size": 2}, {"dilation": 2}, {"groups": 2}], ids=str
)
def test_passes_give_what_padding_does(make, options, monkeypatch):
    layer = make(4, 6, **{"kernel_size": 3, **options}).double().train()
    twin, x = copy.deepcopy(layer), torch.randn(2, 4, 7, 5, dtype=torch.float64)
    asked, style_of = [], kernel.style_of
    monkeypatch.setattr(kernel, "_PASSES_PAD", ("cpu",))
    monkeypatch.setattr(kernel, "style_of", lambda geometry: asked.append(geometry) or style_of(geometry))
    found = results(layer, x)
    assert asked
    monkeypatch.undo()
    for one, other in zip(found, results(twin, x), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
