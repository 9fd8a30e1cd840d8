"""The mathematics of a step on the manifold, against the formulas in float64."""

import math

import pytest
import torch

from fastlip.nn._manifold import orthogonality_error
from fastlip.optim._steps import Workspace, butterworth, defect, move_, tangent_gradient, turn_minus_one

EYE = torch.eye(12, dtype=torch.float64)
SIZES = ((12, 12), (12, 5), (5, 12), (1, 1), (3, 1))


def skew(norm, size=12):
    A = torch.randn(size, size, dtype=torch.float64)
    A = A - A.T
    return A * (norm / torch.linalg.matrix_norm(A, 2))


def orthogonal(shape):
    return torch.nn.init.orthogonal_(torch.empty(shape, dtype=torch.float64))


@pytest.mark.parametrize("degree", [2, 4, 6])
def test_polynomials_are_those_of_butterworth(degree):
    """p(x) p(-x) = 1 + (-x^2 sin(pi/2d)^2)^d, coefficient by coefficient, and p agrees with exp up to x^2."""
    c = butterworth(degree)
    product = [0.0] * (2 * degree + 1)
    for i, one in enumerate(c):
        for j, other in enumerate(c):
            product[i + j] += one * other * (-1) ** j
    last = (-(math.sin(math.pi / (2 * degree)) ** 2)) ** degree
    assert product == pytest.approx([1.0] + [0.0] * (2 * degree - 1) + [last], abs=1e-12)
    assert c[:3] == pytest.approx((1, 1, 0.5))
    assert abs(last) == pytest.approx(defect(degree, 1.0))


@pytest.mark.parametrize("tolerance", [1e-3, 1e-5, 1e-10])
@pytest.mark.parametrize("norm", [0.0, 1e-4, 1e-2, 0.1, 0.4, 0.9, 2.0, 7.0, 100.0, 1e6])
def test_the_polynomial_is_orthogonal_up_to_the_tolerance(norm, tolerance):
    A = skew(norm)
    P = EYE + turn_minus_one(A.clone(), tolerance, Workspace())
    assert orthogonality_error(P) <= tolerance * (1 + 1e-9) + 1e-13 * max(1, norm)
    exact = torch.linalg.matrix_exp(A)
    assert torch.linalg.matrix_norm(P - exact, 2) <= 0.17 * norm**3 + 1e-9


def test_products_of_a_step(monkeypatch):
    """One product beside that with W for small steps, two for usual ones, three for |A| = 1."""
    counted = []
    for name in ("mm", "addmm"):
        original = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *a, f=original, **k: counted.append(None) or f(*a, **k))
    for method in ("__matmul__", "addmm_"):
        original = getattr(torch.Tensor, method)
        monkeypatch.setattr(torch.Tensor, method, lambda *a, f=original, **k: counted.append(None) or f(*a, **k))
    found = []
    for norm in (1e-2, 0.1, 0.6, 0.7):
        turn_minus_one(skew(norm, 2), 1e-5, Workspace())
        found.append(len(counted))
        counted.clear()
    assert found == [1, 2, 2, 3]


@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_the_gradient_is_that_of_the_curve(shape):
    """d/dt f(W(t)) at 0 equals the inner product of the gradient and the direction, for tangent directions."""
    W, G = orthogonal(shape), torch.randn(shape, dtype=torch.float64)
    gradient = tangent_gradient(W, G, Workspace())
    direction = tangent_gradient(W, torch.randn(shape, dtype=torch.float64), Workspace())
    step, moved = 1e-5, []
    for sign in (1, -1):
        other = W.clone()
        move_(other, direction * (sign * step), 1e-12, Workspace())
        moved.append((G * other).sum())
    assert ((moved[0] - moved[1]) / (2 * step)).item() == pytest.approx((gradient * direction).sum().item(), abs=1e-8)
    if shape[0] == shape[1]:
        torch.testing.assert_close(gradient, (W.T @ G - G.T @ W) / 2)
    else:  # of the normal space nothing is left
        tall, part = (W, gradient) if shape[0] > shape[1] else (W.T, gradient.T)
        assert (tall.T @ part + part.T @ tall).abs().max() < 1e-12


@pytest.mark.parametrize("tolerance", [1e-3, 1e-9])
@pytest.mark.parametrize("size", [1e-3, 0.1, 0.7, 30.0])
@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_a_step_stays_on_the_manifold(shape, size, tolerance):
    W = orthogonal(shape)
    before = W.clone()
    step = size * torch.randn(shape, dtype=torch.float64)  # not in the tangent space
    move_(W, step.clone(), tolerance, Workspace())
    assert orthogonality_error(W) <= tolerance + 1e-12
    if shape[0] == shape[1]:
        A = (step - step.T) / 2
        assert torch.linalg.matrix_norm(W - before @ torch.linalg.matrix_exp(A), 2) <= 0.17 * A.norm() ** 3 + 1e-9


def test_gradients_that_are_not_finite_are_seen():
    for shape in SIZES:
        W = orthogonal(shape)
        move_(W, torch.full(shape, math.nan, dtype=torch.float64), 1e-5, Workspace())
        assert shape == (1, 1) or W.isnan().all()
