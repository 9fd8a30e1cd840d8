"""The networks that are timed next to each other: one model with its layers in every form."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, get_args

import torch
from torch import Tensor, nn

from fastlip.benchmarking import peers, whole_step
from fastlip.benchmarking.literals import PlainForm
from fastlip.fusing import fuse, unfuse
from fastlip.kernels.common.literals import Pairing
from fastlip.kernels.maxmin.cases import by_extrema
from fastlip.models.registry import REGISTRY
from fastlip.nn.activations import MaxMin
from fastlip.optim import retract_

# The network of plain convolutions in every form.
PLAIN: tuple[str, ...] = ("plain", *get_args(PlainForm))
# Multiple of each parameter's standard deviation: away from initialisations where iterations end early.
_NOISE = 0.3
_CONVOLUTIONS = tuple(method.convolution for method in REGISTRY.values())
_DENSE_LAYERS = tuple(method.linear for method in REGISTRY.values() if method.linear is not None)


def network_of(name: str, method: str, model: nn.Module) -> nn.Module:
    """A copy of the method's model in the form of this contestant, or of ``"plain"``."""
    if name in PLAIN:
        return _in_format(name, plain(model))
    if name in peers.PEERS:
        return _replaced(
            model,
            lambda layer: peers.convolution(name, method, *_arguments(layer), padding="same", groups=layer.groups),
            lambda inputs, outputs: peers.dense(name, inputs, outputs),
        ).to(next(model.parameters()).device)
    network = copy.deepcopy(model)
    if name == "fused" or name in whole_step.PROGRAMS:
        return fuse(network)
    network = _in_format(name, unfuse(network))
    if name == "compiled":
        network.compile()
    return network


def is_channels_last(name: str) -> bool:
    """Whether this contestant takes images and weights in channels-last format."""
    return name.endswith("channels-last")


def _in_format(name: str, network: nn.Module) -> nn.Module:
    if is_channels_last(name):
        network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return network


def plain(model: nn.Module) -> nn.Module:
    """A copy of the model with torch's layers in place of fastlip's: see :func:`fastlip.benchmarking.run`."""
    return _replaced(model, _plain_convolution, nn.Linear, MaximumMinimum)


def _replaced(
    model: nn.Module,
    convolution: Callable[[Any], nn.Module],
    dense: Callable[[int, int], nn.Module],
    sorting: Callable[..., nn.Module] = MaxMin,
) -> nn.Module:
    model = unfuse(copy.deepcopy(model))
    for module in list(model.modules()):
        for name, layer in module.named_children():
            if isinstance(layer, _CONVOLUTIONS):
                setattr(module, name, convolution(layer))
            elif isinstance(layer, _DENSE_LAYERS):
                setattr(module, name, dense(*_features(layer)))
            elif isinstance(layer, MaxMin):
                setattr(module, name, sorting(layer.pairing))
    return model


class MaximumMinimum(nn.Module):
    """MaxMin by ``torch.maximum`` and ``torch.minimum``, which keep both inputs for the backward pass."""

    def __init__(self, pairing: Pairing):
        super().__init__()
        self.pairing = pairing

    def forward(self, x: Tensor) -> Tensor:
        """The pairs of x, sorted in descending order."""
        return by_extrema(x, self.pairing)


@torch.no_grad()
def perturb(model: nn.Module, scale: float = 1.0) -> nn.Module:
    """Adds noise to the weights in place, as iterations may end early at an initialisation, and scales them.

    Orthogonal matrices of ``parametrization="manifold"`` are made orthogonal again.
    """
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter += _NOISE * parameter.std() * torch.randn_like(parameter)
            parameter *= scale
    retract_(model)
    return model


def _plain_convolution(layer: Any) -> nn.Conv2d:
    height, width = layer.kernel_size
    convolution = nn.Conv2d(*_arguments(layer), padding=(height // 2, width // 2), groups=layer.groups)
    return convolution.to(next(layer.parameters()).device)


def _arguments(layer: Any) -> tuple[Any, ...]:
    return layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride


def _features(layer: Any) -> tuple[int, int]:
    return layer.in_features, layer.out_features
