"""Polar factors: exactly by the singular value decomposition, and LOT's ridged Newton iteration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastlip.kernels.common.finite import finite_part, poisoned
from fastlip.kernels.common.gate import is_recorded
from fastlip.kernels.common.precision import full_precision
from fastlip.kernels.polar.decomposition import decompose
from fastlip.kernels.polar.sylvester import sylvester


# Tracing an autograd.Function makes torch.compile warn; a call left whole in the graph is traced by autograd.
@torch.compiler.allow_in_graph
def polar(V: Tensor, reals: int = 0) -> Tensor:
    """Q = U Wᴴ for the thin decomposition V = U diag(s) Wᴴ, the first ``reals`` matrices taken as real."""
    return (_Polar.forward(V, reals) if is_recorded() else _Polar.apply(V, reals))[0]


class _Polar(torch.autograd.Function):
    """Saves V, Q, the singular values, and of the singular bases only the smaller: the other follows from Q.

    The derivative of the polar factor is its own adjoint, as Q is the gradient of the sum of the singular values.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(V: Tensor, reals: int) -> tuple[Tensor, ...]:
        parts = [_factor(part) for part in split(V, reals)]
        return join([Q for Q, _, _ in parts], V.dtype), *(tensor for part in parts for tensor in part[1:])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(inputs[0], *output)
        ctx.save_for_forward(inputs[0], *output)
        ctx.reals = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor, None]:
        adjoint = _differentiable_adjoint if torch.is_grad_enabled() else _adjoint
        with full_precision(gradient.device):
            return _by_parts(adjoint, gradient, ctx.saved_tensors, ctx.reals), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> tuple[Tensor | None, ...]:
        V, *outputs = ctx.saved_tensors
        with full_precision(tangent.device):
            result = _by_parts(_differentiable_adjoint, tangent, (V, *outputs), ctx.reals)
        return result, *[None] * (len(outputs) - 1)


def _by_parts(adjoint: Callable[..., Tensor], gradient: Tensor, saved: tuple[Tensor, ...], reals: int) -> Tensor:
    """``adjoint(gradient, V, Q, basis, s)`` of the real matrices and of the others, joined."""
    V, Q, *factors = saved
    matrices = (split(tensor, reals) for tensor in (gradient, V, Q))
    pieces = zip(*matrices, factors[::2], factors[1::2], strict=True)
    return join([adjoint(*piece) for piece in pieces], Q.dtype)


def _adjoint(gradient: Tensor, V: Tensor, Q: Tensor, basis: Tensor, s: Tensor) -> Tensor:
    return polar_adjoint(gradient, *_bases(Q, basis), s)


def _differentiable_adjoint(gradient: Tensor, V: Tensor, Q: Tensor, basis: Tensor, s: Tensor) -> Tensor:
    """:func:`polar_adjoint` as a function of the gradient, V and Q, which may be differentiated any number of times.

    For a tall V: Q X + (I - Q Qᴴ) gradient H⁻¹ with H = QᴴV and H X + X H = Qᴴ gradient - gradientᴴ Q.
    """
    if V.shape[-2] < V.shape[-1]:
        return _differentiable_adjoint(gradient.mH, V.mH, Q.mH, basis, s).mH
    QhG, QhV = Q.mH @ gradient, Q.mH @ V
    H = (QhV + QhV.mH) / 2
    left, right = _clamped(s, *V.shape[-2:])
    result = Q @ sylvester(H, QhG - QhG.mH, basis, right)
    if V.shape[-2] > V.shape[-1]:
        identity = torch.eye(H.shape[-1], dtype=H.dtype, device=H.device).expand_as(H)
        clamped = 1 / left
        inverse = sylvester(H, 2 * identity, basis, 1 / (clamped[..., :, None] + clamped[..., None, :]))
        result = result + (gradient - Q @ QhG) @ inverse
    return result


def split(V: Tensor, reals: int) -> list[Tensor]:
    """The real parts of the first ``reals`` entries, and the others; only one of them where that is all."""
    return [V] if reals == 0 else [part for part in (V[:reals].real, V[reals:]) if part.shape[0] > 0]


def join(parts: list[Tensor], dtype: torch.dtype) -> Tensor:
    """The inverse of :func:`split`."""
    return parts[0].to(dtype) if len(parts) == 1 else torch.cat([part.to(dtype) for part in parts])


