"""The losses that attacks climb: margin, cross-entropy and targeted DLR, with the gradient for the image."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlip.losses.labels import as_logits

AttackLoss = Literal["margin", "ce", "dlr"]
LOSSES: tuple[AttackLoss, ...] = get_args(AttackLoss)


def margins(logits: Tensor, true: Tensor) -> Tensor:
    """(b,): f_y - max_{j != y} f_j for the mask of true classes; at most 0 where the prediction is wrong."""
    return logits[true] - logits.masked_fill(true, -math.inf).amax(1)


def rivals(logits: Tensor, true: Tensor, rank: int) -> Tensor:
    """(b,): each image's rank-th most likely wrong class, from 0 on; the first follows the last."""
    others = logits.masked_fill(true, -math.inf).argsort(1, descending=True)
    return others[:, rank % (logits.shape[1] - 1)]


def dlr(logits: Tensor, true: Tensor, target: Tensor) -> Tensor:
    r"""Targeted difference of logits ratio (Croce and Hein, ICML 2020), which no scale or shift of f changes.

    .. math:: -\frac{f_y - f_t}{f_{\pi_1} - (f_{\pi_3} + f_{\pi_4}) / 2}

    pi sorts the logits downwards. With fewer than four classes there is no pi_4, and it is f_t - f_y.
    """
    difference = logits.gather(1, target[:, None])[:, 0] - logits[true]
    if logits.shape[1] < 4:
        return difference
    first, _, third, fourth = logits.topk(4, dim=1).values.unbind(1)
    spread = first - (third + fourth) / 2
    return difference / spread.clamp_min(torch.finfo(logits.dtype).tiny)


@dataclass(frozen=True)
class Objective:
    """A loss of a frozen model in eval mode at images of known classes.

    ``true`` (b, c) is the mask of true classes, ``target`` (b,) the class that "margin" and "dlr" aim at; None
    lets "margin" aim at whichever wrong class is ahead. ``where`` names the images in errors.
    """

    model: nn.Module
    loss: AttackLoss
    true: Tensor
    target: Tensor | None
    where: str

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(b,) values to climb, their gradient for x, and (b,) margins."""
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            logits = forward(self.model, x, self.where)
            values = self._values(logits)
            if not values.requires_grad:
                raise ValueError(
                    "model: autograd cannot follow its logits back to the images; an attack needs gradients"
                )
            (gradient,) = torch.autograd.grad(values.sum(), x)
        if not gradient.isfinite().all():
            raise ValueError(f"NaN or Inf in the gradients of {self.where}")
        return values.detach(), gradient, margins(logits.detach(), self.true)

    def _values(self, logits: Tensor) -> Tensor:
        if self.loss == "ce":
            return F.cross_entropy(logits, self.true.long().argmax(1), reduction="none")
        if self.target is None:
            return -margins(logits, self.true)
        if self.loss == "dlr":
            return dlr(logits, self.true, self.target)
        return logits.gather(1, self.target[:, None])[:, 0] - logits[self.true]


def forward(model: nn.Module, x: Tensor, where: str) -> Tensor:
    """The model's logits (b, c), c >= 2; a single score f becomes the logits (-f/2, f/2)."""
    return as_logits(outputs(model, x, where))


def outputs(model: nn.Module, x: Tensor, where: str) -> Tensor:
    """The model's logits or scores; ValueError where they are neither or not finite."""
    found = model(x)
    if not (isinstance(found, Tensor) and found.dim() in (1, 2) and found.shape[0] == len(x) and found.numel()):
        got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(f"logits: got shape {got}, expected ({len(x)}, c), or ({len(x)},) for one score")
    if not found.isfinite().all():
        raise ValueError(f"NaN or Inf in the outputs of {where}")
    return found
