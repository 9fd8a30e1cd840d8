"""Frozen models keep their weights until something thaws them; layers are shared by threads, frozen or not."""

import copy
import pickle
import sys
import threading

import pytest
import torch
from layer_catalog import layers, name_of, perturb
from torch import nn

import fastlip
from fastlip import nn as lip

X = torch.linspace(-1, 1, 12).view(3, 4)


def network():
    model = nn.Sequential(lip.AOLLinear(4, 4), lip.MaxMin(dim=-1), lip.SLLLinear(4, 4))
    for layer in (model[0], model[2]):
        perturb(layer)
    return model.eval()


def write(model):
    for parameter in model.parameters():
        parameter.data.mul_(-0.5).add_(0.3)


def is_frozen(model):
    """Whether writes to weights are missed."""
    kept = [parameter.clone() for parameter in model.parameters()]
    before = model(X)
    for layer in (model[0].raw_weight, model[2].kernel):
        layer.data.mul_(0.3).add_(0.1)
    unseen = torch.equal(model(X), before)
    for parameter, value in zip(model.parameters(), kept, strict=True):
        parameter.data.copy_(value)
    return unseen


@torch.no_grad()
def test_a_frozen_model_keeps_its_weights_until_it_is_unfrozen():
    model = network()
    assert not is_frozen(model)
    fastlip.freeze(model)
    assert is_frozen(model)
    assert fastlip.unfreeze(model) is model
    assert not is_frozen(model)


@torch.no_grad()
def test_weights_are_those_at_the_time_of_the_freeze_and_of_its_end():
    model = network()
    model(X)
    write(model)
    expected = copy.deepcopy(model)(X)
    with fastlip.freeze(model) as same:
        assert same is model
        assert torch.equal(model(X), expected)
        write(model)
    assert torch.equal(model(X), copy.deepcopy(model)(X))
    assert not is_frozen(model)


@torch.no_grad()
def test_blocks_may_be_nested():
    model = network()
    with fastlip.freeze(model):
        with fastlip.freeze(model):
            assert is_frozen(model)
        assert is_frozen(model)
    assert not is_frozen(model)


THAWS = {
    "train": lambda model: model.train().eval(),
    "eval": lambda model: model.eval(),
    "load_state_dict": lambda model: model.load_state_dict(model.state_dict()),
    "to": lambda model: model.to(torch.float32),
}


@pytest.mark.parametrize("thaw", THAWS)
@torch.no_grad()
def test_what_thaws(thaw):
    model = network()
    fastlip.freeze(model)
    model(X)
    THAWS[thaw](model)
    assert not is_frozen(model)


@torch.no_grad()
def test_options_act_and_copies_are_not_frozen():
    model = nn.Sequential(lip.AOLConv2d(4, 4, 3)).eval()
    fastlip.freeze(model)
    x = torch.randn(2, 4, 5, 5)
    before = model(x)
    model[0].epsilon = 1.0
    assert not torch.allclose(model(x), before)
    frozen = network()
    fastlip.freeze(frozen)
    frozen(X)
    for other in (copy.deepcopy(frozen), pickle.loads(pickle.dumps(frozen)), copy.copy(frozen[0])):
        assert not any(getattr(module, "frozen", False) for module in other.modules())


def test_only_modules_in_evaluation_can_be_frozen():
    with pytest.raises(TypeError, match="model: got str"):
        fastlip.freeze("model")
    with pytest.raises(ValueError, match="model: '0' is in training mode"):
        fastlip.freeze(network().train())
    with pytest.raises(TypeError, match="model: got int"):
        fastlip.unfreeze(1)


def test_gradients_of_parameters_are_computed_in_frozen_models():
    model = network()
    fastlip.freeze(model)
    with torch.no_grad():
        model(X)
    model(X).square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


SHARED = [item for item in layers("Conv2d") if "inner_channels" not in item[1] and "ridge" not in item[1]]


@pytest.mark.parametrize("item", SHARED, ids=name_of)
def test_threads_share_a_layer_at_many_sizes(item):
    cls, options = item
    layer = perturb(cls(4, 4, 3, **options)).eval().requires_grad_(False)
    images = [torch.randn(1, 4, 3 + side, 4) for side in range(11)]
    expected = [copy.deepcopy(layer)(x) for x in images]
    failures = []

    def serve(start):
        try:
            with torch.no_grad():
                for i in range(40):
                    at = (7 * i + start) % len(images)
                    if not torch.allclose(layer(images[at]), expected[at], atol=1e-5):
                        failures.append(f"another output at size {at}")
        except (RuntimeError, KeyError) as error:
            failures.append(repr(error))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=serve, args=(start,)) for start in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not failures


@pytest.mark.parametrize("cls", [lip.CPLLinear, lip.SLLLinear])
def test_a_thread_that_writes_never_breaks_the_bound(cls):
    """Kernels that differ by a factor of 1,000: a scale of one with the other would give outputs of 1e6."""
    layer = perturb(cls(4, 4, bias=False)).eval().requires_grad_(False)
    kernels = layer.kernel.clone(), 1000 * layer.kernel
    done = threading.Event()

    def write_on():
        turn = 0
        while not done.is_set():
            turn = 1 - turn
            layer.kernel.data.copy_(kernels[turn])

    interval, writer = sys.getswitchinterval(), threading.Thread(target=write_on)
    sys.setswitchinterval(1e-6)
    writer.start()
    try:
        with torch.no_grad():
            ratios = [(layer(X).norm() / X.norm()).item() for _ in range(400)]
    finally:
        done.set()
        writer.join()
        sys.setswitchinterval(interval)
    assert max(ratios) <= 1 + 1e-5
