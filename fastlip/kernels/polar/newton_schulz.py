"""What surrounds the Newton-Schulz iterations of one matrix at a time on chip, and what is done where they fail.

README.md derives the iteration; the kernels of triton_kernels.py and of csrc/polar leave to this file the matrices
that do not converge.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastlip.kernels.common.precision import full_precision
from fastlip.kernels.polar.decomposition import decompose
from fastlip.kernels.polar.reference import join, polar_adjoint, polish, split

FINE = 2**-11.5  # a Frobenius norm of QᴴQ - I from which one plain step reaches the rounding of float32
STEPS, ADJOINT_STEPS = 24, 28  # enough for condition numbers up to 1e6
# Where an iteration has not converged: plain steps, and what is added of orthonormal columns after them.
PLAIN_STEPS, PERTURBATION = 6, 2.0**-6
TINY = 2**-63  # the root of float32's smallest normal number: a matrix of smaller entries counts as zero


def tolerance(V: Tensor) -> float:
    """The largest Frobenius norm of QᴴQ - I that is accepted: a few times that of rounding."""
    return 16 * torch.finfo(V.dtype).eps * min(V.shape[-2:]) ** 0.5


def checked_factor(
    iterate: Callable[[Tensor, int], tuple[Tensor, Tensor]], V: Tensor, reals: int
) -> tuple[Tensor, Tensor]:
    """Returns Q, and on the host which matrices were decomposed (none while a CUDA graph is captured).

    iterate takes contiguous matrices (b, m, n), the first of them real, and returns Q and the norms of QᴴQ - I.
    """
    matrices, count = _flat(V), _count(V, reals)
    Q, residual = iterate(matrices, count)
    failed = torch.zeros(len(matrices), dtype=torch.bool)
    if not is_capturing(V.device):
        failed = (residual > tolerance(V)).cpu()
    if failed.any():
        with full_precision(V.device):
            Q[failed] = decomposed(matrices[failed], int(failed[:count].sum()))
    return Q.view(V.shape), failed


def checked_adjoint(
    iterate: Callable[[Tensor, Tensor, Tensor, int], Tensor],
    gradient: Tensor,
    V: Tensor,
    Q: Tensor,
    failed: Tensor,
    reals: int,
) -> Tensor:
    """The gradient of V: by decomposition where Q was; iterate as for :func:`checked_factor`."""
    G, matrices, count = _flat(gradient), _flat(V), _count(V, reals)
    result = iterate(G, matrices, _flat(Q), count)
    if failed.any():
        with full_precision(V.device):
            of_failed = G[failed], matrices[failed], int(failed[:count].sum())
            result[failed] = decomposed_adjoint(*of_failed)
    return result.view(V.shape)


def decomposed(V: Tensor, reals: int) -> Tensor:
    """Q by decomposition, of any matrices, the first of them real."""
    return join([polish(U @ Wh) for U, _, Wh in map(decompose, split(V, reals))], V.dtype)


def decomposed_adjoint(G: Tensor, V: Tensor, reals: int) -> Tensor:
    """The gradient of V by decomposition."""
    parts = []
    for gradient, matrices in zip(split(G, reals), split(V, reals), strict=True):
        U, s, Wh = decompose(matrices)
        parts.append(polar_adjoint(gradient, U, Wh, s))
    return join(parts, V.dtype)


def completed_factor(iterate: Callable[[Tensor, int], tuple[Tensor, Tensor]], V: Tensor, reals: int) -> Tensor:
    """Q of contiguous matrices (b, m, n), orthonormal for every finite V, without a look at which did not converge.

    Of those the iteration has made tiny singular values grow a millionfold; zeros stayed. Plain steps bring the large
    ones to 1. Then they get some of fixed orthonormal columns between the vectors of the others alone, divided by
    that growth less than a rounding of V, and are iterated again.
    """
    Q, residual = iterate(V, reals)
    failed = (residual > tolerance(V))[:, None, None]
    with full_precision(V.device):
        plain = Q
        for _ in range(PLAIN_STEPS):
            plain = torch.baddbmm(plain, plain @ plain.mH, plain, beta=1.5, alpha=-0.5)
        begin = torch.where(failed, torch.add(plain, between_tiny(plain), alpha=PERTURBATION), Q)
    again, _ = iterate(begin, reals)
    return torch.where(failed, again, Q)


def between_tiny(Q: Tensor) -> Tensor:
    """(I - QQᴴ) W (I - QᴴQ) for orthonormal columns W: of W, what is between the vectors of tiny singular values."""
    X = Q.mT if Q.shape[1] < Q.shape[2] else Q
    rows, columns = X.shape[1:]
    row, column = (torch.arange(1, 2 * size, 2, device=X.device) for size in (rows, columns))
    angles = (row[:, None] * column % (8 * rows)).to(X.real.dtype) * (torch.pi / (4 * rows))
    W = (angles.cos() * (2 / rows) ** 0.5).to(X.dtype).expand_as(X)
    right = torch.baddbmm(W, W @ X.mH, X, alpha=-1)
    found = torch.baddbmm(right, X, X.mH @ right, alpha=-1)
    return found.mT if X is not Q else found


def is_capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is being captured, so that the host must not wait for the device."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _flat(V: Tensor) -> Tensor:
    """(b, m, n), contiguous numbers as they are in memory."""
    return V.reshape(-1, *V.shape[-2:]).contiguous().resolve_conj().resolve_neg()


def _count(V: Tensor, reals: int) -> int:
    """The number of real matrices in the flat batch."""
    return reals * V.shape[1:-2].numel() if reals else 0
