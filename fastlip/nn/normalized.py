"""A dense head with unit rows (Singla, Singla, Feizi, ICLR 2022: last-layer normalisation)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastlip.nn._base import MatrixLinear, at_least_float32


class NormalizedLinear(MatrixLinear):
    r"""Dense layer with unit rows, y_j = <w_j, x> / |w_j| + b_j: each output is 1-Lipschitz, the layer is not.

    Singla, Singla, Feizi, *Improved deterministic l2 robustness on CIFAR-10 and CIFAR-100*, ICLR 2022. Zero rows
    stay zero. The norm of the whole layer can reach sqrt(out_features); ``lipschitz_bound`` is the spectral norm
    of the normalised matrix. As the last layer of a network f its certificate is not margin / sqrt(2) but, with L
    the Lipschitz constant of the layers before it and w the normalised rows,

    .. math:: \min_{j \neq y} \frac{f_y - f_j}{L \, |w_y - w_j|}

    Args and shapes as ``torch.nn.Linear``, and ``backend``. Parameters: ``raw_weight`` (out_features,
    in_features), initialised normal with rows of norm about 1 (uniform directions); ``bias``, 0.
    ``weight`` is the normalised matrix, differentiable in training; in eval mode it is computed once.
    """

    def make_parameters(self, device: Any, dtype: Any) -> None:
        """raw_weight."""
        shape = (self.out_features, self.in_features)
        self.raw_weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        """Normal rows of norm about 1; bias 0."""
        nn.init.normal_(self.raw_weight, std=self.in_features**-0.5)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def parametrize(self) -> tuple[Tensor, ...]:
        """(weight,): the matrix with rows of norm 1."""
        weight = at_least_float32(self.raw_weight)
        # A row is a direction: dividing it by a constant first keeps its square from under- or overflowing.
        largest = weight.detach().abs().amax(1, keepdim=True)
        positive = largest > 0
        rows = weight / torch.where(positive, largest, 1)
        norm = torch.where(positive, rows, 1).norm(dim=1, keepdim=True)
        return (rows / norm,)
