"""The cross-entropy behind ``OffsetCrossEntropy`` and ``TemperatureCrossEntropy``."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlip.losses.labels import fraction, targets


class ClassOptions(nn.Module):
    """``label_smoothing`` and ``weight`` as ``torch.nn.CrossEntropyLoss`` has them; weight is a buffer."""

    weight: Tensor | None

    def set_class_options(self, label_smoothing: float, weight: Any) -> None:
        """Checks both; ValueError or TypeError names the argument."""
        self.label_smoothing = fraction("label_smoothing", label_smoothing)
        self.register_buffer("weight", None if weight is None else _check_weight(weight))


def _check_weight(weight: Any) -> Tensor:
    tensor = torch.as_tensor(weight, dtype=torch.float32).detach()
    if tensor.dim() != 1 or not bool((tensor.isfinite() & (tensor >= 0)).all()):
        raise ValueError(f"weight={weight!r}: expected one finite number of at least 0 per class, (c,)")
    return tensor


def offset_cross_entropy(
    logits: Tensor, labels: Any, offset: float, temperature: float, smoothing: float, weight: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(n,) losses t CE((f - u p) / t, p), p the smoothed target, and the (n,) weights that a mean divides by."""
    logits, target, hard = targets(logits, labels)
    if weight is not None and len(weight) != logits.shape[1]:
        raise ValueError(f"weight: got {len(weight)} class weights, expected {logits.shape[1]} as the classes")
    weight = None if weight is None else weight.to(logits)
    smoothed = (1 - smoothing) * target + smoothing / logits.shape[1]
    shifted = (logits - offset * smoothed) / temperature
    losses = temperature * F.cross_entropy(shifted, smoothed, weight, reduction="none")
    # As torch: with hard labels a mean divides by the weights of the true classes, with soft ones by their number.
    if weight is None or hard is None:
        return losses, torch.ones_like(losses)
    return losses, torch.where(hard, weight[target.argmax(1)], 1)
