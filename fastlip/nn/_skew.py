"""Skew kernels, and a bound of their norm that holds for every image."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_SQUARINGS = 5  # the bound of a c x c matrix is at most c^(1/128) too large: 2 % for c = 16, 4 % for c = 256


def skew(raw: Tensor) -> Tensor:
    """(K - K^T) / 2 of (groups, c, c, kh, kw): the adjoint of a convolution has the transposed, flipped kernel."""
    return (raw - raw.transpose(1, 2).flip(3, 4)) / 2


def norm_bound(kernel: Tensor) -> Tensor:
    """(groups,): bounds of the norms of the convolutions (groups, c, c, kh, kw), for any image, zeros or circular.

    K at any frequency is R E with R the c x (kh kw c) matrix of the taps and E of norm sqrt(kh kw) (Singla, Feizi,
    *Fantastic Four*, ICLR 2021); ||R||^2 <= |(R R^T)^(2^n)|_F^(1 / 2^n). No singular value decomposition, no
    synchronisation with the host; differentiable, finite at 0.
    """
    R = kernel.flatten(2)
    size = R.detach().abs().amax((1, 2))
    size = torch.where(size > 0, size, 1)
    R = R / size[:, None, None]
    # The largest entry of R is 1: eps hardly enlarges the bound, and keeps the gradient finite at R = 0.
    identity = torch.eye(R.shape[1], dtype=R.dtype, device=R.device)
    gram = R @ R.mT + torch.finfo(R.dtype).eps * identity
    norm = torch.linalg.matrix_norm(gram)
    logarithm = norm.log()
    for step in range(1, _SQUARINGS + 1):
        gram = gram / norm[:, None, None]
        gram = gram @ gram
        norm = torch.linalg.matrix_norm(gram)
        logarithm = logarithm + norm.log() / 2**step
    return size * math.sqrt(math.prod(kernel.shape[3:])) * (logarithm / 2).exp()
