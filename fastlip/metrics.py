"""A metric for training loops: certified robust accuracy, with the methods of torchmetrics.

It assumes a Lipschitz constant. :func:`fastlip.certify` measures it, and is what a report should rest on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastlip.inspection.evaluation import check_eps
from fastlip.losses.labels import classes

__all__ = ["CertifiedRobustAccuracy"]


class CertifiedRobustAccuracy(nn.Module):
    r"""Counts samples that are classified correctly with a margin that no perturbation of L2 norm eps can close.

    .. math:: \mathrm{CRA}(\varepsilon) = \frac{1}{n} \sum_i \Big[ \min_{j \ne y} \frac{f_y - f_j}{d_{yj}} >
              \varepsilon \Big], \qquad d_{yj} = \sqrt 2 L \;\text{ or }\; L_{body} |w_y - w_j|

    CRA(0) is the accuracy. The metric follows the protocol of torchmetrics (``update``, ``compute``, ``reset``, and a
    call that returns the value of one batch) without needing that package. Its counts are buffers that move with the
    module and are not in its state dict. It takes the slopes d on trust and ignores rounding errors:
    :func:`fastlip.certify` computes a certificate.

    Args:
        eps: norms of the perturbation, each at least 0: L2, or the weighted one of a network that begins with
            :class:`fastlip.nn.InputWeights`.
        slopes: d, a number for all pairs of classes or a matrix (c, c), such as that of
            :func:`fastlip.losses.class_slopes`. Default None is that of L = 1: sqrt(2), and 1 for one score.
        sync: whether ``compute`` adds the counts of all processes of ``torch.distributed``; default True.

    Raises:
        ValueError: eps below 0 or not finite, or slopes that are not positive or of another shape.

    Example:
        >>> metric = fastlip.metrics.CertifiedRobustAccuracy([0.0, 0.5])
        >>> metric.update(torch.tensor([[2.0, 0.0], [0.1, 0.0]]), torch.tensor([0, 0]))
        >>> metric.compute()
        tensor([1.0000, 0.5000])
    """

    counts: Tensor

    def __init__(self, eps: float | Sequence[float], slopes: float | Tensor | None = None, sync: bool = True):
        super().__init__()
        self.eps = (float(eps),) if isinstance(eps, (int, float)) else tuple(float(value) for value in eps)
        check_eps(self.eps)
        self.sync = sync
        if slopes is not None and not isinstance(slopes, Tensor):
            if not slopes > 0:
                raise ValueError(f"slopes={slopes}: expected a positive number or a matrix (c, c)")
            slopes = float(slopes)
        if isinstance(slopes, Tensor) and (slopes.dim() != 2 or slopes.shape[0] != slopes.shape[1]):
            raise ValueError(f"slopes: got shape {tuple(slopes.shape)}, expected a number or a matrix (c, c)")
        self.slopes = slopes.detach() if isinstance(slopes, Tensor) else slopes
        self.register_buffer("counts", torch.zeros(1 + len(self.eps), dtype=torch.int64), persistent=False)

    def forward(self, scores: Tensor, labels: Any) -> Tensor:
        """Adds a batch, and returns the CRA of this batch alone, (k,) for k values of eps.

        Args:
            scores: (n, c), or (n,) or (n, 1) of a network with one score.
            labels: class numbers (n,) or one-hot rows (n, c); of one score {0, 1} or {-1, 1}.

        Raises:
            ValueError: scores or labels of other shapes, or slopes of another number of classes.
        """
        found = self._count(scores, labels)
        self.counts += found
        return _shares(found)

    @torch.no_grad()
    def update(self, scores: Tensor, labels: Any) -> None:
        """Adds a batch without computing its CRA.

        Args:
            scores: see :meth:`forward`, as for errors.
            labels: see :meth:`forward`.
        """
        self.counts += self._count(scores, labels)

    def compute(self) -> Tensor:
        """The CRA of all batches since the last reset, (k,) for k values of eps; NaN without a sample."""
        counts = self.counts
        if self.sync and dist.is_available() and dist.is_initialized():
            counts = counts.clone()
            dist.all_reduce(counts)
        return _shares(counts)

    def reset(self) -> None:
        """Forgets all batches."""
        self.counts.zero_()

    @torch.no_grad()
    def _count(self, scores: Tensor, labels: Any) -> Tensor:
        """(1 + k,): the number of samples, and of those that are certified for each eps."""
        logits, true = classes(scores, labels)
        radii = self._radii(logits, true, one_score=scores.dim() == 1 or scores.shape[1] == 1)
        certified = radii[:, None] > radii.new_tensor(self.eps)
        counts = torch.cat((certified.new_full((1,), len(radii), dtype=torch.int64), certified.sum(0)))
        return counts.to(self.counts.device)

    def _radii(self, logits: Tensor, true: Tensor, one_score: bool) -> Tensor:
        margins = logits[true][:, None] - logits
        slopes = self.slopes if self.slopes is not None else (1.0 if one_score else math.sqrt(2))
        if isinstance(slopes, Tensor):
            if len(slopes) != logits.shape[1]:
                raise ValueError(
                    f"slopes: got shape {tuple(slopes.shape)}, expected those of {logits.shape[1]} classes"
                )
            slopes = slopes.to(logits)[true.int().argmax(1)]
        return (margins / slopes).masked_fill(true, math.inf).amin(1)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{list(self.eps)}, sync={self.sync}"


def _shares(counts: Tensor) -> Tensor:
    return counts[1:].float() / counts[0]
