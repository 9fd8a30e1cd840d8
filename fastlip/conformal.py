r"""Conformal prediction that is robust to perturbations of norm eps: sets of classes, and intervals.

Split conformal prediction calibrates a threshold q on held-out clean samples: with n of them, q is the k-th smallest
of their scores s(x_i, y_i), k = ceil((n + 1) (1 - alpha)). For a fresh clean sample (x, y), exchangeable with them,

.. math:: P(s(x, y) \le q) \ge \frac{k}{n + 1} \ge 1 - \alpha

(Vovk et al., *Algorithmic Learning in a Random World*, 2005; Lei et al., JASA 2018). What is observed may be a
perturbed z with |z - x| <= eps. The network is L-Lipschitz, so s(x, y) is at least a bound s_eps(z, y) that follows
from z alone, and the set of all y with s_eps(z, y) <= q has the same coverage, whatever the perturbation. This is the
idea of Massena et al., *Efficient Robust Conformal Prediction via Lipschitz-Bounded Networks* (ICML 2025); here the
bounds are audited, use the slopes of a linear last layer, and include rounding errors. The norm is L2, or the
weighted one of a network that begins with :class:`fastlip.nn.InputWeights`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fractions import Fraction
from numbers import Real
from typing import Literal, get_args

import torch
from torch import Tensor

from fastlip.certification.certificates.outputs import (
    UP,
    CertifiedOutputs,
    Interval,
    around,
    check_outputs,
    lost_within,
)
from fastlip.certification.certificates.scores import Scores, scores_of
from fastlip.certification.certificates.slopes import SQRT2
from fastlip.certification.input_norms import L2, InputNorm, require_same
from fastlip.inspection.evaluation import check_eps
from fastlip.losses.labels import classes
from fastlip.nn.arguments import one_of

__all__ = ["IntervalPredictor", "PredictionSets", "SetPredictor", "calibrate", "calibrate_intervals"]

Score = Literal["margin", "logit", "softmax"]


@dataclass(frozen=True)
class PredictionSets:
    """The sets of classes that :meth:`SetPredictor.sets` predicts for n samples.

    Attributes:
        members: (n, c) booleans, which classes belong to the set of each sample.
        eps: the norm of the perturbations that the sets allow for.
        labels: (n,), the classes of the samples; None if they are not known.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3)).eval()
        >>> x, labels = torch.rand(40, 4), torch.arange(40) % 3
        >>> outputs = fastlip.certify_outputs(model, [(x, labels)])
        >>> found = fastlip.conformal.calibrate(outputs[:30], alpha=0.1).sets(outputs[30:], eps=0.1)
        >>> tuple(found.members.shape), bool((found.sizes == found.members.sum(1)).all())
        ((10, 3), True)
    """

    members: Tensor
    eps: float
    labels: Tensor | None = field(default=None, repr=False)

    @property
    def sizes(self) -> Tensor:
        """(n,): the number of classes in each set."""
        return self.members.sum(1)

    @property
    def coverage(self) -> float:
        """The share of the samples whose label is in their set.

        Raises:
            ValueError: samples without labels.
        """
        if self.labels is None:
            raise ValueError("labels: the samples have none, expected batches (inputs, labels)")
        return self.members.gather(1, self.labels[:, None]).double().mean().item()


@dataclass(frozen=True)
class SetPredictor:
    """Predicts sets of classes, as :func:`calibrate` has calibrated them.

    Attributes:
        threshold: q, the largest score of a member; inf if there were too few samples, and every set has all classes.
        alpha: the share of samples whose label may be missing.
        level: k / (n + 1), the coverage that is guaranteed on average over calibrations, at least 1 - alpha.
        score: ``"margin"``, ``"logit"`` or ``"softmax"``.
        temperature: that of the softmax.
        norm: the norm of perturbations of the network that was calibrated, in which every eps is.
        classes: the number of classes of that network; 0 if it is not known.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3)).eval()
        >>> outputs = fastlip.certify_outputs(model, [(torch.rand(39, 4), torch.arange(39) % 3)])
        >>> fastlip.conformal.calibrate(outputs, alpha=0.1).level
        0.9
    """

    threshold: float
    alpha: float
    level: float
    score: Score
    temperature: float = 1.0
    norm: InputNorm = field(default=L2, repr=False)
    classes: int = field(default=0, repr=False)

    def sets(self, outputs: CertifiedOutputs, eps: float = 0.0) -> PredictionSets:
        r"""Predicts the set of every sample, which may be perturbed already.

        .. math:: y \in C_\varepsilon(z) \;\text{ if }\; s_\varepsilon(z, y) \le q, \qquad
                  s_\varepsilon(z, y) \le s(x, y) \;\text{ for all }\; |x - z| \le \varepsilon

        Args:
            outputs: those of the calibrated network, by :func:`fastlip.certify_outputs`; labels are for the coverage.
            eps: the norm of the perturbations, at least 0.

        Returns:
            :class:`PredictionSets`.

        Raises:
            ValueError: outputs of another shape or in another norm, or another eps.
        """
        require_same("outputs", outputs.norm, self.norm, "the calibration is")
        low = self._scores(self._scores_of(outputs), -1, eps)
        labels = None if outputs.targets is None else _labels(outputs)
        return PredictionSets(low <= self.threshold, float(eps), labels)

    def certified_coverage(self, outputs: CertifiedOutputs, attack: float, eps: float = 0.0) -> float:
        r"""The share of clean samples whose label stays in its set, whatever the perturbation.

        .. math:: \frac{1}{n} \sum_i \Big[ y_i \in C_\varepsilon(z) \;\text{ for all }\; |z - x_i| \le \rho \Big]

        A lower bound. Sets for eps >= rho keep every label whose clean score is within the threshold. For eps < rho
        the score may grow by what a distance of rho - eps allows; with eps = 0 this tells how robust plain sets are.

        Args:
            outputs: those of clean samples with labels.
            attack: rho, the norm of the perturbations, at least 0.
            eps: that for which the sets are made; default 0.

        Raises:
            ValueError: samples without labels, another attack or eps, or outputs in another norm.
        """
        check_eps([attack, eps])
        require_same("outputs", outputs.norm, self.norm, "the calibration is")
        scores, further = self._scores_of(outputs), float(attack) - float(eps)
        high = self._scores(scores, 1, further) if further > 0 else self._scores(scores, 0, 0.0)
        own = high.gather(1, _labels(outputs)[:, None])
        return (own <= self.threshold).double().mean().item()

    def _scores_of(self, outputs: CertifiedOutputs) -> Scores:
        scores = scores_of(outputs)
        if self.classes and (count := scores.logits.shape[1]) != self.classes:
            raise ValueError(f"outputs: they have {count} classes, expected the {self.classes} of the calibration")
        return scores

    def _scores(self, scores: Scores, sign: int, eps: float) -> Tensor:
        return _bounds(scores, self.score, self.temperature, sign, eps)


def calibrate(
    outputs: CertifiedOutputs, alpha: float = 0.1, score: Score = "margin", *, temperature: float = 1.0
) -> SetPredictor:
    r"""Calibrates prediction sets that cover the label with probability 1 - alpha under every perturbation.

    The scores, which are small if y is likely:

    .. math:: s_{margin} = \max_{j \ne y} f_j - f_y, \qquad s_{logit} = -f_y, \qquad
              s_{softmax} = -\log \frac{e^{f_y / T}}{\sum_j e^{f_j / T}}

    A perturbation of norm eps changes f_j - f_y by at most L_yj eps, with L_yj the smaller of sqrt 2 L and
    L_body |w_y - w_j| as in :func:`fastlip.certify`; f_y by the smaller of L eps and L_body |w_y| eps; and
    s_softmax by sqrt 2 L eps / T. Bounds of rounding errors are added. Sets depend on the order of the scores only:
    -log p and 1 - p of the same softmax give the same sets without a perturbation, and sigmoids of f_y those of -f_y.

    The threshold comes from clean samples. They must not have been used for training, and be exchangeable with those
    to come.

    Args:
        outputs: those of a classifier on the calibration samples with labels, by :func:`fastlip.certify_outputs`.
        alpha: the share of samples whose label may be missing, between 0 and 1; default 0.1.
        score: ``"margin"`` (default), ``"logit"`` or ``"softmax"``.
        temperature: T of the softmax; 1-Lipschitz networks need small ones, such as that of the training loss;
            default 1.0.

    Returns:
        A :class:`SetPredictor`.

    Raises:
        TypeError: temperature is not a number.
        ValueError: another alpha, score or temperature; outputs of another shape, or without labels.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3)).eval()
        >>> x = torch.rand(200, 4)
        >>> outputs = fastlip.certify_outputs(model, [(x, model(x + 0.3 * torch.randn(200, 4)).argmax(1))])
        >>> predictor = fastlip.conformal.calibrate(outputs[:100], alpha=0.1)
        >>> plain, robust = (predictor.sets(outputs[100:], eps) for eps in (0.0, 0.2))
        >>> plain.coverage <= robust.coverage, bool((plain.sizes <= robust.sizes).all())
        (True, True)
        >>> predictor.certified_coverage(outputs[100:], attack=0.2, eps=0.2) > 0.8
        True
    """
    one_of("score", score, get_args(Score))
    if isinstance(temperature, bool) or not isinstance(temperature, Real):
        raise TypeError(f"temperature={temperature!r}: expected a positive number")
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature={temperature}: expected a positive number")
    found = _bounds(scores_of(outputs), score, temperature, 0, 0.0)
    threshold, level = _quantile(found.gather(1, _labels(outputs)[:, None])[:, 0], alpha)
    return SetPredictor(threshold, float(alpha), level, score, float(temperature), outputs.norm, found.shape[1])


@dataclass(frozen=True)
class IntervalPredictor:
    """Predicts intervals of numbers, as :func:`calibrate_intervals` has calibrated them.

    Attributes:
        threshold: q, half the length of an interval without a perturbation; inf if there were too few samples.
        alpha: the share of samples that may be outside.
        level: k / (n + 1), the coverage that is guaranteed on average over calibrations.
        norm: the norm of perturbations of the network that was calibrated, in which every eps is.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 1)).eval()
        >>> outputs = fastlip.certify_outputs(model, [(torch.rand(39, 4), torch.rand(39))])
        >>> fastlip.conformal.calibrate_intervals(outputs, alpha=0.1).level
        0.9
    """

    threshold: float
    alpha: float
    level: float
    norm: InputNorm = field(default=L2, repr=False)

    def intervals(self, outputs: CertifiedOutputs, eps: float = 0.0) -> Interval:
        r"""Predicts an interval for every output: f_i(z) plus and minus q + L_i eps, and rounding.

        Args:
            outputs: those of samples that may be perturbed already, by :func:`fastlip.certify_outputs`.
            eps: the norm of the perturbations, at least 0.

        Returns:
            An :class:`fastlip.certification.Interval` of the shape of the outputs.

        Raises:
            ValueError: another eps, or outputs in another norm.
        """
        check_outputs(outputs)
        require_same("outputs", outputs.norm, self.norm, "the calibration is")
        return around(outputs.values, outputs.change(eps) + self.threshold)


def calibrate_intervals(outputs: CertifiedOutputs, alpha: float = 0.1) -> IntervalPredictor:
    r"""Calibrates intervals that hold the target with probability 1 - alpha under every perturbation.

    The score is the absolute error, the largest one over all outputs: max_i |f_i(x) - y_i| <= q. If z is observed,
    then |f_i(x) - f_i(z)| <= L_i eps + e, so the target lies within f_i(z) plus and minus q + L_i eps + e; for
    several outputs all targets do at once.

    Args:
        outputs: those of a network on the calibration samples with targets, by :func:`fastlip.certify_outputs`.
        alpha: the share of samples that may be outside, between 0 and 1; default 0.1.

    Returns:
        An :class:`IntervalPredictor`.

    Raises:
        ValueError: another alpha, or targets that are missing or of another shape.

    Example:
        >>> model = torch.nn.Sequential(lip.CayleyLinear(4, 1)).eval()
        >>> x = torch.rand(200, 4)
        >>> outputs = fastlip.certify_outputs(model, [(x, model(x).detach() + 0.1 * torch.rand(200, 1))])
        >>> predictor = fastlip.conformal.calibrate_intervals(outputs[:100], alpha=0.1)
        >>> low, high = predictor.intervals(outputs[100:], eps=0.5)
        >>> 1.1 < (high - low).mean() < 1.2
        tensor(True)
    """
    check_outputs(outputs)
    errors = (outputs.values - outputs.numbers()).abs().reshape(len(outputs), -1).amax(1)
    threshold, level = _quantile(errors, alpha)
    return IntervalPredictor(threshold, float(alpha), level, outputs.norm)


def _quantile(scores: Tensor, alpha: float) -> tuple[float, float]:
    """The k-th smallest of the scores (n,) and k / (n + 1), k = ceil((n + 1) (1 - alpha)); inf and 1 if k > n."""
    if isinstance(alpha, bool) or not isinstance(alpha, Real):
        raise TypeError(f"alpha={alpha!r}: expected a number between 0 and 1")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha={alpha}: expected a number between 0 and 1")
    count = len(scores)
    k = math.ceil((count + 1) * (1 - Fraction(str(float(alpha)))))  # of the decimal number: 0.1 is a tenth
    if k > count:
        return math.inf, 1.0
    return scores.kthvalue(k).values.item(), k / (count + 1)


def _labels(outputs: CertifiedOutputs) -> Tensor:
    """(n,): the classes of the samples."""
    return classes(outputs.values, outputs.known_targets())[1].long().argmax(1)


def _bounds(scores: Scores, score: Score, temperature: float, sign: int, eps: float) -> Tensor:
    """(n, c): the score of every class as computed (sign 0), or its least (-1) or largest (1) value within eps."""
    check_eps([eps])
    moved = sign * eps * UP
    lost = sign * lost_within(scores.errors, eps) if sign else torch.zeros(len(scores.logits), dtype=torch.float64)
    together, alone, pair = (share * lost[:, None] for share in scores.shares)
    if score == "logit":
        found = moved * scores.single + alone - scores.logits
    else:
        found = torch.empty_like(scores.logits)
        for label in range(found.shape[1]):
            # One class at a time: all pairs of classes at once may not fit into memory.
            gaps = scores.logits - scores.logits[:, label, None] + moved * scores.pairs[label] + pair
            found[:, label] = _of_gaps(gaps, label, score, temperature)
    if score == "softmax":
        plain = -torch.log_softmax(scores.logits / temperature, 1)
        joint = plain + (moved * scores.joint + together) * (SQRT2 / temperature)
        found = torch.maximum(found, joint) if sign < 0 else torch.minimum(found, joint)
    return found.nan_to_num(nan=sign * math.inf, posinf=math.inf, neginf=-math.inf)


def _of_gaps(gaps: Tensor, label: int, score: Score, temperature: float) -> Tensor:
    """(n,): the score of a class from the differences (n, c) of all others' scores to its own."""
    if score == "margin":
        return gaps.index_fill(1, torch.tensor([label]), -math.inf).amax(1)
    return torch.logsumexp(gaps.index_fill(1, torch.tensor([label]), 0.0) / temperature, 1)
