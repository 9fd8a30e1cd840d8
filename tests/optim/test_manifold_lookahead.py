"""Lookahead of ManifoldOptimizer: its formula, orthogonal slow weights, checkpoints, and what is refused."""

import copy
import functools
import io

import pytest
import torch
from test_manifold_optimizer import BASES, network, train
from torch import nn, optim

from fastlip import nn as lip
from fastlip.kernels.common import capture
from fastlip.optim import ManifoldOptimizer, _lookahead, manifold_groups


def optimizer_of(model, base=BASES["adam"], **options):
    return ManifoldOptimizer(manifold_groups(model), base, **{"lookahead": 3, **options})


def middle(S, W):
    """The middle of the shortest way from S to W on the manifold of orthogonal matrices."""
    values, vectors = torch.linalg.eig(S.T @ W)
    half = vectors @ torch.diag(values.sqrt()) @ torch.linalg.inv(vectors)
    return S @ half.real


def test_slow_weights_are_those_of_the_formula():
    torch.manual_seed(0)
    model = network(torch.float64)
    twin = copy.deepcopy(model)
    optimizer, plain = optimizer_of(model, BASES["sgd"]), optimizer_of(twin, BASES["sgd"], lookahead=0)
    slow = copy.deepcopy(model)
    train(model, optimizer, 2)
    train(twin, plain, 2)
    for one, two in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, two)  # nothing yet
    train(model, optimizer, 1)
    train(twin, plain, 1)
    S, W = slow[2].orthogonal_weight, twin[2].orthogonal_weight
    torch.testing.assert_close(model[2].orthogonal_weight, middle(S, W), rtol=0, atol=1e-7)
    torch.testing.assert_close(model[2].bias, (slow[2].bias + twin[2].bias) / 2)
    assert torch.equal(optimizer.state[model[2].bias]["slow"], model[2].bias)
    assert torch.equal(optimizer.state[model[0].orthogonal_weight]["slow"], model[0].orthogonal_weight)


def test_tall_and_wide_matrices_get_the_nearest_ones_to_the_mean():
    torch.manual_seed(0)
    model = network(torch.float64)
    twin, slow = copy.deepcopy(model), copy.deepcopy(model)
    train(model, optimizer_of(model, lookahead=2, lookahead_alpha=0.3), 2)
    train(twin, optimizer_of(twin, lookahead=0), 2)
    for layer in (0, 4):
        S, W = slow[layer].orthogonal_weight, twin[layer].orthogonal_weight
        U, _, Vh = torch.linalg.svd(S + 0.3 * (W - S), full_matrices=False)
        torch.testing.assert_close(model[layer].orthogonal_weight, U @ Vh, rtol=0, atol=1e-9)


def test_a_fraction_of_one_only_retracts():
    torch.manual_seed(0)
    model = network(torch.float64)
    twin = copy.deepcopy(model)
    train(model, optimizer_of(model, lookahead_alpha=1.0), 9)
    train(twin, optimizer_of(twin, lookahead=0, retract_every=3), 9)
    for one, two in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", [*BASES, "rprop", "radam", "adadelta", "adamax", "asgd", "adafactor"])
def test_every_base_trains_within_lookahead_and_continues_bit_by_bit(name):
    more = {"rprop": optim.Rprop, "radam": optim.RAdam, "adadelta": optim.Adadelta, "adamax": optim.Adamax}
    more |= {"asgd": optim.ASGD, "adafactor": optim.Adafactor}
    base = BASES.get(name) or functools.partial(more[name], lr=0.02)
    torch.manual_seed(2)
    model = network()
    optimizer = optimizer_of(model, base, lookahead=5)
    train(model, optimizer, 12)  # between two moves of the slow weights
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    train(model, optimizer, 12)
    file.seek(0)
    state, other = torch.load(file, weights_only=True), network()
    other.load_state_dict(state["model"])
    resumed = optimizer_of(other, base, lookahead=5)
    resumed.load_state_dict(state["optimizer"])
    train(other, resumed, 12)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)
    assert optimizer.orthogonality_error() <= 5e-5


def test_a_state_of_an_earlier_version_is_read():
    model = network()
    optimizer = optimizer_of(model, lookahead=0)
    train(model, optimizer, 2)
    state = optimizer.state_dict()
    for group in state["param_groups"]:
        for name in ("lookahead", "lookahead_alpha", "ahead"):
            del group[name]
    resumed = optimizer_of(model, lookahead=0)
    resumed.load_state_dict(state)
    train(model, resumed, 2)


def test_steps_of_half_a_turn_stay_orthogonal():
    """W = -S, between which no way is the shortest."""
    layer = lip.LOTLinear(4, 4, bias=False, parametrization="manifold", dtype=torch.float64)
    optimizer = optimizer_of(layer, functools.partial(optim.SGD, lr=0.0), lookahead=2)
    for _ in range(2):
        (layer(torch.randn(3, 4, dtype=torch.float64))).sum().backward()
        optimizer.step()
        with torch.no_grad():
            layer.orthogonal_weight.copy_(-torch.eye(4, dtype=torch.float64))
    assert optimizer.orthogonality_error() < 1e-9


def test_a_capture_is_refused(monkeypatch):
    assert _lookahead.is_capturing is capture.is_capturing
    monkeypatch.setattr(_lookahead, "is_capturing", lambda device: True)
    model = network()
    with pytest.raises(ValueError, match=r"^lookahead=3: replays of a CUDA graph do not count steps; allowed is 0"):
        train(model, optimizer_of(model), 1)


class Wrapper(optim.SGD):
    """What wrappers of other packages look like."""

    def __init__(self, groups):
        super().__init__(groups, lr=0.1)
        self.optimizer = optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)


class ScheduleFree(optim.SGD):
    """What schedule-free optimisers look like."""

    def eval(self):
        """Exchanges the weights for their average."""


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"lookahead": -1}, "lookahead=-1: expected an int of at least 0"),
        ({"lookahead": True}, "lookahead=True: expected an int of at least 0"),
        ({"lookahead_alpha": 0.0}, "lookahead_alpha=0.0: expected a number above 0 and at most 1"),
        ({"lookahead_alpha": float("nan")}, "lookahead_alpha=nan: expected a number above 0"),
        ({"base": Wrapper}, "base: Wrapper keeps weights of its own"),
        ({"base": ScheduleFree}, "base: ScheduleFree keeps weights of its own"),
    ],
    ids=str,
)
def test_refusals(options, text):
    with pytest.raises(ValueError, match=f"^{text}"):
        optimizer_of(network(), **options)
