"""The update of the weights in a step: optimiser, learning rates, and the limit of the gradient's norm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, NAdam, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from fastlip.optim import ManifoldOptimizer, retract_
from fastlip.optim.groups import orthogonal_matrices
from fastlip.training.extra_optimizers import schedule_free, with_lookahead
from fastlip.training.recipe import Recipe
from fastlip.training.step_fields import SCHEDULE_FREE

_ADAPTIVE: dict[str, type[Adam] | type[AdamW] | type[NAdam]] = {"adam": Adam, "adamw": AdamW, "nadam": NAdam}
# Parameters that are no weights although some have several dimensions.
_NOT_WEIGHTS = ("bias", "gamma")


def optimizer_of(recipe: Recipe, model: nn.Module) -> Optimizer:
    """The recipe's optimiser, over all parameters; of orthogonal matrices in their tangent spaces.

    Raises:
        ValueError: a schedule-free optimiser for a network with orthogonal matrices.
        MissingPackageError: the optimiser's package is not installed.
    """
    common: dict[str, Any] = {"lr": recipe.lr, "weight_decay": recipe.weight_decay}
    if recipe.optimizer in _ADAPTIVE:
        # In a CUDA graph the number of the step is on the device.
        common |= {"capturable": True} if recipe.cuda_graph else {}
        base = partial(_ADAPTIVE[recipe.optimizer], betas=(recipe.beta1, recipe.beta2), **common)
    elif recipe.optimizer == SCHEDULE_FREE:
        base = schedule_free(betas=(recipe.beta1, recipe.beta2), **common)
    else:
        # Only SGD's fused update reads a learning rate on the device, as CUDA graphs need it.
        common |= {"fused": True} if recipe.cuda_graph else {}
        base = partial(SGD, momentum=recipe.momentum, nesterov=recipe.nesterov, **common)
    matrices = orthogonal_matrices(model)
    if not matrices:
        return with_lookahead(recipe, base(_groups(recipe, model)))
    if recipe.optimizer == SCHEDULE_FREE:
        raise ValueError(
            f"optimizer={recipe.optimizer!r}: averages weights, and model={recipe.model!r} has orthogonal matrices,"
            " whose averages are not orthogonal"
        )
    on_manifold = {"params": matrices, "manifold": True, "lr": recipe.manifold_lr or recipe.lr}
    groups = [on_manifold, *_groups(recipe, model, matrices)]
    return ManifoldOptimizer(groups, base, lookahead=recipe.lookahead, lookahead_alpha=recipe.lookahead_alpha)


def _groups(recipe: Recipe, model: nn.Module, without: Sequence[Tensor] = ()) -> list[Any]:
    """All parameters but some; where only weights decay, those in a group of their own."""
    taken = {id(parameter) for parameter in without}
    named = [(name, value) for name, value in model.named_parameters() if id(value) not in taken]
    if recipe.decayed == "all":
        return [{"params": [parameter for _, parameter in named]}]
    weights: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in named:
        (weights if is_weight(name, parameter) else others).append(parameter)
    groups = [{"params": weights}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def retract(optimizer: Optimizer, average: nn.Module | None) -> None:
    """Makes the matrices on the manifold orthogonal to rounding, in the trained network and in its average.

    Args:
        optimizer: that of :func:`optimizer_of`.
        average: the network whose weights are averages; None if there is none.
    """
    if isinstance(optimizer, ManifoldOptimizer):
        optimizer.retract()
        if average is not None:
            retract_(average)


def is_weight(name: str, parameter: nn.Parameter) -> bool:
    """Whether this is a matrix or kernel, and not a bias, a scale or a factor for each row.

    Args:
        name: as ``named_parameters`` has it.
        parameter: the parameter.
    """
    return parameter.dim() > 1 and name.rpartition(".")[2] not in _NOT_WEIGHTS


def limit_gradient(recipe: Recipe, model: nn.Module) -> None:
    """Scales the gradient of all parameters down to the recipe's ``clip_norm`` if its L2 norm is larger."""
    if recipe.clip_norm:
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)


def steps_of(recipe: Recipe, steps_per_epoch: int) -> int:
    """Number of steps of the whole run, at least one."""
    return max(1, round(recipe.epochs * steps_per_epoch))


def scheduler_of(recipe: Recipe, optimizer: Optimizer, steps_per_epoch: int) -> LRScheduler:
    """The learning rate over the whole run: it rises, then falls to 0 or stays (see the recipe's ``schedule``)."""
    steps = steps_of(recipe, steps_per_epoch)
    if recipe.schedule == "triangular":
        return LambdaLR(optimizer, lambda step: triangle(step / steps))
    if recipe.schedule == "constant":
        rising = max(1, round(recipe.warmup * steps))
        return LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / rising))
    if recipe.schedule == "cosine":
        rising = round(recipe.warmup * steps)
        return LambdaLR(optimizer, lambda step: cosine(step, steps, rising))
    highest = [group["lr"] for group in optimizer.param_groups]
    return OneCycleLR(optimizer, max_lr=highest, total_steps=steps, pct_start=recipe.warmup, cycle_momentum=False)


def triangle(progress: float) -> float:
    """Factor of the highest learning rate: from 0 to 1 at 2/5 of the run, 1/20 at 4/5, 0 at its end (SLL paper)."""
    return float(np.interp(progress, (0, 0.4, 0.8, 1), (0, 1, 0.05, 0)))


def cosine(step: int, steps: int, rising: int) -> float:
    """Factor of the highest learning rate: up in ``rising`` equal parts, then half a period of a cosine down to 0.

    Args:
        step: number of steps taken.
        steps: those of the run.
        rising: those in which the learning rate rises.
    """
    if step < rising:
        return (step + 1) / rising
    return (1 + math.cos(math.pi * min(1, (step - rising) / max(1, steps - rising)))) / 2
