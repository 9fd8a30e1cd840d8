"""Weights are never computed in TF32 by torch.func and forward-mode AD, nor are their derivatives of any order."""

from functools import partial

import pytest
import torch
from tf32_model import TF32, reset
from torch.autograd import forward_ad
from torch.func import grad, jvp, vmap

from fastlip import nn as lip
from fastlip import ops
from fastlip.kernels.common import one_step, operators
from fastlip.nn import base


@pytest.fixture(autouse=True)
def _settings_come_back():
    yield
    reset()


class _OfWeights(torch.nn.Module):
    """A smooth function of a layer's weights."""

    def __init__(self, layer, context):
        super().__init__()
        self.layer, self.context = layer, context

    def forward(self):
        weights = self.layer._effective(*self.context)
        return sum((torch.view_as_real(w) if w.is_complex() else w).sin().sum() for w in weights)


def _dual(function, values, tangents):
    with forward_ad.dual_level():
        y = function({key: forward_ad.make_dual(value, tangents[key]) for key, value in values.items()})
        return forward_ad.unpack_dual(y).tangent


def _by_autograd(function, values):
    """Gradients of a batch of parameters, by autograd outside of the transform."""
    leaves = {key: value.clone().requires_grad_() for key, value in values.items()}
    y = vmap(function)(_halves(leaves))
    return dict(zip(leaves, torch.autograd.grad(y.sum(), [*leaves.values()], materialize_grads=True), strict=True))


def _slope(function, values):
    return sum(gradient.square().sum() for gradient in grad(function)(values).values())


def _halves(values):
    return {key: torch.stack((value, value / 2)) for key, value in values.items()}


TRANSFORMED = {
    "grad": lambda f, values, tangents: grad(f)(values),
    "jvp": lambda f, values, tangents: jvp(f, (values,), (tangents,))[1],
    "jvp of grad": lambda f, values, tangents: jvp(grad(f), (values,), (tangents,))[1],
    "grad of grad": lambda f, values, tangents: grad(partial(_slope, f))(values),
    "vmap of grad": lambda f, values, tangents: vmap(grad(f))(_halves(values)),
    "grad of vmap": lambda f, values, tangents: _by_autograd(f, values),
    "forward-mode AD": _dual,
}
SOME = [f"{name}Conv2d" for name in ("AOC", "AOL", "BCOP", "BRO", "Cayley", "CPL", "LOT", "SLL", "SOC", "Sandwich")]
SOME += ["BjorckLinear", "SandwichLinear", "SOCLinear"]
IN_EVERY_RUN = ("grad", "jvp of grad", "grad of vmap")


def transformed(kind, how):
    """The derivatives of a layer's weights by a transform, as a list, and the number of factors that were rounded."""
    torch.manual_seed(0)
    options = {"training_sigma": "power"} if kind is lip.CPLConv2d else {}
    layer = kind(4, 4, **({} if "Linear" in kind.__name__ else {"kernel_size": 3}), **options)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    seen = []
    layer._supplied = lambda _, context: seen.append(context)
    layer(torch.randn((2, 4) if "Linear" in kind.__name__ else (2, 4, 4, 4)))
    layer._supplied = None
    module = _OfWeights(layer, seen[0])
    values = {key: value.detach().clone() for key, value in module.named_parameters()}
    tangents = {key: torch.randn_like(value) for key, value in values.items()}
    with TF32() as mode:
        found = TRANSFORMED[how](lambda v: torch.func.functional_call(module, v), values, tangents)
    return [*found.values()] if isinstance(found, dict) else [found], mode.rounded


@pytest.mark.parametrize(
    "how", [pytest.param(how, marks=() if how in IN_EVERY_RUN else pytest.mark.slow) for how in TRANSFORMED]
)
@pytest.mark.parametrize("name", SOME)
def test_what_transforms_differentiate_is_never_lowered(name, how):
    """torch.func and forward-mode AD multiply outside of any context of ours, where the user's settings hold."""
    kind = getattr(lip, name)
    expected, _ = transformed(kind, how)
    torch.set_float32_matmul_precision("high")
    found, rounded = transformed(kind, how)
    assert rounded == 0
    for value, wanted in zip(found, expected, strict=True):
        assert value.dtype == wanted.dtype
        assert (value - wanted).abs().max() <= 1e-3 * (wanted.abs().max() + 1e-3)


def test_without_wider_weights_they_would_be_lowered(monkeypatch):
    monkeypatch.setattr(base, "is_wide", lambda device: False)
    monkeypatch.setattr(one_step, "is_wide", lambda device: False)
    monkeypatch.setattr(operators, "is_wide", lambda device: False)
    torch.set_float32_matmul_precision("high")
    assert transformed(lip.BjorckLinear, "grad")[1] > 0


@pytest.mark.parametrize("of", ["grad", "vmap of grad"])
def test_ops_are_not_lowered_under_transforms(of):
    M = {"M": torch.randn(3, 5, 5)}
    torch.set_float32_matmul_precision("high")
    with TF32() as mode:
        TRANSFORMED[of](lambda v: ops.cayley(v["M"]).sum(), M, None)
        TRANSFORMED[of](lambda v: ops.polar(v["M"]).sum(), M, None)
    assert mode.rounded == 0
