"""Checks of what losses and certificates take: scores, labels in every usual encoding, and parameters."""

from __future__ import annotations

import math

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


def binary(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Scores (n, c) in at least float32, and the mask of positive labels."""
    scores = _check_scores("scores", scores)
    if scores.dim() not in (1, 2):
        raise ValueError(f"scores: got shape {tuple(scores.shape)}, expected (n,) or (n, c)")
    scores = scores.view(len(scores), -1) if scores.dim() == 1 else scores
    if scores.shape[1:] > (1,) and labels.dim() == 1:
        return multiclass(scores, labels)
    if labels.numel() != scores.numel() or len(labels) != len(scores):
        raise ValueError(f"labels: got shape {tuple(labels.shape)}, expected {tuple(scores.shape)} as the scores")
    return scores, _signs(labels).view(scores.shape)


def multiclass(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (n, c) in at least float32, and the mask of true classes."""
    logits = _check_scores("logits", logits)
    if logits.dim() != 2 or logits.shape[1] < 2:
        raise ValueError(f"logits: got shape {tuple(logits.shape)}, expected (n, c) with c >= 2")
    n, classes = logits.shape
    if labels.shape == logits.shape:
        true = _signs(labels)
        if not torch.compiler.is_compiling() and (true.sum(1) != 1).any():
            raise ValueError("labels: one-hot rows must have exactly one positive entry")
        return logits, true
    if labels.shape != (n,):
        raise ValueError(
            f"labels: got shape {tuple(labels.shape)}, expected ({n},) integers or ({n}, {classes}) one-hot"
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"labels: got {labels.dtype} of shape ({n},), expected integers")
    _check_range(labels, 0, classes - 1)
    return logits, labels[:, None] == torch.arange(classes, device=labels.device)


def _signs(labels: Tensor) -> Tensor:
    """The mask of positive labels among {0, 1} or {-1, 1}."""
    if not torch.compiler.is_compiling() and labels.dtype != torch.bool:
        low, _ = _check_range(labels, -1, 1)
        if ((labels != low) & (labels != 1)).any():
            raise ValueError("labels: allowed are 0 and 1, or -1 and 1")
    return labels > 0


def _check_range(labels: Tensor, least: int, most: int) -> tuple[float, float]:
    if torch.compiler.is_compiling():
        return least, most
    low, high = torch.stack(labels.aminmax()).tolist()
    if not (least <= low and high <= most):
        raise ValueError(f"labels: got values from {low} to {high}, expected {least} to {most}")
    return low, high


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
