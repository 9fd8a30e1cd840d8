"""Sandwich layers beyond what every layer keeps: formula, wild parameters, activations, bound, extremes of psi."""

import copy
import math

import pytest
import torch
from layer_catalog import perturb, singular_values
from torch import func, nn

import fastlip
from fastlip import nn as lip
from fastlip import ops
from fastlip.nn.applications.sandwich import SANDWICH_ACTIVATIONS, sandwich_bound, stretched

SIGMA = {"relu": torch.relu, "softplus": nn.functional.softplus, "tanh": torch.tanh}
GEOMETRIES = [
    {"kernel_size": 1},
    {"kernel_size": 3},
    {"kernel_size": (1, 4), "groups": 2},
    {"kernel_size": 3, "stride": 2},
    {"kernel_size": 1, "stride": (2, 1)},
    {"kernel_size": 3, "dilation": (2, 1)},
]
every_activation = pytest.mark.parametrize("activation", SANDWICH_ACTIVATIONS)
every_geometry = pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
double = {"dtype": torch.float64}


def spread_out(layer, size=1.0):
    perturb(layer)
    if layer.psi is not None:
        nn.init.normal_(layer.psi, std=size)
    return layer


def factors(layer):
    """A and B of a dense layer, by the formula."""
    W = layer.raw_weight.detach()
    Q = ops.cayley(layer.alpha.detach() * W / W.norm(), backend="reference")
    return Q[:, : layer.out_features], Q[:, layer.out_features :]


@every_activation
@pytest.mark.parametrize("sizes", [(5, 5), (3, 6), (6, 3)])
def test_the_formula_of_the_paper(activation, sizes):
    layer = spread_out(lip.SandwichLinear(*sizes, activation=activation, **double))
    (A, B), Psi, x = factors(layer), layer.psi.detach().exp(), torch.randn(7, sizes[0], **double)
    torch.testing.assert_close(A @ A.T + B @ B.T, torch.eye(sizes[1], **double))
    hidden = SIGMA[activation](math.sqrt(2) * (x @ B.T) / Psi + layer.bias.detach())
    torch.testing.assert_close(layer(x).detach(), math.sqrt(2) * (hidden * Psi) @ A, rtol=1e-7, atol=1e-7)


@every_activation
@pytest.mark.parametrize("padding_mode", ["circular", "zeros"])
def test_a_convolution_is_the_layer_of_its_whole_matrices(activation, padding_mode):
    """With zero padding of the hidden image too: between the matrices stands a slope of 0."""
    layer = spread_out(lip.SandwichConv2d(2, 3, 3, padding_mode=padding_mode, activation=activation, **double))
    x, side = torch.randn(4, 2, 4, 5, **double), (4, 5) if padding_mode == "circular" else (6, 7)
    first, second, spread, shift = layer._effective(*side)

    def convolve(images, Q):
        return ops.spectral_conv(images, Q, None, side, backend="reference")

    z = convolve(x, first) + shift[:, None, None]
    h = SIGMA[activation](z / spread[:, None, None]) * spread[:, None, None]
    torch.testing.assert_close(layer(x), convolve(h, second), rtol=1e-7, atol=1e-7)
    # W_2 is the adjoint of the convolution whose matrices, with those of W_1, have orthogonal rows.
    joint = torch.cat((second.mH, first), -1)
    torch.testing.assert_close(joint @ joint.mH, 2 * torch.eye(3, dtype=joint.dtype).expand(len(joint), 3, 3))


@every_activation
@every_geometry
@pytest.mark.parametrize("padding_mode", ["circular", "zeros"])
def test_convolutions_keep_their_bound_with_every_activation(activation, geometry, padding_mode):
    options = {"padding_mode": padding_mode, "activation": activation, **geometry, **double}
    for bias in (True, False):
        layer = spread_out(lip.SandwichConv2d(4, 6, bias=bias, **options)).eval()
        largest, _ = singular_values(layer, (4, 5, 4))
        assert largest <= layer.lipschitz_bound((4, 5, 4)) * (1 + 1e-9) <= 1 + 1e-6


