"""Audit, certificate and export find the rule of a layer by its class or its application, and each of them once."""

import sys
from pathlib import Path

import pytest
import torch
from layer_catalog import layers, name_of
from torch import nn

import fastlip
from fastlip import nn as lip
from fastlip.certification.bounds import layers as bounds_of
from fastlip.certification.rounding import rules as roundings_of
from fastlip.exporting.rules import rule_of as export_rule_of
from fastlip.inspection.rules import defines_outside, nearest, written_here
from fastlip.nn.base import LipschitzLayer

ROOT = Path(fastlip.__file__).parent
OWN = "certification", "inspection"


class Applied:
    """An application that no table knows."""


class Method(LipschitzLayer):
    """A layer of a base class that no table knows."""

    def __init__(self, application):
        super().__init__(application)
        self.raw_weight = nn.Parameter(torch.eye(3))


def rules(layer):
    return (
        bounds_of._DETAILS.rule_of(layer) is not None,
        roundings_of.rule_of(layer) is not None,
        export_rule_of(layer) is not None,
    )


@pytest.mark.parametrize("item", layers("Conv2d") + layers("Linear"), ids=name_of)
def test_every_layer_has_its_rules(item):
    kind, options = item
    assert all(rules(kind(4, 4, 3, **options) if kind.__name__.endswith("2d") else kind(4, 4, **options)))


def test_a_rule_is_found_by_the_application(monkeypatch):
    layer = Method(Applied())
    assert not any(rules(layer))
    found = nearest({Applied: "applied", nn.Linear: "linear"}, layer)
    assert found == (Applied, "applied")
    assert nearest({Applied: "applied", Method: "method"}, layer) == (Method, "method")
    monkeypatch.setitem(bounds_of._DETAILS.table, Applied, lambda module, shape: bounds_of.Details(1.0, True))
    assert bounds_of._DETAILS.rule_of(layer)(layer, (3,)).exact
    roundings_of.rule_for.cache_clear()
    monkeypatch.setitem(roundings_of._RULES.table, Applied, lambda *_: None)
    assert roundings_of.rule_of(layer) is not None
    roundings_of.rule_for.cache_clear()


def test_an_attribute_of_that_name_says_nothing_about_the_modules_of_others():
    module = nn.Identity()
    module._application = Applied()
    assert nearest({Applied: "applied"}, module) is None


class Foreign(lip.AOLConv2d):
    def forward(self, x):
        return 2 * super().forward(x)


def test_what_others_define_is_told_apart():
    names = frozenset({"forward"})
    ours, theirs = lip.AOLConv2d(2, 2, 1), Foreign(2, 2, 1)
    assert not defines_outside(ours, names)
    assert defines_outside(theirs, names)
    ours.__dict__["forward"] = None
    assert defines_outside(ours, names)
    assert written_here(theirs) is lip.AOLConv2d


def network():
    torch.manual_seed(0)
    return fastlip.models.lip_conv_net("aol", width=8, image_size=8, in_channels=1, layers_per_block=1).eval()


def own_calls(call):
    """The Python calls inside the rooms of audit and certificate."""
    count = 0

    def note(frame, event, _):
        nonlocal count
        path = Path(frame.f_code.co_filename)
        count += event == "call" and ROOT in path.parents and path.relative_to(ROOT).parts[0] in OWN

    call()
    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return count


def test_a_certificate_takes_few_calls_and_a_further_batch_fewer():
    model = network()
    batches = [(torch.rand(8, 1, 8, 8), torch.arange(8))] * 5
    once = own_calls(lambda: fastlip.certify(model, batches[:1]))
    assert once <= 600
    assert (own_calls(lambda: fastlip.certify(model, batches)) - once) / 4 <= 80


SIZES = []


class Counted(nn.Module):
    """Notes the sizes of the batches that it is called on."""

    def forward(self, x):
        SIZES.append(len(x))
        return x.relu()

    def lipschitz_bound(self, input_shape):
        return 1.0


def test_the_model_is_unfolded_once():
    SIZES.clear()
    model = nn.Sequential(nn.Flatten(), Counted(), nn.Sequential(nn.Linear(4, 3))).eval()
    fastlip.certify(model, [(torch.rand(7, 1, 2, 2), torch.zeros(7, dtype=torch.long))])
    # Unfolded, and in a larger batch; the model on one sample; and for the batch: the layers, and the model.
    assert SIZES == [2, 5, 1, 7, 7]
