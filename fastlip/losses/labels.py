"""Scores and labels in every usual encoding, checked and brought to one form for losses and certificates.

A loss does not wait for a GPU: conditions on the values of labels there are asserted on the device, as torch's own
losses do.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastlip.kernels.common.checks import kind_of
from fastlip.nn._running import is_wrapped
from fastlip.nn.base import at_least_float32


def is_binary(logits: Tensor) -> bool:
    """Whether there is one score per sample: (n,) or (n, 1)."""
    return logits.dim() == 1 or (logits.dim() == 2 and logits.shape[1] == 1)


def _check_scores(name: str, scores: Tensor) -> Tensor:
    """The scores in at least float32; TypeError if they are not floating-point, ValueError if there are none."""
    if not isinstance(scores, Tensor) or not scores.is_floating_point():
        got = kind_of(scores)
        raise TypeError(f"{name}: got {got}, expected a floating-point tensor")
    if scores.numel() == 0:
        raise ValueError(f"{name}: got shape {tuple(scores.shape)}, expected at least one sample")
    return at_least_float32(scores)


def as_labels(labels: Any, device: torch.device) -> Tensor:
    """Labels as a tensor on a device. They may be a tensor, a NumPy array or a nested list of numbers."""
    if isinstance(labels, Tensor):
        return labels.to(device)
    try:
        return torch.as_tensor(labels, device=device)
    except (TypeError, ValueError, RuntimeError) as error:
        kind = type(labels).__name__
        raise TypeError(f"labels: got {kind}, expected a tensor, an array or a list of numbers ({error})") from None


def as_logits(outputs: Tensor) -> Tensor:
    """Logits (n, c) unchanged; a single score f, (n,) or (n, 1), as the logits (-f/2, f/2), whose margin is f."""
    if not is_binary(outputs):
        return outputs
    scores = outputs.reshape(-1, 1)
    return torch.cat((-scores / 2, scores / 2), 1)


def classes(outputs: Tensor, labels: Any, *, wait: bool = True) -> tuple[Tensor, Tensor]:
    """Logits (n, c) with c >= 2, and the mask of true classes, for one score per sample or several.

    A single score f is above 0 for label 1 and below 0 for label 0 (or -1): see :func:`as_logits`. With ``wait``,
    labels on a GPU are checked before the function returns.
    """
    if not (isinstance(outputs, Tensor) and is_binary(outputs)):
        return multiclass(outputs, labels, wait=wait)
    scores, positive = binary(outputs, labels, wait=wait)
    return as_logits(scores), torch.cat((~positive, positive), 1)


def targets(logits: Tensor, labels: Any) -> tuple[Tensor, Tensor, Tensor | None]:
    """Logits (n, c), target distributions over classes (n, c), and whether the labels are hard.

    Hard labels are those of :func:`binary` and :func:`multiclass`. Soft labels are probabilities: rows (n, c) that
    sum to 1. A single score f stands for the logits (0, f); its soft label is the probability of class 1. The third
    value is a boolean on the labels' device, or None if the labels are known to be soft.
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
    if _is_deferred(labels):  # no branch may depend on values: hard labels are found on the device
        hard, negative = _is_hard(soft).all(), (soft < 0) & _is_hard(soft)
        if one_score:
            soft = torch.where(negative, 0, soft)
        else:
            soft = torch.where(negative.any(1, keepdim=True), (soft > 0).to(soft.dtype), soft)
    if one_score:
        soft = torch.cat((1 - soft, soft), 1)
    _require("soft labels are probabilities, at least 0, whose rows sum to 1", labels, _is_distribution(soft))
    return logits, soft, hard


def _is_hidden(labels: Tensor) -> bool:
    """Whether the values of labels cannot be read: in a trace, and in ``torch.func``'s transforms."""
    if torch.compiler.is_compiling():
        return True
    return is_wrapped(labels)


def _is_deferred(labels: Tensor) -> bool:
    """Whether reading the values of labels is impossible, or would wait for a GPU."""
    return labels.is_cuda or _is_hidden(labels)


def _require(text: str, labels: Tensor, valid: Tensor, *, wait: bool = False) -> None:
    """ValueError unless the labels are valid; without ``wait``, an assertion on the device if they are on a GPU."""
    if _is_hidden(labels):
        return
    if labels.is_cuda and not wait:
        torch._assert_async(valid, f"labels: {text}")
    elif not bool(valid):
        raise ValueError(f"labels: {text}")


def _may_be_soft(logits: Any, labels: Tensor) -> bool:
    """Whether labels are probabilities: floating-point, in the shape of the logits, and not all 0, 1 or -1."""
    if not isinstance(logits, Tensor) or not labels.is_floating_point() or labels.shape != logits.shape:
        return False
    if _is_hidden(labels):
        return logits.dim() == 2 and logits.shape[1] > 1
    return labels.is_cuda or not bool(_is_hard(labels).all())


def _is_hard(labels: Tensor) -> Tensor:
    """For each entry, whether it is 0, 1 or -1."""
    return (labels == 0) | (labels.abs() == 1)


def _is_distribution(soft: Tensor) -> Tensor:
    """Whether all rows are probabilities that sum to 1."""
    slack = 1e-3  # probabilities in 16 bits sum to 1 up to this
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
        others = f", or ({len(scores)},) integers" if scores.shape[1] > 1 else ""
        raise ValueError(
            f"labels: got shape {tuple(labels.shape)}, expected {tuple(scores.shape)} as the scores{others}"
            f"{_flattened(labels, len(scores))}"
        )
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
            f"{_flattened(labels, n)}"
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"labels: got {labels.dtype} of shape ({n},), expected integers; use labels.long()")
    true = labels[:, None] == torch.arange(count, device=labels.device)
    if _is_deferred(labels) and not wait:
        _require(f"expected values from 0 to {count - 1}", labels, true.any(1).all())
    else:
        _check_range(labels, 0, count - 1)
    return logits, true


def _flattened(labels: Tensor, n: int) -> str:
    """Advice for class numbers in a column."""
    return "; use labels.squeeze(1)" if labels.shape == (n, 1) and n > 0 else ""


def _signs(labels: Tensor, wait: bool) -> Tensor:
    """The mask of positive labels among {0, 1} or {-1, 1}."""
    if _is_hidden(labels) or labels.dtype == torch.bool:
        return labels > 0
    text = "allowed are 0 and 1, or -1 and 1"
    if _is_deferred(labels) and not wait:
        low = labels.amin()
        _require(text, labels, ((labels == low) | (labels == 1)).all() & (low >= -1) & (low <= 1))
    else:
        low = _check_range(labels, -1, 1)
        _require(text, labels, ((labels == low) | (labels == 1)).all(), wait=True)
    return labels > 0


def _check_range(labels: Tensor, least: int, most: int) -> float:
    """The smallest label; ValueError unless all labels are from least to most."""
    if _is_hidden(labels):
        return least
    low, high = torch.stack(labels.aminmax()).tolist()
    if not (least <= low and high <= most):
        raise ValueError(f"labels: got values from {low} to {high}, expected {least} to {most}")
    return low
