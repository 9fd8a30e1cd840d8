"""Gradient penalties, eikonal losses, traces of Jacobians and torch.func, of every layer on "auto"."""

import copy

import pytest
import torch
from layer_catalog import every_layer, perturb
from torch import func

from fastlip import nn as lip

# Kernels asked for by name refuse torch.func; second derivatives are tested with them as well.
LAYERS = every_layer()
AUTOMATIC = {name: item for name, item in LAYERS.items() if "'backend'" not in name}


def make(name, dtype=torch.float64, batch=3):
    torch.manual_seed(0)
    factory, shape = LAYERS[name]
    layer = perturb(factory().to(dtype))
    return layer, torch.randn(batch, *shape, dtype=dtype)


def referenced(layer):
    """A copy that runs the references."""
    twin = copy.deepcopy(layer)
    for module in twin.modules():
        if hasattr(module, "backend"):
            module.backend = "reference"
    return twin


def wgan_penalty(layer, x, generator):
    """Of the gradient's norm between two batches (Gulrajani et al. 2017)."""
    share = torch.rand(len(x), *[1] * (x.dim() - 1), generator=generator, dtype=x.dtype)
    between = (share * x + (1 - share) * x.flip(0)).requires_grad_()
    (gradient,) = torch.autograd.grad(layer(between).pow(2).sum(), between, create_graph=True)
    return (gradient.flatten(1).norm(dim=1) - 1).square().mean()


def eikonal_loss(layer, x, generator):
    """Of the gradient of one output, whose norm should be 1."""
    points = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(layer(points).flatten(1)[:, 0].sum(), points, create_graph=True)
    return (gradient.flatten(1).square().sum(1) + 1e-6).sqrt().sub(1).abs().mean()


def hutchinson_trace(layer, x, generator):
    """An estimate of the trace of JᵀJ, by a random sign for every output."""
    points = x.clone().requires_grad_()
    y = layer(points)
    signs = torch.randint(0, 2, y.shape, generator=generator).to(y.dtype) * 2 - 1
    (product,) = torch.autograd.grad((y * signs).sum(), points, create_graph=True)
    return product.square().flatten(1).sum(1).mean()


def jacobian_regulariser(layer, x, generator):
    """The squared norm of the Jacobian, all rows at once."""
    points = x[:1].clone().requires_grad_()
    y = layer(points).flatten()
    rows = torch.eye(len(y), dtype=y.dtype)[: min(len(y), 4)]
    (jacobian,) = torch.autograd.grad(y, points, rows, create_graph=True, is_grads_batched=True)
    return jacobian.square().sum()


LOSSES = (wgan_penalty, eikonal_loss, hutchinson_trace, jacobian_regulariser)


def gradients(loss, layer, x):
    """The loss and its gradient for the parameters, zeros where it does not depend on them."""
    value = loss(layer, x, torch.Generator().manual_seed(1))
    parameters = list(layer.parameters())
    if not parameters or not value.requires_grad:
        return [value.detach(), *(torch.zeros_like(parameter) for parameter in parameters)]
    return [value.detach(), *torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True)]


@pytest.mark.parametrize("training", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["train", "eval"])
@pytest.mark.parametrize("loss", [wgan_penalty, *(pytest.param(loss, marks=pytest.mark.slow) for loss in LOSSES[1:])])
@pytest.mark.parametrize("name", LAYERS)
def test_losses_of_gradients_are_those_of_the_reference(name, loss, training):
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 2e-3)):
        layer, x = make(name, dtype)
        layer.train(training)
        plain = referenced(layer)
        for found, expected in zip(gradients(loss, layer, x), gradients(loss, plain, x), strict=True):
            assert found.isfinite().all()
            largest = expected.abs().amax().clamp_min(1).item()
            torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * largest)


