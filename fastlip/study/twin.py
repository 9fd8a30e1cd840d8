"""The plain twin of a network: what it costs in robustness not to constrain the layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from fastlip.data import Data
from fastlip.models import plain_twin
from fastlip.models.literals import MethodName
from fastlip.nn.initial import centre_orthogonal_, orthogonal_, zero_
from fastlip.training.recipe import Recipe
from fastlip.training.setup import model_of

# How unconstrained networks are usually trained. The losses of 1-Lipschitz networks ask for margins in absolute
# terms, which an unconstrained network reaches by scaling its scores.
TWIN_RECIPE: Mapping[str, Any] = {
    "loss": "temperature-ce",
    "temperature": 1.0,
    "optimizer": "adam",
    "lr": 1e-3,
    "lipschitz": 1.0,
}


# A method whose network has the usual structure: its layers are convolutions, the head too.
TWIN_METHOD: MethodName = "aol"


def network_of(recipe: Recipe, data: Data, twin: bool = False) -> nn.Module:
    """The recipe's network, or its plain twin."""
    model = model_of(recipe, data)
    return _plain_twin(model) if twin else model


def _plain_twin(model: nn.Module) -> nn.Module:
    """A copy of the model with ``torch.nn`` convolutions and dense layers, whose Lipschitz constant is not limited.

    All else is the same, MaxMin too. Kernels start as orthogonal matrices at the centre tap (Xiao et al., *Dynamical
    Isometry and a Mean Field Theory of CNNs*, ICML 2018): with torch's own initial values so deep a network without
    normalisation does not learn. In training its CRA is reported as 0, because it is built for no bound; the
    certificate after training is that of its audited constant.
    """
    twin = plain_twin(model)
    for layer in twin.modules():
        if isinstance(layer, nn.Conv2d):
            centre_orthogonal_(layer.weight, layer.groups)
            zero_(layer.bias)
        elif isinstance(layer, nn.Linear):
            orthogonal_(layer.weight)
            zero_(layer.bias)
    return twin
