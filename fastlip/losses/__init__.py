r"""Losses for 1-Lipschitz classifiers: each trades accuracy against certified robustness in a different way.

A 1-Lipschitz network cannot raise its margins by scaling its outputs, so that the loss decides where on the
accuracy-robustness curve training ends (Béthune et al., *Pay attention to your loss*, NeurIPS 2022, arXiv
2104.05097). Parameters and values follow deel-torchlip, so that results carry over.

Binary losses (``Hinge``, ``KR``, ``HKR``) take scores (n,), (n, 1), or (n, c) for c binary problems, and labels in
{0, 1} or {-1, 1} of as many elements, of any dtype, or class numbers (n,) for one problem per class. Multiclass
losses take logits (n, c), c >= 2, and labels that are integers (n,) or one-hot (n, c) with entries {0, 1} or
{-1, 1}. The two cross-entropies take both kinds, and soft labels: rows of probabilities (n, c). Labels may be
tensors, NumPy arrays or lists.

Every loss has ``reduction``: ``"mean"`` (also ``"auto"``), ``"sum"`` or ``"none"`` (one value per sample). 16-bit
logits are raised to float32, and the loss is float32. Labels out of range, shapes that do not fit and
parameters out of range raise ValueError.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from fastlip.losses.cross_entropy import ClassOptions, offset_cross_entropy
from fastlip.losses.labels import at_least_zero, binary, fraction, multiclass, positive

__all__ = [
    "HKR",
    "KR",
    "CategoricalHinge",
    "Hinge",
    "LseHKR",
    "MultiMargin",
    "MulticlassHKR",
    "MulticlassHinge",
    "MulticlassKR",
    "OffsetCrossEntropy",
    "SoftHKR",
    "TemperatureCrossEntropy",
]

_REDUCTIONS = ("mean", "auto", "sum", "none")


class _Loss(nn.Module):
    def __init__(self, reduction: str):
        super().__init__()
        if reduction not in _REDUCTIONS:
            raise ValueError(f"reduction={reduction!r}: allowed are {', '.join(map(repr, _REDUCTIONS))}")
        self.reduction = reduction

    def reduce_weighted(self, losses: Tensor, share: Tensor) -> Tensor:
        """Over samples; a mean divides by the sum of their shares."""
        if self.reduction in ("none", "sum"):
            return self.reduce(losses)
        return losses.sum() / share.sum()

    def reduce(self, losses: Tensor, multi_gpu: bool = False) -> Tensor:
        """Over samples. multi_gpu: the average over processes is the mean over all samples."""
        if self.reduction == "none":
            return losses
        if self.reduction == "sum":
            return losses.sum()
        if not multi_gpu:
            return losses.mean()
        count = _sum_over_processes(losses.new_full((), len(losses)), multi_gpu)
        return losses.sum() * (dist.get_world_size() / count)


class OffsetCrossEntropy(_Loss, ClassOptions):
    r"""Cross-entropy that asks for a margin: t CE((f - u onehot(y)) / t).

    .. math:: t \log \sum_j \exp\bigl((f_j - f_y + u\,[j \ne y]) / t\bigr)

    Prach, Lampert, ECCV 2022; the comparison paper (CVPR 2024) trains with u = 2 sqrt(2) 36/255 and t = 1/4.
    The offset u is the margin below which a sample still matters: larger trades accuracy for robustness. As the
    temperature t goes to 0 this becomes the hinge max(0, u - margin), which ignores samples beyond the margin; as
    t grows all samples pull alike. u = 0, t = 1 is cross-entropy. A single score is the logit of class 1
    against 0. Soft labels p, rows of probabilities as of mixup, take the place of the one-hot vector in both the
    offset and the cross-entropy.

    Args:
        offset: u, at least 0.
        temperature: t, above 0.
        reduction: "mean", "sum" or "none".
        label_smoothing: s in [0, 1]; the target becomes (1 - s) p + s / c.
        weight: (c,) class weights of at least 0. As in torch, a mean over hard labels divides by the weights' sum.
    """

    def __init__(
        self,
        offset: float,
        temperature: float = 1.0,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        weight: Any = None,
    ):
        super().__init__(reduction)
        self.set_class_options(label_smoothing, weight)
        self.offset = at_least_zero("offset", offset)
        self.temperature = positive("temperature", temperature)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of logits (n, c) or binary scores; labels are hard or soft."""
        arguments = self.offset, self.temperature, self.label_smoothing, self.weight
        return self.reduce_weighted(*offset_cross_entropy(logits, labels, *arguments))


