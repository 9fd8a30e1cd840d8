"""Losses that estimate a Wasserstein distance between classes: KR, and HKR, which adds a hinge."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fastlip.losses.base import Loss, Reduction
from fastlip.losses.labels import binary, multiclass
from fastlip.losses.numbers import at_least_zero, fraction
from fastlip.losses.terms import hinge_terms, kr_terms, mixed, multiclass_hinge_terms


class KR(Loss):
    r"""Kantorovich-Rubinstein dual, to be *maximised*: mean of f over label 1 minus mean over label 0 (or -1).

    .. math:: \tfrac{1}{n_+} \sum_{y=1} f(x) - \tfrac{1}{n_-} \sum_{y=0} f(x)

    For a 1-Lipschitz f it is a lower bound of the Wasserstein-1 distance of the two classes. Adding a constant to f
    changes nothing if both labels occur; a label that does not occur contributes nothing. Maximising KR alone gives
    the largest margins on average, and pays the least attention to errors.

    Args:
        multi_gpu: count the classes over all processes of torch.distributed; default False. The average of the
            processes' losses and gradients is then that of the whole batch; every process must take part.
        reduction: ``"mean"`` (default, also ``"auto"``), ``"sum"`` or ``"none"``.

    Raises:
        ValueError: an argument is out of its range, or multi_gpu without an initialised process group.

    Examples:
        >>> fastlip.losses.KR()(torch.tensor([2.0, 1.0, -0.5, 0.5]), torch.tensor([1, 1, 0, 0]))
        tensor(1.5000)
    """

    whole_batch = True

    def __init__(self, multi_gpu: bool = False, reduction: Reduction = "mean"):
        super().__init__(reduction)
        self.multi_gpu = multi_gpu

    def forward(self, scores: Tensor, labels: Any) -> Tensor:
        """Computes the estimate.

        Args:
            scores: (n,), (n, 1), or (n, c) for c binary problems, which are averaged.
            labels: {0, 1} or {-1, 1} in the shape of the scores, or class numbers (n,) for one problem per class.

        Returns:
            A scalar; (n,) with ``reduction="none"``.
        """
        return self.reduce(kr_terms(*binary(scores, labels), self.multi_gpu).mean(-1), self.multi_gpu)


class HKR(Loss):
    r"""Hinge and KR together: alpha Hinge - (1 - alpha) KR.

    .. math:: \alpha\,\mathrm{Hinge} - (1 - \alpha)\,\mathrm{KR}

    Source: Serrurier et al., *Achieving robustness in classification using optimal transport with hinge
    regularization*, CVPR 2021.

    Args:
        alpha: weight of the hinge in [0, 1]; 0 gives -KR, 1 the hinge. Values near 1 favour accuracy.
        min_margin: margin that the hinge asks for, at least 0; default 1.0.
        multi_gpu: count the classes over all processes, as in :class:`fastlip.losses.KR`; default False.
        reduction: ``"mean"`` (default, also ``"auto"``), ``"sum"`` or ``"none"``.

    Raises:
        ValueError: an argument is out of its range, or multi_gpu without an initialised process group.

    Examples:
        >>> loss = fastlip.losses.HKR(alpha=0.9, min_margin=1.0)
        >>> loss(torch.tensor([2.0, 1.0, -0.5, 0.5]), torch.tensor([1, 1, 0, 0]))
        tensor(0.0750)
    """

    whole_batch = True

    def __init__(self, alpha: float, min_margin: float = 1.0, multi_gpu: bool = False, reduction: Reduction = "mean"):
        super().__init__(reduction)
        self.alpha = fraction("alpha", alpha)
        self.min_margin = at_least_zero("min_margin", min_margin)
        self.multi_gpu = multi_gpu

    def forward(self, scores: Tensor, labels: Any) -> Tensor:
        """Computes the loss.

        Args:
            scores: (n,), (n, 1), or (n, c) for c binary problems, which are averaged.
            labels: {0, 1} or {-1, 1} in the shape of the scores, or class numbers (n,) for one problem per class.

        Returns:
            A scalar; (n,) with ``reduction="none"``.
        """
        scores, positive = binary(scores, labels)
        hinge, kr = hinge_terms(scores, positive, self.min_margin), kr_terms(scores, positive, self.multi_gpu)
        return self.reduce(mixed(self.alpha, hinge, kr).mean(-1), self.multi_gpu)


class MulticlassKR(Loss):
    r"""KR of each class against the rest, averaged over classes; to be *maximised*.

    .. math:: \tfrac 1c \sum_j \mathrm{KR}(f_j, [y = j])

    Source: Serrurier et al., CVPR 2021.

    Args:
        multi_gpu: count the classes over all processes, as in :class:`fastlip.losses.KR`; default False.
        reduction: ``"mean"`` (default, also ``"auto"``), ``"sum"`` or ``"none"``.

    Raises:
        ValueError: an argument is out of its range, or multi_gpu without an initialised process group.

    Examples:
        >>> fastlip.losses.MulticlassKR()(torch.tensor([[1.0, 0.0], [0.5, 2.0]]), torch.tensor([0, 1]))
        tensor(1.2500)
    """

    whole_batch = True

    def __init__(self, multi_gpu: bool = False, reduction: Reduction = "mean"):
        super().__init__(reduction)
        self.multi_gpu = multi_gpu

    def forward(self, logits: Tensor, labels: Any) -> Tensor:
        """Computes the estimate.

        Args:
            logits: (n, c) with c >= 2.
            labels: class numbers (n,) or one-hot rows (n, c).

        Returns:
            A scalar; (n,) with ``reduction="none"``.
        """
        return self.reduce(kr_terms(*multiclass(logits, labels), self.multi_gpu).mean(-1), self.multi_gpu)


class MulticlassHKR(Loss):
    r"""Hinge and KR of each class against the rest: alpha MulticlassHinge - (1 - alpha) MulticlassKR.

    .. math:: \alpha\,\mathrm{MulticlassHinge} - (1 - \alpha)\,\mathrm{MulticlassKR}

    Source: Serrurier et al., CVPR 2021.

    Args:
        alpha: weight of the hinge in [0, 1]; 0 gives -MulticlassKR, 1 the hinge. Values near 1 favour accuracy.
        min_margin: margin that the hinge asks for, at least 0; default 1.0.
        multi_gpu: count the classes over all processes, as in :class:`fastlip.losses.KR`; default False.
        reduction: ``"mean"`` (default, also ``"auto"``), ``"sum"`` or ``"none"``.

    Raises:
        ValueError: an argument is out of its range, or multi_gpu without an initialised process group.

    Examples:
        >>> loss = fastlip.losses.MulticlassHKR(alpha=0.9)
        >>> loss(torch.tensor([[1.0, 0.0], [0.5, 2.0]]), torch.tensor([0, 1]))
        tensor(0.2125)
    """

    recipe_name = "hkr"
    whole_batch = True

    def __init__(self, alpha: float, min_margin: float = 1.0, multi_gpu: bool = False, reduction: Reduction = "mean"):
        super().__init__(reduction)
        self.alpha = fraction("alpha", alpha)
        self.min_margin = at_least_zero("min_margin", min_margin)
        self.multi_gpu = multi_gpu

    @classmethod
    def from_recipe(cls, options: Mapping[str, Any], reduction: Reduction, multi_gpu: bool) -> MulticlassHKR:
        """The loss with the recipe's alpha and min_margin."""
        return cls(options["alpha"], options["min_margin"], multi_gpu, reduction)

    def forward(self, logits: Tensor, labels: Any) -> Tensor:
        """Computes the loss.

        Args:
            logits: (n, c) with c >= 2.
            labels: class numbers (n,) or one-hot rows (n, c).

        Returns:
            A scalar; (n,) with ``reduction="none"``.
        """
        logits, true = multiclass(logits, labels)
        hinge, kr = multiclass_hinge_terms(logits, true, self.min_margin), kr_terms(logits, true, self.multi_gpu)
        return self.reduce(mixed(self.alpha, hinge, kr).mean(-1), self.multi_gpu)
