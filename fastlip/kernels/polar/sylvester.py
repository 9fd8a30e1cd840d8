"""The Sylvester equation of a Hermitian matrix with known eigenvectors, differentiable any number of times."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


# Tracing an autograd.Function makes torch.compile warn; a call left whole in the graph is traced by autograd.
@torch.compiler.allow_in_graph
def sylvester(H: Tensor, C: Tensor, basis: Tensor, quotients: Tensor) -> Tensor:
    """The solution X of H X + X H = C for H = B diag(s) Bᴴ: B ((Bᴴ C B) * quotients) Bᴴ.

    Args:
        H: (..., n, n), Hermitian. Its entries are not read: derivatives with respect to it are those of X.
        C: (..., n, n).
        basis: B, (..., n, n), the eigenvectors of H, taken as constant.
        quotients: (..., n, n), 1 / (s_i + s_j), or less where that is too large; symmetric, taken as constant.
    """
    return _Sylvester.apply(H, C, basis.detach(), quotients.detach())


class _Sylvester(torch.autograd.Function):
    """dX solves the same equation with the right-hand side dC - dH X - X dH."""

    generate_vmap_rule = True

    @staticmethod
    def forward(H: Tensor, C: Tensor, basis: Tensor, quotients: Tensor) -> Tensor:
        return basis @ ((basis.mH @ C @ basis) * quotients) @ basis.mH

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        H, C, basis, quotients = inputs
        ctx.save_for_backward(H, C, basis, quotients)
        ctx.save_for_forward(H, C, basis, quotients)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        H, C, basis, quotients = ctx.saved_tensors
        X, Y = sylvester(H, C, basis, quotients), sylvester(H, gradient, basis, quotients)
        return -(Y @ X.mH + X.mH @ Y), Y, None, None

    @staticmethod
    def jvp(ctx: Any, dH: Tensor | None, dC: Tensor | None, *_: None) -> Tensor:
        H, C, basis, quotients = ctx.saved_tensors
        right = torch.zeros_like(C) if dC is None else dC
        if dH is not None:
            X = sylvester(H, C, basis, quotients)
            right = right - dH @ X - X @ dH
        return sylvester(H, right, basis, quotients)