class TemperatureCrossEntropy(_Loss, ClassOptions):
    r"""Cross-entropy of scaled logits, CE(tau f) / tau, ``temperature`` being tau as in Béthune et al. (2022).

    The temperature multiplies the logits (deel-torchlip's convention): it is the inverse of OffsetCrossEntropy's.
    As tau goes to 0 the gradient tends to 1/c - onehot(y) for every sample, as with KR: robust, less accurate. As
    tau grows only samples with a wrong or small margin count, max(0, max_j f_j - f_y): accurate, less robust.

    A single score is the logit of class 1 against 0.

    Args:
        temperature: tau, above 0.
        reduction, label_smoothing, weight: as of :class:`OffsetCrossEntropy`.
    """

    def __init__(self, temperature: float, reduction: str = "mean", label_smoothing: float = 0.0, weight: Any = None):
        super().__init__(reduction)
        self.set_class_options(label_smoothing, weight)
        self.temperature = positive("temperature", temperature)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of logits (n, c) or binary scores; labels are hard or soft."""
        arguments = 0.0, 1 / self.temperature, self.label_smoothing, self.weight
        return self.reduce_weighted(*offset_cross_entropy(logits, labels, *arguments))


class Hinge(_Loss):
    """Binary hinge, max(0, min_margin / 2 - y f) with y = +-1: two classes min_margin apart (deel-torchlip).

    A larger min_margin asks for larger certificates, and gives up samples that cannot have them.
    """

    def __init__(self, min_margin: float = 1.0, reduction: str = "mean"):
        super().__init__(reduction)
        self.min_margin = at_least_zero("min_margin", min_margin)

    def forward(self, scores: Tensor, labels: Tensor) -> Tensor:
        """The loss of binary scores."""
        return self.reduce(_hinge(*binary(scores, labels), self.min_margin).mean(-1))


class KR(_Loss):
    r"""Kantorovich-Rubinstein dual: mean of f over label 1 minus mean over label 0 (or -1), to be *maximised*.

    For a 1-Lipschitz f it is a lower bound of the Wasserstein-1 distance of the two classes. Adding a constant
    to f changes nothing where both labels occur; a label that does not occur contributes nothing. Maximising it
    alone gives the largest margins on average, and the least regard to errors.

    Args: multi_gpu: sum the classes' counts over all processes of torch.distributed, so that the average of the
    processes' losses and gradients is that of the whole batch (every process must take part). reduction.
    """

    def __init__(self, multi_gpu: bool = False, reduction: str = "mean"):
        super().__init__(reduction)
        self.multi_gpu = multi_gpu

    def forward(self, scores: Tensor, labels: Tensor) -> Tensor:
        """The estimate for binary scores."""
        return self.reduce(_kr(*binary(scores, labels), self.multi_gpu).mean(-1), self.multi_gpu)


class HKR(_Loss):
    """alpha Hinge - (1 - alpha) KR (Serrurier et al., CVPR 2021). alpha = 0 is -KR, alpha = 1 the hinge.

    alpha near 1 favours accuracy; min_margin sets the margin that the hinge asks for. multi_gpu as in KR.
    """

    def __init__(self, alpha: float, min_margin: float = 1.0, multi_gpu: bool = False, reduction: str = "mean"):
        super().__init__(reduction)
        self.alpha = fraction("alpha", alpha)
        self.min_margin = at_least_zero("min_margin", min_margin)
        self.multi_gpu = multi_gpu

    def forward(self, scores: Tensor, labels: Tensor) -> Tensor:
        """The loss of binary scores."""
        scores, true = binary(scores, labels)
        hinge, kr = _hinge(scores, true, self.min_margin), _kr(scores, true, self.multi_gpu)
        return self.reduce(_mix(self.alpha, hinge, kr).mean(-1), self.multi_gpu)


class MulticlassHinge(_Loss):
    """Hinge of each class against the rest, averaged; the true class counts c - 1 times (deel-torchlip)."""

    def __init__(self, min_margin: float = 1.0, reduction: str = "mean"):
        super().__init__(reduction)
        self.min_margin = at_least_zero("min_margin", min_margin)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of logits (n, c)."""
        return self.reduce(_multiclass_hinge(*multiclass(logits, labels), self.min_margin).mean(-1))


