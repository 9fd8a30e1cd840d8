"""In evaluation parametrizations run once, and are differentiated only where a gradient is asked for."""

import copy

import pytest
import torch
from layer_catalog import every_layer, perturb
from torch.func import functional_call

import fastlip
from fastlip import nn as lip
from fastlip.kernels.common import channels_last as images
from fastlip.kernels.common.dispatch import registered
from fastlip.nn.base import LipschitzLayer

LAYERS = {name: entry for name, entry in every_layer().items() if isinstance(entry[0](), LipschitzLayer)}


def made(name):
    make, shape = LAYERS[name]
    layer = perturb(make(dtype=torch.float64)).eval()
    return layer, torch.randn(2, *shape, dtype=torch.float64)


def fresh(layer, x):
    """What the layer computes, and its gradients, without anything that is kept."""
    other = copy.deepcopy(layer)  # a copy has kept nothing
    images = x.clone().requires_grad_()
    y = other(images)
    y.square().sum().backward()
    return [y, images.grad, *(parameter.grad for parameter in other.parameters())]


@pytest.fixture
def counted(monkeypatch):
    """How often a parametrization has run."""
    runs = []
    original = LipschitzLayer._compute
    monkeypatch.setattr(LipschitzLayer, "_compute", lambda *a: runs.append(1) or original(*a))
    return runs


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_are_those_of_the_parametrization(name, counted):
    layer, x = made(name)
    expected = fresh(layer, x)
    counted.clear()
    for repeat in range(3):
        images = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(layer(images).square().sum(), images)
        torch.testing.assert_close(gradient, expected[1])
        assert len(counted) == 1, repeat
        images = x.clone().requires_grad_()
        y = layer(images)
        layer.train().eval()  # between the forward and the backward, which does not mind
        layer(x)
        counted.clear()
        y.square().sum().backward()
        assert len(counted) == 1
        found = [y, images.grad, *(parameter.grad for parameter in layer.parameters())]
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other)
        layer.zero_grad()
        counted[:] = [1]


@pytest.mark.parametrize("name", LAYERS)
def test_a_changed_parameter_is_seen_and_refused_in_the_backward(name):
    layer, x = made(name)
    layer(x)
    stale = layer(x).sum()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(0.7).add_(0.01)
    for one, other in zip([layer(x)], fresh(layer, x)[:1], strict=True):
        torch.testing.assert_close(one, other)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        stale.backward()


@pytest.mark.parametrize(
    "name",
    [
        *("AOLConv2d circular", "CayleyConv2d zeros", "SOCConv2d zeros", "CPLConv2d zeros"),
        *(name for name in LAYERS if "CPLConv2d" in name and "native" in name),
    ],
)
def test_parameters_of_a_call_get_its_gradients(name):
    layer, x = made(name)
    layer(x)
    given = {key: (1.1 * p).detach().requires_grad_() for key, p in layer.named_parameters()}
    other = copy.deepcopy(layer)
    other.load_state_dict(given, strict=False)
    expected = fresh(other, x)
    for _ in range(2):
        y = functional_call(layer, given, (x,))
        gradients = torch.autograd.grad(y.square().sum(), list(given.values()))
        for one, wanted in zip(gradients, expected[2:], strict=True):
            torch.testing.assert_close(one, wanted)


@pytest.mark.parametrize("make", [lip.AOLConv2d, lip.BjorckLinear, lip.CayleyLinear, lip.NormalizedLinear])
def test_gradients_of_gradients(make):
    arguments = (3, 3, 3) if make is lip.AOLConv2d else (3, 3)
    layer = perturb(make(*arguments, dtype=torch.float64, backend="reference")).eval()
    x = torch.randn(2, 3, *((4, 4) if make is lip.AOLConv2d else ()), dtype=torch.float64, requires_grad=True)
    parameters = list(layer.parameters())
    found = []
    for _ in range(2):  # with the graph, and by what is kept
        gradients = torch.autograd.grad(layer(x).pow(3).sum(), [x, *parameters], create_graph=True)
        found.append(torch.autograd.grad(sum(g.square().sum() for g in gradients), [x, *parameters]))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_training_in_evaluation_mode_parametrizes_once_a_step(counted):
    layer, x = made("AOLConv2d circular")
    for _ in range(3):
        counted.clear()
        layer(x).square().sum().backward()
        assert len(counted) == 1
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter -= 0.1 * parameter.grad


def test_only_the_gradients_that_are_asked_for_are_computed(monkeypatch):
    calls = []
    original = images.weight_gradient
    monkeypatch.setattr(images, "weight_gradient", lambda *a: calls.append(1) or original(*a))
    layers = lip.SLLConv2d(4, 4, 3), lip.MaxMin(), lip.AOLConv2d(4, 4, 3), lip.MaxMin()
    network = fastlip.fuse(torch.nn.Sequential(*layers)).eval()
    x = torch.randn(4, 4, 32, 32)  # enough for kernels
    network(x)
    images_in = x.clone().requires_grad_()
    torch.autograd.grad(network(images_in).sum(), images_in)
    assert calls == []
    network(x).sum().backward()
    assert len(calls) == (0 if registered["conv_chain"].status("native") else 3)
