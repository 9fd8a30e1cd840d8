"""Options set on a finished layer: it is then as if constructed so, or it refuses and stays as it was."""

import inspect
import math

import pytest
import torch
from layer_catalog import KERNELS, perturb

from fastlip import nn as lip
from fastlip.nn.base import LipschitzLayer

# Beside the sizes that each layer is made of; a new option needs an entry.
ANOTHER = {
    "activation": "tanh",
    "backend": "reference",
    "dilation": 2,
    "epsilon": 0.5,
    "eval_terms": 12,
    "exponential": "spectral",
    "groups": 2,
    "inner_channels": 2,
    "inner_features": 2,
    "kernel_size": 5,
    "max_norm": 0.2,
    "output_padding": (1, 0),
    "padding": 1,
    "parametrization": "manifold",
    "recompute": True,
    "ridge": 1e-4,
    "steps": 10,
    "stride": 2,
    "terms": 5,
    "training_sigma": "power",
}
# What changes kernels or memory, and results by rounding at most.
SILENT = ("backend", "recompute")
LAYERS = [c for name in lip.__all__ if inspect.isclass(c := getattr(lip, name)) and issubclass(c, LipschitzLayer)]
NOT_ATTRIBUTES = ("self", "application", "args", "kwargs", "bias", "device", "dtype")


def arguments_of(cls):
    """The names of every argument of the constructor, through its bases."""
    signatures = [inspect.signature(base.__init__) for base in cls.__mro__ if issubclass(base, LipschitzLayer)]
    names = {name for signature in signatures for name in signature.parameters}
    return sorted(names.difference(NOT_ATTRIBUTES))


def make(cls, **options):
    """A layer of four channels or features in float64, and an input."""
    dense = "in_features" in arguments_of(cls)
    sizes = ("in_features", "out_features") if dense else ("in_channels", "out_channels")
    sizes = dict.fromkeys(sizes, 4) | ({} if dense else {"kernel_size": 3})
    layer = cls(**{**sizes, **options}, dtype=torch.float64)
    shape = (4,) if dense else (4, 6, 5, 3)[: 1 + cls._axes]
    return layer, torch.randn(3, *shape, dtype=torch.float64)


def kept(layer, x):
    """The output in evaluation, where weights are kept."""
    layer.eval()
    with torch.no_grad():
        return layer(x)


def results(layer, x):
    """Output and gradients in training, output and bound in evaluation."""
    y = layer.train()(x)
    gradients = torch.autograd.grad(y.square().sum(), list(layer.parameters()))
    output, bound = kept(layer, x), layer.lipschitz_bound(tuple(x.shape[1:]))
    return [y.detach(), *gradients, output, torch.tensor(bound)]


def same(ones, others):
    return all(map(torch.equal, ones, others))


def another(option, present):
    if option == "padding_mode":
        return {"zeros": "circular", "circular": "zeros"}[present]
    return ANOTHER[option] if option in ANOTHER else present + 4


def cases():
    """Every option of every layer; those of residual layers also with the kernels, which take one group."""
    for cls in LAYERS:
        for name in arguments_of(cls):
            yield pytest.param(cls, {}, name, id=f"{cls.__name__}-{name}")
            if cls in (lip.SLLConv2d, lip.CPLConv2d) and name not in ("backend", "groups"):
                yield from (pytest.param(cls, by, name, id=f"{cls.__name__}-native-{name}") for by in KERNELS)


@pytest.mark.parametrize(("cls", "options", "option"), list(cases()))
def test_an_option_set_later_is_one_of_the_constructor_or_refused(cls, options, option):
    layer, x = make(cls, **options)
    perturb(layer)
    present = getattr(layer, option)
    value = another(option, present)
    if option in cls._fixed:
        before = kept(layer, x)
        with pytest.raises(ValueError, match=rf"^{option}=.*{cls.__name__} reads {option} at construction"):
            setattr(layer, option, value)
        setattr(layer, option, present)
        assert torch.equal(kept(layer, x), before)
        return
    before = results(layer, x)
    setattr(layer, option, value)
    after = results(layer, x)
    other, _ = make(cls, **{**options, option: value})
    other.load_state_dict(layer.state_dict())
    assert same(after, results(other, x))
    assert option in SILENT or not same(after, before)
    setattr(layer, option, present)
    assert same(results(layer, x), before)


