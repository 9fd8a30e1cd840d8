"""Zolotarev's fractions, the interval on which they are taken, and layers that train with them."""

import copy

import pytest
import torch

import fastlip
from fastlip import nn as lip
from fastlip.benchmarking import perturb
from fastlip.kernels.polar_linear import api
from fastlip.kernels.polar_linear.poles import fractions

native = pytest.importorskip("fastlip.kernels.polar_linear.native")


@pytest.mark.parametrize(("condition", "poles"), [(1.0, 2), (1.2, 2), (1.5, 3), (2.4, 4), (3.0, 4)])
def test_the_fractions_are_the_inverse_root_and_never_exceed_it(condition, poles):
    eps = torch.finfo(torch.float32).eps
    scale, places, residues = fractions(condition, eps, 4)
    assert len(places) == poles
    assert min(places) > 0
    assert min(residues) > 0
    s = torch.linspace(1 / condition, 1, 5001, dtype=torch.float64)
    value = s * scale * (1 + sum(a / (s**2 + p) for p, a in zip(places, residues, strict=True)))
    assert value.max() <= 1 + 1e-14
    assert value.min() >= 1 - 2 * eps


@pytest.mark.parametrize("condition", [3.5, 20.0, 1e5, float("inf"), float("nan")])
def test_more_poles_than_allowed_are_refused(condition):
    assert fractions(condition, torch.finfo(torch.float32).eps, 4) is None


def matrix(s, m, n, seed=0):
    """A matrix of these singular values, in float64."""
    generator = torch.Generator().manual_seed(seed)
    U, W = (torch.linalg.qr(torch.randn(k, len(s), generator=generator, dtype=torch.float64))[0] for k in (m, n))
    return U @ torch.diag(s) @ W.T


def values(kind, n):
    even = torch.linspace(1, 1.3, n, dtype=torch.float64)
    if kind == "one above":
        even[-1] = 2.5
    elif kind == "one below":
        even[0] = 0.5
    elif kind == "equal":
        even[:] = 0.7
    return even


@pytest.mark.parametrize("kind", ["even", "one above", "one below", "equal"])
@pytest.mark.parametrize(("m", "n"), [(200, 200), (230, 40), (40, 230)])
@pytest.mark.parametrize("scale", [1.0, 3e-5])
def test_singular_values_that_stand_alone_are_in_the_interval(kind, m, n, scale):
    s = scale * values(kind, min(m, n))
    V = matrix(s, m, n).float()
    found = native._invert(V, V.new_empty(max(4 * min(m, n) ** 2, V.numel())))
    unit, highest, condition, exists = found.tolist()
    assert exists == 1
    assert highest * (1 + 1e-5) >= (unit * s.max()) ** 2
    assert highest / condition**2 * (1 - 1e-5) <= (unit * s.min()) ** 2


@pytest.mark.parametrize("swap", [False, True])
def test_vectors_that_signs_are_orthogonal_to_are_found(swap):
    """Of a diagonal matrix with one pair turned: the start is not orthogonal to (e_i ± e_j) / sqrt(2)."""
    V = torch.eye(200, dtype=torch.float64)
    turn = torch.tensor([[1.0, 1.0], [-1.0, 1.0]], dtype=torch.float64) / 2**0.5
    V[3:5, 3:5] = turn.T @ torch.diag(torch.tensor([1.0, 2.0] if swap else [2.0, 1.0], dtype=torch.float64)) @ turn
    x = torch.randn(8, 200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = fastlip.ops.polar_linear(x.float(), V.float(), backend="native")
    assert (y - x).abs().max() < 1e-5


@pytest.mark.parametrize("spoil", ["zero", "rank", "nan", "inf", "tiny"])
def test_what_has_no_fractions_is_the_factor(spoil):
    V = matrix(values("even", 6), 6, 6).float()
    if spoil == "rank":
        V[1] = V[0]
    else:
        V *= {"zero": 0.0, "nan": float("nan"), "inf": float("inf"), "tiny": 1e-12}[spoil]
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    y = fastlip.ops.polar_linear(ours, V, backend="native")
    expected = theirs @ fastlip.ops.polar(V, backend="native").T
    torch.testing.assert_close(y, expected, equal_nan=True)
    y.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, equal_nan=True)


@pytest.mark.parametrize("layer", ["LOTLinear", "BjorckLinear"])
@pytest.mark.parametrize(("inputs", "outputs"), [(200, 200), (200, 250), (250, 200)])
@pytest.mark.parametrize("quasi_residual", [False, 0.5])
def test_a_layer_trains_as_with_its_factor(layer, inputs, outputs, quasi_residual, monkeypatch):
    if quasi_residual and inputs != outputs:
        pytest.skip("square layers only")
    torch.manual_seed(0)
    module = perturb(lip.__dict__[layer](inputs, outputs, quasi_residual=quasi_residual), 0.2)
    exact = copy.deepcopy(module).double()
    x = torch.randn(2, 20, inputs)
    calls = []
    monkeypatch.setattr(native, "_invert", lambda *a, real=native._invert: calls.append(1) or real(*a))
    y = module(x)
    assert calls
    y.square().sum().mul(0.5).add(y.sum()).backward()
    expected = exact(x.double())
    expected.square().sum().mul(0.5).add(expected.sum()).backward()
    torch.testing.assert_close(y.double(), expected, rtol=0, atol=5e-6)
    for (name, ours), theirs in zip(module.named_parameters(), exact.parameters(), strict=True):
        difference = (ours.grad.double() - theirs.grad).norm() / theirs.grad.norm()
        assert difference < 5e-6, name


def test_evaluation_and_long_batches_take_the_factor(monkeypatch):
    monkeypatch.setattr(native, "_invert", lambda *_: pytest.fail("fractions"))
    layer = lip.LOTLinear(200, 200)
    layer(torch.randn(150, 200)).sum().backward()
    layer.eval()(torch.randn(2, 200)).sum().backward()
    layer.train()
    with torch.no_grad():
        layer(torch.randn(2, 200))
    lip.LOTLinear(200, 200, ridge=1e-4, steps=10)(torch.randn(2, 200))
    lip.LOTLinear(200, 200, parametrization="manifold")(torch.randn(2, 200))
    with torch.autocast("cpu"):
        layer(torch.randn(2, 200))


def test_arguments_are_named():
    V, x = torch.eye(3), torch.ones(2, 3)
    with pytest.raises(TypeError, match=r"x, V: got torch.float64 and torch.float32"):
        fastlip.ops.polar_linear(x.double(), V)
    with pytest.raises(ValueError, match=r"V: got shape \(1, 3, 3\)"):
        fastlip.ops.polar_linear(x, V[None])
    with pytest.raises(ValueError, match=r"x: got shape \(2, 2\)"):
        fastlip.ops.polar_linear(x[:, :2], V)


def test_auto_asks_what_pays():
    V = torch.eye(256)
    assert api.pays(torch.ones(128, 256), V)
    assert not api.pays(torch.ones(129, 256), V)
    assert not api.pays(torch.ones(8, 256, dtype=torch.float64), V.double())
    assert not api.pays(torch.ones(8, 64), torch.eye(64))
