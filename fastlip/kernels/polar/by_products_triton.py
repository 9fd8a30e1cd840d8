"""Scaled Newton-Schulz for polar factors and their adjoint by batched products: matrices too large for one program.

README.md derives the iteration. A forward step is two launches, a backward step three, of tall matrices four. Nothing
waits for the device: every step is launched, and members that have converged take no part in it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastlip.kernels.common.product_triton import Cubic, Iteration, multiply, planar, tiles_of
from fastlip.kernels.polar.newton_schulz import ADJOINT_STEPS, FINE, TINY

STEPS = 30
# What has not converged before these steps has a condition number from about 1e4. They are plain: its large singular
# values come to 1, its tiny ones grow. After them it gets this much of fixed orthonormal columns, between its tiny
# singular vectors alone: a singular value of zero stays zero in every step, but this one grows like others. Divided
# by the growth until then it is about a rounding, so that the factor is one of a matrix next to V, and orthonormal
# for every V.
PLAIN, PERTURBATION = range(12, 17), 2.0**-6


def factor(V: Tensor, reals: int) -> tuple[Tensor, Tensor, Tensor]:
    """Q of contiguous matrices (b, m, n), some real; the Frobenius norms of I - QᴴQ, and which it perturbed."""
    X = _tall(V) * _unit(V, reals)[:, None, None, None]
    if V.is_complex():
        X[:reals, 1] = 0
    members, parts, _, columns = X.shape
    defect = X.new_empty(members, parts, columns, columns)
    X = X.contiguous()
    X *= _inverse_bound(multiply(defect, X.mT, X, conjugate=(True, False)))[:, None, None, None]
    iteration = Iteration.start(members, tiles_of(columns, columns), STEPS, FINE, V.device)

    def measure(cubic: Cubic | None) -> None:
        multiply(
            defect, X.mT, X, conjugate=(True, False), second=-1, identity=1, sums=iteration.sums,
            iteration=iteration, cubic=cubic,
        )  # fmt: skip

    pair = X, torch.empty_like(X)
    measure(None)
    for step in range(STEPS):
        old, X = pair[step % 2], pair[(step + 1) % 2]
        multiply(X, old, defect, x=old, second=-1, iteration=iteration, cubic=Cubic(step, 1, 1, step in PLAIN))
        measure(Cubic(step))
        if step == PLAIN[-1]:
            X += (iteration.status[:, step + 1] * PERTURBATION)[:, None, None, None] * _between_tiny(X, defect)
    residual = iteration.sums[..., 0].sum(1).sqrt()
    last = (
        torch.where(_is_odd(iteration), pair[1], pair[0]) + 0 * residual[:, None, None, None]
    )  # NaN wherever one is
    Q = torch.empty_like(V)
    _tall(Q).copy_(last)
    return Q, residual, iteration.status[:, min(PLAIN[-1] + 1, STEPS)] != 0


def adjoint(G: Tensor, V: Tensor, Q: Tensor, reals: int) -> Tensor:
    """The gradient of V from that of Q, of contiguous matrices (b, m, n)."""
    out, g, v, q = torch.empty_like(V), _tall(G), _tall(V), _tall(Q)
    members, parts, rows, columns = v.shape
    # Side by side: H and K; I - HH and -HK.
    pair = v.new_empty(members, parts, columns, 2 * columns), v.new_empty(members, parts, columns, 2 * columns)
    products = torch.empty_like(pair[0])
    H, K = _halves(pair[0])
    unit = _unit(V, reals)
    scale = torch.stack((torch.ones_like(unit), unit), 1)
    multiply(H, q.mT, v, conjugate=(True, False), second=0.5, symmetry=1, scale=scale, reals=reals)
    multiply(K, q.mT, g, conjugate=(True, False), second=0.5, symmetry=-1, reals=reals)
    tall = ()
    D, T = _halves(products)
    if rows > columns:
        M = multiply(D, q.mT, g, conjugate=(True, False), reals=reals)
        N = multiply(v.new_empty(v.shape), q, M, x=g, second=-1, reals=reals)
        tall = N, torch.empty_like(N)
    bound = _inverse_bound(multiply(D, H, H))
    H *= bound[:, None, None, None]
    unit = unit * bound

    iteration = Iteration.start(members, tiles_of(columns, 2 * columns), ADJOINT_STEPS, FINE, V.device)
    measured = {"second": -1, "identity": 1, "sums": iteration.sums, "limit": columns, "iteration": iteration}
    multiply(products, H, pair[0], **measured)
    for step in range(ADJOINT_STEPS):
        (H, K), new = _halves(pair[step % 2]), pair[(step + 1) % 2]
        linear, derived = ({"iteration": iteration, "cubic": Cubic(step, 1, b)} for b in (1, 2))
        multiply(_halves(new)[0], H, D, x=H, first=0.5, second=-0.5, symmetry=1, **linear)
        multiply(_halves(new)[1], K, D, also=(T, H, -0.5), x=K, first=0.5, second=-1, symmetry=-1, **derived)
        if tall:
            multiply(tall[(step + 1) % 2], tall[step % 2], D, x=tall[step % 2], second=-1, **linear)
        multiply(products, _halves(new)[0], new, cubic=Cubic(step), **measured)

    odd = _is_odd(iteration)
    K = torch.where(odd, _halves(pair[1])[1], _halves(pair[0])[1])
    result = multiply(v.new_empty(v.shape), q, K, x=torch.where(odd, tall[1], tall[0]) if tall else None)
    if parts == 2:
        result[:reals, 1] = 0
        g = g.clone()
        g[:reals, 1] = 0
    unconverged = iteration.status[:, -1] != 0
    unit = unit.masked_fill(unit == 0, 1)
    _tall(out).copy_(torch.where(unconverged[:, None, None, None], g, result) * unit[:, None, None, None])
    return out


def _tall(V: Tensor) -> Tensor:
    """Planar, wide matrices as their transposes, whose factor is the transpose: a view."""
    return planar(V.mT if V.shape[1] < V.shape[2] else V)


def _halves(pair: Tensor) -> tuple[Tensor, Tensor]:
    columns = pair.shape[-2]
    return pair[..., :columns], pair[..., columns:]


def _orthonormal(X: Tensor) -> Tensor:
    """Columns of a cosine transform, of an X's shape."""
    rows, columns = X.shape[2:]
    row, column = (torch.arange(1, 2 * size, 2, device=X.device) for size in (rows, columns))
    angles = (row[:, None] * column % (8 * rows)).to(X.dtype) * (torch.pi / (4 * rows))
    return angles.cos() * (2 / rows) ** 0.5


