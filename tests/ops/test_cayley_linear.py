"""The Cayley transform applied to vectors: a gradient without products of square matrices, and layers that use it."""

import copy

import pytest
import torch

import fastlip
from fastlip import nn as lip
from fastlip.benchmarking import perturb

native = pytest.importorskip("fastlip.kernels.cayley_linear.native")


def draw(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


@pytest.mark.parametrize(("vectors", "size"), [(1, 2), (5, 300), (70, 9), (400, 128)])
@pytest.mark.parametrize("scale", [1e-3, 0.3, 30.0])
def test_values_and_gradients_are_as_exact_as_the_transform(vectors, size, scale):
    x, M, cotangent = draw(vectors, size), scale * draw(size, size), draw(vectors, size + 1)[:, 1:]
    errors = {}
    inputs = [x.clone().requires_grad_(), M.clone().requires_grad_()]
    y = torch.nn.functional.linear(inputs[0], fastlip.ops.cayley(inputs[1], backend="reference"))
    right = (y, *torch.autograd.grad(y, inputs, cotangent))
    for backend in ("native", "reference"):
        inputs = [x.float().requires_grad_(), M.float().requires_grad_()]
        y = fastlip.ops.cayley_linear(*inputs, backend=backend)
        found = (y, *torch.autograd.grad(y, inputs, cotangent.float()))
        errors[backend] = [
            ((one.double() - exact).norm() / exact.norm()).item() for one, exact in zip(found, right, strict=True)
        ]
    for ours, theirs in zip(errors["native"], errors["reference"], strict=True):
        assert ours <= 2 * theirs + 1e-6


def test_no_product_of_square_matrices_in_the_backward(monkeypatch):
    x, M = draw(3, 200).float().requires_grad_(), (draw(200, 200) / 50).float().requires_grad_()
    y, work = fastlip.ops.cayley_linear(x, M, backend="native"), []

    def product(a, b, real=native.product, **options):
        work.append(len(a) * a.shape[1] * b.shape[1])
        return real(a, b, **options)

    monkeypatch.setattr(native, "product", product)
    y.sum().backward()
    assert work == [3 * 200**2] * 2


@pytest.mark.parametrize("spoil", [float("nan"), float("inf")])
def test_what_is_no_number_stays_none(spoil):
    M, x = draw(6, 6).float(), torch.ones(3, 6)
    M[1, 2] = spoil
    assert fastlip.ops.cayley_linear(x, M, backend="native").isnan().all()


@pytest.mark.parametrize("quasi_residual", [False, 0.5])
def test_a_layer_trains_as_with_its_matrix(quasi_residual, monkeypatch):
    torch.manual_seed(0)
    module = perturb(lip.CayleyLinear(200, 200, quasi_residual=quasi_residual), 0.5)
    exact = copy.deepcopy(module).double()
    x, calls = torch.randn(2, 20, 200), []
    monkeypatch.setattr(native, "product", lambda *a, real=native.product, **o: calls.append(1) or real(*a, **o))
    y = module(x)
    y.square().sum().mul(0.5).add(y.sum()).backward()
    assert len(calls) == 3
    expected = torch.nn.functional.linear(x.double(), exact.weight, exact.bias)
    expected.square().sum().mul(0.5).add(expected.sum()).backward()
    torch.testing.assert_close(y.double(), expected, rtol=0, atol=1e-5)
    # A number's gradient, of alpha, is a sum over those of the matrix and has their errors.
    largest = max(parameter.grad.norm() for parameter in exact.parameters())
    for (name, ours), theirs in zip(module.named_parameters(), exact.parameters(), strict=True):
        size = largest if theirs.numel() == 1 else theirs.grad.norm()
        assert (ours.grad.double() - theirs.grad).norm() <= 3e-6 * size, name


def test_who_takes_the_matrix_itself(monkeypatch):
    """Evaluation, rectangular and small layers, layers on the manifold, more vectors, and other dtypes."""
    monkeypatch.setattr(native, "product", lambda *_, **__: pytest.fail("by vectors"))
    layer = lip.CayleyLinear(200, 200)
    layer.eval()(torch.randn(2, 200)).sum().backward()
    layer.train()(torch.randn(10001, 200)).sum().backward()
    layer.requires_grad_(False)(torch.randn(2, 200))
    lip.CayleyLinear(200, 201)(torch.randn(2, 200)).sum().backward()
    lip.CayleyLinear(128, 128)(torch.randn(2, 128)).sum().backward()
    lip.CayleyLinear(200, 200, parametrization="manifold")(torch.randn(2, 200)).sum().backward()
    lip.CayleyLinear(200, 200, dtype=torch.bfloat16)(torch.randn(2, 200, dtype=torch.bfloat16)).sum().backward()


def test_errors_name_the_argument():
    x, M = torch.randn(2, 3), torch.randn(3, 3)
    with pytest.raises(TypeError, match=r"x, M: got torch\.float64 and torch\.float32"):
        fastlip.ops.cayley_linear(x.double(), M)
    with pytest.raises(ValueError, match=r"M: got shape \(2, 3\)"):
        fastlip.ops.cayley_linear(x, M[:2])
    with pytest.raises(ValueError, match=r"x: got shape \(2, 2\)"):
        fastlip.ops.cayley_linear(x[:, :2], M)
