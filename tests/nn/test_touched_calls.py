"""A chain fuses only pairs whose call nothing has touched."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.modules import module as torch_module

import fastlip
from fastlip import nn as lip
from fastlip.nn import fusion

METHODS = ("AOC", "AOL", "BCOP", "BRO", "Cayley", "CPL", "LOT", "SLL", "SOC")
KINDS = {**{name: getattr(lip, f"{name}Conv2d") for name in METHODS}, "torch": nn.Conv2d}


def pair(kind=lip.AOLConv2d):
    convolution = kind(8, 8, 3, **({"padding": 1} if issubclass(kind, nn.Conv2d) else {}))
    return nn.Sequential(convolution, lip.MaxMin())


def fuses(model):
    first, second = model
    return fusion.fusion_of(first, second) is not None


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_a_forward_wrapped_on_the_instance_is_called(name, training):
    model = fastlip.fuse(pair(KINDS[name])).train(training)
    assert fuses(model)
    x, calls = torch.rand(64, 8, 8, 8), []  # enough for kernels
    expected = copy.deepcopy(model)(x)
    for module in model:
        inner = module.forward
        module.forward = lambda *args, inner=inner: calls.append(1) or inner(*args)
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    assert len(calls) == 2
    for module in model:
        del module.forward
    assert fuses(model)


def hook(module, *_):
    return None


HOOKS = {
    "forward": lambda module: module.register_forward_hook(hook),
    "forward with keywords": lambda module: module.register_forward_hook(hook, with_kwargs=True),
    "always called": lambda module: module.register_forward_hook(hook, always_call=True),
    "before forward": lambda module: module.register_forward_pre_hook(hook),
    "before forward with keywords": lambda module: module.register_forward_pre_hook(hook, with_kwargs=True),
    "backward": lambda module: module.register_full_backward_hook(hook),
    "before backward": lambda module: module.register_full_backward_pre_hook(hook),
    "all forward": lambda _: torch_module.register_module_forward_hook(hook),
    "before all forward": lambda _: torch_module.register_module_forward_pre_hook(hook),
    "all backward": lambda _: torch_module.register_module_full_backward_hook(hook),
    "before all backward": lambda _: torch_module.register_module_full_backward_pre_hook(hook),
}


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("name", HOOKS)
def test_hooks_of_every_sort(name, place):
    model = fastlip.fuse(pair())
    handle = HOOKS[name](model[place])
    try:
        assert not fuses(model)
    finally:
        handle.remove()
    assert fuses(model)


def test_a_hook_of_all_modules_sees_each_of_them():
    model, seen = fastlip.fuse(pair()), []
    handle = torch_module.register_module_forward_hook(lambda module, args, y: seen.append(type(module).__name__))
    try:
        model(torch.rand(2, 8, 4, 4))
    finally:
        handle.remove()
    assert seen == ["AOLConv2d", "MaxMin", "Chain"]


def with_method(module, name):
    original = getattr(module, name)
    setattr(module, name, lambda *args: original(*args))


def soft(module, name):
    nn.utils.parametrize.register_parametrization(module, name, nn.Softplus())


TOUCHES = {
    "called otherwise": lambda module: with_method(module, "_call_impl"),
    "convolves otherwise": lambda module: with_method(module, "_check_input"),
    "parametrized otherwise": lambda module: with_method(module, "_parametrize"),
    "other weights": lambda module: with_method(module, "effective"),
    "parametrized bias": lambda module: soft(module, "bias"),
    "parametrized weight": lambda module: soft(module, "raw_weight"),
    "weight norm": lambda module: nn.utils.parametrizations.weight_norm(module, "raw_weight"),
    "pruned": lambda module: nn.utils.prune.l1_unstructured(module, "raw_weight", 0.5),
    "compiled": lambda module: module.compile(backend="eager"),
    "with a child": lambda module: module.add_module("adapter", nn.Identity()),
}


@pytest.mark.parametrize("name", TOUCHES)
def test_what_else_touches_a_call(name):
    model = fastlip.fuse(pair())
    TOUCHES[name](model[0])
    assert not fuses(model)


def overriding(kind):
    class Called(kind):
        def __call__(self, x):
            return 2 * super().__call__(x)

    class Convolved(kind):
        def _conv_forward(self, x, weight, bias):
            return 3 * super()._conv_forward(x, weight, bias)

        def convolve(self, *args):
            return 3 * super().convolve(*args)

    class Weighted(kind):
        @property
        def weight(self):
            return 0.5 * super().weight

    class Checked(kind):
        def check_input(self, x):
            x.mul_(2)

    mine = [Called, Convolved] if kind is nn.Conv2d else [Called, Convolved, Checked]
    return [*mine, Weighted] if kind is lip.AOLConv2d else mine


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_subclasses_keep_what_they_override(name):
    for kind in overriding(KINDS[name]):
        model, x = pair(kind).eval(), torch.rand(2, 8, 6, 6)
        expected = model(x.clone())
        assert not fuses(model)
        assert torch.equal(fastlip.fuse(model)(x.clone()), expected), kind.__name__


@pytest.mark.parametrize("name", KINDS)
def test_a_subclass_that_only_constructs_is_fused(name):
    class Mine(KINDS[name]):
        """Of a width of its own."""

        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            self.note = "mine"

    assert fuses(pair(Mine))


def test_a_method_replaced_on_the_class_is_called(monkeypatch):
    model, calls = fastlip.fuse(pair(nn.Conv2d)), []
    original = nn.Conv2d._conv_forward
    monkeypatch.setattr(nn.Conv2d, "_conv_forward", lambda *args: calls.append(1) or original(*args))
    model(torch.rand(2, 8, 4, 4))
    assert calls == [1]
