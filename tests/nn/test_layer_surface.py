"""What a method's layers are made of, and what they show: their classes and their public attributes."""

import inspect

import pytest
import torch
from torch import nn

import fastlip
from fastlip import nn as lip
from fastlip.nn._forms import with_methods_of
from fastlip.nn.base import LipschitzLayer, effective_weight

LAYERS = {
    name: cls
    for name in lip.__all__
    if isinstance(cls := getattr(lip, name), type) and issubclass(cls, LipschitzLayer)
}
EARLIER = {
    lip.CPLConv2d: ("width", "training_sigma"),
    lip.CPLLinear: ("width",),
    lip.SLLConv1d: ("width",),
    lip.SLLLinear: ("width",),
    lip.SOCConv2d: ("width", "exponential", "gain", "quasi_residual"),
    lip.SOCConv1d: ("width", "exponential", "gain", "quasi_residual"),
}
every_layer = pytest.mark.parametrize("name", LAYERS)


def make(cls, **options):
    return cls(4, 4, **options) if cls.__name__.endswith("Linear") else cls(4, 4, 3, **options)


def twin(cls):
    """The layer of torch whose place a layer takes."""
    name = next(kind for kind in ("ConvTranspose2d", "Conv1d", "Conv2d", "Conv3d", "Linear") if kind in cls.__name__)
    return make(getattr(nn, name))


def test_every_method_is_looked_at():
    assert len(LAYERS) > 36
    assert {"AOLConv1d", "AOLConv3d", "SandwichConv2d", "SandwichLinear", "NormalizedLinear"} <= set(LAYERS)


@every_layer
def test_two_classes_deep(name):
    """The public base and the method: no layer derives from another, or from a mixture."""
    ours = [base for base in LAYERS[name].__mro__ if base.__module__.startswith("fastlip")]
    assert ours == [LAYERS[name], LipschitzLayer]


@pytest.mark.parametrize("name", [name for name in lip.__all__ if isinstance(getattr(lip, name), type)])
def test_other_modules_are_two_classes_deep_too(name):
    assert len([base for base in getattr(lip, name).__mro__ if base.__module__.startswith("fastlip")]) <= 2


# Values of options that give a layer more parameters or buffers.
MORE = {"quasi_residual": True, "training_sigma": "power", "parametrization": "manifold", "exponential": "spectral"}


def with_options():
    """(name, options): every layer as it is, and with each option that gives it more."""
    for name, cls in LAYERS.items():
        yield name, {}
        yield from ((name, {key: MORE[key]}) for key in inspect.signature(cls).parameters if key in MORE)


@pytest.mark.parametrize(("name", "options"), list(with_options()))
def test_at_most_eight_public_attributes_more_than_torch(name, options):
    layer, theirs = make(LAYERS[name], **options), set(dir(twin(LAYERS[name])))
    more = [attribute for attribute in dir(layer) if not attribute.startswith("_") and attribute not in theirs]
    assert len(more) <= 8, more
    assert {"backend", "lipschitz_bound"} <= set(more)


@every_layer
def test_earlier_names_still_work(name):
    cls = LAYERS[name]
    layer = make(cls).eval()
    hidden = ("application", "effective", "supplied", *EARLIER.get(cls, ()))
    assert not set(hidden) & set(dir(layer))
    assert all(getattr(layer, attribute) == getattr(layer, f"_{attribute}") for attribute in hidden)
    layer.supplied = supplied = lambda layer, context: None
    assert layer._supplied is supplied


def test_what_earlier_names_define_takes_effect():
    class Doubled(lip.AOLLinear):
        def effective(self, *context):
            return (2 * torch.eye(4),)

    x = torch.rand(3, 4)
    assert torch.equal(Doubled(4, 4, bias=False)(x), 2 * x)
    layer = lip.AOLLinear(4, 4, bias=False)
    layer.effective = lambda: (3 * torch.eye(4),)
    assert torch.equal(layer(x), 3 * x)
    with pytest.raises(TypeError, match="does not understand"):
        fastlip.audit(nn.Sequential(layer).eval(), (4,))


@pytest.mark.parametrize(
    ("cls", "attribute"),
    [
        (lip.SOCConv2d, "exponential"),
        (lip.SOCConv1d, "quasi_residual"),
        (lip.CPLConv3d, "training_sigma"),
        (lip.SLLConv2d, "width"),
        (lip.AOLLinear, "application"),
    ],
)
def test_fixed_arguments_are_refused_under_their_public_names(cls, attribute):
    with pytest.raises(ValueError, match=rf"^{attribute}='other': allowed is"):
        setattr(make(cls), attribute, "other")


def test_methods_that_call_super_are_not_taken_over():
    class Conv2d(LipschitzLayer):
        def extra_repr(self):
            return super().extra_repr()

    class Conv1d(LipschitzLayer):
        weight = effective_weight

    with pytest.raises(TypeError, match=r"Conv2d.extra_repr: calls super\(\)"):
        with_methods_of(Conv2d, axes=1)(Conv1d)