def test_a_layer_shows_little_that_torch_does_not():
    shown = {name for name in dir(lip.AOLConv2d(4, 4, 3)) if not name.startswith("_")}
    assert len(shown - set(dir(torch.nn.Conv2d(4, 4, 3)))) <= 8


REFUSED = [
    ("backend", "gpu", ValueError),
    ("epsilon", -1.0, ValueError),
    ("epsilon", math.nan, ValueError),
    ("epsilon", "1", TypeError),
    ("eval_terms", 17, ValueError),
    ("eval_terms", 4.0, TypeError),
    ("max_norm", -1.0, ValueError),
    ("max_norm", 0, ValueError),
    ("max_norm", math.inf, ValueError),
    ("max_norm", "2", TypeError),
    ("terms", 0, ValueError),
    ("terms", None, TypeError),
]


@pytest.mark.parametrize(
    ("cls", "option", "value", "error"),
    [
        pytest.param(cls, *refused, id=f"{cls.__name__}-{refused[0]}={refused[1]}")
        for cls in LAYERS
        for refused in REFUSED
        if refused[0] in arguments_of(cls)
    ],
)
def test_a_bad_value_is_refused_at_construction_and_later(cls, option, value, error):
    with pytest.raises(error, match=f"^{option}="):
        make(cls, **{option: value})
    layer, x = make(cls)
    before = kept(layer, x)
    with pytest.raises(error, match=f"^{option}="):
        setattr(layer, option, value)
    assert torch.equal(kept(layer, x), before)


def test_the_largest_norm_may_be_raised_later():
    layer, x = make(lip.SOCConv2d, terms=5, max_norm=0.5)
    with torch.no_grad():
        layer.raw_weight.normal_(std=10)
    results(layer, x)
    layer.max_norm = 4.0
    assert layer.lipschitz_bound((4, 6, 5)) <= 1 + 1e-12
    with torch.no_grad():
        impulses = torch.eye(120, dtype=torch.float64).view(120, 4, 6, 5)
        columns = (layer(impulses) - layer(torch.zeros_like(impulses))).flatten(1)
    assert torch.linalg.matrix_norm(columns, 2) <= 1 + 1e-12


def test_a_compiled_layer_sees_its_options():
    layer, x = make(lip.SOCConv2d)
    perturb(layer)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    for options in ({}, {"max_norm": 0.2}, {"max_norm": 0.3, "terms": 6}):
        for name, value in options.items():
            setattr(layer, name, value)
        torch.testing.assert_close(compiled(x), layer(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("cls", "options", "option", "value"),
    [
        (lip.MaxMin, {}, "pairing", "halves"),
        (lip.MaxMin, {}, "dim", -1),
        (lip.MaxMin, {}, "backend", "reference"),
        (lip.GroupSort, {}, "group_size", 4),
        (lip.GroupSort, {}, "group_size", None),
        (lip.GroupSort, {}, "dim", 2),
        (lip.HouseHolder, {"channels": 4}, "pairing", "halves"),
        (lip.PixelUnshuffle, {}, "downscale_factor", 3),
        (lip.FirstChannels, {"channels": 3}, "channels", 2),
        (lip.ZeroChannelPad, {"channels": 5}, "channels", 6),
        (lip.ScaledAvgPool2d, {"kernel_size": 2}, "kernel_size", (3, 1)),
        (lip.L2NormPool2d, {"kernel_size": 2}, "kernel_size", (3, 1)),
    ],
)
def test_layers_without_weights_see_their_options(cls, options, option, value):
    module, x = cls(**options), torch.randn(2, 4, 6, 6)
    module.eval()(x)
    setattr(module, option, value)
    assert torch.equal(module(x), cls(**{**options, option: value})(x))


@pytest.mark.parametrize("layer", [lip.MaxMin(), lip.HouseHolder(4)], ids=["MaxMin", "HouseHolder"])
def test_an_unknown_pairing_set_later_is_refused(layer):
    layer.pairing = "neighbours"
    with pytest.raises(ValueError, match="pairing='neighbours'"):
        layer(torch.randn(2, 4, 3, 3))
