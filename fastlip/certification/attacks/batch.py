"""One batch under attack: every radius, every restart; only what was verified counts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastlip.certification.attacks.ball import Ball, Bounds, per_image
from fastlip.certification.attacks.objective import AttackLoss, Objective, forward, margins, outputs, rivals
from fastlip.certification.attacks.options import Plan, Radii, box
from fastlip.certification.attacks.result import AttackResult
from fastlip.certification.attacks.search import apgd, pgd
from fastlip.certification.input_norms import InputNorm
from fastlip.inspection.sameness import check_fixed
from fastlip.losses.labels import classes

_BISECTIONS = 10  # to a thousandth of the way
_CLEAR = 64  # units in the last place of the logits by which a shortened perturbation must still fool the model


class Batch:
    """Images of a batch with their outputs, the pixel values that they may take, and the norm of their distances."""

    def __init__(self, model: nn.Module, x: Tensor, labels: Tensor, bounds: Bounds, where: str, norm: InputNorm):
        self.model = model
        self.norm = norm
        self.weights = None if norm.weights is None else norm.weights.to(x.device)
        self.x = x
        self.where = where
        self.low, self.high = box(bounds, x, where)
        self.logits, self.true = classes(outputs(model, x.clone(), where), labels)
        self.margins = margins(self.logits, self.true)

    def check_fixed(self) -> None:
        """Raises ValueError unless the last and the first image, evaluated alone, have the same outputs."""
        few = [-1, 0][: len(self.x)]
        check_fixed(forward(self.model, self.x[few], self.where), self.logits[few], self.logits, self.where)

    def objective(self, rows: Tensor, loss: AttackLoss, restart: int) -> Objective:
        """The function that the restart of a loss climbs, for some of the samples."""
        rank = restart if loss == "dlr" else restart - 1
        true = self.true[rows]
        aims = loss != "ce" and rank >= 0
        return Objective(self.model, loss, true, rivals(self.logits[rows], true, rank) if aims else None, self.where)

    def search(self, rows: Tensor, radius: Tensor, run: tuple[AttackLoss, int], plan: Plan, generator: Any) -> Tensor:
        """The worst images that one run sees inside the radius (r,) of the samples at ``rows`` (r,)."""
        ball = Ball.around(self.x[rows], radius, self.low[rows], self.high[rows], self.weights)
        objective = self.objective(rows, *run)
        start = ball.center if run[1] == 0 else ball.random(generator)
        if plan.kind == "apgd":
            return apgd(objective, ball, start, plan.steps)
        return pgd(objective, ball, start, plan.steps, plan.step_size)

    def distances(self, rows: Tensor, images: Tensor) -> Tensor:
        """(r,): the distances of images to the samples at ``rows`` (r,), in float64."""
        return self.norm.length(images.double() - self.x[rows].double())

    def fooled(self, rows: Tensor, images: Tensor, clear: int = 0) -> Tensor:
        """Which images are misclassified, by at least ``clear`` units in the last place of their logits."""
        logits = forward(self.model, images, self.where)
        slack = clear * torch.finfo(logits.dtype).eps * logits.abs().amax(1)
        return margins(logits, self.true[rows]) <= -slack

    def shorten(self, rows: Tensor, images: Tensor) -> Tensor:
        """The nearest images on the way to the originals, found by bisection, that are clearly misclassified."""
        x, low, high = self.x[rows], self.low[rows], self.high[rows]
        right, wrong = x.new_zeros(len(x)), x.new_ones(len(x))
        direction, shortened = images - x, images
        for _ in range(_BISECTIONS):
            middle = (right + wrong) / 2
            trial = torch.clamp(x + per_image(middle, x) * direction, low, high)
            fooled = self.fooled(rows, trial, _CLEAR)
            shortened = torch.where(per_image(fooled, x), trial, shortened)
            right, wrong = torch.where(fooled, right, middle), torch.where(fooled, middle, wrong)
        return shortened


def attack_batch(batch: Batch, start: int, radii: Radii, plan: Plan, generator: torch.Generator) -> dict[str, Tensor]:
    """The findings of all runs of the plan on a batch whose first sample has the number ``start``, by name."""
    count = len(batch.x)
    asked, certified = radii.asked(start, count), radii.certified(start, count)
    labels = batch.true.long().argmax(1).cpu()
    radii.check_certificate(start, batch.margins.cpu(), labels)
    # Inside its certified radius a sample is attacked once, at that radius: the largest of these balls.
    levels = torch.cat((asked, certified[:, None]), 1).maximum(certified[:, None])
    if (levels > 0).any():
        batch.check_fixed()
    distance, adversarial = _nearest(batch, levels.sort(1).values.to(batch.x.device), plan, generator)
    moved = (distance > 0) & (distance < torch.inf)
    prediction = batch.logits.argmax(1)
    if moved.any():
        prediction[moved] = forward(batch.model, adversarial[moved], batch.where).argmax(1)
    distance, adversarial, prediction, moved = (part.cpu() for part in (distance, adversarial, prediction, moved))
    broken = (distance <= certified) & (certified > 0)
    index = start + torch.arange(count)
    return {
        "radii": asked,
        "distances": distance,
        "found": index[moved],
        "images": adversarial[moved],
        "predictions": prediction[moved],
        "index": index[broken],
        "image": batch.x.cpu()[broken],
        "adversarial": adversarial[broken],
        "label": labels[broken],
        "prediction": prediction[broken],
        "distance": distance[broken],
        "radius": certified[broken],
    }


def _nearest(batch: Batch, levels: Tensor, plan: Plan, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The distances at which samples were broken, inf where they were not, and the images that did it.

    levels (b, k): each sample's radii, ascending. A sample broken inside one is broken inside those that follow.
    """
    adversarial = batch.x.clone()
    distance = torch.where(batch.margins > 0, torch.inf, 0.0).double()
    previous = torch.zeros_like(distance)
    for level in levels.unbind(1):
        for run in plan.runs():
            rows = ((level > previous) & (distance >= level)).nonzero()[:, 0]
            if not len(rows):
                break
            images = batch.search(rows, level[rows], run, plan, generator)
            success = batch.fooled(rows, images) & (batch.distances(rows, images) < level[rows])
            rows, images = rows[success], images[success]
            if len(rows):
                images = batch.shorten(rows, images)
                adversarial[rows] = images
                distance[rows] = batch.distances(rows, images)
        previous = level
    return distance, adversarial


def result_of(parts: dict[str, Tensor], radii: Radii, plan: Plan, norm: InputNorm) -> AttackResult:
    """The result from what was found on all batches, which is taken out of ``parts``."""
    distance, asked = parts.pop("distances"), parts.pop("radii")
    correct = distance > 0
    success = correct[:, None] & (distance[:, None] < asked)
    robust = (correct[:, None] & ~success).double().mean(0).tolist()
    found = {name: parts.pop(name) for name in ("found", "images", "predictions")}
    return AttackResult(
        kind=plan.kind,
        losses=plan.losses,
        steps=plan.steps,
        restarts=plan.restarts,
        n=len(distance),
        accuracy=correct.double().mean().item(),
        robust_accuracy={} if radii.per_sample else dict(zip(radii.values.tolist(), robust, strict=True)),
        radii=asked,
        success=success,
        distances=distance,
        evidence={} if radii.certificate is None else parts,
        norm=norm,
        **found,
    )
