"""Hinge losses: they ask for a margin, and ignore samples beyond it."""

from __future__ import annotations

import math
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from fastlip.losses.base import Loss, Reduction
from fastlip.losses.labels import binary, multiclass
from fastlip.losses.numbers import at_least_zero
from fastlip.losses.terms import hinge_terms, multiclass_hinge_terms


class Hinge(Loss):
    r"""Binary hinge: max(0, m/2 - y f) with y = +-1, so that two classes are m apart.

    .. math:: \max(0, \tfrac m2 - y f)

    Source: deel-torchlip. A larger ``min_margin`` asks for larger certificates, and gives up samples that cannot have
    them.

    Args:
        min_margin: m, at least 0; default 1.0.
        reduction: ``"mean"`` (default, also ``"auto"``), ``"sum"`` or ``"none"``.

    Raises:
        ValueError: an argument is out of its range.

    Examples:
        >>> loss = fastlip.losses.Hinge(min_margin=2.0, reduction="none")
        >>> loss(torch.tensor([1.5, 0.5, -0.2]), torch.tensor([1, 1, 0]))
        tensor([0.0000, 0.5000, 0.8000])
    """

    def __init__(self, min_margin: float = 1.0, reduction: Reduction = "mean"):
        super().__init__(reduction)
        self.min_margin = at_least_zero("min_margin", min_margin)

    def forward(self, scores: Tensor, labels: Any) -> Tensor:
        """Computes the loss.

        Args:
            scores: (n,), (n, 1), or (n, c) for c binary problems, which are averaged.
            labels: {0, 1} or {-1, 1} in the shape of the scores, or class numbers (n,) for one problem per class.

        Returns:
            A scalar; (n,) with ``reduction="none"``.
        """
        return self.reduce(hinge_terms(*binary(scores, labels), self.min_margin).mean(-1))


class MulticlassHinge(Loss):
    r"""Hinge of each class against the rest, averaged over classes; the true class counts c - 1 times.

    .. math:: \tfrac 1c \Bigl((c - 1) \max(0, \tfrac m2 - f_y) + \sum_{j \ne y} \max(0, \tfrac m2 + f_j)\Bigr)

    Source: deel-torchlip.

    Args:
        min_margin: m, at least 0; a larger one trades accuracy for robustness; default 1.0.
        reduction: ``"mean"`` (default, also ``"auto"``), ``"sum"`` or ``"none"``.

    Raises:
        ValueError: an argument is out of its range.

    Examples:
        >>> loss = fastlip.losses.MulticlassHinge(min_margin=1.0)
        >>> loss(torch.tensor([[0.3, -0.5, 0.1]]), torch.tensor([0]))
        tensor(0.3333)
    """

    def __init__(self, min_margin: float = 1.0, reduction: Reduction = "mean"):
        super().__init__(reduction)
        self.min_margin = at_least_zero("min_margin", min_margin)

    def forward(self, logits: Tensor, labels: Any) -> Tensor:
        """Computes the loss.

        Args:
            logits: (n, c) with c >= 2.
            labels: class numbers (n,) or one-hot rows (n, c).

        Returns:
            A scalar; (n,) with ``reduction="none"``.
        """
        return self.reduce(multiclass_hinge_terms(*multiclass(logits, labels), self.min_margin).mean(-1))


class MultiMargin(Loss):
    r"""Mean over classes of the hinge on the difference to each other class: ``torch.nn.MultiMarginLoss``.

    .. math:: \tfrac 1c \sum_{j \ne y} \max(0, m - f_y + f_j)

    Args:
        min_margin: m, at least 0; a larger one trades accuracy for robustness; default 1.0.
        reduction: ``"mean"`` (default, also ``"auto"``), ``"sum"`` or ``"none"``.

    Raises:
        ValueError: an argument is out of its range.

    Examples:
        >>> loss = fastlip.losses.MultiMargin(min_margin=1.0)
        >>> loss(torch.tensor([[0.5, 0.2, -1.0]]), torch.tensor([0]))
        tensor(0.2333)
    """

    def __init__(self, min_margin: float = 1.0, reduction: Reduction = "mean"):
        super().__init__(reduction)
        self.min_margin = at_least_zero("min_margin", min_margin)

    def forward(self, logits: Tensor, labels: Any) -> Tensor:
        """Computes the loss.

        Args:
            logits: (n, c) with c >= 2.
            labels: class numbers (n,) or one-hot rows (n, c).

        Returns:
            A scalar; (n,) with ``reduction="none"``.
        """
        logits, true = multiclass(logits, labels)
        score = logits.masked_fill(~true, 0).sum(1, keepdim=True)
        return self.reduce(F.relu(self.min_margin - score + logits).masked_fill(true, 0).mean(1))


class CategoricalHinge(Loss):
    r"""Hinge on the margin that certificates use: max(0, m - (f_y - max_{j != y} f_j)).

    .. math:: \max\bigl(0, m - f_y + \max_{j \ne y} f_j\bigr)

    Source: deel-torchlip. Samples with a margin beyond m are ignored: a larger m trades accuracy for robustness.

    Args:
        min_margin: m, at least 0; default 1.0.
        reduction: ``"mean"`` (default, also ``"auto"``), ``"sum"`` or ``"none"``.

    Raises:
        ValueError: an argument is out of its range.

    Examples:
        >>> loss = fastlip.losses.CategoricalHinge(min_margin=1.0)
        >>> loss(torch.tensor([[0.5, 0.2, -1.0]]), torch.tensor([0]))
        tensor(0.7000)
    """

    def __init__(self, min_margin: float = 1.0, reduction: Reduction = "mean"):
        super().__init__(reduction)
        self.min_margin = at_least_zero("min_margin", min_margin)

    def forward(self, logits: Tensor, labels: Any) -> Tensor:
        """Computes the loss.

        Args:
            logits: (n, c) with c >= 2.
            labels: class numbers (n,) or one-hot rows (n, c).

        Returns:
            A scalar; (n,) with ``reduction="none"``.
        """
        logits, true = multiclass(logits, labels)
        rival = logits.masked_fill(true, -math.inf).amax(1)
        return self.reduce(F.relu(self.min_margin - logits.masked_fill(~true, 0).sum(1) + rival))
