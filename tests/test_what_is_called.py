"""Calls that do more than their module: hooks, attributes and methods that take part in a call."""

import copy
import math

import pytest
import torch
from test_auditing import jacobian_norm
from torch import nn

import fastlip
from fastlip import nn as lip
from fastlip.nn.applications import KernelConvolution


def tripling():
    layer = nn.Linear(2, 2, bias=False)
    layer.weight.data = 3 * torch.eye(2)
    return layer


class CalledTwice(nn.Linear):
    def __call__(self, x):
        return 2 * super().__call__(x)


class Backwards(nn.Sequential):
    def __iter__(self):
        return reversed(list(self._modules.values()))


class Louder(KernelConvolution):
    def convolve(self, x, weight, bias=None):
        return 7 * super().convolve(x, weight, bias)


class Convolving(lip.AOLConv2d):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.__dict__["_application"] = Louder(self._application.geometry)


def hooked(module, pre=False):
    if pre:
        module.register_forward_pre_hook(lambda module, args: (3 * args[0],))
    else:
        module.register_forward_hook(lambda module, args, y: 3 * y)
    return module


def with_attribute(module, name, value):
    setattr(module, name, value)
    return module


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: CalledTwice(4, 4), (4,)),
        (lambda: nn.Sequential(CalledTwice(4, 4)), (4,)),
        (lambda: hooked(nn.Sequential(nn.Linear(4, 4))), (4,)),
        (lambda: hooked(nn.Sequential(nn.Linear(4, 4)), pre=True), (4,)),
        (lambda: hooked(nn.DataParallel(nn.Linear(4, 4))), (4,)),
        (lambda: hooked(torch.compile(nn.Linear(4, 4))), (4,)),
        (lambda: with_attribute(nn.Sequential(nn.Linear(4, 4)), "forward", lambda x: 3 * x), (4,)),
        (lambda: with_attribute(nn.Conv2d(2, 2, 1), "_conv_forward", lambda x, w, b: 3 * x), (2, 4, 4)),
        (lambda: with_attribute(lip.AOLLinear(4, 4), "effective", lambda: (9 * torch.eye(4),)), (4,)),
        (lambda: Convolving(2, 2, 3), (2, 4, 4)),
    ],
)
def test_calls_that_do_more_than_their_module_are_refused(make, shape):
    with pytest.raises(TypeError, match="does not understand"):
        fastlip.audit(make(), shape)


def test_a_hook_of_all_modules_is_refused():
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, y: 3 * y)
    try:
        with pytest.raises(TypeError, match="does not understand"):
            fastlip.audit(nn.Sequential(nn.Linear(4, 4)), (4,))
    finally:
        handle.remove()


def test_an_iteration_of_its_own_is_followed():
    model = Backwards(nn.Linear(4, 3), nn.Tanh(), nn.Linear(2, 4)).eval()
    assert [row.kind for row in fastlip.audit(model, (2,)).layers] == ["Linear", "Tanh", "Linear"]


@pytest.mark.parametrize(
    "change",
    [
        {"stride": 2},
        {"padding": 2},
        {"padding": (2, 0), "dilation": 2},
        {"padding_mode": "circular", "padding": (0, 0)},
        {"padding_mode": "reflect"},
        {"kernel_size": (1, 1)},
    ],
    ids=str,
)
def test_attributes_set_after_construction_are_read_as_they_run(change):
    torch.manual_seed(0)
    layer = nn.Conv2d(2, 2, 3, padding=1).eval()
    for name, value in change.items():
        setattr(layer, name, value)
    bound, norm = fastlip.audit(layer, (2, 6, 6)).bound, jacobian_norm(copy.deepcopy(layer), (2, 6, 6))
    assert norm <= bound * (1 + 1e-6)
    if "reflect" not in change.values():
        assert bound <= 2 * norm


def test_pruned_layers_are_bounded_as_they_run():
    layer = nn.Linear(4, 4)
    nn.utils.prune.l1_unstructured(layer, "weight", 0.5)
    expected = torch.linalg.matrix_norm((layer.weight_orig * layer.weight_mask).detach().double(), 2).item()
    assert math.isclose(fastlip.audit(layer, (4,)).bound, expected, rel_tol=1e-6)
