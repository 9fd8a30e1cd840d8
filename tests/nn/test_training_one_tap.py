"""Convolutions of one tap train as dense layers do, where pixels are few for their channels."""

from dataclasses import replace

import pytest
import torch

from fastlip import nn as lip
from fastlip.kernels.cayley_linear.api import OP

if OP.status("native"):
    pytest.skip(OP.status("native"), allow_module_level=True)

CHANNELS = 192  # the least with which the ops run
KINDS = {"cayley": (lip.CayleyConv2d, torch.float64, 1e-12), "lot": (lip.LOTConv2d, torch.float32, 1e-5)}


def build(name, channels=CHANNELS, **options):
    torch.manual_seed(0)
    kind, dtype, _ = KINDS[name]
    layer = kind(channels, channels, 1, **options).to(dtype)
    with torch.no_grad():
        layer.raw_weight.add_(0.01 * torch.randn_like(layer.raw_weight))
    return layer


def watched(layer):
    """The layer, and a list of how many vectors its op has had."""
    found, few = [], layer._application.few_vectors

    def product(x, matrix, **options):
        found.append(x.shape[:-1].numel())
        return few.product(x, matrix, **options)

    set_op(layer, replace(few, product=product))
    return layer, found


def set_op(layer, few):
    """Layers refuse another application."""
    layer.__dict__["_application"] = replace(layer._application, few_vectors=few)


def results(layer, x):
    leaf = x.clone().requires_grad_()
    y = layer(leaf)
    weights = torch.linspace(-1, 1, y.numel(), dtype=x.dtype).reshape(y.shape)
    return (y.detach(), *torch.autograd.grad((y * weights).sum(), [leaf, *layer.parameters()]))


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"quasi_residual": True}], ids=str)
@pytest.mark.parametrize("name", KINDS)
def test_results_are_those_of_the_matrix(name, options):
    _, dtype, tolerance = KINDS[name]
    layer, vectors = watched(build(name, **options))
    plain = build(name, **options)
    set_op(plain, None)
    x = torch.randn(4, CHANNELS, 3, 2, dtype=dtype)
    for images in (x, x.contiguous(memory_format=torch.channels_last)):
        ours, theirs = results(layer, images), results(plain, images)
        for one, other in zip(ours, theirs, strict=True):
            assert one.shape == other.shape
            assert (one - other).norm() <= tolerance * other.norm()
    assert vectors == [24, 24]


def test_who_does_not_take_part():
    layer, vectors = watched(build("cayley"))
    x = torch.randn(4, CHANNELS, 3, 2, dtype=torch.float64)
    layer(x[0])  # no batch
    layer(torch.randn(4, CHANNELS, 49, 49, dtype=torch.float64))  # many pixels
    with torch.no_grad():
        layer(x)
    layer.eval()(x)
    layer.train().requires_grad_(False)
    layer(x)
    small, of_small = watched(build("cayley", 64))
    small(x[:, :64])
    grouped, of_groups = watched(build("cayley", groups=2))
    grouped(x)
    assert not vectors
    assert not of_small
    assert not of_groups
    layer.requires_grad_(True)(x)
    assert vectors
    assert lip.LOTConv2d(CHANNELS, CHANNELS, 1, ridge=1e-3, steps=5)._application.few_vectors is None
