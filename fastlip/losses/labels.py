"""Checks of what losses and certificates take: scores, labels in every usual encoding, and parameters.

A loss does not wait for a GPU: what it demands of values there is asserted on the device, as torch's own losses do.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastlip.nn._base import at_least_float32


def is_binary(logits: Tensor) -> bool:
    """Whether logits are one score per sample."""
    return logits.dim() == 1 or (logits.dim() == 2 and logits.shape[1] == 1)


def _check_scores(name: str, scores: Tensor) -> Tensor:
    if not isinstance(scores, Tensor) or not scores.is_floating_point():
        got = getattr(scores, "dtype", type(scores).__name__)
        raise TypeError(f"{name}: got {got}, expected a floating-point tensor")
    if scores.numel() == 0:
        raise ValueError(f"{name}: got shape {tuple(scores.shape)}, expected at least one sample")
    return at_least_float32(scores)


def as_labels(labels: Any, device: torch.device) -> Tensor:
    """Labels as a tensor on a device: tensors, NumPy arrays and nested lists of numbers."""
    if isinstance(labels, Tensor):
        return labels.to(device)
    try:
        return torch.as_tensor(labels, device=device)
    except (TypeError, ValueError, RuntimeError) as error:
        kind = type(labels).__name__
        raise TypeError(f"labels: got {kind}, expected a tensor, an array or a list of numbers ({error})") from None


def as_logits(outputs: Tensor) -> Tensor:
    """Logits (n, c) as they are; one score f, (n,) or (n, 1), as the logits (-f/2, f/2), whose margin is f."""
    if not is_binary(outputs):
        return outputs
    scores = outputs.reshape(-1, 1)
    return torch.cat((-scores / 2, scores / 2), 1)


def classes(outputs: Tensor, labels: Any, *, wait: bool = True) -> tuple[Tensor, Tensor]:
    """Logits (n, c) with c >= 2 and the mask of true classes, of a classifier with one score or with several.

    One score f is above 0 for label 1 and below 0 for label 0 (or -1): see :func:`as_logits`. With wait, labels on a
    GPU are checked before this returns.
    """
    if not (isinstance(outputs, Tensor) and is_binary(outputs)):
        return multiclass(outputs, labels, wait=wait)
    scores, positive = binary(outputs, labels, wait=wait)
    return as_logits(scores), torch.cat((~positive, positive), 1)


def targets(logits: Tensor, labels: Any) -> tuple[Tensor, Tensor, Tensor | None]:
    """Logits (n, c), the distribution over classes that the labels ask for, and whether the labels are hard.

    Hard labels are those of :func:`binary` and :func:`multiclass`. Soft labels are probabilities: (n, c) rows that
    sum to 1. One score f stands for the logits (0, f); its soft label is the probability of class 1. Whether labels
    are hard is a number on their device; None: they are not.
    """
    labels = as_labels(labels, logits.device) if isinstance(logits, Tensor) else labels
    one_score = isinstance(logits, Tensor) and is_binary(logits)
    if not _may_be_soft(logits, labels):
        logits, true = classes(logits, labels, wait=False) if one_score else multiclass(logits, labels)
        return logits, true.to(logits.dtype), true.new_ones(())
    logits = _check_scores("logits", logits)
    soft, hard = labels.to(logits.dtype), None
    if one_score:
        score, soft = logits.reshape(-1, 1), soft.reshape(-1, 1)
        logits = torch.cat((torch.zeros_like(score), score), 1)
    if _waits_for(labels):  # nothing may depend on values: hard labels are found on the device
        hard, negative = _is_hard(soft).all(), (soft < 0) & _is_hard(soft)
        if one_score:
            soft = torch.where(negative, 0, soft)
        else:
            soft = torch.where(negative.any(1, keepdim=True), (soft > 0).to(soft.dtype), soft)
    if one_score:
        soft = torch.cat((1 - soft, soft), 1)
    _require("soft labels are probabilities, at least 0, whose rows sum to 1", labels, _is_distribution(soft))
    return logits, soft, hard


def _waits_for(labels: Tensor) -> bool:
    """Whether a look at the values of labels would break a trace, or wait for a GPU."""
    return torch.compiler.is_compiling() or labels.is_cuda


def _require(text: str, labels: Tensor, valid: Tensor, *, wait: bool = False) -> None:
    """Demands something of the values of labels: ValueError, or torch's assertion on a GPU that is not waited for."""
    if torch.compiler.is_compiling():
        return
    if labels.is_cuda and not wait:
        torch._assert_async(valid, f"labels: {text}")
    elif not bool(valid):
        raise ValueError(f"labels: {text}")


