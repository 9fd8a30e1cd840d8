"""Whole training steps of the package's networks and layers, on whatever device tensors are made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import fastlip
from fastlip import nn as lip

METHODS = ("aol", "cayley", "aoc", "sll", "cpl", "lot", "bcop", "soc")
OFFSET, TEMPERATURE = 0.5, 0.25

# The convolutions of the methods, (channels, channels, 3).
CONVOLUTIONS: dict[str, tuple[Callable[..., nn.Module], dict[str, Any]]] = {
    "AOLConv2d": (lip.AOLConv2d, {}),
    "CayleyConv2d": (lip.CayleyConv2d, {}),
    "AOCConv2d": (lip.AOCConv2d, {}),
    "SLLConv2d": (lip.SLLConv2d, {}),
    "CPLConv2d": (lip.CPLConv2d, {"training_sigma": "power"}),
    "LOTConv2d": (lip.LOTConv2d, {}),
    "BCOPConv2d": (lip.BCOPConv2d, {}),
    "SOCConv2d": (lip.SOCConv2d, {}),
}
LINEARS = ("AOLLinear", "SLLLinear", "CPLLinear", "CayleyLinear", "LOTLinear", "BjorckLinear", "SOCLinear")


def network(method: str, size: str | None = "S", **options: Any) -> nn.Module:
    """A method's ConvNet in training mode, fused."""
    if method == "cpl":
        options["training_sigma"] = "power"
    return fastlip.fuse(fastlip.models.lip_conv_net(method, size or "XS", **options)).train()


def batch(count: int, side: int) -> tuple[Tensor, Tensor]:
    return torch.randn(count, 3, side, side), torch.zeros(count, dtype=torch.long)


def training_step(model: nn.Module, x: Tensor, y: Tensor, optimizer: Any = torch.optim.SGD) -> Callable[[], Tensor]:
    """A step: gradients cleared, forward, loss, backward, update."""
    criterion = fastlip.losses.OffsetCrossEntropy(offset=OFFSET, temperature=TEMPERATURE)
    options = {"momentum": 0.9} if optimizer is torch.optim.SGD else {}
    updates = optimizer(model.parameters(), lr=0.01, foreach=True, **options)

    def step() -> Tensor:
        updates.zero_grad(set_to_none=True)
        loss = criterion(model(x), y)
        loss.backward()
        updates.step()
        return loss

    return step


def layer_step(layer: nn.Module, x: Tensor) -> Callable[[], Any]:
    """Forward and backward of one layer, with the gradient of its input."""
    x.requires_grad_()

    def step() -> Any:
        y = layer(x)
        return torch.autograd.grad(y, [x, *layer.parameters()], torch.empty_like(y), allow_unused=True)

    return step
