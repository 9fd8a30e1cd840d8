"""A dense head with unit rows (Singla, Singla, Feizi, ICLR 2022: last-layer normalisation)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastlip.kernels.common.literals import Backend, Device
from fastlip.nn.applications.dense import DENSE_ARGUMENTS, Dense
from fastlip.nn.arguments import dense_features, make_bias, make_parameter
from fastlip.nn.base import LipschitzLayer, at_least_float32, effective_weight
from fastlip.nn.initial import zero_


class NormalizedLinear(LipschitzLayer):
    r"""Dense layer with unit rows, y_j = <w_j, x> / |w_j| + b_j: each output is 1-Lipschitz, the layer is not.

    Singla, Singla, Feizi, *Improved deterministic l2 robustness on CIFAR-10 and CIFAR-100*, ICLR 2022. Zero rows
    stay zero. The norm of the whole layer can reach sqrt(out_features); ``lipschitz_bound`` is the spectral norm
    of the normalised matrix. As the last layer of a network f its certificate is not margin / sqrt(2) but, with L
    the Lipschitz constant of the layers before it and w the normalised rows,

    .. math:: \min_{j \neq y} \frac{f_y - f_j}{L \, |w_y - w_j|}

    Initial values: normal with rows of norm about 1 (uniform directions); bias 0.

    Args:
        in_features: number of input features.
        out_features: number of output features.
        bias: whether a bias is added; default True.
        device: of the parameters; default None: torch's default device.
        dtype: of the parameters; default None: torch's default dtype.
        backend: ``"auto"`` (default), ``"reference"``, ``"native"`` or ``"triton"``.

    Shapes: (*, in_features) to (*, out_features). Parameters: ``raw_weight`` (out_features, in_features), ``bias``
    (out_features). ``weight`` is the normalised matrix, differentiable in training; in eval mode it is computed once.

    >>> layer = lip.NormalizedLinear(4, 3)
    >>> torch.allclose(layer.weight.norm(dim=1), torch.ones(3))
    True
    """

    _fixed = DENSE_ARGUMENTS
    _application: Dense
    weight = effective_weight

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
        backend: Backend = "auto",
    ):
        super().__init__(Dense(), backend)
        self.in_features, self.out_features = dense_features(in_features, out_features)
        self.bias = make_bias(out_features, bias, device, dtype)
        self.raw_weight = make_parameter((out_features, in_features), device, dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal rows of norm about 1; bias 0."""
        nn.init.normal_(self.raw_weight, std=self.in_features**-0.5)
        zero_(self.bias)

    def _parametrize(self) -> tuple[Tensor, ...]:
        """(weight,): the matrix with rows of norm 1."""
        weight = at_least_float32(self.raw_weight)
        # A row is a direction: dividing it by a constant first keeps its square from under- or overflowing.
        largest = weight.detach().abs().amax(1, keepdim=True)
        positive = largest > 0
        rows = weight / torch.where(positive, largest, 1)
        norm = torch.where(positive, rows, 1).norm(dim=1, keepdim=True)
        return (rows / norm,)
