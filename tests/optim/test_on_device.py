"""Steps as they are taken on a GPU, for many matrices at once without a look at numbers: here on the CPU."""

import functools
import math

import pytest
import torch
from torch import nn, optim

from fastlip import nn as lip
from fastlip.nn._manifold import orthogonality_error
from fastlip.optim import ManifoldOptimizer, _on_device, manifold, manifold_groups
from fastlip.optim._steps import Workspace, tangent_gradient

SHAPES = ((12, 12), (9, 9), (12, 12), (12, 5), (5, 12), (1, 1), (12, 5))


def orthogonal(shape, dtype=torch.float64):
    return nn.init.orthogonal_(torch.empty(shape, dtype=dtype))


def random(shape, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype)


@pytest.fixture
def blind(monkeypatch):
    """Every matrix takes the way of a GPU, and a look at a number raises."""

    def look(*_, **__):
        raise AssertionError("the host waits")

    monkeypatch.setattr(manifold, "is_on_device", lambda W: True)
    monkeypatch.setattr(_on_device.OP, "choose", lambda *_: "reference")  # whose decomposition looks
    original = ManifoldOptimizer.step

    def step(self, *arguments):
        with monkeypatch.context() as patch:
            for name in ("item", "tolist", "__bool__", "__float__", "cpu", "nonzero"):
                patch.setattr(torch.Tensor, name, look)
            return original(self, *arguments)

    monkeypatch.setattr(ManifoldOptimizer, "step", step)


def network():
    on = {"parametrization": "manifold"}
    dense = [lip.CayleyLinear(6, 10, **on), lip.LOTLinear(10, 10, **on), lip.SOCLinear(10, 10, **on)]
    return nn.Sequential(dense[0], lip.MaxMin(), dense[1], lip.MaxMin(), dense[2], lip.BROLinear(10, 4, **on))


@pytest.mark.parametrize("lookahead", [0, 4])
@pytest.mark.parametrize("retract_every", [3, 1000])
@pytest.mark.parametrize(
    "base",
    [
        functools.partial(optim.SGD, lr=0.05, momentum=0.9),
        functools.partial(optim.RMSprop, lr=0.01, foreach=True),
        functools.partial(optim.SGD, lr=1e3),
    ],
    ids=["sgd", "rmsprop", "huge steps"],
)
def test_training_never_looks_and_stays_on_the_manifold(base, retract_every, lookahead, blind):
    model = network()
    options = {"retract_every": retract_every, "lookahead": lookahead}
    optimizer = ManifoldOptimizer(manifold_groups(model), base, **options)
    x, y = torch.randn(64, 6), torch.arange(64) % 4
    for _ in range(30):
        optimizer.zero_grad()
        nn.functional.cross_entropy(8 * model(x), y).backward()
        optimizer.step()
    assert optimizer.orthogonality_error() <= 30 * (1e-5 + 1e-6)
    optimizer.retract()
    assert optimizer.orthogonality_error() < 1e-6


def test_a_planted_look_is_found(blind, monkeypatch):
    monkeypatch.setattr(manifold, "is_on_device", lambda W: False)
    layer = lip.LOTLinear(4, 4, parametrization="manifold")
    optimizer = ManifoldOptimizer(manifold_groups(layer), functools.partial(optim.SGD, lr=0.1))
    layer(torch.randn(2, 4)).sum().backward()
    with pytest.raises(AssertionError, match="the host waits"):
        optimizer.step()


def test_small_steps_are_those_of_a_cpu(monkeypatch):
    """Both agree with the exponential up to cubes of the step."""
    results = []
    for on_device in (False, True):
        monkeypatch.setattr(manifold, "is_on_device", lambda W, answer=on_device: answer)
        torch.manual_seed(0)
        model = network()
        optimizer = ManifoldOptimizer(manifold_groups(model), functools.partial(optim.SGD, lr=1e-3), retract_every=2)
        x, y = torch.randn(64, 6), torch.arange(64) % 4
        for _ in range(4):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        results.append([value.detach() for value in model.parameters()])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-6)