class MulticlassKR(_Loss):
    """KR of each class against the rest, averaged over classes; to be *maximised*. multi_gpu as in KR."""

    def __init__(self, multi_gpu: bool = False, reduction: str = "mean"):
        super().__init__(reduction)
        self.multi_gpu = multi_gpu

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The estimate for logits (n, c)."""
        return self.reduce(_kr(*multiclass(logits, labels), self.multi_gpu).mean(-1), self.multi_gpu)


class MulticlassHKR(_Loss):
    """alpha MulticlassHinge - (1 - alpha) MulticlassKR (Serrurier et al., CVPR 2021); parameters as in HKR."""

    def __init__(self, alpha: float, min_margin: float = 1.0, multi_gpu: bool = False, reduction: str = "mean"):
        super().__init__(reduction)
        self.alpha = fraction("alpha", alpha)
        self.min_margin = at_least_zero("min_margin", min_margin)
        self.multi_gpu = multi_gpu

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of logits (n, c)."""
        logits, true = multiclass(logits, labels)
        hinge, kr = _multiclass_hinge(logits, true, self.min_margin), _kr(logits, true, self.multi_gpu)
        return self.reduce(_mix(self.alpha, hinge, kr).mean(-1), self.multi_gpu)


class SoftHKR(_Loss):
    r"""HKR of the true class against a softmax average of the others (Serrurier et al., 2023, arXiv 2206.06854).

    .. math:: (1-\alpha)\Bigl(\sum_{j \ne y} w_j f_j - f_y\Bigr)
              + \alpha \Bigl(\bigl[\tfrac m2 - f_y\bigr]_+ + \sum_{j \ne y} w_j \bigl[\tfrac m2 + f_j\bigr]_+\Bigr)

    with w the softmax of theta f over j != y, theta = temperature m / max(a, m) within [0.005, 250] and a a
    running mean of \|f\| (buffer ``current_mean``, updated by alpha_mean in training mode). A higher
    temperature counts only the strongest rival, which favours accuracy; alpha near 1 does so too.

    Args: alpha in [0, 1], min_margin m > 0, alpha_mean in [0, 1], temperature > 0, multi_gpu as in KR, reduction.
    """

    current_mean: Tensor

    def __init__(
        self,
        alpha: float = 0.9,
        min_margin: float = 1.0,
        alpha_mean: float = 0.99,
        temperature: float = 1.0,
        multi_gpu: bool = False,
        reduction: str = "mean",
    ):
        super().__init__(reduction)
        self.alpha = fraction("alpha", alpha)
        self.multi_gpu = multi_gpu
        self.min_margin = positive("min_margin", min_margin)
        self.alpha_mean = fraction("alpha_mean", alpha_mean)
        self.temperature = positive("temperature", temperature)
        self.register_buffer("current_mean", torch.tensor(float(min_margin)))

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of logits (n, c)."""
        logits, true = multiclass(logits, labels)
        theta = (self.temperature * self.min_margin / self._mean(logits)).clamp(0.005, 250)
        weights = torch.softmax((theta * logits).masked_fill(true, -math.inf), 1).masked_fill(true, 1)
        signed = torch.where(true, logits, -logits)
        kr = (weights * signed).sum(1)
        hinge = (weights * _hinge(logits, true, self.min_margin)).sum(1)
        return self.reduce(_mix(self.alpha, hinge, kr), self.multi_gpu)

    @torch.no_grad()
    def _mean(self, logits: Tensor) -> Tensor:
        mean = self.current_mean.to(logits)
        if self.training:
            sums = torch.stack((logits.abs().sum(), logits.new_full((), logits.numel())))
            total, count = _sum_over_processes(sums, self.multi_gpu)
            mean = self.alpha_mean * mean + (1 - self.alpha_mean) * total / count
            self.current_mean.copy_(mean.clamp(0.005, 1000))
        return mean.clamp(self.min_margin, 20000)


class LseHKR(_Loss):
    r"""HKR of the true class against a log-sum-exp of the others (deel-torchlip).

    With g = temperature f, m = min_margin and L the log-sum-exp of g over j != y at the sharpness that keeps it
    between max g_j and max g_j + penalty m / 2:
    (1 - alpha) (L - g_y) + alpha (max(0, m/2 - g_y) + max(0, m/2 + L)).

    Args: alpha in [0, 1] (near 1 favours accuracy), temperature > 0, penalty > 0 (smaller is nearer to the
    maximum), min_margin > 0, reduction.
    """

    def __init__(
        self,
        alpha: float = 1.0,
        temperature: float = 1.0,
        penalty: float = 1.0,
        min_margin: float = 1.0,
        reduction: str = "mean",
    ):
        super().__init__(reduction)
        self.alpha = fraction("alpha", alpha)
        self.temperature = positive("temperature", temperature)
        self.penalty = positive("penalty", penalty)
        self.min_margin = positive("min_margin", min_margin)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of logits (n, c)."""
        logits, true = multiclass(logits, labels)
        logits = self.temperature * logits
        score = logits.masked_fill(~true, 0).sum(1)
        # With a single rival every sharpness gives that rival.
        sharpness = math.log(logits.shape[1] - 1) / (self.min_margin * self.penalty / 2) or 1.0
        rival = torch.logsumexp((sharpness * logits).masked_fill(true, -math.inf), 1) / sharpness
        hinge = F.relu(self.min_margin / 2 - score) + F.relu(self.min_margin / 2 + rival)
        return self.reduce(_mix(self.alpha, hinge, score - rival))


