"""polar_linear in C++ (csrc/polar_linear) and torch's products, in the notation of README.md."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastlip.kernels.common import binding
from fastlip.kernels.common.precision import full_precision
from fastlip.kernels.common.products import product
from fastlip.kernels.polar import on_cpu as polar
from fastlip.kernels.polar_linear.api import POLES, pays
from fastlip.kernels.polar_linear.poles import fractions

binding.require()

_NAMES = {torch.float32: "float32", torch.float64: "float64"}
_UNITS = 2.0**-20, 2.0**20  # whose third powers are numbers in float32


def supports(x: Tensor, V: Tensor) -> str:
    """Empty, or why these kernels cannot run."""
    if V.dtype not in _NAMES or x.dtype != V.dtype:
        return f"no kernel for dtypes {x.dtype} and {V.dtype}"
    return binding.missing(f"polar_linear_gram_{_NAMES[V.dtype]}", V.device)


def unprofitable(x: Tensor, V: Tensor) -> str:
    """Empty, or why the factor and a product are faster."""
    if pays(x, V):
        return ""
    return (
        f"of {x.shape[:-1].numel()} vectors and a matrix of shape {tuple(V.shape)} in {V.dtype}, the factor is faster"
    )


class _Found(NamedTuple):
    """F = scale (I + sum of residues[i] inverses[i]), with Q = V F or F V; none if Q was computed itself."""

    scale: float
    residues: tuple[float, ...]
    slopes: tuple[float, ...]  # with dF = -sum of slopes[i] inverses[i] d(VᵀV) inverses[i]


def polar_linear_forward(x: Tensor, V: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Q x, the inverses (or Q, where there are none), their products with Q's smaller side, and what F is."""
    with full_precision(V.device):
        return _forward(x, V)


def _forward(x: Tensor, V: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, V = x.contiguous(), V.contiguous()
    rows, small, poles = x.view(-1, x.shape[-1]), min(V.shape), POLES[V.dtype]
    inverses = V.new_empty(max(poles * small * small, V.numel()))
    blocks = x.new_empty(len(rows) * poles * small)
    told = _invert(V, inverses)
    found = _read(told, V.dtype)
    if found is None:
        Q = polar.factors(V)[0]
        inverses[: V.numel()] = Q.flatten()
        y = product(rows, Q.T)
    else:
        tall = V.shape[0] >= V.shape[1]
        inner = rows if tall else product(rows, V.T)
        products = _products(inner, inverses, found, blocks)
        y = _weighted(inner, products, found)
        y = product(y, V.T) if tall else y
    return y.view(*x.shape[:-1], V.shape[0]), inverses, blocks, told


def polar_linear_backward(
    gradient: Tensor, x: Tensor, V: Tensor, inverses: Tensor, blocks: Tensor, found: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients of x and V."""
    with full_precision(V.device):
        return _backward(gradient, x, V, inverses, blocks, found)


def _backward(
    gradient: Tensor, x: Tensor, V: Tensor, inverses: Tensor, blocks: Tensor, found: Tensor
) -> tuple[Tensor, Tensor]:
    shape, V = x.shape, V.contiguous()
    g, x = gradient.reshape(-1, V.shape[0]), x.reshape(-1, V.shape[1])
    what = _read(found, V.dtype)
    if what is None:
        Q = inverses[: V.numel()].view_as(V)
        return product(g, Q).view(shape), polar.adjoints(product(g.T, x), V, Q)
    tall, small = V.shape[0] >= V.shape[1], min(V.shape)
    count = len(what.residues)
    kept = blocks[: len(x) * count * small].view(len(x), count, small)
    inner = product(g, V) if tall else g
    products = _products(inner, inverses, what, torch.empty_like(kept).flatten())
    turned = _weighted(inner, products, what)
    products *= products.new_tensor(what.slopes)[:, None]
    half = product(products.view(-1, small).T, kept.view(-1, small))
    change = half + half.T
    if tall:
        of_V = product(g.T, _weighted(x, kept, what))
        return turned.view(shape), product(V, change, out=of_V, alpha=-1, add=True)
    of_V = product(turned.T, x)
    return product(turned, V).view(shape), product(change, V, out=of_V, alpha=-1, add=True)


def _invert(V: Tensor, inverses: Tensor) -> Tensor:
    """Writes the inverses; returns (unit, largest eigenvalue, condition number, 1), or zeros without them."""
    kind, small = _NAMES[V.dtype], min(V.shape)
    gram, found = V.new_empty((small, small)), torch.zeros(4, dtype=torch.float64)
    addresses = V.data_ptr(), gram.data_ptr(), found.data_ptr()
    binding.launch(f"polar_linear_gram_{kind}", V.device, *addresses, *V.shape)
    unit, lowest, highest, _ = found.tolist()
    if not (_UNITS[0] <= unit <= _UNITS[1] and lowest > 0):
        return found.zero_()
    condition = (highest / lowest) ** 0.5
    function = fractions(condition, torch.finfo(V.dtype).eps, POLES[V.dtype])
    if function is None:
        return found.zero_()
    shifts = torch.tensor([highest * pole for pole in function.poles], dtype=torch.float64)
    addresses = gram.data_ptr(), shifts.data_ptr(), inverses.data_ptr()
    binding.launch(f"polar_linear_inverses_{kind}", V.device, *addresses, len(shifts), small)
    return torch.tensor((unit, highest, condition, 1), dtype=torch.float64)


def _read(told: Tensor, dtype: torch.dtype) -> _Found | None:
    unit, highest, condition, exists = told.tolist()
    function = fractions(condition, torch.finfo(dtype).eps, POLES[dtype]) if exists else None
    if function is None:
        return None
    scale, residues = unit * function.scale / highest**0.5, tuple(highest * part for part in function.residues)
    return _Found(scale, residues, tuple(unit**2 * scale * part for part in residues))


def _products(inner: Tensor, inverses: Tensor, found: _Found, memory: Tensor) -> Tensor:
    """(rows, poles, small): each inverse times each row, in this memory."""
    count, small = len(found.residues), inner.shape[1]
    target = memory[: len(inner) * count * small].view(len(inner), count * small)
    return product(inner, inverses[: count * small**2].view(-1, small).T, out=target).view(len(inner), count, small)


def _weighted(inner: Tensor, products: Tensor, found: _Found) -> Tensor:
    """F times each row."""
    total = inner.clone()
    for i, residue in enumerate(found.residues):
        total.add_(products[:, i], alpha=residue)
    return total.mul_(found.scale)