@every_activation
@pytest.mark.parametrize("kind", ["dense", "convolution"])
@pytest.mark.parametrize("size", [1e-30, 1e-3, 1e3, 1e30])
def test_wild_parameters_keep_the_bound(activation, kind, size):
    shape = (5,) if kind == "dense" else (5, 4, 3)
    for dtype, room in ((torch.float64, 1e-6), (torch.float32, 1e-4)):
        options = {"activation": activation, "dtype": dtype}
        layer = lip.SandwichLinear(5, 4, **options) if kind == "dense" else lip.SandwichConv2d(5, 4, 3, **options)
        with torch.no_grad():
            layer.raw_weight.normal_(std=size)
            layer.alpha.fill_(min(size, 1e6))
            layer.psi.copy_(torch.tensor([-1e4, -30.0, 30.0, 1e4]))
            layer.bias.copy_(torch.tensor([1.0, -2.0, 3.0, 0.0]) * min(size, 1e3))
        y = layer.eval()(torch.randn(3, *shape, dtype=dtype))
        assert y.isfinite().all()
        largest, _ = singular_values(layer, shape, dtype)
        assert largest <= layer.lipschitz_bound(shape) * (1 + room) <= 1 + 2 * room
        layer.train()(torch.randn(3, *shape, dtype=dtype)).square().sum().backward()
        if size < 1e30:
            assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


@every_activation
@pytest.mark.parametrize("spread", [1e-7, 0.1, 1.0, 1e7])
def test_slopes_are_between_0_and_1(activation, spread):
    steps = torch.linspace(-50, 50, 2001, **double) * spread
    z = torch.cat((steps, torch.linspace(-5, 5, 2001, **double))).requires_grad_()
    y = stretched(activation, z, torch.tensor(spread, **double))
    (slopes,) = torch.autograd.grad(y.sum(), z)
    assert slopes.min() >= 0
    assert slopes.max() <= 1 + 1e-12
    torch.testing.assert_close(y, spread * SIGMA[activation](z / spread), rtol=1e-8, atol=1e-8 * spread)
    at_zero = stretched(activation, torch.zeros(1, **double), torch.tensor(spread, **double))
    assert at_zero.item() == pytest.approx(spread * SANDWICH_ACTIVATIONS[activation])


@pytest.mark.parametrize("activation", ["maxmin", "abs", "gelu", "none", None, nn.ReLU()])
def test_other_activations_are_refused(activation):
    for make in (lambda **options: lip.SandwichLinear(4, 4, **options), lambda **o: lip.SandwichConv2d(4, 4, 3, **o)):
        with pytest.raises(ValueError, match=r"activation=.*allowed are 'relu', 'softplus', 'tanh'"):
            make(activation=activation)


def test_slopes_below_0_would_break_the_bound():
    """The constants that the docstring names, 2 for absolute values and for MaxMin, are attained."""
    swap, signs = torch.tensor([[0.0, 1.0], [1.0, 0.0]], **double), torch.diag(torch.tensor([1.0, -1.0], **double))
    root = math.sqrt(0.5)
    for slopes, a, b in ((signs, (root, root), (root, -root)), (swap, (1.0, 0.0), (0.0, 1.0))):
        A, B = torch.zeros(2, 2, **double), torch.tensor(b, **double)[:, None]
        A[:, 0] = torch.tensor(a, **double)
        torch.testing.assert_close(A @ A.T + B @ B.T, torch.eye(2, **double))
        assert torch.linalg.matrix_norm(2 * A.T @ slopes @ B, 2).item() == pytest.approx(2.0)


def test_the_bound_of_two_matrices_holds_for_every_mask_and_is_attained():
    largest = 0.0
    for _ in range(20):
        W_1, W_2 = torch.randn(4, 5, **double), torch.randn(3, 4, **double)
        bound = sandwich_bound(W_1, W_2)
        masks = torch.cat(((torch.arange(16)[:, None] >> torch.arange(4) & 1).double(), torch.rand(20, 4, **double)))
        norms = torch.linalg.matrix_norm(W_2 @ (masks[:, :, None] * W_1), 2)
        assert (norms <= bound).all()
        largest = max(largest, (norms / bound).max().item())
    assert largest > 0.7
    scalar = torch.full((1, 1), 0.7, **double)
    assert sandwich_bound(scalar, scalar) == pytest.approx(0.49)
    assert sandwich_bound(scalar, 0 * scalar) == 0


def test_effective_weights_that_break_the_bound_show_in_the_audit():
    layer = lip.SandwichLinear(4, 4, **double).eval()
    found = layer._effective()
    layer._supplied = lambda _, context: (3 * found[0], *found[1:])
    bound = layer.lipschitz_bound((4,))
    assert bound > 3
    assert singular_values(layer, (4,))[0] <= bound


