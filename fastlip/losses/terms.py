"""The terms of which hinge and Wasserstein losses are made. Masks of positive labels have the shape of the scores."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastlip.losses.base import sum_over_processes


def hinge_terms(scores: Tensor, positive: Tensor, min_margin: float) -> Tensor:
    """max(0, m/2 - f) where the label is positive, max(0, m/2 + f) elsewhere; the shape of the scores."""
    return F.relu(min_margin / 2 - torch.where(positive, scores, -scores))


def multiclass_hinge_terms(logits: Tensor, true: Tensor, min_margin: float) -> Tensor:
    """The hinge of each class against the rest, (n, c); the true class counts c - 1 times."""
    terms = hinge_terms(logits, true, min_margin)
    return torch.where(true, (logits.shape[1] - 1) * terms, terms)


def kr_terms(scores: Tensor, positive: Tensor, multi_gpu: bool) -> Tensor:
    """Terms (n, c) whose mean over samples is the Kantorovich-Rubinstein estimate of each column."""
    counts = torch.stack((positive.sum(0), (~positive).sum(0))).to(scores.dtype)
    positives, negatives = sum_over_processes(counts, multi_gpu)
    total = positives + negatives
    return scores * torch.where(positive, total / positives.clamp_min(1), -total / negatives.clamp_min(1))


def mixed(alpha: float, hinge: Tensor, kr: Tensor) -> Tensor:
    """alpha hinge - (1 - alpha) KR."""
    # 0 times an infinite term would be NaN: at the limits the other term is left out.
    if alpha in (0, 1):
        return hinge if alpha else -kr
    return alpha * hinge - (1 - alpha) * kr
