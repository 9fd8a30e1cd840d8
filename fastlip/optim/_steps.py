"""The mathematics of a step on the manifold: gradients in the tangent space, and the way back from it.

Square matrices: W <- W P(A) with a skew matrix A and P close to the exponential. The gradient for A at 0 is
(WᵀG - GᵀW) / 2, where G is that for W.
Tall ones, with orthonormal columns: W <- (W + U)(I + UᵀU)^(-1/2) with a tangent U, WᵀU + UᵀW = 0. The gradient is
G - W (WᵀG + GᵀW) / 2. Wide ones are transposed.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor

from fastlip.kernels.common.precision import full_precision
from fastlip.nn._manifold import retracted
from fastlip.optim._rows import divided, gathered, is_sharded, own_rows, put_rows, summed

_MOST_HALVINGS = 64


class Workspace:
    """Memory for intermediate matrices. It is kept on the CPU, where fresh pages cost as much as many additions."""

    def __init__(self) -> None:
        self._kept: dict[Any, Tensor] = {}

    def __call__(self, slot: int, like: Tensor) -> Tensor:
        """A tensor of this shape and type without numbers; that of another slot has other memory."""
        if not like.is_cpu:
            return torch.empty_like(like, memory_format=torch.contiguous_format)
        key = slot, like.shape, like.dtype
        if key not in self._kept:
            self._kept[key] = torch.empty(like.shape, dtype=like.dtype)
        return self._kept[key]


def tangent_gradient(W: Tensor, G: Tensor, memory: Workspace) -> Tensor:
    """The gradient in the tangent space at W, divided over processes as W is.

    Args:
        W: (m, n) with orthonormal rows or columns.
        G: the gradient of W.
        memory: for intermediate matrices.
    """
    m, n = W.shape
    with full_precision(W.device):
        if m == n:
            return divided(_skew_(summed(own_rows(W).mT @ own_rows(G), W), memory), W)
        if m < n:
            return divided(_projected(gathered(W).mT, gathered(G).mT).mT.contiguous(), W)
        return divided(_projected(gathered(W), gathered(G)), W)


def move_(W: Tensor, step: Tensor, tolerance: float, memory: Workspace) -> None:
    """Moves W by a step of the tangent space.

    Args:
        W: (m, n), changed in place.
        step: of the shape of W, changed in place; its part outside the tangent space is left out.
        tolerance: how much the step may add to |WᵀW - I|₂, rounding apart.
        memory: for intermediate matrices.
    """
    m, n = W.shape
    with full_precision(W.device):
        if m == n:
            rows, A = own_rows(W.detach()), _skew_(gathered(step), memory)
            if is_sharded(W) and _turn_rows_(rows, A, tolerance, W):
                return
            rows.add_(torch.mm(rows, turn_minus_one(A, tolerance, memory), out=memory(1, rows)))
            return
        wide = m < n
        Q, U = (gathered(one).mT if wide else gathered(one) for one in (W.detach(), step))
        Q = Q + _projected(Q, U)  # WᵀW + UᵀU = I + UᵀU
        Q = _orthonormal(Q, tolerance)
        put_rows(Q.mT if wide else Q, W)


def turn_minus_one(A: Tensor, tolerance: float, memory: Workspace) -> Tensor:
    r"""P - I for a polynomial P of A with P = exp(A) + O(A³) that is orthogonal up to the tolerance.

    The Taylor polynomial of degree d has PᵀP = I + O(A^(d + 2)). Butterworth's, scaled to slope 1, has

    .. math:: P^T P = I + (-A^2 / b^2)^d, \qquad b = 1 / \sin(\pi / 2d),

    and no polynomial of this degree is flatter. Degree 2 is Taylor's and takes one product, 4 takes two, 6 three. A
    larger A is halved k times, and P squared as often. |A²|₂ is bounded by the Frobenius norm over the root of 2:
    eigenvalues of the square of a skew matrix come in pairs, but for one that is 0.

    Args:
        A: (n, n), skew.
        tolerance: a bound of |PᵀP - I|₂, rounding apart.
        memory: for intermediate matrices; the result is in slot 0 or 2.
    """
    S = torch.mm(A, A, out=memory(0, A))
    size = torch.linalg.vector_norm(S).item() / math.sqrt(2)
    degree, halvings = degree_for(size, tolerance)
    if degree == 2:
        return S.mul_(0.5).add_(A)
    if degree == 4:
        _, _, _, cubic, quartic = butterworth(4)
        inner = torch.mul(A, cubic, out=memory(1, A)).add_(S, alpha=quartic)
        P = torch.add(A, S, alpha=0.5, out=memory(2, A))
        return torch.addmm(P, inner, S, out=P)
    P = _of_degree_six(A * 2.0**-halvings, S.mul_(4.0**-halvings))
    for _ in range(halvings):
        P = torch.addmm(P, P, P, beta=2)
    return P


def _turn_rows_(rows: Tensor, A: Tensor, tolerance: float, W: Tensor) -> bool:
    """W P from the rows that each process has: a product of rows for each degree, and no product of whole matrices.

    Returns:
        Whether it was done; not for steps that would have to be halved.
    """
    powers = [rows @ A]
    powers.append(powers[0] @ A)
    square = summed(torch.linalg.vector_norm(powers[1]).square(), W)  # |W A²| = |A²|
    degree, halvings = degree_for(math.sqrt(square.item() / 2), tolerance)
    if halvings:
        return False
    for _ in range(degree - 2):
        powers.append(powers[-1] @ A)
    for power, coefficient in zip(powers, butterworth(degree)[1:], strict=True):
        rows.add_(power, alpha=coefficient)
    return True


def degree_for(size: float, tolerance: float) -> tuple[int, int]:
    """The degree of the polynomial, and how often A is halved before it.

    Args:
        size: a bound of |A²|₂.
        tolerance: a bound of |PᵀP - I|₂.
    """
    for degree in (2, 4):
        if not math.isfinite(size) or defect(degree, size) <= tolerance:
            return degree, 0
    halvings = 0
    while 2.0**halvings * defect(6, size / 4.0**halvings) > tolerance and halvings < _MOST_HALVINGS:
        halvings += 1
    return 6, halvings


def _of_degree_six(A: Tensor, S: Tensor) -> Tensor:
    """P - I from A and A²: two products, one of them A³."""
    _, _, _, *c = butterworth(6)
    cube = A @ S
    inner = torch.add(c[1] * A, S, alpha=c[2]).add_(cube, alpha=c[3])
    return torch.addmm(torch.add(A, S, alpha=0.5).add_(cube, alpha=c[0]), inner, cube)


@cache
def butterworth(degree: int) -> tuple[float, ...]:
    """Coefficients of Butterworth's polynomial, from the constant on, scaled to p(x) = 1 + x + x^2 / 2 + ...

    Args:
        degree: d.
    """
    angle, values = math.pi / (2 * degree), [1.0]
    for k in range(1, degree + 1):
        values.append(values[-1] * math.cos((k - 1) * angle) / math.sin(k * angle))
    return tuple(value / values[1] ** k for k, value in enumerate(values))


def defect(degree: int, size: float) -> float:
    """|PᵀP - I|₂ of the polynomial of this degree for |A²|₂ = size.

    Args:
        degree: d.
        size: |A²|₂.
    """
    return (size * math.sin(math.pi / (2 * degree)) ** 2) ** degree


def _orthonormal(Q: Tensor, tolerance: float) -> Tensor:
    """Q (QᵀQ)^(-1/2) for QᵀQ = I + S: by two or three terms of its series, else to rounding."""
    S = Q.mT @ Q
    S.diagonal().sub_(1)
    size = torch.linalg.vector_norm(S).item()
    if not math.isfinite(size) or size**2 <= tolerance:  # the defect is at most 3/4 S^2
        return torch.addmm(Q, Q, S, alpha=-0.5)
    if size <= 0.5 and size**3 <= tolerance:  # 5/8 S^3 for small S
        return torch.addmm(Q, Q, torch.addmm(S, S, S, beta=-0.5, alpha=0.375))
    return retracted(Q)


def _projected(W: Tensor, U: Tensor) -> Tensor:
    """U - W (WᵀU + UᵀW) / 2: the part of U in the tangent space at the tall W."""
    product = W.mT @ U
    return torch.addmm(U, W, product + product.mT, alpha=-0.5)


def _skew_(matrix: Tensor, memory: Workspace) -> Tensor:
    """The skew part, in place. The transpose is copied by blocks: reading across the rows would take longer."""
    return matrix.sub_(memory(0, matrix).copy_(matrix.mT)).mul_(0.5)
