"""A certificate reads what a module's forward does, not what its attributes are called."""

import types

import pytest
import torch
from torch import nn

import fastlip
from fastlip import nn as lip
from fastlip.nn.applications import KernelConvolution

SMALL = 1e-3


class OwnForward(nn.Linear):
    """Three times its weight, and it says so."""

    def forward(self, x):
        return 3 * super().forward(x)

    def lipschitz_bound(self, input_shape):
        return 3 * torch.linalg.matrix_norm(self.weight, 2).item()


class OwnMatrix(nn.Module):
    """Multiplies by a matrix of its own name, and has a weight that nothing uses."""

    def __init__(self):
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(4, 8))
        self.weight = nn.Parameter(SMALL * torch.randn(4, 8))
        self.kernel_size = 3  # no pair, and no kernel

    def forward(self, x):
        return x @ self.matrix.T

    def lipschitz_bound(self, input_shape):
        return torch.linalg.matrix_norm(self.matrix, 2).item()


class Louder(nn.Identity):
    def forward(self, x):
        return 5 * x

    def lipschitz_bound(self, input_shape):
        return 5.0


class Louder4(KernelConvolution):
    def convolve(self, x, weight, bias=None):
        return 4 * super().convolve(x, weight, bias)


class OwnConvolve(lip.BCOPConv2d):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.__dict__["_application"] = Louder4(self._application.geometry)

    def lipschitz_bound(self, input_shape):
        return 4.0


def unused(layer):
    layer.weight = nn.Parameter(SMALL * torch.eye(8))
    return layer


def replaced(layer):
    layer.forward = types.MethodType(lambda self, x: nn.functional.linear(x, 3 * self.weight), layer)
    layer.lipschitz_bound = lambda shape: 3 * torch.linalg.matrix_norm(layer.weight, 2).item()
    return layer


HEADS = {
    "unused, SLL": lambda: [unused(lip.SLLLinear(8, 8)), lip.FirstChannels(4)],
    "unused, CPL": lambda: [unused(lip.CPLLinear(8, 8)), lip.FirstChannels(4)],
    "own forward": lambda: [OwnForward(8, 4)],
    "own matrix": lambda: [OwnMatrix()],
    "own selection": lambda: [nn.Linear(8, 4), Louder()],
    "own convolve": lambda: [nn.Unflatten(1, (8, 1, 1)), OwnConvolve(8, 4, 1), nn.Flatten()],
}


@pytest.mark.parametrize("name", HEADS)
def test_no_radius_exceeds_the_true_one(name):
    network = nn.Sequential(lip.AOLLinear(8, 8), lip.MaxMin(), *HEADS[name]()).eval()
    x = torch.rand(20, 8)
    with torch.no_grad():
        labels = network(x).argmax(1)
    found = fastlip.certify(network, [(x, labels)])
    for image, radius, label in zip(x, found.radii, labels, strict=True):
        (jacobian,) = [torch.autograd.functional.jacobian(lambda one: network(one[None])[0], image)]
        scores = network(image[None])[0].detach()
        steps = (scores[label] - scores) / (jacobian[label] - jacobian).norm(dim=1)
        # A linear piece: what the first-order distance to the nearest class promises, with room for kinks.
        assert radius <= 3 * steps[torch.arange(4) != label].min()


def test_an_attribute_of_a_compiled_module_means_nothing_on_another():
    layer = OwnForward(8, 8).eval()
    layer._orig_mod = nn.Identity()
    assert fastlip.audit(layer, (8,)).bound == pytest.approx(layer.lipschitz_bound((8,)))
    network = nn.Sequential(lip.AOLLinear(8, 8))
    network._orig_mod = nn.Identity()
    assert type(fastlip.export(network)[0]) is nn.Linear
    assert fastlip.audit(torch.compile(network.eval(), backend="eager"), (8,)).bound <= 1 + 1e-5


def test_a_hook_is_known_by_its_class_not_by_its_name():
    class WeightNorm:
        def __call__(self, module, inputs):
            return (10 * inputs[0],)

    layer = nn.Linear(8, 8).eval()
    layer.register_forward_pre_hook(WeightNorm())
    with pytest.raises(TypeError, match="does not understand"):
        fastlip.audit(layer, (8,))
    known = nn.utils.spectral_norm(nn.Linear(8, 8)).eval()
    assert fastlip.audit(known, (8,)).bound > 0
