"""Cross-entropies for 1-Lipschitz classifiers: with an offset that asks for a margin, and with a temperature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastlip.losses.base import Loss, Reduction
from fastlip.losses.labels import targets
from fastlip.losses.numbers import at_least_zero, fraction, positive


class OffsetCrossEntropy(Loss):
    r"""Cross-entropy that asks for a margin: t CE((f - u onehot(y)) / t).

    .. math:: t \log \sum_j \exp\bigl((f_j - f_y + u\,[j \ne y]) / t\bigr)

    Source: Prach, Lampert, ECCV 2022. The comparison paper (CVPR 2024) trains with u = 2 sqrt(2) 36/255 and t = 1/4.

    A sample matters as long as its margin is below the offset u: a larger u trades accuracy for robustness. As the
    temperature t goes to 0 the loss becomes the hinge max(0, u - margin), which ignores samples beyond the margin; as
    t grows all samples pull alike. u = 0 and t = 1 give cross-entropy. A single score is the logit of class 1
    against 0. Soft labels p, rows of probabilities as mixup makes them, replace the one-hot vector both in the offset
    and in the cross-entropy.

    Args:
        offset: u, at least 0, in units of the logits.
        temperature: t, above 0; default 1.0. A lower one concentrates on samples with a small margin.
        reduction: ``"mean"`` (default, also ``"auto"``), ``"sum"`` or ``"none"``.
        label_smoothing: s in [0, 1]; the target becomes (1 - s) p + s / c; default 0.0.
        weight: (c,) class weights of at least 0; None weighs all alike. As in torch, a mean over hard labels divides
            by the sum of the samples' weights.

    Raises:
        ValueError: an argument is out of its range.

    Examples:
        >>> loss = fastlip.losses.OffsetCrossEntropy(offset=0.5, temperature=0.25)
        >>> loss(torch.tensor([[2.0, 0.5], [0.1, 0.3]]), torch.tensor([0, 1]))
        tensor(0.1852)
    """

    recipe_name = "offset-ce"
    weight: Tensor | None

    def __init__(
        self,
        offset: float,
        temperature: float = 1.0,
        reduction: Reduction = "mean",
        label_smoothing: float = 0.0,
        weight: Tensor | Sequence[float] | None = None,
    ):
        super().__init__(reduction)
        self.offset = at_least_zero("offset", offset)
        self.temperature = positive("temperature", temperature)
        self.label_smoothing = fraction("label_smoothing", label_smoothing)
        self.register_buffer("weight", None if weight is None else _class_weights(weight))

    @classmethod
    def from_recipe(cls, options: Mapping[str, Any], reduction: Reduction, multi_gpu: bool) -> OffsetCrossEntropy:
        """The loss with the recipe's offset and temperature."""
        return cls(options["offset"], options["temperature"], reduction)

    def forward(self, logits: Tensor, labels: Any) -> Tensor:
        """Computes the loss.

        Args:
            logits: (n, c), or scores (n,) or (n, 1) of a binary classifier.
            labels: class numbers (n,), one-hot rows (n, c) or probabilities (n, c).

        Returns:
            A scalar; (n,) with ``reduction="none"``.
        """
        arguments = self.offset, self.temperature, self.label_smoothing, self.weight
        return self.reduce_weighted(*_offset_cross_entropy(logits, labels, *arguments))


class TemperatureCrossEntropy(Loss):
    r"""Cross-entropy of scaled logits, CE(tau f) / tau, where tau is the temperature.

    .. math:: \tfrac 1\tau \log \sum_j \exp\bigl(\tau (f_j - f_y)\bigr)

    Source: Béthune et al., *Pay attention to your loss*, NeurIPS 2022.

    The temperature multiplies the logits, as in deel-torchlip: it is the inverse of the temperature of
    :class:`fastlip.losses.OffsetCrossEntropy`. As tau goes to 0 the gradient tends to 1/c - onehot(y) for every
    sample, as that of KR does: robust, less accurate. As tau grows the loss tends to max(0, max_j f_j - f_y), and
    only samples with a wrong or small margin count: accurate, less robust. A single score is the logit of class 1
    against 0.

    Args:
        temperature: tau, above 0.
        reduction: ``"mean"`` (default, also ``"auto"``), ``"sum"`` or ``"none"``.
        label_smoothing: s in [0, 1]; the target p becomes (1 - s) p + s / c; default 0.0.
        weight: (c,) class weights of at least 0; None weighs all alike. As in torch, a mean over hard labels divides
            by the sum of the samples' weights.

    Raises:
        ValueError: an argument is out of its range.

    Examples:
        >>> loss = fastlip.losses.TemperatureCrossEntropy(temperature=10.0)
        >>> loss(torch.tensor([[2.0, 0.5], [0.1, 0.3]]), torch.tensor([0, 1]))
        tensor(0.0063)
    """

    recipe_name = "temperature-ce"
    weight: Tensor | None

    def __init__(
        self,
        temperature: float,
        reduction: Reduction = "mean",
        label_smoothing: float = 0.0,
        weight: Tensor | Sequence[float] | None = None,
    ):
        super().__init__(reduction)
        self.temperature = positive("temperature", temperature)
        self.label_smoothing = fraction("label_smoothing", label_smoothing)
        self.register_buffer("weight", None if weight is None else _class_weights(weight))

    @classmethod
    def from_recipe(
        cls, options: Mapping[str, Any], reduction: Reduction, multi_gpu: bool
    ) -> TemperatureCrossEntropy:
        """The loss with tau = 1 / t for the recipe's temperature t."""
        return cls(1 / options["temperature"], reduction)

    def forward(self, logits: Tensor, labels: Any) -> Tensor:
        """Computes the loss.

        Args:
            logits: (n, c), or scores (n,) or (n, 1) of a binary classifier.
            labels: class numbers (n,), one-hot rows (n, c) or probabilities (n, c).

        Returns:
            A scalar; (n,) with ``reduction="none"``.
        """
        arguments = 0.0, 1 / self.temperature, self.label_smoothing, self.weight
        return self.reduce_weighted(*_offset_cross_entropy(logits, labels, *arguments))


def _class_weights(weight: Tensor | Sequence[float]) -> Tensor:
    """The class weights as a float32 tensor."""
    tensor = torch.as_tensor(weight, dtype=torch.float32).detach()
    if tensor.dim() != 1 or not bool((tensor.isfinite() & (tensor >= 0)).all()):
        raise ValueError(f"weight={weight!r}: expected one finite number of at least 0 per class, (c,)")
    return tensor


def _offset_cross_entropy(
    logits: Tensor, labels: Any, offset: float, temperature: float, smoothing: float, weight: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Losses t CE((f - u p) / t, p), (n,), with p the smoothed target, and the weights (n,) of a mean."""
    logits, target, hard = targets(logits, labels)
    if weight is not None and len(weight) != logits.shape[1]:
        raise ValueError(f"weight: got {len(weight)} class weights, expected {logits.shape[1]} as the classes")
    weight = None if weight is None else weight.to(logits)
    smoothed = (1 - smoothing) * target + smoothing / logits.shape[1]
    shifted = (logits - offset * smoothed) / temperature
    losses = temperature * F.cross_entropy(shifted, smoothed, weight, reduction="none")
    # As in torch: with hard labels a mean divides by the weights of the true classes, with soft ones by their number.
    if weight is None or hard is None:
        return losses, torch.ones_like(losses)
    return losses, torch.where(hard, weight[target.argmax(1)], 1)
