"""``fastlip.certify_segmentation``: radii of single pixels, and how many of them one perturbation can change."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from fastlip.certification.auditing import Audit
from fastlip.certification.certificates.evaluated import Evaluated, certifying, evaluated
from fastlip.certification.certificates.outputs import lost_within
from fastlip.certification.certificates.run import DEFAULT_EPS
from fastlip.certification.certificates.slopes import SQRT2
from fastlip.certification.input_norms import InputNorm
from fastlip.certification.rounding import Rounded, RoundingModel
from fastlip.inspection.evaluation import bar, radii_of
from fastlip.inspection.loading import Loader, batches_of
from fastlip.kernels.common.checks import boolean

_ENTRIES = 2**23  # scores that are measured at once
_TINY, _EPS = torch.finfo(torch.float64).tiny, torch.finfo(torch.float64).eps


@dataclass(frozen=True)
class SegmentationCertificate:
    """The result of :func:`fastlip.certify_segmentation` on n images.

    Attributes:
        accuracy: the share of the pixels that are classified correctly; a tie is an error.
        cra: for each eps the share of the pixels that no perturbation of an image, of norm at most eps, makes wrong:
            each pixel by a perturbation of its own.
        joint_cra: for each eps the share of the pixels that are right at least if each image gets one perturbation
            of norm at most eps. It is never below ``cra``.
        flips: for each eps (n,) integers: how many predictions of an image one perturbation changes at most.
        pixels: (n,), the number of pixels of each image that count.
        lipschitz: the audited bound L of the network.
        rounding: the largest bound of the forward's error in L2 norm, at the largest eps.
        n: the number of images.
        audit: the bound of every layer.
        radii: (n, h, w) if asked for, else None: radii of each pixel's prediction, 0 where it is wrong or ignored.

    Example:
        >>> model = torch.nn.Sequential(lip.AOLConv2d(3, 8, 3), lip.MaxMin(), lip.AOLConv2d(8, 4, 1)).eval()
        >>> images = torch.rand(2, 3, 8, 8)
        >>> found = fastlip.certify_segmentation(model, [(images, model(images).argmax(1))], eps=[0.01])
        >>> found.accuracy, found.cra[0.01] <= found.joint_cra[0.01], found.pixels.tolist()
        (1.0, True, [64, 64])
    """

    accuracy: float
    cra: dict[float, float]
    joint_cra: dict[float, float]
    flips: dict[float, Tensor]
    pixels: Tensor
    lipschitz: float
    rounding: float
    n: int
    audit: Audit = field(repr=False)
    radii: Tensor | None = field(default=None, repr=False)

    @property
    def norm(self) -> InputNorm:
        """The norm of perturbations in which eps and radii are: L2, or weighted by a first layer ``InputWeights``."""
        return self.audit.norm

    def __str__(self) -> str:
        lines = [f"accuracy {self.accuracy:.2%} of {int(self.pixels.sum())} pixels in {self.n} images"]
        for eps, share in self.cra.items():
            most = self.flips[eps].double().mean().item()
            lines.append(
                f"at {eps:.4g}: {share:.2%} of the pixels one by one, {self.joint_cra[eps]:.2%} together;"
                f" at most {most:.1f} of an image change"
            )
        lines.append(f"Lipschitz constant at most {self.lipschitz:.9g} (audited)")
        lines += self.norm.remark()
        return "\n".join(lines)


def certify_segmentation(
    model: nn.Module,
    loader: Loader,
    eps: float | Sequence[float] = DEFAULT_EPS,
    *,
    ignore_index: int | None = None,
    per_pixel: bool = False,
    input_shape: tuple[int, ...] | None = None,
    device: torch.device | str | int | None = None,
    dtype: torch.dtype | None = None,
    progress: bool = False,
    rounding: RoundingModel = "worst-case",
    bounds: tuple[float | Tensor, float | Tensor] | None = None,
) -> SegmentationCertificate:
    r"""Certifies the predictions of a segmentation network: of each pixel, and of all pixels of an image together.

    **One pixel.** With f_p the scores of pixel p, y its label and r_p(x) its radius, as in :func:`fastlip.certify`:

    .. math:: r_p(x) = \min_{j \ne y} \frac{\max(0,\; f_{p,y} - f_{p,j} - \sqrt 2\, e)}{L_{yj} + \sqrt 2\, g}

    L_yj is sqrt 2 L, or L_body |w_y - w_j| if that is less and the network ends in a 1x1 convolution.

    **All pixels.** One perturbation has to share its norm among the pixels. Let F be the pixels whose prediction
    differs between x and z, |z - x| <= eps, and m_p the margin of pixel p between its two largest scores. At p the
    class that is ahead at z has gained m_p at least, and a difference of two scores changes by at most sqrt 2 times
    what the scores of p change. The whole output map is L-Lipschitz, so

    .. math:: \sum_{p \in F} \frac{m_p^2}{2} \le \sum_{p \in F} |f_p(z) - f_p(x)|^2 \le |f(z) - f(x)|^2
              \le (L \varepsilon + e(\varepsilon))^2.

    Hence |F| is at most the largest k such that the k smallest m_p^2 / 2 have a sum of at most the right side: any
    k pixels have a sum that is at least as large. If the network ends in a 1x1 convolution with rows w_j, the same
    holds for what precedes it, h: sum over F of |h_p(z) - h_p(x)|^2 <= (L_body eps)^2, where p costs the smallest
    (m_pj - sqrt 2 e(eps))^2 / |w_i - w_j|^2 over the classes j, and i is the class predicted. The smaller of both
    counts is reported. Pixels with a radius above eps never belong to F.

    With one output channel a pixel has two classes, 1 if its score is above 0; its margin is |f_p|, without the
    factors sqrt 2 and 1/2. Rounding, dtypes and checks are those of :func:`fastlip.certify`.

    Args:
        model: in eval mode, with scores (n, c, h, w), or any number of dimensions after the classes.
        loader: batches of images and integer labels (n, h, w) or (n, 1, h, w), or a whole set, as of
            :func:`fastlip.certify`.
        eps: the L2 norms of perturbations, one or several, at least 0; default 36/255, 72/255, 108/255, 1.
        ignore_index: label of the pixels that do not count, such as 255; default None counts all.
        per_pixel: keeps the radius of every pixel as ``radii``; default False.
        input_shape: the shape of one image; default None takes that of the first batch.
        device: where to run; default None is where the model is. The model itself is not moved.
        dtype: ``torch.float32`` or ``torch.float64`` certifies a copy of the model in that type; default None
            certifies the model as it is.
        progress: shows a progress bar; default False.
        rounding: ``"worst-case"`` (default) or ``"probabilistic"``, see :func:`fastlip.certify`.
        bounds: the least and largest value that images may have; others are refused. Default None allows any.

    Returns:
        A :class:`fastlip.certification.SegmentationCertificate`.

    Raises:
        TypeError: modules that the audit does not understand, all named; labels that are no integers.
        ValueError: what :func:`fastlip.certify` refuses; outputs or labels of another shape; no pixel that counts.

    Example:
        >>> model = torch.nn.Sequential(lip.AOLConv2d(1, 8, 3), lip.MaxMin(), lip.AOLConv2d(8, 3, 1)).eval()
        >>> images, labels = torch.rand(2, 1, 6, 6), torch.zeros(2, 6, 6, dtype=torch.long)
        >>> found = fastlip.certify_segmentation(model, [(images, labels)], eps=[0.0, 2.0])
        >>> bool((found.flips[0.0] <= found.flips[2.0]).all()), int(found.flips[2.0].max()) <= 36
        (True, True)
    """
    eps = radii_of(eps)
    boolean("per_pixel", per_pixel)
    with certifying(model, device, dtype, rounding) as (model, parameter):
        batches = bar(batches_of(loader), "certify", progress)
        each = evaluated(model, parameter, batches, input_shape, rounding, bounds, eps=eps)
        found = [
            (_measure(part, eps, ignore_index, per_pixel), part.prepared.audit) for b in each for part in _parts(b)
        ]
    measured, audit = [item for item, _ in found], found[0][1]
    pixels = torch.cat([item.pixels for item in measured])
    total = int(pixels.sum())
    if not total:
        raise ValueError(f"ignore_index={ignore_index}: no pixel has another label")
    alone = torch.stack([item.alone for item in measured]).sum(0).double() / total
    together = torch.stack([item.together for item in measured]).sum(0).double() / total
    flips = torch.cat([item.flips for item in measured], 1)
    return SegmentationCertificate(
        accuracy=sum([item.correct for item in measured]) / total,
        cra=dict(zip(map(float, eps), alone.tolist(), strict=True)),
        joint_cra=dict(zip(map(float, eps), together.tolist(), strict=True)),
        flips=dict(zip(map(float, eps), flips, strict=True)),
        pixels=pixels,
        lipschitz=audit.bound,
        rounding=max(item.error for item in measured),
        n=len(pixels),
        audit=audit,
        radii=torch.cat([item.radii for item in measured if item.radii is not None]) if per_pixel else None,
    )


class _Measured(NamedTuple):
    """Contribution of one batch: numbers of pixels, (k,) for each eps or (n,) for each image; flips are (k, n)."""

    pixels: Tensor
    correct: int
    alone: Tensor
    together: Tensor
    flips: Tensor
    radii: Tensor | None
    error: float


class _Costs(NamedTuple):
    """The margin of each pixel (n, p), and the differences of its score to all others (n, p, c).

    ``slopes`` (n, p, c) are those of the differences by a linear last layer; ``root`` is sqrt 2, or 1 for one score.
    """

    margins: Tensor
    differences: Tensor
    slopes: Tensor | None
    root: float


def _parts(batch: Evaluated) -> Iterator[Evaluated]:
    """The batch in parts of few images: what is computed of their scores takes several times their memory."""
    outputs, labels = batch.outputs, cast(Tensor, batch.labels)
    if outputs.dim() < 3:
        raise ValueError(f"outputs: got shape {tuple(outputs.shape)}, expected scores (n, c, h, w)")
    _check_shapes(outputs, labels)
    step = max(1, _ENTRIES // max(1, outputs[:1].numel()))
    for start in range(0, len(outputs), step):
        rows = slice(start, start + step)
        error = Rounded(*(part[rows] for part in batch.error))
        yield Evaluated(batch.x[rows], outputs[rows], labels[rows], error, batch.prepared)


def _measure(part: Evaluated, eps: Sequence[float], ignore_index: int | None, per_pixel: bool) -> _Measured:
    outputs, error = part.outputs, part.error
    labels, counted = _labels(outputs, cast(Tensor, part.labels), ignore_index)
    scores = outputs.double().flatten(2).movedim(1, 2)  # (n, p, c)
    costs, predicted = _costs(scores, part.prepared.pixel_slopes)
    bound = part.prepared.audit.bound
    correct = counted & (predicted == labels) & (costs.margins > 0)
    radii = _radii(costs, error, bound)
    flips = radii.new_zeros(len(eps), len(radii), dtype=torch.long)
    broken, alone = torch.zeros_like(flips), torch.zeros_like(flips)
    for row, value in enumerate(eps):
        weak = radii <= value
        flips[row] = _most_flips(costs, counted & weak, error, bound, value)
        broken[row] = _most_flips(costs, correct & weak, error, bound, value)
        alone[row] = (correct & ~weak).sum(1)
    radii = torch.where(correct, radii, 0.0)
    return _Measured(
        pixels=counted.sum(1).cpu(),
        correct=int(correct.sum()),
        alone=alone.sum(1).cpu(),
        together=(correct.sum(1) - broken).sum(1).cpu(),
        flips=flips.cpu(),
        radii=radii.reshape(len(radii), *outputs.shape[2:]).cpu() if per_pixel else None,
        error=(error.near + error.growth * max(eps, default=0.0)).amax().item(),
    )


def _check_shapes(outputs: Tensor, labels: Tensor) -> None:
    """Raises ValueError or TypeError unless the labels are one for each pixel of the outputs."""
    shape = outputs.shape[:1] + outputs.shape[2:]
    if labels.shape not in (shape, (*shape[:1], 1, *shape[1:])):
        raise ValueError(f"labels: got shape {tuple(labels.shape)}, expected {tuple(shape)} as the pixels")
    if labels.is_complex() or (labels.is_floating_point() and outputs.shape[1] > 1):
        raise TypeError(f"labels: got {labels.dtype}, expected integers")


def _labels(outputs: Tensor, labels: Tensor, ignore_index: int | None) -> tuple[Tensor, Tensor]:
    """(n, p): the label of each pixel, and whether it counts."""
    count = max(outputs.shape[1], 2)
    labels = labels.to(outputs.device, torch.float64 if labels.is_floating_point() else torch.long)
    labels = labels.reshape(len(labels), -1)
    counted = torch.ones_like(labels, dtype=torch.bool) if ignore_index is None else labels != ignore_index
    rest = labels[counted]
    if not (((rest >= 0) & (rest < count)).all() and (rest == rest.long()).all()):
        raise ValueError(f"labels: got values from {rest.amin()} to {rest.amax()}, expected 0 to {count - 1}")
    return labels.long(), counted


def _costs(scores: Tensor, slopes: Tensor | None) -> tuple[_Costs, Tensor]:
    """The margin of each prediction, and the predictions (n, p)."""
    if scores.shape[2] == 1:
        margins = scores[..., 0].abs()
        return _Costs(margins, margins[..., None], None, 1.0), (scores[..., 0] > 0).long()
    best, predicted = scores.max(2)
    differences = (best[..., None] - scores).scatter_(2, predicted[..., None], math.inf)
    return _Costs(
        differences.amin(2), differences, None if slopes is None else slopes.to(scores.device)[predicted], SQRT2
    ), predicted


def _radii(costs: _Costs, error: Rounded, bound: float) -> Tensor:
    """(n, p): the L2 radii within which each prediction stays, whatever becomes of the others."""
    lost, growth = (costs.root * part[:, None] for part in (error.error + error.near, error.growth))
    radii = (costs.margins - lost) / (costs.root * bound + growth).clamp_min(_TINY)
    if costs.slopes is not None:
        certain = costs.differences - lost[..., None]
        by_head = certain / (costs.slopes + growth[..., None]).clamp_min(_TINY)
        radii = torch.maximum(radii, by_head.amin(2))
    return torch.minimum(radii, error.reach[:, None]).nan_to_num(nan=0.0).clamp_min(0)


def _most_flips(costs: _Costs, among: Tensor, error: Rounded, bound: float, eps: float) -> Tensor:
    """(n,): how many of some pixels (n, p) change their prediction at most, by one perturbation of norm eps."""
    lost = lost_within(error, eps)
    counts = _affordable(costs.margins / costs.root, among, bound * eps + lost)
    if costs.slopes is not None:
        certain = (costs.differences - costs.root * lost[:, None, None]).clamp_min(0)
        by_head = (certain / costs.slopes.clamp_min(_TINY)).amin(2)
        within = torch.where(lost < math.inf, eps, math.inf).to(lost)
        counts = torch.minimum(counts, _affordable(by_head, among, within))
    return counts


def _affordable(costs: Tensor, among: Tensor, budget: Tensor) -> Tensor:
    """(n,): how many of some costs (n, p) at most have squares whose sum is within the square of a budget (n,)."""
    squares = costs.square().masked_fill(~among, math.inf).sort(1).values.cumsum(1)
    limit = budget.square() * (1 + 4 * costs.shape[1] * _EPS)
    total = among.sum(1)
    return torch.where(budget < math.inf, (squares <= limit[:, None]).sum(1).minimum(total), total)
