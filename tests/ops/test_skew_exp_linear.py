"""The Chebyshev series of the exponential, the norm that decides its length, and layers that train with it."""

import copy
import math

import pytest
import torch

import fastlip
from fastlip import nn as lip
from fastlip.benchmarking import perturb
from fastlip.kernels.skew_exp_linear import api
from fastlip.kernels.skew_exp_linear.bessel import bessel, series, steps_of

native = pytest.importorskip("fastlip.kernels.skew_exp_linear.native")
EPS = torch.finfo(torch.float32).eps


@pytest.mark.parametrize("k", [0, 1, 2, 7])
@pytest.mark.parametrize("x", [0.3, 2.0, 10.0])
def test_bessel_functions_are_their_integrals(k, x):
    """J_k(x) is the mean of cos(k t - x sin t) over a period, which the trapezoidal rule has exactly."""
    t = torch.arange(200, dtype=torch.float64) * (2 * math.pi / 200)
    assert bessel(k, x) == pytest.approx(torch.cos(k * t - x * torch.sin(t)).mean().item(), rel=1e-12, abs=1e-13)


@pytest.mark.parametrize("norm", [1e-6, 0.01, 0.15, 0.5, 1.5, 6.0])
@pytest.mark.parametrize("error", [EPS, torch.finfo(torch.float64).eps])
def test_the_series_and_its_derivative_are_those_of_the_exponential(norm, error):
    found = series(steps_of(norm), error, 60)
    assert norm <= found.norm <= max(1.03 * norm, 1.03e-3)
    s = torch.linspace(-1, 1, 2001, dtype=torch.float64, requires_grad=True)
    phi = [torch.ones_like(s) + 0j, 1j * s]
    for _ in found.coefficients[2:]:
        phi.append(2j * s * phi[-1] + phi[-2])
    value = sum(c * p for c, p in zip(found.coefficients, phi, strict=True))
    angle = found.norm * s.detach()
    assert (value.detach() - torch.exp(1j * angle)).abs().max() <= 1.1 * error + 5e-15
    of_real = torch.autograd.grad(value.real.sum(), s, retain_graph=True)[0] / found.norm
    assert (of_real + torch.sin(angle)).abs().max() <= 1.1 * error + 1e-14
    shorter = series(steps_of(norm), error, len(found.coefficients) - 2)
    assert shorter is None


@pytest.mark.parametrize(("norm", "terms"), [(0.14, 5), (0.5, 7), (1.0, 9), (1.5, 11)])
def test_the_numbers_of_terms_that_the_documentation_names(norm, terms):
    assert len(series(steps_of(norm), EPS, 20).coefficients) - 1 == terms


@pytest.mark.parametrize("norm", [100.0, math.inf, math.nan])
def test_norms_without_a_series(norm):
    assert steps_of(norm) is None


def skew(angles, n, seed=0):
    """A matrix whose skew part has these pairs of eigenvalues ±i angle, in float64, with a symmetric part."""
    generator = torch.Generator().manual_seed(seed)
    A = torch.zeros(n, n, dtype=torch.float64)
    for i, angle in enumerate(angles):
        A[2 * i, 2 * i + 1], A[2 * i + 1, 2 * i] = angle, -angle
    Q = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))[0]
    S = torch.randn(n, n, generator=generator, dtype=torch.float64)
    return Q @ A @ Q.T + S + S.T


def check(x, K, rtol=1e-6):
    """Values and gradients against float64; returns whether the series was summed."""
    ours = [tensor.float().requires_grad_() for tensor in (x, K)]
    exact = [tensor.detach().double().requires_grad_() for tensor in ours]
    y = fastlip.ops.skew_exp_linear(*ours, backend="native")
    expected = fastlip.ops.skew_exp_linear(*exact, backend="reference")
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    pairs = [(y, expected)]
    pairs += zip(
        torch.autograd.grad(y, ours, cotangent.float()), torch.autograd.grad(expected, exact, cotangent), strict=True
    )
    for found, right in pairs:
        assert (found.double() - right).norm() <= rtol * right.norm()
    A = (ours[1].detach() - ours[1].detach().T) / 2
    steps = steps_of(native.skew_norm(A))
    return series(steps, EPS, api.most_terms(len(x), len(K))) is not None


