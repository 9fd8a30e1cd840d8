"""Layers that earlier versions pickled whole, with the attributes that those had, load as layers of today."""

import io

import pytest
import torch
from layer_catalog import every_layer, perturb

from fastlip import nn as lip
from fastlip.kernels.common.geometry import ConvGeometry
from fastlip.nn._warm import WarmStart
from fastlip.nn.base import LipschitzLayer

LAYERS = every_layer()
CONSTRAINED = [name for name in LAYERS if isinstance(LAYERS[name][0](), LipschitzLayer)]
# Today's names of the attributes that earlier versions pickled without the underscore.
RENAMED = ("_application", "_supplied", "_exponential", "_training_sigma", "_quasi_residual", "_width")
# Attributes that the first versions did not have, where an option is off.
ADDED = {"parametrization": "unconstrained", "quasi_residual": 0.0}
DERIVED = ("axes", "halo", "numbers", "taps")


def earlier_state(layer, first):
    """The state that an earlier version would have pickled; ``first``: one that lacked some options."""
    state = {name.removeprefix("_") if name in RENAMED else name: value for name, value in vars(layer).items()}
    if first:
        state = {name: value for name, value in state.items() if name not in ADDED or value != ADDED[name]}
        state = {name: value for name, value in state.items() if not isinstance(value, WarmStart)}
    return state | {"_cache": type(layer._cache)()}


def saved(layer, monkeypatch, first):
    """The layer after ``torch.save`` in an earlier version and ``torch.load`` in this one."""
    file, today = io.BytesIO(), ConvGeometry.__setstate__
    with monkeypatch.context() as patch:
        patch.setattr(LipschitzLayer, "__getstate__", lambda own: earlier_state(own, first))
        torch.save(layer, file)
    file.seek(0)

    def without_derived(geometry, state):
        today(geometry, {name: value for name, value in state.items() if name not in DERIVED})

    with monkeypatch.context() as patch:
        if first:
            patch.setattr(ConvGeometry, "__setstate__", without_derived)
        return torch.load(file, weights_only=False)


@pytest.mark.parametrize("first", [False, True], ids=["renamed", "first"])
@pytest.mark.parametrize("name", CONSTRAINED)
def test_a_layer_of_an_earlier_version_loads(name, first, monkeypatch):
    make, shape = LAYERS[name]
    layer, x = perturb(make()), torch.randn(2, *shape)
    again = saved(layer, monkeypatch, first)
    assert "application" not in vars(again)
    assert {key for key, value in vars(layer).items() if key != "_supplied"} <= set(vars(again))
    assert repr(again) == repr(layer)
    assert torch.equal(again(x), layer(x))
    with torch.no_grad():
        assert torch.equal(again.eval()(x), layer.eval()(x))
    assert again.lipschitz_bound(shape) == layer.lipschitz_bound(shape)


def test_every_earlier_name_is_tried():
    layers = lip.SOCConv2d(4, 4, 3, quasi_residual=True), lip.CPLConv2d(4, 4, 3, training_sigma="power")
    names = set(RENAMED) - {"_supplied"}  # set only where weights are shared
    assert names <= {name for layer in layers for name in vars(layer)}


def test_a_state_without_translation_would_not_run():
    layer = lip.AOLLinear(4, 4)
    bare = object.__new__(lip.AOLLinear)
    vars(bare).update(earlier_state(layer, False))
    with pytest.raises(AttributeError, match="_application"):
        bare(torch.rand(1, 4))
