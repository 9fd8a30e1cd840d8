"""Runs the parts of a model: wrappers are removed, failures name the layer, and samples are made."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastlip.inspection.evaluation import compiled_from
from fastlip.nn.chain import Chain

_SEQUENCES = (nn.Sequential.forward, Chain.forward)


def unwrap(module: nn.Module) -> nn.Module | None:
    """The module inside a wrapper that computes the same, compiled or for data parallelism; None without one."""
    if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return module.module
    return compiled_from(module)


def innermost(model: nn.Module) -> nn.Module:
    """The model inside all wrappers that compute the same."""
    while (inner := unwrap(model)) is not None:
        model = inner
    return model


def is_sequence(module: nn.Module) -> bool:
    """Whether the module applies its children one after the other, and does nothing else."""
    kind = type(module)
    if not issubclass(kind, nn.Sequential) or kind.__iter__ is not nn.Sequential.__iter__:
        return False
    return kind.forward in _SEQUENCES


def run(name: str, module: nn.Module, x: Tensor, in_place: bool = False) -> Any:
    """The module's output for x, which stays as it is unless ``in_place``; ValueError names the module that fails."""
    try:
        return module(x if in_place else x.clone())
    except RuntimeError as error:
        raise failure(name, module, x, error) from error


def failure(name: str, module: nn.Module, x: Tensor, error: RuntimeError) -> ValueError:
    """The error that names the module which failed on x."""
    kind, shape = type(module).__name__, tuple(x.shape[1:])
    reason = str(error).strip().split("\n", 1)[0]
    return ValueError(f"layer {name!r} ({kind}): it fails on {len(x)} samples of {shape}: {reason}")


def batch_like(model: nn.Module, n: int, shape: tuple[int, ...]) -> Tensor:
    """n different samples where the model is, normally distributed, the same in every call."""
    x = torch.randn((n, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for parameter in model.parameters():
        if parameter.is_floating_point():
            return x.to(parameter.device, parameter.dtype)
    return x.to(torch.get_default_dtype())