@pytest.mark.parametrize("angles", [[0.1] * 100, [0.5, *[0.01] * 99], torch.linspace(0, 1.2, 100).tolist()])
def test_eigenvalues_that_are_equal_alone_or_spread(angles):
    x = torch.randn(20, 200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    K = skew(angles, 200)
    norm = native.skew_norm(((K - K.T) / 2).float())
    assert norm >= max(angles) * (1 - 1e-4)
    assert norm <= max(angles) * 2
    # K's symmetric part, of norm 50, leaves its rounding behind in A.
    assert check(x, K - (K + K.T) / 2)


def test_many_terms_are_the_exponential():
    x = torch.randn(100, 200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    K = skew([8.0] * 100, 200)
    assert not check(x, K - (K + K.T) / 2, rtol=5e-6)


def test_the_zero_matrix_has_the_gradient_of_the_exponential():
    x, K = torch.randn(4, 30, generator=torch.Generator().manual_seed(0)), torch.zeros(30, 30)
    assert check(x, K)


@pytest.mark.parametrize("spoil", [float("nan"), float("inf"), 1e30])
def test_what_has_no_series_is_the_exponential(spoil):
    K, x = torch.randn(6, 6, generator=torch.Generator().manual_seed(0)), torch.ones(3, 6)
    K[1, 2] = spoil
    y = fastlip.ops.skew_exp_linear(x, K, backend="native")
    torch.testing.assert_close(y, x @ fastlip.ops.skew_exp(K, backend="native").T, equal_nan=True)


@pytest.mark.parametrize(("inputs", "outputs"), [(200, 200), (150, 200), (200, 150)])
@pytest.mark.parametrize("quasi_residual", [False, 0.5])
def test_a_layer_trains_as_with_its_exponential(inputs, outputs, quasi_residual, monkeypatch):
    if quasi_residual and inputs != outputs:
        pytest.skip("square layers only")
    torch.manual_seed(0)
    module = perturb(lip.SOCLinear(inputs, outputs, quasi_residual=quasi_residual), 0.5)
    exact = copy.deepcopy(module).double()
    x = torch.randn(2, 20, inputs)
    calls = []
    monkeypatch.setattr(native, "skew_norm", lambda *a, real=native.skew_norm: calls.append(1) or real(*a))
    y = module(x)
    assert calls
    y.square().sum().mul(0.5).add(y.sum()).backward()
    expected = exact(x.double())
    expected.square().sum().mul(0.5).add(expected.sum()).backward()
    torch.testing.assert_close(y.double(), expected, rtol=0, atol=3e-6)
    for (name, ours), theirs in zip(module.named_parameters(), exact.parameters(), strict=True):
        difference = (ours.grad.double() - theirs.grad).norm() / theirs.grad.norm()
        assert difference < 2e-6, name


def test_evaluation_long_batches_and_the_manifold_take_the_exponential(monkeypatch):
    monkeypatch.setattr(native, "skew_norm", lambda *_: pytest.fail("series"))
    layer = lip.SOCLinear(200, 200)
    layer(torch.randn(150, 200)).sum().backward()
    layer.eval()(torch.randn(2, 200)).sum().backward()
    layer.train()
    with torch.no_grad():
        layer(torch.randn(2, 200))
    lip.SOCLinear(200, 200, parametrization="manifold")(torch.randn(2, 200))
    with torch.autocast("cpu"):
        layer(torch.randn(2, 200))


def test_arguments_are_named():
    K, x = torch.eye(3), torch.ones(2, 3)
    with pytest.raises(TypeError, match=r"x, K: got torch.float64 and torch.float32"):
        fastlip.ops.skew_exp_linear(x.double(), K)
    with pytest.raises(ValueError, match=r"K: got shape \(2, 3\)"):
        fastlip.ops.skew_exp_linear(x, K[:2])
    with pytest.raises(ValueError, match=r"x: got shape \(2, 2\)"):
        fastlip.ops.skew_exp_linear(x[:, :2], K)


def test_auto_asks_what_pays():
    K = torch.eye(256)
    assert api.pays(torch.ones(128, 256), K)
    assert not api.pays(torch.ones(129, 256), K)
    assert not api.pays(torch.ones(8, 256, dtype=torch.float64), K.double())
    assert not api.pays(torch.ones(8, 32), torch.eye(32))
