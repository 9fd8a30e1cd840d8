"""The start and end of Newton-Schulz iterations on GPUs, and the treatment of matrices that do not converge.

README.md derives the iteration. Nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastlip.kernels.common.precision import full_precision
from fastlip.kernels.polar.decomposition import decompose
from fastlip.kernels.polar.reference import join, polish, split

FINE = 2**-11.5  # a Frobenius norm of QᴴQ - I from which one plain step reaches the rounding of float32
STEPS, ADJOINT_STEPS = 24, 28  # enough for condition numbers up to 1e6
# Where an iteration has not converged: plain steps, and what is added of orthonormal columns after them.
PLAIN_STEPS, PERTURBATION = 6, 2.0**-6
LARGE = 2.0**100  # of a norm: times small numbers it is finite
TINY = 2**-63  # the root of float32's smallest normal number: a matrix of smaller entries counts as zero


def tolerance(V: Tensor) -> float:
    """The largest Frobenius norm of QᴴQ - I that is accepted: a few times that of rounding."""
    return 16 * torch.finfo(V.dtype).eps * min(V.shape[-2:]) ** 0.5


def decomposed(V: Tensor, reals: int) -> Tensor:
    """Q by decomposition, of any matrices, the first of them real."""
    return join([polish(U @ Wh) for U, _, Wh in map(decompose, split(V, reals))], V.dtype)


def forward(complete: Callable[[Tensor, int], tuple[Tensor, Tensor]], V: Tensor, reals: int) -> tuple[Tensor, Tensor]:
    """Q, and on the device which matrices were perturbed.

    complete takes contiguous matrices (b, m, n), the first of them real, as :func:`completed_factor` does.
    """
    Q, perturbed = complete(_flat(V), _count(V, reals))
    return Q.view(V.shape), perturbed


def backward(
    iterate: Callable[[Tensor, Tensor, Tensor, int], Tensor],
    gradient: Tensor,
    V: Tensor,
    Q: Tensor,
    perturbed: Tensor,
    reals: int,
) -> Tensor:
    """The gradient of V; iterate takes contiguous matrices, as :func:`completed_adjoint` does."""
    result = completed_adjoint(iterate, _flat(gradient), _flat(V), _flat(Q), perturbed, _count(V, reals))
    return result.view(V.shape)


def completed_factor(
    iterate: Callable[[Tensor, int], tuple[Tensor, Tensor]], V: Tensor, reals: int
) -> tuple[Tensor, Tensor]:
    """Q of contiguous matrices (b, m, n), orthonormal for every finite V, and which did not converge: on the device.

    iterate returns Q and the norms of QᴴQ - I. Of matrices that do not converge the iteration has made tiny singular
    values grow a millionfold; zeros stayed. Plain steps bring the large ones to 1. Then they get some of fixed
    orthonormal columns between the vectors of the others alone, divided by that growth less than a rounding of V, and
    are iterated again.
    """
    Q, residual = iterate(V, reals)
    perturbed = residual > tolerance(V)
    where = perturbed[:, None, None]
    with full_precision(V.device):
        plain = Q
        for _ in range(PLAIN_STEPS):
            plain = torch.baddbmm(plain, plain @ plain.mH, plain, beta=1.5, alpha=-0.5)
        begin = torch.where(where, torch.add(plain, between_tiny(plain), alpha=PERTURBATION), Q)
    again, _ = iterate(begin, reals)
    return torch.where(where, again, Q), perturbed


def completed_adjoint(
    iterate: Callable[[Tensor, Tensor, Tensor, int], Tensor],
    G: Tensor,
    V: Tensor,
    Q: Tensor,
    perturbed: Tensor,
    reals: int,
) -> Tensor:
    """The gradient of V from G, that of Q, of contiguous matrices (b, m, n); iterate is the adjoint of the others.

    Of V + dQ, if V was perturbed: H = QᴴV, on which the adjoint depends, becomes H + dI, and every singular value
    counts as larger by d = (8 + max(m, n)) eps |V|_F, more than the rounding errors of H; d = 1 if V is zero.
    """
    size = torch.linalg.vector_norm(V, dim=(1, 2)).clamp_(max=LARGE)
    shift = (size * ((8 + max(V.shape[1:])) * torch.finfo(V.dtype).eps)).masked_fill_(size <= TINY, 1)
    shift = (shift * perturbed)[:, None, None].to(V.dtype)
    return iterate(G, torch.addcmul(V, shift, Q), Q, reals)


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


def _flat(V: Tensor) -> Tensor:
    """(b, m, n), contiguous numbers as they are in memory."""
    return V.reshape(-1, *V.shape[-2:]).contiguous().resolve_conj().resolve_neg()


def _count(V: Tensor, reals: int) -> int:
    """The number of real matrices in the flat batch."""
    return reals * V.shape[1:-2].numel() if reals else 0
