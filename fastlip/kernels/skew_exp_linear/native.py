"""skew_exp_linear by torch's products and a norm in C++ (csrc/skew_exp_linear), in the notation of README.md."""

from __future__ import annotations

import torch
from torch import Tensor

from fastlip.kernels.common import binding
from fastlip.kernels.common.precision import full_precision
from fastlip.kernels.common.products import product
from fastlip.kernels.skew_exp import native as skew_exp
from fastlip.kernels.skew_exp.norm import NAMES, skew_norm
from fastlip.kernels.skew_exp_linear.api import memory, most_terms, pays
from fastlip.kernels.skew_exp_linear.bessel import Series, series, steps_of

binding.require()

KERNELS = "skew_norm_"  # csrc/skew_exp_linear


def supports(x: Tensor, K: Tensor) -> str:
    """Empty, or why these kernels cannot run."""
    if K.dtype not in NAMES or x.dtype != K.dtype:
        return f"no kernel for dtypes {x.dtype} and {K.dtype}"
    return binding.missing(NAMES[K.dtype], K.device)


def unprofitable(x: Tensor, K: Tensor) -> str:
    """Empty, or why the exponential and a product are faster."""
    if pays(x, K):
        return ""
    return (
        f"of {x.shape[:-1].numel()} vectors and a matrix of shape {tuple(K.shape)} in {K.dtype}, E itself is faster"
    )


def skew_exp_linear_forward(x: Tensor, K: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """E x, what the backward needs, and (s, number of terms), or zeros where E was computed itself."""
    kept, found = x.new_empty(memory(x, K)), torch.zeros(2, dtype=torch.float64)
    rows = x.reshape(-1, len(K))
    A = torch.sub(K, K.mT, out=kept[: K.numel()].view_as(K)).div_(2)
    steps = steps_of(skew_norm(A))
    shortest = None if steps is None else _shortest(steps, rows)
    with full_precision(K.device):
        if steps is None or shortest is None:
            return _by_exponential(rows, K, kept).view(x.shape), kept, found
        found[0], found[1] = steps, len(shortest.coefficients) - 1
        return _sum(rows, A, shortest, _terms(kept, found, rows)).view(x.shape), kept, found


def skew_exp_linear_backward(
    gradient: Tensor, x: Tensor, K: Tensor, kept: Tensor, found: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients of x and K."""
    g, rows = gradient.reshape(-1, len(K)), x.reshape(-1, len(K))
    shortest = _shortest(int(found[0]), rows) if found[1] else None
    with full_precision(K.device):
        if shortest is None:
            E, *more = _exponential(kept, K)
            return product(g, E).view(x.shape), skew_exp.skew_exp_backward(product(g.T, rows), K, E, *more)
        A = kept[: K.numel()].view_as(K)
        of_x, of_A = _adjoint(g, rows, A, shortest, _terms(kept, found, rows))
        return of_x.view(x.shape), of_A


def _shortest(steps: int, rows: Tensor) -> Series | None:
    return series(steps, torch.finfo(rows.dtype).eps, most_terms(*rows.shape))


def _terms(kept: Tensor, found: Tensor, rows: Tensor) -> Tensor:
    """(terms, vectors, n): φ_1 x, φ_2 x and so on, which follow A in what is kept."""
    count, size = int(found[1]), rows.shape[1] ** 2
    return kept[size : size + count * rows.numel()].view(count, *rows.shape)


def _sum(rows: Tensor, A: Tensor, shortest: Series, terms: Tensor) -> Tensor:
    """The sum of the series. Vectors are rows, so that products with A have the other sign."""
    norm, (first, *others) = shortest
    y = torch.mul(rows, first, out=torch.empty_like(terms[0]))
    product(rows, A, alpha=-1 / norm, out=terms[0])
    for k, coefficient in enumerate(others):
        if k > 0:
            terms[k].copy_(terms[k - 2] if k > 1 else rows)
            product(terms[k - 1], A, alpha=-2 / norm, out=terms[k], add=True)
        y.add_(terms[k], alpha=coefficient)
    return y


def _adjoint(g: Tensor, rows: Tensor, A: Tensor, shortest: Series, terms: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of x and K: those of the terms, from the last to the first, times the terms before them."""
    norm, (first, *others) = shortest
    gradients = torch.empty_like(terms)
    for k in reversed(range(len(others))):
        torch.mul(g, others[k], out=gradients[k])
        if k + 2 < len(others):
            gradients[k].add_(gradients[k + 2])
        if k + 1 < len(others):
            product(gradients[k + 1], A, alpha=2 / norm, out=gradients[k], add=True)
    of_x = torch.mul(g, first, out=torch.empty_like(terms[0]))  # in rows, whatever the layout of g
    product(gradients[0], A, alpha=1 / norm, out=of_x, add=True)
    if len(others) > 1:
        of_x.add_(gradients[1])
    size = rows.shape[1]
    of_A = product(gradients[0].T, rows, alpha=0.5)
    product(gradients[1:].view(-1, size).T, terms[:-1].view(-1, size), out=of_A, add=True)
    return of_x, torch.sub(of_A, of_A.T).div_(norm)


def _by_exponential(rows: Tensor, K: Tensor, kept: Tensor) -> Tensor:
    parts = skew_exp.skew_exp_forward(K)
    torch.cat([part.flatten() for part in parts], out=kept[: sum(part.numel() for part in parts)])
    return product(rows, parts[0].T)


def _exponential(kept: Tensor, K: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """E, A² and B, or E and two empty tensors in double precision (kernels/skew_exp)."""
    size = K.numel()
    if K.dtype == torch.float64:
        return kept[:size].view_as(K), kept[:0], kept[:0]
    E, square, B = kept[: 3 * size].view(3, *K.shape)
    return E, square[None], B[None]
