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
    *Fantastic Four*, ICLR 2021). No singular value decomposition, no synchronisation with the host; differentiable,
    finite at 0.
    """
    return matrix_bound(kernel.flatten(2)) * math.sqrt(math.prod(kernel.shape[3:]))


def matrix_bound(R: Tensor) -> Tensor:
    """(*): bounds of the norms of matrices (*, m, n), by ||R||^2 <= |(R Rᴴ)^(2^p)|_F^(1 / 2^p)."""
    size = R.detach().abs().amax((-2, -1), keepdim=True)
    size = torch.where(size > 0, size, 1)
    R = R / size
    # The largest entry of R is 1: eps hardly enlarges the bound, and keeps the gradient finite at R = 0.
    identity = torch.eye(R.shape[-2], dtype=R.dtype, device=R.device)
    gram = R @ R.mH + torch.finfo(R.dtype).eps * identity
    norm = torch.linalg.matrix_norm(gram, keepdim=True)
    logarithm = norm.log()
    for step in range(1, _SQUARINGS + 1):
        gram = gram / norm
        gram = gram @ gram
        norm = torch.linalg.matrix_norm(gram, keepdim=True)
        logarithm = logarithm + norm.log() / 2**step
    return (size * (logarithm / 2).exp())[..., 0, 0]
