"""Certificates of the rank of a class among scores: it stays among the k largest, or does not become the largest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fastlip.certification.auditing import Audit
from fastlip.certification.certificates.outputs import CertifiedOutputs
from fastlip.certification.certificates.scores import Scores, scores_of
from fastlip.certification.input_norms import InputNorm
from fastlip.certification.norms import nearest_meeting, share_above
from fastlip.losses.labels import classes
from fastlip.nn.arguments import positive_int

_TINY = torch.finfo(torch.float64).tiny


@dataclass(frozen=True)
class RankCertificate:
    """The result of :func:`fastlip.certify_top_k` and :func:`fastlip.certify_target` on n samples.

    Attributes:
        radii: (n,), certified radii in ``norm`` (L2 unless inputs are weighted); 0 where the claim does not hold at
            the sample itself.
        margins: (n,), the margin of the claim as computed, at most 0 where it does not hold.
        lipschitz: the audited bound L of the network.
        audit: the bound of every layer.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3)).eval()
        >>> x = torch.rand(8, 4)
        >>> found = fastlip.certify_top_k(fastlip.certify_outputs(model, [(x, model(x).argmax(1))]), 2)
        >>> found.share, tuple(found.radii.shape)
        (1.0, (8,))
    """

    radii: Tensor
    margins: Tensor
    lipschitz: float
    audit: Audit = field(repr=False)

    @property
    def share(self) -> float:
        """The share of the samples of which the claim holds, without a perturbation; a tie counts against it."""
        return (self.margins > 0).double().mean().item()

    def curve(self, eps: float | Sequence[float] | Tensor) -> Tensor:
        """The share of the samples of which the claim holds under every perturbation, at many radii.

        Args:
            eps: a radius, or (k,) radii in ``norm``, at least 0.

        Returns:
            (k,) shares of the samples, float64.

        Raises:
            ValueError: a radius that is negative or not finite.
            TypeError: a radius that is no number.
        """
        return share_above(self.radii, eps)

    @property
    def norm(self) -> InputNorm:
        """The norm of perturbations in which radii are."""
        return self.audit.norm

    def lp_radii(self, p: float, weighted: bool = True) -> Tensor:
        """Certified radii in L_p norm, (n,), see :meth:`fastlip.certification.InputNorm.lp_factor`.

        Args:
            p: the norm, at least 1; ``math.inf`` for Linf.
            weighted: whether inputs are weighted in the L_p norm as in ``norm``; default True.

        Raises:
            ValueError: p below 1.
        """
        return self.radii * self.norm.lp_factor(p, weighted)


def certify_top_k(outputs: CertifiedOutputs, k: int) -> RankCertificate:
    r"""Certifies that the label stays among the k largest scores.

    .. math:: r(x) = \max\left(\operatorname{kth-smallest}_{j \ne y}
                     \frac{f_y - f_j - \sqrt 2\, e}{L_{yj} + \sqrt 2\, g},\;
                     \frac{D(f_y - f_{\pi_1}, \dots, f_y - f_{\pi_k}) - e}{L + g}\right)

    The label leaves the k largest scores only if k other classes reach it. Each class j needs the first radius of
    :func:`fastlip.certify`, with its bound L_yj of how fast f_y - f_j changes: min(sqrt 2 L, L_body |w_y - w_j|).
    Within the k-th smallest of these radii fewer than k classes get there. The second term uses that they must get
    there at once: pi sorts the other scores downwards, and the scores must move in L2 norm by at least

    .. math:: D(g)^2 = \min_a \; a^2 + \sum_{j \le k} \max(0, g_j - a)^2.

    For equal margins m that is m sqrt(k / (k + 1)), against m / sqrt 2 for the k-th class alone. For k = 1 this is
    the certificate of :func:`fastlip.certify`, with the bound e of the rounding errors counted for both evaluations.

    Args:
        outputs: those of a classifier with labels (integers or one-hot), by :func:`fastlip.certify_outputs`.
        k: from 1 to the number of classes minus 1.

    Returns:
        A :class:`fastlip.certification.RankCertificate`; its margins are f_y minus the k-th largest other score.

    Raises:
        TypeError: labels or k of another type.
        ValueError: outputs of another shape, no labels, or labels or k out of range.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 6)).eval()
        >>> x, labels = torch.rand(8, 4), torch.arange(8) % 6
        >>> outputs = fastlip.certify_outputs(model, [(x, labels)])
        >>> one, three = (fastlip.certify_top_k(outputs, k) for k in (1, 3))
        >>> one.share <= three.share, bool((one.radii <= three.radii).all())
        (True, True)
    """
    scores = scores_of(outputs)
    count = scores.logits.shape[1]
    if positive_int("k", k) >= count:
        raise ValueError(f"k={k}: expected 1 to {count - 1}, one less than the number of classes")
    _, true = classes(outputs.values, outputs.known_targets())
    label = true.long().argmax(1)
    gaps = scores.logits.gather(1, label[:, None]) - scores.logits
    alone = _radii_of_pairs(scores, gaps, scores.pairs[label]).masked_fill(true, math.inf)
    others = gaps.masked_fill(true, math.inf).topk(k, dim=1, largest=False).values
    together = _radius_of_distance(scores, nearest_meeting(others))
    return _certificate(outputs, alone.kthvalue(k, dim=1).values.maximum(together), others[:, -1])


def certify_target(outputs: CertifiedOutputs, target: int | Tensor) -> RankCertificate:
    r"""Certifies that one class does not become the prediction (a targeted certificate).

    .. math:: r(x) = \max\left(\max_{j \ne t} \frac{f_j - f_t - \sqrt 2\, e}{L_{jt} + \sqrt 2\, g},\;
                     \frac{D(f_1 - f_t, \dots, f_c - f_t) - e}{L + g}\right)

    The target t becomes the prediction only if it reaches every class j; the class against which this takes longest
    gives the first radius, with L_jt as in :func:`fastlip.certify`. The second term is the distance D, in L2 norm, to
    the scores where t meets all classes at once (see :func:`certify_top_k`). Labels are not needed: the radius is
    also positive for a misclassified sample, if another class than t is predicted.

    Args:
        outputs: those of a classifier, by :func:`fastlip.certify_outputs`.
        target: the class t, or (n,) integers with a class for each sample. One output has the classes 0 and 1.

    Returns:
        A :class:`fastlip.certification.RankCertificate`; its margins are the largest score minus f_t.

    Raises:
        TypeError: a target that is no integer.
        ValueError: outputs of another shape, or targets out of range or of another number than the samples.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 6)).eval()
        >>> outputs = fastlip.certify_outputs(model, [torch.rand(8, 4)])
        >>> found = fastlip.certify_target(outputs, 2)
        >>> bool(((found.radii > 0) <= (outputs.values.argmax(1) != 2)).all())
        True
    """
    scores = scores_of(outputs)
    chosen = _targets(target, *scores.logits.shape)
    own = torch.zeros_like(scores.logits, dtype=torch.bool).scatter_(1, chosen[:, None], True)
    gaps = scores.logits - scores.logits.gather(1, chosen[:, None])
    alone = _radii_of_pairs(scores, gaps, scores.pairs[chosen]).masked_fill(own, 0)
    together = _radius_of_distance(scores, nearest_meeting(gaps))
    margins = gaps.masked_fill(own, -math.inf).amax(1)
    return _certificate(outputs, alone.amax(1).maximum(together), margins)


def _targets(target: Any, samples: int, count: int) -> Tensor:
    """(n,): the target class of each sample."""
    found = torch.as_tensor(target).cpu()
    if found.is_floating_point() or found.is_complex() or found.dtype == torch.bool:
        raise TypeError(f"target: got {found.dtype}, expected a class or integers (n,)")
    if found.dim() and found.shape != (samples,):
        raise ValueError(f"target: got shape {tuple(found.shape)}, expected a number or ({samples},)")
    if not ((found >= 0) & (found < count)).all():
        raise ValueError(f"target: got values from {found.min()} to {found.max()}, expected 0 to {count - 1}")
    return found.long().expand(samples)


def _radii_of_pairs(scores: Scores, gaps: Tensor, slopes: Tensor) -> Tensor:
    """(n, c): the radii within which gaps (n, c) between two scores, of these slopes (n, c), stay positive."""
    errors, share = scores.errors, scores.shares[2]
    certain = gaps - share * (errors.error + errors.near)[:, None]
    return certain / (slopes + share * errors.growth[:, None]).clamp_min(_TINY)


def _radius_of_distance(scores: Scores, distance: Tensor) -> Tensor:
    """(n,): the radii within which the scores move by less than a distance (n,) in L2 norm."""
    errors, share = scores.errors, scores.shares[0]
    certain = distance - share * (errors.error + errors.near)
    return certain / (scores.joint + share * errors.growth).clamp_min(_TINY)


def _certificate(outputs: CertifiedOutputs, radii: Tensor, margins: Tensor) -> RankCertificate:
    radii = torch.minimum(radii, outputs.errors.reach).nan_to_num(nan=0.0).clamp_min(0)
    radii = torch.where(margins > 0, radii, 0.0)
    return RankCertificate(radii, margins, outputs.lipschitz, outputs.audit)
