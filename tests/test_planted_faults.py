"""Faults of the kind that published certificates overlook: the bound rises above 1, and every radius shrinks."""

import copy
import math

import pytest
import torch
from torch import nn

import fastlip
from fastlip import nn as lip
from fastlip.nn.cpl import CPLConv2d

SHAPE = (3, 6, 6)
HONEST = 1 + 1e-5


def network(layer):
    """An orthogonal network around a layer of three channels; no linear head, whose rows give other radii."""
    torch.manual_seed(0)
    head = lip.CayleyLinear(108, 5), lip.Abs()
    return nn.Sequential(lip.CayleyConv2d(3, 3, 3), layer, lip.MaxMin(), nn.Flatten(), *head).eval()


def away_from_initialisation(layer, seed=0):
    torch.manual_seed(seed)
    for parameter in layer.parameters():
        parameter.data = torch.randn(parameter.shape)
    return layer


class Scaled(lip.BCOPConv2d):
    def _parametrize(self):
        return (1.01 * super()._parametrize()[0],)


class OneTerm(lip.SOCConv2d):
    """One term of the series, without the gain that makes up for it."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, terms=1, **kwargs)

    def gain(self, terms):
        return 1.0


class OneStep(CPLConv2d):
    """sigma from a single step of power iteration, as published for training."""

    def _parametrize(self, *image_size):
        u = torch.randn(1, self.inner_channels, *image_size, generator=torch.Generator().manual_seed(1))
        v = nn.functional.conv_transpose2d(u, self.kernel, padding=1)
        sigma = nn.functional.conv2d(v / v.norm(), self.kernel, padding=1).norm()
        return ((2 / sigma**2).expand(self.inner_channels),)


class TF32(lip.BCOPConv2d):
    """The kernel with the ten bits of mantissa that TF32 keeps."""

    def _parametrize(self):
        bits = super()._parametrize()[0].contiguous().view(torch.int32)
        return (((bits + (1 << 12)) & ~((1 << 13) - 1)).view(torch.float32),)


def reflecting():
    layer = nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect")
    layer.weight.data = lip.BCOPConv2d(3, 3, 3).weight.detach()
    return layer


# (faulty layer, the same without its fault, how far above 1 the bound must be)
FAULTS = {
    "scaled by 1.01": (lambda: Scaled(3, 3, 3), lambda: lip.BCOPConv2d(3, 3, 3), 0.0099),
    "one term of SOC": (lambda: OneTerm(3, 3, 3), lambda: lip.SOCConv2d(3, 3, 3), 0.1),
    "one power step of CPL": (lambda: OneStep(3, 3, 3), lambda: CPLConv2d(3, 3, 3), 0.1),
    "reflected padding": (reflecting, lambda: lip.BCOPConv2d(3, 3, 3, padding_mode="zeros"), 0.1),
    "TF32 weights": (lambda: TF32(3, 3, 3), lambda: lip.BCOPConv2d(3, 3, 3), 1e-5),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_raises_the_bound_and_shrinks_certificates(name):
    make, make_honest, excess = FAULTS[name]
    faulty = make() if name == "reflected padding" else away_from_initialisation(make())
    honest = away_from_initialisation(make_honest())
    assert fastlip.audit(honest, SHAPE).bound <= HONEST
    bound = fastlip.audit(faulty, SHAPE).bound
    assert bound > 1 + excess

    found = certificate(network(faulty))
    assert math.isclose(found.lipschitz, bound, rel_tol=1e-4)
    on_faith = found.margins / math.sqrt(2)
    assert (on_faith > 0).all()
    assert (found.radii <= on_faith / (1 + excess)).all()


def certificate(model):
    """Certifies the model's own predictions, so that every margin counts."""
    images = torch.rand(32, *SHAPE, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        return fastlip.certify(model, [(images, model(images).argmax(1))])


@pytest.mark.parametrize("frozen", [False, True])
def test_certificates_do_not_trust_the_cache(frozen):
    model = network(away_from_initialisation(lip.AOLConv2d(3, 3, 3)))
    honest = certificate(model)
    if frozen:
        fastlip.freeze(model)
    with torch.no_grad():
        weight = model[1]._effective()[0]
        expected = weight.clone()
        weight.mul_(1.5)
        again = certificate(model)
        assert torch.equal(model[1]._effective()[0], expected)  # what runs from now on is what was certified
    assert again.lipschitz == honest.lipschitz


def test_a_copy_in_another_precision_is_audited_as_it_is():
    layer = away_from_initialisation(lip.BCOPConv2d(3, 3, 3)).eval()
    low = copy.deepcopy(layer).bfloat16()
    assert fastlip.audit(layer, SHAPE).bound <= HONEST
    assert fastlip.audit(low, SHAPE).bound > 1 + 1e-4


class ScaledReflector(lip.BROConv2d):
    def _parametrize(self, *image_size):
        return tuple(1.01 * Q for Q in super()._parametrize(*image_size))


class PlainResidual(lip.LipschitzResidual):
    """x + f(x) in place of a convex mix."""

    def forward(self, x):
        return x + self.module(x)


# Modules of the networks of the state of the art, for inputs of MORE_CHANNELS.
MORE_CHANNELS = (6, 6, 6)
PARTS = {
    "BROConv2d": lambda cls: cls(6, 6, 3),
    "BROConv2d with quasi_residual": lambda cls: cls(6, 6, 3, quasi_residual=True),
    "BatchCentering": lambda cls: cls(6),
    "LayerCentering": lambda cls: cls(6),
    "LipschitzResidual": lambda cls: cls(lip.BROConv2d(6, 6, 3)),
    "SpatialShift": lambda cls: cls(1),
    "PartialAbs": lambda cls: cls(1),
    "PositionBias": lambda cls: cls(6),
    "L2NormPool2d": lambda cls: cls(2),
    "AdaptiveL2NormPool2d": lambda cls: cls(2),
}


def subclass(make, cls):
    class Doubled(cls):
        def forward(self, x):
            return 2 * super().forward(x)

    return make(Doubled)


def hooked(make, cls):
    layer = make(cls)
    layer.register_forward_hook(lambda module, inputs, output: 2 * output)
    return layer


def replaced(make, cls):
    layer = make(cls)
    forward = layer.forward
    layer.forward = lambda x: 2 * forward(x)
    return layer


def bound_or_refusal(layer):
    try:
        return fastlip.audit(layer, MORE_CHANNELS).bound
    except TypeError as error:
        return str(error)


@pytest.mark.parametrize("name", PARTS)
def test_a_layer_that_doubles_its_output_is_not_taken_at_its_word(name):
    make, cls = PARTS[name], getattr(lip, name.partition(" ")[0])
    assert fastlip.audit(away_from_initialisation(make(cls)).eval(), MORE_CHANNELS).bound <= HONEST
    for change in (subclass, hooked, replaced):
        found = bound_or_refusal(away_from_initialisation(change(make, cls)).eval())
        assert str(found).startswith("the audit does not understand") or found >= 2 * (1 - 1e-6), change.__name__


def test_faults_of_the_new_layers_raise_the_bound():
    for faulty, least in (
        (ScaledReflector(3, 3, 3), 1.0099),
        (ScaledReflector(3, 3, 3, padding_mode="zeros"), 1.0099),
        (ScaledReflector(3, 3, 3, quasi_residual=True), 1.0099),
        (PlainResidual(lip.BROConv2d(3, 3, 3)), 1.99),
        (nn.BatchNorm2d(3), 1e2),
    ):
        layer = away_from_initialisation(faulty).eval()
        if isinstance(layer, nn.BatchNorm2d):  # in place of centering: it divides by small deviations
            layer.running_var.fill_(1e-6)
        assert fastlip.audit(layer, SHAPE).bound >= least, layer