@pytest.mark.parametrize("training", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["train", "eval"])
@pytest.mark.parametrize("backend", ["auto", "native", pytest.param("reference", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", AUTOMATIC)
def test_gradgradcheck(name, backend, training):
    """Of the input and of every parameter at once."""
    layer, x = make(name, batch=2)
    parts = [module for module in layer.modules() if hasattr(module, "backend")]
    if backend != "auto" and not parts:
        pytest.skip("no choice of kernels")
    for module in parts:
        module.backend = backend
    # In training each call moves the power iteration.
    layer.train(training and getattr(layer, "training_sigma", "") != "power")
    try:
        layer(x)
    except ValueError as error:
        if "cannot run here: no kernel for" not in str(error):
            raise
        pytest.skip(str(error))
    names, values = [], []
    for key, value in layer.named_parameters():
        names.append(key)
        values.append(value.detach().clone().requires_grad_())

    def function(x, *values):
        return func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradgradcheck(function, (x.requires_grad_(), *values), fast_mode=True)


@pytest.mark.parametrize("name", AUTOMATIC)
def test_second_derivatives_of_the_parameters_are_the_slope_of_the_first(name):
    layer, x = make(name)
    parameters = list(layer.parameters())
    if not parameters:
        pytest.skip("no parameters")
    if getattr(layer, "training_sigma", "") == "power":
        layer.eval()  # in training each call moves the power iteration
    directions = [torch.randn_like(parameter) for parameter in parameters]

    def first(create_graph=False):
        y = layer(x)
        value = (torch.linspace(0.5, 1.5, y.numel(), dtype=y.dtype).view(y.shape) * y + y.square() / 2).sum()
        return torch.autograd.grad(value, parameters, create_graph=create_graph)

    slope = sum((g * d).sum() for g, d in zip(first(True), directions, strict=True))
    second = torch.autograd.grad(slope, parameters, allow_unused=True, materialize_grads=True)
    step, ends = 1e-6, []
    for sign in (1, -2):
        with torch.no_grad():
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter.add_(sign * step * direction)
        ends.append(first())
    expected = [(above - below) / (2 * step) for above, below in zip(*ends, strict=True)]
    scale = max(value.abs().amax().item() for value in expected) + 1
    with torch.no_grad():
        for found, value in zip(second, expected, strict=True):
            assert (found - value).abs().amax() < 1e-5 * scale


@pytest.mark.parametrize("name", AUTOMATIC)
def test_transforms_of_torch_func(name):
    layer, x = make(name, batch=2)
    if getattr(layer, "training_sigma", "") == "power" or isinstance(layer, lip.BatchCentering):
        layer.eval()  # these write to buffers in training, as batch normalisation does
    parameters = {key: value.detach() for key, value in layer.named_parameters()}

    def loss(parameters, x):
        return func.functional_call(layer, parameters, (x,)).pow(2).sum()

    leaf = x.clone().requires_grad_()
    y = layer(leaf)
    expected = torch.autograd.grad(y.pow(2).sum(), [leaf, *layer.parameters()])
    torch.testing.assert_close(func.grad(loss, 1)(parameters, x), expected[0])
    torch.testing.assert_close(func.vjp(layer, x)[1](2 * y.detach())[0], expected[0])
    product = func.jvp(layer, (x,), (x,))[1]
    torch.testing.assert_close((product * 2 * y).sum(), (expected[0] * x).sum())
    torch.testing.assert_close(torch.vmap(layer)(torch.stack([x, x / 2]))[0], y)
    jacobian = func.jacrev(layer)(x)
    torch.testing.assert_close(func.jacfwd(layer)(x), jacobian)
    curvature = func.hessian(lambda x: loss(parameters, x))(x).reshape(x.numel(), -1)
    torch.testing.assert_close(curvature, curvature.mT)
    if not parameters:
        return
    found = func.grad(loss)(parameters, x)
    torch.testing.assert_close(list(found.values()), list(expected[1:]))
    directions = {key: torch.randn_like(value) for key, value in parameters.items()}
    slope = sum((found[key] * directions[key]).sum() for key in parameters)
    torch.testing.assert_close(func.jvp(lambda p: loss(p, x), (parameters,), (directions,))[1], slope)
    # Forward over reverse, and reverse over forward.
    one = func.jvp(lambda p: func.grad(loss)(p, x), (parameters,), (directions,))[1]
    two = func.grad(lambda p: func.jvp(lambda q: loss(q, x), (p,), (directions,))[1])(parameters)
    scale = 1 + max(value.abs().amax().item() for value in one.values())
    for key in parameters:
        torch.testing.assert_close(one[key], two[key], rtol=1e-6, atol=1e-8 * scale)
    per_sample = torch.vmap(func.grad(loss), (None, 0))(parameters, x[:, None])
    torch.testing.assert_close([value.sum(0) for value in per_sample.values()], list(found.values()))


@pytest.mark.parametrize("method", ["AOL", "Bjorck", "CPL", "Cayley", "LOT", "SLL", "SOC"])
def test_the_exact_divergence_of_a_dense_flow(method):
    layer = perturb(getattr(lip, f"{method}Linear")(5, 5).double())
    x = torch.randn(4, 5, dtype=torch.float64)
    jacobians = torch.vmap(func.jacrev(layer))(x)
    signs = torch.tensor([[1.0 if i >> bit & 1 else -1.0 for bit in range(5)] for i in range(32)]).double()
    estimates = torch.stack([(func.vjp(layer, x)[1](s.expand_as(x))[0] * s).sum(1) for s in signs])
    traces = jacobians.diagonal(dim1=1, dim2=2).sum(1)
    torch.testing.assert_close(estimates.mean(0), traces)  # of all sign vectors the mean is exact
