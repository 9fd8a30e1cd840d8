"""Optimisers of other packages: schedule-free AdamW, and Lookahead around any optimiser.

Schedule-free AdamW (Defazio et al., NeurIPS 2024, arXiv 2405.15682; package ``schedulefree``) takes gradients at
weights y, and evaluates an average x of its steps. Lookahead (Zhang et al., NeurIPS 2019, arXiv 1907.08610; package
``pytorch-optimizer``) moves slow weights by a fraction of the way that k steps of the optimiser have gone, and
continues from there. For networks with orthogonal matrices :class:`fastlip.optim.ManifoldOptimizer` has it.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from fastlip._extras import needed_for
from fastlip.training.averaging import tensors_of
from fastlip.training.step_fields import SCHEDULE_FREE, StepFields


def schedule_free(**options: Any) -> partial[Optimizer]:
    """Schedule-free AdamW as a function of the parameters.

    Args:
        options: of the package's ``AdamWScheduleFree``.
    """
    with needed_for(f"optimizer={SCHEDULE_FREE!r}"):
        from schedulefree import AdamWScheduleFree
    return partial(AdamWScheduleFree, **options)


def with_lookahead(recipe: StepFields, optimizer: Optimizer) -> Optimizer:
    """The optimiser within Lookahead, or itself if the recipe has none."""
    if not recipe.lookahead:
        return optimizer
    with needed_for(f"lookahead={recipe.lookahead}"):
        from pytorch_optimizer.optimizer.lookahead import Lookahead
    return Lookahead(optimizer, k=recipe.lookahead, alpha=recipe.lookahead_alpha)


class Evaluated:
    """A copy of a network with the weights x at which a schedule-free optimiser evaluates it.

    The trained network keeps its weights y, bit for bit: the way from y to x and back would round them, so that a run
    would depend on when it was evaluated or interrupted.

    Args:
        model: the network that is trained.
        optimizer: its schedule-free optimiser, which stays in train mode.
    """

    def __init__(self, model: nn.Module, optimizer: Any):
        self.model = model
        self.optimizer = optimizer
        self.module = copy.deepcopy(model).requires_grad_(False)
        optimizer.train()

    @torch.no_grad()
    def refreshed(self) -> nn.Module:
        """The copy with the present weights x, and the buffers of the trained network."""
        weights = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        kept = [weight.detach().clone() for weight in weights]
        self.optimizer.eval()
        for target, value in zip(tensors_of(self.module), tensors_of(self.model), strict=True):
            target.copy_(value)
        self.optimizer.train()
        for weight, value in zip(weights, kept, strict=True):
            weight.copy_(value)
        return self.module


def evaluated(recipe: StepFields, model: nn.Module, optimizer: Optimizer) -> Evaluated | None:
    """The network that is evaluated in place of the trained one; None if that is the trained one.

    Args:
        recipe: names the optimiser.
        model: the network that is trained.
        optimizer: its optimiser.
    """
    return Evaluated(model, optimizer) if recipe.optimizer == SCHEDULE_FREE else None
