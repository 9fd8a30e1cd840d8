"""What the audit refuses: values that are not finite, mixed samples, functions without a bound, wrong shapes."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastlip
from fastlip import nn as lip


def bound_of(module, input_shape):
    return fastlip.audit(module.eval(), input_shape).bound


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_not_finite_name_the_layer(value):
    model = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 2)))
    model[1][0].weight.data[0, 1] = value
    with pytest.raises(ValueError, match=r"layer '1\.0' \(Linear\): weight contains NaN or Inf"):
        fastlip.audit(model, (3,))


def test_modules_that_mix_samples_are_refused():
    with pytest.raises(ValueError, match=r"layer '0' \(Flatten\)"):
        fastlip.audit(nn.Sequential(nn.Flatten(0), nn.Linear(6, 2)), (3,))
    with pytest.raises(ValueError, match="BatchNorm1d"):
        fastlip.audit(nn.BatchNorm1d(3, track_running_stats=False), (3,))
    with pytest.raises(TypeError, match="model: got"):
        fastlip.audit(F.relu, (3,))


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (lip.MaxMin(dim=0), (4,)),
        (lip.MaxMin("halves", dim=-2), (4,)),
        (lip.GroupSort(dim=-4), (4, 3, 3)),
        (lip.HouseHolder(2, dim=0), (4,)),
        (lip.PartialAbs(2, dim=0), (4,)),
        (nn.Softmax(dim=0), (4,)),
        (nn.Softmax(), (4, 3)),
    ],
)
@pytest.mark.filterwarnings("ignore:Implicit dimension choice")
def test_a_dimension_of_samples_is_refused(module, shape):
    """Sorting along it keeps a batch's shape and norm, but lets each sample change the others' outputs."""
    with pytest.raises(ValueError, match=f"{type(module).__name__} with dim=.* mixes samples"):
        fastlip.audit(nn.Sequential(nn.Identity(), module), shape)


@pytest.mark.parametrize(
    ("module", "text"),
    [
        (nn.CELU(-0.5), "CELU with alpha=-0.5 has no bound"),
        (nn.Softplus(threshold=-5.0), "Softplus with threshold=-5.0 jumps"),
        (nn.LayerNorm(4, eps=0.0), "LayerNorm with eps=0.0 has no bound"),
        (nn.GroupNorm(2, 4, eps=0.0), "GroupNorm with eps=0.0 has no bound"),
    ],
)
def test_functions_without_a_bound_are_refused(module, text):
    x = torch.linspace(-9, 9, 40001, dtype=torch.float64).view(-1, 1).repeat(1, 4)
    x[:, ::2] *= 1 + 1e-9  # what eps = 0 would enlarge without limit
    y = module.double()(x)
    steepest = (y.diff(dim=0).norm(dim=1) / x.diff(dim=0).norm(dim=1)).nan_to_num().max()
    assert steepest > 50
    with pytest.raises(ValueError, match=text):
        fastlip.audit(module, (4,))


@pytest.mark.parametrize(
    ("shape", "error"),
    [(4, TypeError), ((4.0,), TypeError), (("4",), TypeError), ((-4,), ValueError), ((4, 0), ValueError)],
)
def test_a_wrong_input_shape_is_named(shape, error):
    with pytest.raises(error, match="input_shape="):
        fastlip.audit(nn.Linear(4, 4), shape)


def test_compiled_and_wrapped_models_are_unwrapped():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    assert fastlip.audit(torch.compile(model, backend="eager"), (3,)) == fastlip.audit(model, (3,))
    assert fastlip.audit(nn.DataParallel(model), (3,)) == fastlip.audit(model, (3,))
