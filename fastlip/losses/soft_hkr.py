"""HKR of the true class against a smooth maximum of the others: by a softmax average, and by a log-sum-exp."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastlip.losses.base import Loss, Reduction, sum_over_processes
from fastlip.losses.labels import multiclass
from fastlip.losses.numbers import fraction, positive
from fastlip.losses.terms import hinge_terms, mixed
from fastlip.nn._running import move


class SoftHKR(Loss):
    r"""HKR of the true class against a softmax average of the others.

    .. math:: (1-\alpha)\Bigl(\sum_{j \ne y} w_j f_j - f_y\Bigr)
              + \alpha \Bigl(\bigl[\tfrac m2 - f_y\bigr]_+ + \sum_{j \ne y} w_j \bigl[\tfrac m2 + f_j\bigr]_+\Bigr)

    Source: Serrurier et al., 2023, arXiv 2206.06854.

    w is the softmax of theta f over j != y, with theta = temperature m / max(a, m) clamped to [0.005, 250]. a is a
    running mean of \|f\| (buffer ``current_mean``), which training mode updates.

    Args:
        alpha: weight of the hinge in [0, 1]; default 0.9. Values near 1 favour accuracy.
        min_margin: m, above 0: margin that the hinge asks for; default 1.0.
        alpha_mean: in [0, 1]: weight of the old value in each update of the running mean; default 0.99.
        temperature: above 0; default 1.0. A higher one counts only the best other class, which favours accuracy.
        multi_gpu: take the running mean over all processes of torch.distributed; default False.
        reduction: ``"mean"`` (default, also ``"auto"``), ``"sum"`` or ``"none"``.

    Raises:
        ValueError: an argument is out of its range, multi_gpu without an initialised process group, or training mode
            inside ``torch.func.grad`` or ``vmap``, which cannot update the running mean.

    Examples:
        >>> loss = fastlip.losses.SoftHKR(alpha=0.9)
        >>> loss(torch.tensor([[1.0, 0.0, -0.5], [0.2, 2.0, 0.0]]), torch.tensor([0, 1]))
        tensor(0.2606)
    """

    current_mean: Tensor
    whole_batch = True

    def __init__(
        self,
        alpha: float = 0.9,
        min_margin: float = 1.0,
        alpha_mean: float = 0.99,
        temperature: float = 1.0,
        multi_gpu: bool = False,
        reduction: Reduction = "mean",
    ):
        super().__init__(reduction)
        self.alpha = fraction("alpha", alpha)
        self.multi_gpu = multi_gpu
        self.min_margin = positive("min_margin", min_margin)
        self.alpha_mean = fraction("alpha_mean", alpha_mean)
        self.temperature = positive("temperature", temperature)
        self.register_buffer("current_mean", torch.tensor(float(min_margin)))

    def forward(self, logits: Tensor, labels: Any) -> Tensor:
        """Computes the loss; in training mode also updates the running mean.

        Args:
            logits: (n, c) with c >= 2.
            labels: class numbers (n,) or one-hot rows (n, c).

        Returns:
            A scalar; (n,) with ``reduction="none"``.
        """
        logits, true = multiclass(logits, labels)
        theta = (self.temperature * self.min_margin / self._mean(logits)).clamp(0.005, 250)
        weights = torch.softmax((theta * logits).masked_fill(true, -math.inf), 1).masked_fill(true, 1)
        signed = torch.where(true, logits, -logits)
        kr = (weights * signed).sum(1)
        hinge = (weights * hinge_terms(logits, true, self.min_margin)).sum(1)
        return self.reduce(mixed(self.alpha, hinge, kr), self.multi_gpu)

    @torch.no_grad()
    def _mean(self, logits: Tensor) -> Tensor:
        """The running mean of the logits' moduli, updated in training mode, at least min_margin."""
        mean = self.current_mean.to(logits)
        if self.training:
            sums = torch.stack((logits.abs().sum(), logits.new_full((), logits.numel())))
            total, count = sum_over_processes(sums, self.multi_gpu)
            mean = self.alpha_mean * mean + (1 - self.alpha_mean) * total / count
            move(self, self.current_mean, mean.clamp(0.005, 1000))
        return mean.clamp(self.min_margin, 20000)


class LseHKR(Loss):
    r"""HKR of the true class against a log-sum-exp of the others.

    .. math:: (1 - \alpha) (L - g_y) + \alpha \bigl(\max(0, \tfrac m2 - g_y) + \max(0, \tfrac m2 + L)\bigr)

    Source: deel-torchlip. g = temperature f, m = ``min_margin``, and L is the log-sum-exp of g over j != y, at the
    sharpness that keeps it between max g_j and max g_j + penalty m / 2.

    Args:
        alpha: weight of the hinge in [0, 1]; default 1.0. Values near 1 favour accuracy.
        temperature: above 0; it multiplies the logits; default 1.0.
        penalty: above 0; default 1.0. A smaller one brings L nearer to the maximum.
        min_margin: m, above 0: margin that the hinge asks for; default 1.0.
        reduction: ``"mean"`` (default, also ``"auto"``), ``"sum"`` or ``"none"``.

    Raises:
        ValueError: an argument is out of its range.

    Examples:
        >>> loss = fastlip.losses.LseHKR(alpha=0.9)
        >>> loss(torch.tensor([[1.0, 0.0, -0.5], [0.2, 2.0, 0.0]]), torch.tensor([0, 1]))
        tensor(0.7497)
    """

    def __init__(
        self,
        alpha: float = 1.0,
        temperature: float = 1.0,
        penalty: float = 1.0,
        min_margin: float = 1.0,
        reduction: Reduction = "mean",
    ):
        super().__init__(reduction)
        self.alpha = fraction("alpha", alpha)
        self.temperature = positive("temperature", temperature)
        self.penalty = positive("penalty", penalty)
        self.min_margin = positive("min_margin", min_margin)

    def forward(self, logits: Tensor, labels: Any) -> Tensor:
        """Computes the loss.

        Args:
            logits: (n, c) with c >= 2.
            labels: class numbers (n,) or one-hot rows (n, c).

        Returns:
            A scalar; (n,) with ``reduction="none"``.
        """
        logits, true = multiclass(logits, labels)
        logits = self.temperature * logits
        score = logits.masked_fill(~true, 0).sum(1)
        # With a single other class every sharpness gives that class's score.
        sharpness = math.log(logits.shape[1] - 1) / (self.min_margin * self.penalty / 2) or 1.0
        rival = torch.logsumexp((sharpness * logits).masked_fill(true, -math.inf), 1) / sharpness
        hinge = F.relu(self.min_margin / 2 - score) + F.relu(self.min_margin / 2 + rival)
        return self.reduce(mixed(self.alpha, hinge, score - rival))
