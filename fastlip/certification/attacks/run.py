"""``fastlip.attack``: every batch, every radius, every restart; only what was verified counts."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fastlip.certification.attacks.ball import Ball, Bounds, distances, per_image
from fastlip.certification.attacks.objective import Objective, forward, margins, outputs, rivals
from fastlip.certification.attacks.options import KINDS, Plan, Radii, box, check_bounds, make_generator
from fastlip.certification.attacks.result import AttackResult, BrokenCertificateWarning, broken_text
from fastlip.certification.attacks.search import apgd, pgd
from fastlip.certification.batches import check_batch, check_declared
from fastlip.certification.certificates import DEFAULT_EPS, Certificate
from fastlip.inspection.evaluation import bar, check_model, from_parameters, full_precision, prepare
from fastlip.inspection.sameness import check_fixed
from fastlip.losses.labels import classes

__all__ = ["KINDS", "attack", "attack_certified"]

_BISECTIONS = 10  # to a thousandth of the way
_CLEAR = 64  # units in the last place of the logits by which a shortened perturbation must still fool the model


def attack(
    model: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    eps: Sequence[float] | Tensor = DEFAULT_EPS,
    kind: str = "pgd",
    *,
    losses: Sequence[str] | None = None,
    steps: int = 40,
    restarts: int = 3,
    step_size: float | None = None,
    bounds: Bounds = (0.0, 1.0),
    certificate: Certificate | None = None,
    seed: int | torch.Generator = 0,
    device: Any = None,
    dtype: torch.dtype | None = None,
    progress: bool = False,
) -> AttackResult:
    r"""Looks for misclassified images within L2 distance eps of those of a loader: robust accuracy from above.

    ``"pgd"``: projected gradient ascent (Madry et al., ICLR 2018) on max_{j != y} f_j - f_y, which unlike
    cross-entropy points the right way however small the logits are. ``"apgd"``: Auto-PGD (Croce and Hein, ICML
    2020), which halves its steps where it stalls and goes on from the best point; first on cross-entropy, then on
    the targeted difference of logits ratio, which for fewer than four classes is f_t - f_y.

    The first restart of a loss starts at the image, the others at random points of the sphere. The r-th restart of
    "dlr" aims at the r-th most likely wrong class, so does the (r + 1)-th of "margin" (its first at whichever is
    ahead); after the last class comes the first again. Samples that are broken leave the batch.

    A success counts if the image as stored, evaluated anew, is misclassified (a tie is), and its distance,
    computed in float64, is strictly below the radius. It is then shortened towards the original by bisection, so
    ``distances`` are mostly below the radii. TF32 and autocast are off meanwhile, as in :func:`fastlip.certify`.
    The model, its parameters' gradients and the global random generators are left as they were. It must be a fixed
    function of each image: the last and the first image of every batch, evaluated by themselves, must give the same.

    Args:
        model: any module with logits (n, c), or with one score (n,) or (n, 1) that is above 0 for label 1,
            in eval mode. Parameters in 16 bits are raised to float32 in
            a copy, which is what is attacked.
        loader: batches of images and integer or one-hot labels, as of :func:`fastlip.certify`.
        eps: radii for all samples; or a tensor (n,) or (n, k) of radii for each. Radii of 0 are not attacked.
        kind: ``"pgd"`` or ``"apgd"``.
        losses: to climb one after the other: ``"margin"``, ``"ce"``, ``"dlr"``. By default ("margin",) for pgd and
            ("ce", "dlr") for apgd.
        steps: gradients per restart.
        restarts: for each loss and radius.
        step_size: of pgd, as a share of the radius; 2.5 / steps by default.
        bounds: the least and largest pixel value, numbers or tensors that broadcast to an image; None: no bounds.
        certificate: of the same model and loader, unshuffled: every sample is attacked at its certified radius as
            well (instead of at the smaller eps), and what breaks there is reported: ``broken``, and a
            :class:`BrokenCertificateWarning`.
        seed: of the random starts, or a generator. The same seed and batches give the same result on a CPU.
        device: where to run; by default where the model is. The model itself is not moved.
        dtype: ``torch.float32`` or ``torch.float64``: attacks a copy of the model in that type.
        progress: shows a bar.

    Returns:
        An :class:`AttackResult`.

    Raises:
        ValueError: a model in training mode, NaN or Inf in parameters, images, outputs or gradients (naming the
            batch), labels out of range, images outside of the bounds, an option that is not allowed, radii or a
            certificate that do not belong to the loader, an empty loader, a model that is random or mixes images.
        TypeError: an argument of the wrong type.
    """
    check_model(model, dtype)
    check_bounds(bounds)
    plan = Plan.checked(kind, losses, steps, restarts, step_size)
    radii = Radii(eps, certificate)
    generator = make_generator(seed)
    model, parameter = prepare(model, device, dtype)
    rows: list[dict[str, Tensor]] = []
    n = 0
    with full_precision(parameter.device.type), torch.inference_mode(False), torch.no_grad(), _frozen(model):
        for index, batch in enumerate(bar(loader, kind, progress)):
            images, labels = check_batch(index, batch)
            check_declared(model, index, images)
            target = _Batch(model, images.detach().to(parameter).clone(), labels, bounds, f"batch {index}")
            rows.append(_attack_batch(target, n, radii, plan, generator))
            n += len(images)
    if not rows:
        raise ValueError("loader: it has no batches")
    radii.check_count(n)
    result = _result({name: torch.cat([row[name] for row in rows]) for name in rows[0]}, radii, plan)
    if len(result.broken):
        warnings.warn(broken_text(result.broken), BrokenCertificateWarning, stacklevel=2)
    return result


def attack_certified(
    model: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    certificate: Certificate,
    factors: Sequence[float] = (1.0, 3.0),
    **options: Any,
) -> AttackResult:
    """Attacks each sample at multiples of its own certified radius.

    Nothing may succeed at factor 1; much should at a few times the radius, or the attack is weak or the certificate
    loose. Columns of ``radii``, ``success`` and ``success_rate`` are the factors. Arguments as for :func:`attack`.
    """
    if not isinstance(certificate, Certificate):
        raise TypeError(f"certificate: got {type(certificate).__name__}, expected a fastlip Certificate")
    eps = certificate.radii[:, None] * torch.as_tensor(factors, dtype=torch.float64)
    return attack(model, loader, eps, certificate=certificate, **options)


class _Batch:
    """Images of a batch with what the model makes of them, and the pixel values that they may take."""

    def __init__(self, model: nn.Module, x: Tensor, labels: Tensor, bounds: Bounds, where: str):
        self.model = model
        self.x = x
        self.where = where
        self.low, self.high = box(bounds, x, where)
        self.logits, self.true = classes(outputs(model, x.clone(), where), labels)
        self.margins = margins(self.logits, self.true)

    def check_fixed(self) -> None:
        """ValueError unless the last and the first image, by themselves, have the outputs that they have here."""
        few = [-1, 0][: len(self.x)]
        check_fixed(forward(self.model, self.x[few], self.where), self.logits[few], self.logits, self.where)

    def objective(self, rows: Tensor, loss: str, restart: int) -> Objective:
        """What the restart of a loss climbs, for some of the samples."""
        rank = restart if loss == "dlr" else restart - 1
        true = self.true[rows]
        aims = loss != "ce" and rank >= 0
        return Objective(self.model, loss, true, rivals(self.logits[rows], true, rank) if aims else None, self.where)

    def search(self, rows: Tensor, radius: Tensor, run: tuple[str, int], plan: Plan, generator: Any) -> Tensor:
        """The worst images that one run sees inside the radius (r,) of the samples at ``rows`` (r,)."""
        ball = Ball.around(self.x[rows], radius, self.low[rows], self.high[rows])
        objective = self.objective(rows, *run)
        start = ball.center if run[1] == 0 else ball.random(generator)
        if plan.kind == "apgd":
            return apgd(objective, ball, start, plan.steps)
        return pgd(objective, ball, start, plan.steps, plan.step_size)

    def fooled(self, rows: Tensor, images: Tensor, clear: int = 0) -> Tensor:
        """Which images are misclassified, by so many units in the last place of their logits."""
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


def _attack_batch(
    batch: _Batch, start: int, radii: Radii, plan: Plan, generator: torch.Generator
) -> dict[str, Tensor]:
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


def _nearest(batch: _Batch, levels: Tensor, plan: Plan, generator: torch.Generator) -> tuple[Tensor, Tensor]:
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
            success = batch.fooled(rows, images) & (distances(images, batch.x[rows]) < level[rows])
            rows, images = rows[success], images[success]
            if len(rows):
                images = batch.shorten(rows, images)
                adversarial[rows] = images
                distance[rows] = distances(images, batch.x[rows])
        previous = level
    return distance, adversarial


def _result(parts: dict[str, Tensor], radii: Radii, plan: Plan) -> AttackResult:
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
        **found,
    )


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """No gradients of parameters meanwhile: layers then keep their evaluation weights between steps."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        with from_parameters(model):
            yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