def _between_tiny(X: Tensor, defect: Tensor) -> Tensor:
    """(I - XXᴴ) W (I - XᴴX) for orthonormal columns W: of W, what is between the vectors of tiny singular values.

    ``defect``: I - XᴴX of this X; that of an earlier step would leave some of the large singular values' vectors.
    """
    W = torch.zeros_like(X)
    W[:, 0] = _orthonormal(X)
    right = multiply(torch.empty_like(X), W, defect)
    inside = multiply(torch.empty_like(defect), X.mT, right, conjugate=(True, False))
    return multiply(torch.empty_like(X), X, inside, x=right, second=-1)


def _is_odd(iteration: Iteration) -> Tensor:
    """(b, 1, 1, 1): whether a member took an odd number of steps."""
    return (iteration.status[:, :-1].sum(1) % 2 != 0)[:, None, None, None]


def _unit(V: Tensor, reals: int) -> Tensor:
    """(b,): 1 / the largest entry; 0 for a matrix of zeros."""
    parts = torch.linalg.vector_norm(planar(V), torch.inf, dim=(2, 3))
    if V.is_complex():
        parts[:reals, 1] = 0
    peak = parts.amax(1)
    # A number in place of entries that are chosen is a launch; by torch.where it would be a tensor first.
    tiny = peak <= TINY
    return peak.masked_fill_(tiny, 1).reciprocal_().masked_fill_(tiny, 0)


def _inverse_bound(gram: Tensor) -> Tensor:
    """(b,): 1 / an upper bound of the largest singular value, from the Gram matrix: the smaller of two norms."""
    sizes = torch.linalg.vector_norm(gram, dim=1)
    square = torch.minimum(torch.linalg.vector_norm(sizes, dim=(1, 2)), sizes.sum(2).amax(1))
    return square.rsqrt().masked_fill_(square == 0, 0)
