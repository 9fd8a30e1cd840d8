"""cayley_linear by the transform in C++ (csrc/cayley) and products, in the notation of README.md."""

from __future__ import annotations

import torch
from torch import Tensor

from fastlip.kernels.cayley import native as cayley
from fastlip.kernels.cayley_linear.api import DTYPES, pays
from fastlip.kernels.common import binding
from fastlip.kernels.common.precision import full_precision
from fastlip.kernels.common.products import product

binding.require()

KERNELS = "cayley_forward_"  # csrc/cayley


def supports(x: Tensor, M: Tensor) -> str:
    """Empty, or why these kernels cannot run."""
    if M.dtype not in DTYPES or x.dtype != M.dtype:
        return f"no kernel for dtypes {x.dtype} and {M.dtype}"
    return cayley.supports(M) if x.is_cpu and M.is_cpu else "no kernel for other devices than a CPU"


def unprofitable(x: Tensor, M: Tensor) -> str:
    """Empty, or why the transform and a product are as fast."""
    if pays(x, M):
        return ""
    vectors = x.shape[:-1].numel()
    return f"of {vectors} vectors and a matrix of shape {tuple(M.shape)}, the gradient of Cayley(M) itself is as fast"


def cayley_linear_forward(x: Tensor, M: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """y = Q x, Q, and s = x + y."""
    rows = x.reshape(-1, len(M))
    with full_precision(M.device):
        Q, _ = cayley.cayley_forward(M)
        y = product(rows, Q.T)
    return y.view(x.shape), Q, torch.add(rows, y).view(x.shape)


def cayley_linear_backward(gradient: Tensor, Q: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of x and M."""
    g = gradient.reshape(-1, len(Q))
    with full_precision(Q.device):
        of_x = product(g, Q)
        P = product(torch.add(of_x, g).T, s.reshape(-1, len(Q)), alpha=-0.5)
    return of_x.view(gradient.shape), P - P.T
