"""The two searches, projected gradient ascent and its parameter-free form: images in, the worst ones seen out."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastlip.certification.attacks.ball import Ball, per_image
from fastlip.certification.attacks.objective import Objective

_MOMENTUM = 0.75  # alpha of Croce and Hein
_PROGRESS = 0.75  # rho
_FIRST_CHECKPOINT, _SHRINK, _SHORTEST = 22, 3, 6  # percent of the steps


class Worst:
    """The image of smallest margin among those seen, for each sample."""

    def __init__(self, x: Tensor):
        self.images = x.clone()
        self.margins = torch.full((len(x),), math.inf, dtype=x.dtype, device=x.device)

    def see(self, x: Tensor, margins: Tensor) -> bool:
        """Keeps what is worse than before; says whether every sample has been misclassified by now."""
        worse = margins < self.margins
        self.margins = torch.where(worse, margins, self.margins)
        self.images = torch.where(per_image(worse, x), x, self.images)
        return bool((self.margins < 0).all())


def pgd(objective: Objective, ball: Ball, start: Tensor, steps: int, step_size: float) -> Tensor:
    """Projected gradient ascent (Madry et al., ICLR 2018) by step_size times the radius, until all are fooled."""
    x, worst = start, Worst(start)
    for _ in range(steps):
        _, gradient, margins = objective(x)
        if worst.see(x, margins):
            return worst.images
        x = ball.step(x, gradient, step_size * ball.radius)
    worst.see(x, objective(x)[2])
    return worst.images


def apgd(objective: Objective, ball: Ball, start: Tensor, steps: int) -> Tensor:
    r"""Auto-PGD (Croce and Hein, *Reliable evaluation of adversarial robustness*, ICML 2020, algorithm 1).

    .. math:: z = P(x_k + \eta \nabla f / |\nabla f|), \qquad
              x_{k+1} = P(x_k + \alpha (z - x_k) + (1 - \alpha)(x_k - x_{k-1}))

    eta starts at twice the radius. At the checkpoints of :func:`checkpoints` it is halved, and the search goes
    on from the best point so far, for the samples that climbed in fewer than rho of the steps since the last
    one, or whose eta and best value have not changed since.
    """
    value, gradient, margins = objective(start)
    worst = Worst(start)
    worst.see(start, margins)
    x = previous = best = start
    best_value, best_gradient = value, gradient
    eta = 2 * ball.radius
    climbs = torch.zeros_like(value)
    last, last_value, last_eta = 0, best_value, eta.clone()
    marks = checkpoints(steps)
    for step in range(1, steps + 1):
        ahead = ball.step(x, gradient, eta)
        if step > 1:  # the first step has no momentum
            ahead = ball.project(x + _MOMENTUM * (ahead - x) + (1 - _MOMENTUM) * (x - previous))
        previous, x, before = x, ahead, value
        value, gradient, margins = objective(x)
        if worst.see(x, margins):
            break
        climbs += value > before
        better = value > best_value
        best_value = torch.where(better, value, best_value)
        best, best_gradient = (
            torch.where(per_image(better, x), new, old) for new, old in ((x, best), (gradient, best_gradient))
        )
        if step in marks:
            stalled = (last_eta == eta) & (last_value == best_value)
            halve = (climbs < _PROGRESS * (step - last)) | stalled
            last, last_value, last_eta = step, best_value, eta
            eta = torch.where(halve, eta / 2, eta)
            value = torch.where(halve, best_value, value)
            x, gradient = (
                torch.where(per_image(halve, x), new, old) for new, old in ((best, x), (best_gradient, gradient))
            )
            climbs = torch.zeros_like(value)
    return worst.images


def checkpoints(steps: int) -> set[int]:
    """w_j = ceil(p_j steps), p_0 = 0, p_1 = 0.22, p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06)."""
    marks, before, share = set(), 0, _FIRST_CHECKPOINT
    while share <= 100:
        marks.add(-(-share * steps // 100))
        before, share = share, share + max(share - before - _SHRINK, _SHORTEST)
    return marks