def _factor(V: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Q = U Wᴴ, the smaller of the bases U and W, and the singular values."""
    V, finite = finite_part(V)
    U, s, Wh = decompose(V)
    return poisoned(polish(U @ Wh), finite), U if V.shape[-2] < V.shape[-1] else Wh.mH, s


def _bases(Q: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """U and Wᴴ, from Q = U Wᴴ and the smaller of them."""
    return (basis, basis.mH @ Q) if Q.shape[-2] < Q.shape[-1] else (Q @ basis, basis.mH)


def polar_adjoint(gradient: Tensor, U: Tensor, Wh: Tensor, s: Tensor) -> Tensor:
    """The gradient of V = U diag(s) Wᴴ from that of its polar factor (README.md)."""
    left, right = _clamped(s, U.shape[-2], Wh.shape[-1])
    UhG = U.mH @ gradient
    P = UhG @ Wh.mH
    result = U @ ((P - P.mH) * right) @ Wh
    if U.shape[-2] > s.shape[-1]:  # tall: the part outside the columns of Q
        result = result + ((gradient - U @ UhG) @ Wh.mH * left[..., None, :]) @ Wh
    if Wh.shape[-1] > s.shape[-1]:  # wide: the part outside its rows
        result = result + U @ ((UhG - P @ Wh) * left[..., :, None])
    return result


def adjoint_from_factor(gradient: Tensor, Q: Tensor, V: Tensor) -> Tensor:
    """The gradient of V = QH (tall) or HQ (wide) from that of Q: H's eigenvalues are the singular values of V."""
    wide = V.shape[-2] < V.shape[-1]
    H = V @ Q.mH if wide else Q.mH @ V
    H, finite = finite_part(H)
    s, basis = torch.linalg.eigh((H + H.mH) / 2)
    s, basis = s.flip(-1).clamp(min=0), basis.flip(-1)
    return poisoned(polar_adjoint(gradient, *_bases(Q, basis), s), finite)


def polish(Q: Tensor) -> Tensor:
    """One Newton-Schulz step, Q (3 I - QᴴQ) / 2: an orthonormality defect d becomes 3 d²/4 and rounding.

    The step maps singular values up to sqrt(3) to at most 1. A Q that may exceed that is scaled down first, so
    that the norm of the result is at most 1 however wrong Q is.
    """
    if Q.shape[-2] < Q.shape[-1]:
        return polish(Q.mH).mH
    identity = torch.eye(Q.shape[-1], dtype=Q.dtype, device=Q.device)
    gram = Q.mH @ Q
    bound = 1 + torch.linalg.matrix_norm(gram - identity, keepdim=True)
    square = (bound / 3).clamp(min=1)
    return Q @ (3 * identity - gram / square) / (2 * square.sqrt())


def _clamped(s: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """1/s_i and 1/(s_i + s_j), the denominators at least max(rows, columns) eps s_0; 1 for a zero matrix."""
    info = torch.finfo(s.dtype)
    largest = s[..., :1]
    # Below the root of the smallest normal number, quotients of quotients would overflow.
    is_zero = largest <= info.tiny**0.5
    floor = torch.where(is_zero, 1.0, max(rows, columns) * info.eps * largest)
    sums = s[..., :, None] + s[..., None, :]
    return 1 / torch.maximum(s, floor), 1 / torch.maximum(sums, floor[..., None])


def ridged_newton(V: Tensor, ridge: float, steps: int) -> Tensor:
    """LOT's published function (Xu, Li, Li 2022), Z V / sqrt(nu) with Z close to (S / nu)^{-1/2}.

    S = V Vᴴ + ridge I and nu = ||S||_F + ridge; from Y = S / nu, Z = I, ``steps`` times T = (3 I - Z Y) / 2,
    Y = Y T, Z = T Z.
    Singular values approach 1 from below, so that every number of steps keeps the norm at most 1.
    A tall V is taken by its adjoint. Differentiated by autograd.
    """
    if V.shape[-2] > V.shape[-1]:
        return ridged_newton(V.mH, ridge, steps).mH
    identity = torch.eye(V.shape[-2], dtype=V.dtype, device=V.device)
    S = V @ V.mH + ridge * identity
    nu = torch.linalg.matrix_norm(S, keepdim=True) + ridge
    Y, Z = S / nu, identity.expand_as(S)
    for _ in range(steps):
        T = (3 * identity - Z @ Y) / 2
        Y, Z = Y @ T, T @ Z
    return Z @ V / nu.sqrt()