def _may_be_soft(logits: Any, labels: Tensor) -> bool:
    """Whether labels are probabilities: floating-point, in the shape of the logits, and not all 0, 1 or -1."""
    if not isinstance(logits, Tensor) or not labels.is_floating_point() or labels.shape != logits.shape:
        return False
    if torch.compiler.is_compiling():
        return logits.dim() == 2 and logits.shape[1] > 1
    return labels.is_cuda or not bool(_is_hard(labels).all())


def _is_hard(labels: Tensor) -> Tensor:
    return (labels == 0) | (labels.abs() == 1)


def _is_distribution(soft: Tensor) -> Tensor:
    slack = 1e-3  # of probabilities in 16 bits
    return (soft >= 0).all() & ((soft.sum(1) - 1).abs() <= slack).all()


def binary(scores: Tensor, labels: Any, *, wait: bool = False) -> tuple[Tensor, Tensor]:
    """Scores (n, c) in at least float32, and the mask of positive labels."""
    scores = _check_scores("scores", scores)
    if scores.dim() not in (1, 2):
        raise ValueError(f"scores: got shape {tuple(scores.shape)}, expected (n,) or (n, c)")
    labels = as_labels(labels, scores.device)
    scores = scores.view(len(scores), -1) if scores.dim() == 1 else scores
    if scores.shape[1:] > (1,) and labels.dim() == 1:
        return multiclass(scores, labels, wait=wait)
    if labels.numel() != scores.numel() or len(labels) != len(scores):
        raise ValueError(f"labels: got shape {tuple(labels.shape)}, expected {tuple(scores.shape)} as the scores")
    return scores, _signs(labels, wait).view(scores.shape)


def multiclass(logits: Tensor, labels: Any, *, wait: bool = False) -> tuple[Tensor, Tensor]:
    """Logits (n, c) in at least float32, and the mask of true classes."""
    logits = _check_scores("logits", logits)
    if logits.dim() != 2 or logits.shape[1] < 2:
        raise ValueError(f"logits: got shape {tuple(logits.shape)}, expected (n, c) with c >= 2")
    labels = as_labels(labels, logits.device)
    n, count = logits.shape
    if labels.shape == logits.shape:
        true = _signs(labels, wait)
        _require("one-hot rows must have exactly one positive entry", labels, (true.sum(1) == 1).all(), wait=wait)
        return logits, true
    if labels.shape != (n,):
        raise ValueError(
            f"labels: got shape {tuple(labels.shape)}, expected ({n},) integers or ({n}, {count}) one-hot"
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"labels: got {labels.dtype} of shape ({n},), expected integers")
    true = labels[:, None] == torch.arange(count, device=labels.device)
    if _waits_for(labels) and not wait:
        _require(f"expected values from 0 to {count - 1}", labels, true.any(1).all())
    else:
        _check_range(labels, 0, count - 1)
    return logits, true


def _signs(labels: Tensor, wait: bool) -> Tensor:
    """The mask of positive labels among {0, 1} or {-1, 1}."""
    if torch.compiler.is_compiling() or labels.dtype == torch.bool:
        return labels > 0
    text = "allowed are 0 and 1, or -1 and 1"
    if _waits_for(labels) and not wait:
        low = labels.amin()
        _require(text, labels, ((labels == low) | (labels == 1)).all() & (low >= -1) & (low <= 1))
    else:
        low = _check_range(labels, -1, 1)
        _require(text, labels, ((labels == low) | (labels == 1)).all(), wait=True)
    return labels > 0


def _check_range(labels: Tensor, least: int, most: int) -> float:
    """The least of the labels; ValueError unless all are in a range."""
    if torch.compiler.is_compiling():
        return least
    low, high = torch.stack(labels.aminmax()).tolist()
    if not (least <= low and high <= most):
        raise ValueError(f"labels: got values from {low} to {high}, expected {least} to {most}")
    return low


def positive(name: str, value: float) -> float:
    """Returns a positive number as float; ValueError names the argument."""
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name}={value!r}: expected a positive number")
    return float(value)


def at_least_zero(name: str, value: float) -> float:
    """Returns a number >= 0 as float; ValueError names the argument."""
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name}={value!r}: expected a number, at least 0")
    return float(value)


def fraction(name: str, value: float) -> float:
    """Returns a number in [0, 1] as float; ValueError names the argument."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name}={value!r}: expected a number from 0 to 1")
    return float(value)
