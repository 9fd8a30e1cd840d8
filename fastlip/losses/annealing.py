"""Logit annealing: a cross-entropy with an offset that lets go of samples whose margin is large enough."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastlip.losses.base import Loss, Reduction
from fastlip.losses.labels import multiclass
from fastlip.losses.numbers import at_least_zero, positive


class LogitAnnealing(Loss):
    r"""Logit annealing: offset cross-entropy, weighted by a power of the probability that is missing.

    .. math:: t \, (1 - p)^\beta \, (-\log p), \qquad
              p = \mathrm{softmax}\bigl((f - u\,\mathrm{onehot}(y)) / t\bigr)_y

    Source: Lai et al., *Enhancing Certified Robustness via Block Reflector Orthogonal Layers and Logit Annealing
    Loss*, ICML 2025, arXiv 2505.15174.

    A sample whose margin is well above the offset u has p near 1 and a weight near 0, so that the network, whose
    margins cannot all grow, spends its slopes on samples with small margins. beta = 0 gives
    :class:`fastlip.losses.OffsetCrossEntropy`, and so does any beta for samples far below the offset.

    Args:
        offset: u, at least 0, in units of the logits; default 2 as published.
        temperature: t, above 0; default 0.75 as published.
        exponent: beta, at least 0; default 5 as published. A larger one lets go of samples earlier.
        reduction: ``"mean"`` (default, also ``"auto"``), ``"sum"`` or ``"none"``.

    Raises:
        ValueError: an argument is out of its range.

    Examples:
        >>> loss = fastlip.losses.LogitAnnealing(offset=0.5, temperature=0.25)
        >>> loss(torch.tensor([[2.0, 0.5], [0.1, 0.3]]), torch.tensor([0, 1]))
        tensor(0.0490)
    """

    recipe_name = "logit-annealing"

    def __init__(
        self,
        offset: float = 2.0,
        temperature: float = 0.75,
        exponent: float = 5.0,
        reduction: Reduction = "mean",
    ):
        super().__init__(reduction)
        self.offset = at_least_zero("offset", offset)
        self.temperature = positive("temperature", temperature)
        self.exponent = at_least_zero("exponent", exponent)

    @classmethod
    def from_recipe(cls, options: Mapping[str, Any], reduction: Reduction, multi_gpu: bool) -> LogitAnnealing:
        """The loss with the recipe's offset, temperature and annealing."""
        return cls(options["offset"], options["temperature"], options["annealing"], reduction)

    def forward(self, logits: Tensor, labels: Any) -> Tensor:
        """Computes the loss.

        Args:
            logits: (n, c) with c >= 2.
            labels: class numbers (n,) or one-hot rows (n, c).

        Returns:
            A scalar; (n,) with ``reduction="none"``.
        """
        logits, true = multiclass(logits, labels)
        label = true.to(torch.uint8).argmax(1)
        shifted = torch.where(true, logits - self.offset, logits) / self.temperature
        losses = F.cross_entropy(shifted, label, reduction="none")
        # 1 - p without cancellation. Where it is 0 the slope of a power below 1 would be infinite.
        missing = -torch.expm1(-losses)
        weights = missing.clamp_min(torch.finfo(missing.dtype).tiny) ** self.exponent
        return self.reduce(self.temperature * weights * losses)
