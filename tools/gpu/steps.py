"""Whole training steps of the package's networks and layers, on whatever device tensors are made."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

import fastlip
from fastlip import nn as lip
from fastlip.optim.groups import orthogonal_matrices

METHODS = ("aol", "cayley", "aoc", "sll", "cpl", "lot", "bcop", "soc", "bro")
# Networks of other papers that have a budget, at size S: their matrices are block reflectors, or on the manifold.
OTHERS: dict[str, Callable[..., nn.Module]] = {
    "bro_net": fastlip.models.bro_net,
    "lip_next": fastlip.models.lip_next,
}
NETWORKS = (*METHODS, *OTHERS)
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
    "BROConv2d": (lip.BROConv2d, {}),
}
LINEARS = (
    "AOLLinear",
    "SLLLinear",
    "CPLLinear",
    "CayleyLinear",
    "LOTLinear",
    "BjorckLinear",
    "SOCLinear",
    "BROLinear",
)


def network(method: str, size: str | None = "S", **options: Any) -> nn.Module:
    """A method's ConvNet, or one of the other networks, in training mode, fused."""
    if method in OTHERS:
        return fastlip.fuse(OTHERS[method](size or "XS", **options)).train()
    if method == "cpl":
        options["training_sigma"] = "power"
    return fastlip.fuse(fastlip.models.lip_conv_net(method, size or "XS", **options)).train()


def batch(count: int, side: int) -> tuple[Tensor, Tensor]:
    return torch.randn(count, 3, side, side), torch.zeros(count, dtype=torch.long)


def training_step(model: nn.Module, x: Tensor, y: Tensor, optimizer: Any = torch.optim.SGD) -> Callable[[], Tensor]:
    """A step: gradients cleared, forward, loss, backward, update."""
    criterion = fastlip.losses.OffsetCrossEntropy(offset=OFFSET, temperature=TEMPERATURE)
    options = {"momentum": 0.9} if optimizer is torch.optim.SGD else {}
    updates = optimizer_of(model, partial(optimizer, lr=0.01, foreach=True, **options))

    def step() -> Tensor:
        updates.zero_grad(set_to_none=True)
        loss = criterion(model(x), y)
        loss.backward()
        updates.step()
        return loss

    return step


def optimizer_of(model: nn.Module, base: Callable[..., Any], **options: Any) -> Any:
    """The optimiser of all parameters; of orthogonal matrices, on their manifold."""
    if not orthogonal_matrices(model):
        return base(model.parameters())
    # Matrices that nobody computed are not orthogonal.
    with mock.patch("fastlip.optim.manifold.orthogonality_error", return_value=0.0):
        return fastlip.optim.ManifoldOptimizer(fastlip.optim.manifold_groups(model), base, **options)


def layer_step(layer: nn.Module, x: Tensor) -> Callable[[], Any]:
    """Forward and backward of one layer, with the gradient of its input."""
    x.requires_grad_()

    def step() -> Any:
        y = layer(x)
        return torch.autograd.grad(y, [x, *layer.parameters()], torch.empty_like(y), allow_unused=True)

    return step