@every_activation
@every_geometry
def test_evaluation_and_export_agree_with_training(activation, geometry):
    layer = spread_out(lip.SandwichConv2d(4, 6, activation=activation, **geometry)).eval()
    x = torch.randn(2, 4, 6, 5)
    with torch.no_grad():
        y = copy.deepcopy(layer).train()(x)
        torch.testing.assert_close(layer(x), y, rtol=1e-4, atol=1e-4)
    for fourier in ("fft", "matrices"):
        plain = fastlip.export(layer, (4, 6, 5), fourier=fourier)
        torch.testing.assert_close(plain(x), y, rtol=1e-4, atol=1e-4)
        bounds = [fastlip.audit(model, (4, 6, 5)).bound for model in (plain, layer)]
        assert bounds[0] == pytest.approx(bounds[1], rel=1e-6)


@every_activation
def test_second_derivatives(activation):
    torch.manual_seed(1)
    layer = spread_out(lip.SandwichLinear(2, 3, activation=activation, **double))
    names, values = zip(*layer.named_parameters(), strict=True)
    x = torch.randn(2, 2, requires_grad=True, **double)

    def call(x, *tensors):
        return func.functional_call(layer, dict(zip(names, tensors, strict=True)), (x,))

    assert torch.autograd.gradcheck(call, (x, *values))
    assert torch.autograd.gradgradcheck(call, (x, *values))
    one = x.detach()[0]
    hessian = func.hessian(lambda v: layer(v).square().sum())(one)
    expected = torch.autograd.functional.hessian(lambda v: layer(v).square().sum(), one)
    torch.testing.assert_close(hessian, expected)


def test_relu_without_a_bias_has_no_psi():
    for layer, x in (
        (lip.SandwichLinear(4, 4, bias=False), torch.randn(2, 4)),
        (lip.SandwichConv2d(4, 4, 3, bias=False), torch.randn(2, 4, 5, 5)),
    ):
        assert set(layer.state_dict()) == {"raw_weight", "alpha"}
        perturb(layer)(x).square().sum().backward()
        assert all(parameter.grad is not None for parameter in layer.parameters())
        assert torch.equal(layer.eval()(2 * x), 2 * layer(x))
    assert lip.SandwichLinear(4, 4, bias=False, activation="tanh").psi is not None


def test_psi_is_limited_by_its_dtype():
    for dtype, limit in ((torch.float64, 16.0), (torch.float32, 16.0), (torch.float16, 5.545)):
        layer = lip.SandwichLinear(2, 2, dtype=dtype)
        with torch.no_grad():
            layer.psi.copy_(torch.tensor([-1e3, 1e3]))
        spread = layer._effective()[2]
        torch.testing.assert_close(spread.double().log().abs(), torch.full((2,), limit, **double), rtol=1e-3, atol=0)


@pytest.mark.parametrize("L", [0.5, 5.0])
def test_with_a_factor_the_constant_is_exact(L):
    model = nn.Sequential(lip.SandwichLinear(4, 8), lip.SandwichLinear(8, 8), lip.CayleyLinear(8, 3), lip.Scale(L))
    assert fastlip.audit(model, (4,)).bound == pytest.approx(L, rel=1e-5)


def test_it_starts_as_relu_after_an_orthogonal_map():
    x = torch.randn(5, 6, **double)
    torch.testing.assert_close(lip.SandwichLinear(6, 6, **double)(x), x.relu())
    images = torch.randn(2, 6, 4, 5, **double)
    torch.testing.assert_close(lip.SandwichConv2d(6, 6, 3, groups=2, **double)(images), images.relu())
    layer = lip.SandwichLinear(6, 3, **double)
    (first, second, *_) = layer._effective()
    torch.testing.assert_close(layer(x), (x @ first.T).relu(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(first @ first.T, torch.eye(3, **double), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(second, torch.eye(3, **double), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("activation", ["relu", "softplus"])
def test_every_transform_of_an_exported_layer_stays_within_its_rounding_bound(activation):
    layer = perturb(lip.SandwichConv2d(3, 4, 3, activation=activation)).eval()
    x, largest = torch.randn(4, 3, 8, 6), {}
    exact = copy.deepcopy(layer).double()(x.double())
    for fourier in ("fft", "matrices", "matrices64"):
        copied = fastlip.export(layer, input_shape=(3, 8, 6), fourier=fourier)
        outputs = fastlip.certify_outputs(copied, [x])
        twin = copy.deepcopy(copied).double()(x.double())
        error = (outputs.values - twin).flatten(1).norm(dim=1)
        assert (error <= outputs.errors.error).all()
        torch.testing.assert_close(twin, exact, rtol=1e-4, atol=1e-5)
        largest[fourier] = outputs.errors.error.amax()
    assert largest["matrices64"] < largest["fft"] < largest["matrices"]
