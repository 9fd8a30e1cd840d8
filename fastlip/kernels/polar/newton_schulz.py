"""Scaled Newton-Schulz iteration for polar factors and their adjoint in torch's products, and the fallback.

README.md derives the iteration. The kernels of triton_kernels.py and of csrc/polar run the same iteration on chip,
one matrix at a time; scaling and the fallback to a decomposition are in this file for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from fastlip.kernels.common.precision import without_autocast
from fastlip.kernels.polar.decomposition import decompose
from fastlip.kernels.polar.reference import join, polar_adjoint, polish, split

FINE = 2**-11.5  # a Frobenius norm of QᴴQ - I from which one plain step reaches the rounding of float32
STEPS, ADJOINT_STEPS = 24, 28  # enough for condition numbers up to 1e6
TINY = 2**-63  # the root of float32's smallest normal number: a matrix of smaller entries counts as zero


def tolerance(V: Tensor) -> float:
    """The largest Frobenius norm of QᴴQ - I that is accepted: a few times that of rounding."""
    return 16 * torch.finfo(V.dtype).eps * min(V.shape[-2:]) ** 0.5


def factor(V: Tensor) -> tuple[Tensor, Tensor]:
    """Q of tall or square matrices (b, m, n), and for each the Frobenius norm of QᴴQ - I."""
    identity = torch.eye(V.shape[-1], dtype=V.dtype, device=V.device)
    X = V * _unit(V)
    gram = X.mH @ X
    scale = _inverse_bound(gram)
    X, gram = X * scale, gram * scale**2
    for _ in range(STEPS):
        a, b, more = _cubic(identity - gram)
        X = X @ (a * identity + b * gram)
        gram = X.mH @ X
        if _stop(more):
            break
    residual = torch.linalg.matrix_norm(identity - gram)
    return X + 0 * residual[:, None, None], residual  # NaN wherever one is


def adjoint(G: Tensor, V: Tensor, Q: Tensor) -> Tensor:
    """The gradient of tall or square V from that of Q (README.md)."""
    identity = torch.eye(V.shape[-1], dtype=V.dtype, device=V.device)
    unit = _unit(V)
    H, M = Q.mH @ (V * unit), Q.mH @ G
    H, K = (H + H.mH) / 2, (M - M.mH) / 2
    N = G - Q @ M if V.shape[-2] > V.shape[-1] else None
    gram = H @ H
    scale = _inverse_bound(gram)
    H, gram, unit, more = H * scale, gram * scale**2, unit * scale, unit > 0
    for _ in range(ADJOINT_STEPS):
        a, b, more = _cubic(identity - gram)
        left, between = K @ gram, H @ K @ H
        K = a * K + b * (left - left.mH - (between - between.mH) / 2)
        N = None if N is None else a * N + b * (N @ gram)
        H = a * H + b * (H @ gram)
        H = (H + H.mH) / 2
        gram = H @ H
        if _stop(more):
            break
    result = Q @ K if N is None else Q @ K + N
    return torch.where(more, G, result) * torch.where(unit == 0, 1, unit)


def checked_factor(
    iterate: Callable[[Tensor, int], tuple[Tensor, Tensor]], V: Tensor, reals: int
) -> tuple[Tensor, Tensor]:
    """Returns Q, and on the host which matrices were decomposed (none while a CUDA graph is captured).

    iterate takes contiguous matrices (b, m, n), the first of them real, and returns what :func:`factor` does.
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


def is_capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is being captured, so that the host must not wait for the device."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """No autocast and no TF32 in torch's products, whose errors the iteration would keep."""
    switch = torch.backends.cuda.matmul
    before = switch.fp32_precision
    try:
        switch.fp32_precision = "ieee"
        with without_autocast(device):
            yield
    finally:
        switch.fp32_precision = before


def _flat(V: Tensor) -> Tensor:
    """(b, m, n), contiguous numbers as they are in memory."""
    return V.reshape(-1, *V.shape[-2:]).contiguous().resolve_conj().resolve_neg()


def _count(V: Tensor, reals: int) -> int:
    """The number of real matrices in the flat batch."""
    return reals * V.shape[1:-2].numel() if reals else 0


def _unit(V: Tensor) -> Tensor:
    """1 / the largest entry; 0 for a matrix of zeros."""
    parts = torch.maximum(V.real.abs(), V.imag.abs()) if V.is_complex() else V.abs()
    peak = parts.amax((-2, -1), keepdim=True)
    return torch.where(peak <= TINY, 0, 1 / peak)


def _inverse_bound(gram: Tensor) -> Tensor:
    """1 / an upper bound of the singular values, from two norms of their squares; 0 for a matrix of zeros."""
    size = gram.abs()
    square = torch.minimum(torch.linalg.matrix_norm(size), size.sum(-1).amax(-1))[:, None, None]
    return torch.where(square == 0, 0, square.rsqrt())


def _cubic(defect: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The coefficients of the step x -> a x + b x³, and a mask of the matrices for which it is not the last one."""
    norm = torch.linalg.matrix_norm(defect)[:, None, None]
    trace = defect.diagonal(dim1=-2, dim2=-1).real.sum(-1)[:, None, None]
    more = norm > FINE
    largest = torch.where(trace > 0, torch.minimum(norm * norm / trace, norm.clamp(max=1)), 0)
    smallest = 1 - largest
    square = torch.where(more, (3 / (1 + smallest.sqrt() + smallest)).clamp(max=2), 1)
    rho = square.sqrt()
    return 1.5 * rho, -0.5 * rho * square, more


def _stop(more: Tensor) -> bool:
    return not is_capturing(more.device) and not bool(more.any())
