"""The networks that are timed beside each other: one model's layers in every form."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastlip.benchmarking import peers, whole_step
from fastlip.fusing import fuse, unfuse
from fastlip.kernels.maxmin.cases import by_extrema
from fastlip.nn._conv import LipschitzConv2d
from fastlip.nn.activations import MaxMin
from fastlip.nn.base import LipschitzLinear

_NOISE = 0.3  # of each parameter's standard deviation: away from initialisations where iterations end early


def network_of(name: str, method: str, model: nn.Module) -> nn.Module:
    """A copy of the method's model for this contestant, or for ``"plain"``."""
    if name == "plain":
        return plain(model)
    if name in peers.PEERS:
        return _replaced(
            model,
            lambda layer: peers.convolution(name, method, *_arguments(layer), padding="same", groups=layer.groups),
            lambda inputs, outputs: peers.dense(name, inputs, outputs),
        ).to(next(model.parameters()).device)
    network = copy.deepcopy(model)
    if name == "fused" or name in whole_step.PROGRAMS:
        return fuse(network)
    network = unfuse(network)
    if name == "channels-last":
        network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    if name == "compiled":
        network.compile()
    return network


def plain(model: nn.Module) -> nn.Module:
    """A copy of the model with ordinary layers in place of fastlip's: see :func:`fastlip.benchmarking.run`."""
    return _replaced(model, _plain_convolution, nn.Linear, MaximumMinimum)


def _replaced(
    model: nn.Module,
    convolution: Callable[[LipschitzConv2d], nn.Module],
    dense: Callable[[int, int], nn.Module],
    sorting: Callable[..., nn.Module] = MaxMin,
) -> nn.Module:
    model = unfuse(copy.deepcopy(model))
    for module in list(model.modules()):
        for name, layer in module.named_children():
            if isinstance(layer, LipschitzConv2d):
                setattr(module, name, convolution(layer))
            elif isinstance(layer, LipschitzLinear):
                setattr(module, name, dense(layer.in_features, layer.out_features))
            elif isinstance(layer, MaxMin):
                setattr(module, name, sorting(layer.pairing))
    return model


class MaximumMinimum(nn.Module):
    """MaxMin by ``torch.maximum`` and ``torch.minimum``, which keep both inputs for the backward."""

    def __init__(self, pairing: str):
        super().__init__()
        self.pairing = pairing

    def forward(self, x: Tensor) -> Tensor:
        """The pairs of x, sorted in descending order."""
        return by_extrema(x, self.pairing)


@torch.no_grad()
def perturb(model: nn.Module, scale: float = 1.0) -> nn.Module:
    """Moves the weights, in place, away from an initialisation where iterations would end early, and scales them."""
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter += _NOISE * parameter.std() * torch.randn_like(parameter)
            parameter *= scale
    return model


def _plain_convolution(layer: LipschitzConv2d) -> nn.Conv2d:
    height, width = layer.kernel_size
    convolution = nn.Conv2d(*_arguments(layer), padding=(height // 2, width // 2), groups=layer.groups)
    return convolution.to(next(layer.parameters()).device)


def _arguments(layer: LipschitzConv2d) -> tuple[Any, ...]:
    return layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride
