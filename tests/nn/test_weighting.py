"""Weights of the inputs as a layer: formula, shapes, refusals, copies and state; the norm is tested elsewhere."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import fx, nn

import fastlip
from fastlip import nn as lip


def test_it_is_its_formula():
    x = torch.randn(5, 3)
    weights, center = torch.tensor([0.5, 2.0, 8.0]), torch.tensor([1.0, -3.0, 0.0])
    assert torch.equal(lip.InputWeights(weights)(x), weights * x)
    assert torch.equal(lip.InputWeights(weights, center)(x), weights * (x - center))
    assert torch.equal(lip.InputWeights(4)(x), 4 * x)
    assert torch.equal(lip.InputWeights(4, center)(x), 4 * (x - center))
    images = torch.randn(2, 3, 4, 5)
    layer = lip.InputWeights(weights[:, None, None], 0.5)
    assert torch.equal(layer(images), weights[:, None, None] * (images - 0.5))
    assert torch.equal(layer(images[0]), layer(images)[0])
    assert torch.equal(lip.InputWeights(weights)(x[0]), weights * x[0])


@pytest.mark.parametrize(
    "weights",
    [[1, 2, 3], (1.0, 2.0, 3.0), np.array([1.0, 2.0, 3.0]), torch.tensor([1, 2, 3]), torch.arange(1.0, 4.0)],
)
def test_weights_of_any_kind_become_a_copy_in_the_default_dtype(weights):
    layer = lip.InputWeights(weights)
    assert layer.weights.dtype == torch.float32
    assert torch.equal(layer.weights, torch.arange(1.0, 4.0))
    if isinstance(weights, torch.Tensor):
        weights.fill_(7)
        assert torch.equal(layer.weights, torch.arange(1.0, 4.0))
    assert lip.InputWeights(weights, dtype=torch.float64).weights.dtype == torch.float64


def test_float64_weights_act_on_float32_inputs_without_a_rounding_of_their_own():
    weights = torch.tensor([1.0 + 2.0**-30], dtype=torch.float64)
    layer = lip.InputWeights(weights, dtype=torch.float64)
    x = torch.tensor([[1.0 + 2.0**-23]])
    y = layer(x)
    assert y.dtype == torch.float32
    assert torch.equal(y, (x.double() * weights).float())
    assert layer(x.double()).dtype == torch.float64
    assert lip.InputWeights(5.0)(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "weights: got 0, expected positive finite numbers"),
        ([1.0, -2.0], "weights: got -2"),
        ([1.0, math.nan], "weights: got nan"),
        ([math.inf, 1.0], "weights: got inf"),
        ([1.0, 1e-50], "weights: got 0, .* at least 1.18e-38"),
        ([1.0, 1e-40], r"weights: got 9\.99\d*e-41"),
        (1e300, "weights: got inf"),
        ([], "weights: got none"),
        (nn.Parameter(torch.ones(2)), "weights: they require a gradient, expected fixed numbers"),
    ],
)
def test_weights_that_are_refused(value, text):
    with pytest.raises(ValueError, match=text):
        lip.InputWeights(value)


@pytest.mark.parametrize("value", ["5", None, True, [True, False], 1j, [[1.0], [1.0, 2.0]], {"age": 1.0}])
def test_weights_and_centers_that_are_no_numbers_are_refused(value):
    with pytest.raises(TypeError, match="weights: got"):
        lip.InputWeights(value)
    if value is not None:
        with pytest.raises(TypeError, match="center: got"):
            lip.InputWeights(1.0, value)


def test_centers_that_are_refused():
    for value in (math.nan, [0.0, math.inf], 1e300):
        with pytest.raises(ValueError, match="center: it contains NaN or Inf"):
            lip.InputWeights(1.0, value)


@pytest.mark.parametrize(
    ("weights", "shape"),
    [
        ((3,), (5, 4)),  # another number of features
        ((3,), (5, 3, 8, 8)),  # channels without (c, 1, 1)
        ((3,), (5, 3, 8, 3)),  # they would have been columns
        ((5, 3), (5, 3)[1:]),
        ((7, 3), (5, 3)),  # one row for each sample
        ((3, 1, 1), (5, 4, 8, 8)),
        ((3, 1, 1), (5, 3)),
        ((3, 8, 8), (5, 3, 8, 9)),
    ],
)
def test_inputs_that_the_weights_do_not_fit_are_refused(weights, shape):
    for layer in (lip.InputWeights(torch.ones(weights)), lip.InputWeights(1.0, torch.zeros(weights))):
        with pytest.raises(ValueError, match=r"x: got shape .*, expected samples that the"):
            layer(torch.zeros(shape))


def test_one_row_of_weights_for_each_sample_is_no_norm():
    """The forward cannot tell (5, 3) from one sample; the audit can."""
    model = nn.Sequential(lip.InputWeights(torch.ones(2, 3)), lip.CayleyLinear(3, 3))
    with pytest.raises(ValueError, match=r"InputWeights: weights of shape \(2, 3\), expected one side for each dim"):
        fastlip.audit(model, (3,))


def test_weights_are_fixed_and_in_the_state_dict():
    layer = lip.InputWeights([1.0, 2.0], center=[3.0, 4.0])
    assert list(layer.parameters()) == []
    assert sorted(layer.state_dict()) == ["center", "weights"]
    assert sorted(lip.InputWeights(1.0).state_dict()) == ["weights"]
    other = lip.InputWeights([5.0, 6.0], center=0.0 * torch.ones(2))
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.weights, layer.weights)
    assert torch.equal(other.center, layer.center)
    with pytest.raises(RuntimeError, match="size mismatch for weights"):
        lip.InputWeights([1.0, 2.0, 3.0], center=[3.0, 4.0, 0.0]).load_state_dict(layer.state_dict())
    x = torch.randn(4, 2)
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))
    assert "(2,), from 1 to 2, centred" in repr(layer)
    assert "from" not in repr(layer.to("meta"))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda layer: layer.weights.zero_(),
        lambda layer: layer.weights.neg_(),
        lambda layer: layer.weights.fill_(1e-45),
        lambda layer: layer.weights.requires_grad_(),
        lambda layer: setattr(layer, "weights", nn.Parameter(torch.ones(2))),
        lambda layer: layer.load_state_dict({"weights": torch.tensor([1.0, 0.0])}),
    ],
)
def test_weights_that_were_spoilt_later_are_refused_where_they_count(spoil):
    model = nn.Sequential(lip.InputWeights([1.0, 2.0]), lip.CayleyLinear(2, 2)).eval()
    spoil(model[0])
    batch = torch.ones(1, 2), torch.zeros(1, dtype=torch.long)
    calls = {
        "audit": lambda: fastlip.audit(model, (2,)),
        "audit in L2": lambda: fastlip.audit(model, (2,), norm="l2"),
        "certify": lambda: fastlip.certify(model, [batch]),
        "attack": lambda: fastlip.attack(model, [batch], bounds=None),
    }
    for call in calls.values():
        with pytest.raises(ValueError, match=r"weights: (got|they require)"):
            call()


def test_derivatives_traces_and_compiled_programs():
    layer = lip.InputWeights([0.5, 2.0, 3.0], center=1.0).double()
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,))
    assert torch.autograd.gradgradcheck(layer, (x,))
    rows = torch.func.vmap(layer)(x)
    assert torch.equal(rows, layer(x))
    assert torch.equal(torch.func.jacrev(layer)(x[0]), layer.weights.diag())
    model = nn.Sequential(layer, lip.CayleyLinear(3, 3).double()).eval()
    traced = fx.symbolic_trace(model)
    assert [node.target for node in traced.graph.nodes if node.op == "call_module"] == ["0", "1"]
    torch.testing.assert_close(traced(x), model(x))
    for dynamic in (None, True):
        compiled = torch.compile(model, backend="eager", fullgraph=True, dynamic=dynamic)
        torch.testing.assert_close(compiled(x), model(x))
    assert layer.to("meta")(x.to("meta")).shape == x.shape