def test_gradients_of_many_matrices_are_those_of_each():
    W, G = [orthogonal(shape) for shape in SHAPES], [random(shape) for shape in SHAPES]
    found = _on_device.tangent_gradients(W, G)
    for one, gradient, result in zip(W, G, found, strict=True):
        expected = tangent_gradient(one, gradient.clone(), Workspace())
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("tolerance", [1e-3, 1e-5, 1e-10])
def test_polynomials_are_orthogonal_up_to_the_tolerance(tolerance):
    longest = _on_device.longest_turn(tolerance)
    norms = torch.tensor([0.0, 1e-3, 0.3, 2.0, 0.7 * longest, 0.99 * longest, 1.01 * longest, 1e6])
    A = random((len(norms), 2, 2))  # where the bound of the norm is the norm
    A = (A - A.mT) / torch.linalg.matrix_norm(A - A.mT, 2)[:, None, None] * norms[:, None, None]
    P = _on_device.turns_minus_one(A, tolerance) + torch.eye(2, dtype=torch.float64)
    for one, turn, norm in zip(P, A, norms.tolist(), strict=True):
        assert orthogonality_error(one) <= tolerance * (1 + 1e-9) + 1e-13
        taken = turn * min(1, longest / norm) if norm else turn
        exact = torch.linalg.matrix_exp(taken)
        assert torch.linalg.matrix_norm(one - exact, 2) <= 8 * 0.17 * (min(norm, longest) / 8) ** 3 + 1e-9
    assert orthogonality_error(P[5]) > 0.5 * tolerance  # the bound is that of the polynomial


def test_the_longest_turn():
    assert _on_device.longest_turn(1e-5) == pytest.approx(10, rel=0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("size", [1e-3, 0.3, 50.0, 1e6])
def test_steps_of_many_matrices_stay_on_the_manifold(size, dtype):
    W = [orthogonal(shape, dtype) for shape in SHAPES]
    before = [one.clone() for one in W]
    steps = [size * random(shape, dtype) for shape in SHAPES]  # not in the tangent spaces
    _on_device.move_all_(W, steps, 1e-6)
    for one, old, step in zip(W, before, steps, strict=True):
        assert orthogonality_error(one) <= 1e-6 + 40 * torch.finfo(dtype).eps
        if size < 1 and one.shape != (1, 1):
            assert (one - old).abs().max() > size / 10
        m, n = one.shape
        if m != n and size < 1:
            tall, U = (old, step) if m > n else (old.mT, step.mT)
            product = tall.mT @ U
            U = U - tall @ (product + product.mT) / 2
            polar = torch.linalg.svd(tall + U, full_matrices=False)
            torch.testing.assert_close(one if m > n else one.mT, polar.U @ polar.Vh, rtol=0, atol=1e-5)


def test_without_kernels_for_a_type_the_factor_is_iterated(monkeypatch):
    monkeypatch.setattr(_on_device.OP, "choose", lambda *_: "reference")
    for size in (1e-3, 3.0, 1e9):
        W = [orthogonal((200, 40))]
        _on_device.move_all_(W, [size * random((200, 40))], 1e-12)
        assert orthogonality_error(W[0]) < 1e-12


def test_repairs():
    matrices = [orthogonal(shape) for shape in SHAPES]
    bad = [W @ torch.diag(torch.linspace(0.3, 1.3, W.shape[1], dtype=torch.float64)) for W in matrices[:3]] + [
        W * 0.9 for W in matrices[3:]
    ]
    expected = [torch.linalg.svd(W, full_matrices=False) for W in bad]
    _on_device.retract_all_(bad)
    for W, svd in zip(bad, expected, strict=True):
        torch.testing.assert_close(W, svd.U @ svd.Vh, rtol=0, atol=1e-12)


def test_a_captured_step_ends_in_a_retraction(blind, monkeypatch):
    for module in (manifold, _on_device):
        monkeypatch.setattr(module, "is_capturing", lambda device: True)
    layer = lip.LOTLinear(16, 16, parametrization="manifold")
    optimizer = ManifoldOptimizer(manifold_groups(layer), functools.partial(optim.SGD, lr=3.0), tolerance=1e-2)
    for _ in range(5):
        optimizer.zero_grad()
        (layer(torch.randn(8, 16)) - 1).square().sum().backward()
        optimizer.step()
    assert optimizer.orthogonality_error() < 1e-6


def test_numbers_that_are_not_finite_are_seen():
    for shape in ((12, 12), (12, 5), (5, 12)):
        W = [orthogonal(shape)]
        _on_device.move_all_(W, [torch.full(shape, math.nan, dtype=torch.float64)], 1e-5)
        assert W[0].isnan().all()


def test_many_large_matrices_are_computed_in_parts(monkeypatch):
    monkeypatch.setattr(_on_device, "_TOGETHER", 300)
    assert [len(places) for places in _on_device._alike([torch.zeros(10, 10)] * 7)] == [3, 3, 1]
    assert [len(places) for places in _on_device._alike([torch.zeros(20, 20)] * 2)] == [1, 1]