class MultiMargin(_Loss):
    """Mean over classes of max(0, min_margin - f_y + f_j), 0 at j = y: ``torch.nn.MultiMarginLoss``."""

    def __init__(self, min_margin: float = 1.0, reduction: str = "mean"):
        super().__init__(reduction)
        self.min_margin = at_least_zero("min_margin", min_margin)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of logits (n, c)."""
        logits, true = multiclass(logits, labels)
        score = logits.masked_fill(~true, 0).sum(1, keepdim=True)
        return self.reduce(F.relu(self.min_margin - score + logits).masked_fill(true, 0).mean(1))


class CategoricalHinge(_Loss):
    """max(0, min_margin - margin), the margin being f_y - max_{j != y} f_j: what certificates are made of.

    Samples beyond min_margin are ignored: a larger one trades accuracy for robustness.
    """

    def __init__(self, min_margin: float = 1.0, reduction: str = "mean"):
        super().__init__(reduction)
        self.min_margin = at_least_zero("min_margin", min_margin)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of logits (n, c)."""
        logits, true = multiclass(logits, labels)
        rival = logits.masked_fill(true, -math.inf).amax(1)
        return self.reduce(F.relu(self.min_margin - logits.masked_fill(~true, 0).sum(1) + rival))


def _mix(alpha: float, hinge: Tensor, kr: Tensor) -> Tensor:
    # 0 times an infinite term would be NaN: the limits leave the other term out.
    if alpha in (0, 1):
        return hinge if alpha else -kr
    return alpha * hinge - (1 - alpha) * kr


def _hinge(scores: Tensor, true: Tensor, min_margin: float) -> Tensor:
    return F.relu(min_margin / 2 - torch.where(true, scores, -scores))


def _multiclass_hinge(logits: Tensor, true: Tensor, min_margin: float) -> Tensor:
    hinge = _hinge(logits, true, min_margin)
    return torch.where(true, (logits.shape[1] - 1) * hinge, hinge)


def _kr(scores: Tensor, true: Tensor, multi_gpu: bool) -> Tensor:
    """Terms (n, c) whose mean over samples is the KR estimate of each column."""
    counts = torch.stack((true.sum(0), (~true).sum(0))).to(scores.dtype)
    positives, negatives = _sum_over_processes(counts, multi_gpu)
    total = positives + negatives
    return scores * torch.where(true, total / positives.clamp_min(1), -total / negatives.clamp_min(1))


def _sum_over_processes(value: Tensor, multi_gpu: bool) -> Tensor:
    if multi_gpu:
        if not dist.is_initialized():
            raise ValueError("multi_gpu=True: torch.distributed is not initialised")
        dist.all_reduce(value)
    return value
