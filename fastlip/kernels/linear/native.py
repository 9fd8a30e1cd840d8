"""A dense layer's products in C++ (csrc/linear)."""

from __future__ import annotations

from torch import Tensor

from fastlip.kernels.common import binding
from fastlip.kernels.common.products import NAMES, few, product

binding.require()

KERNELS = "product_"  # csrc/linear, of common/products.py too


def supports(x: Tensor, weight: Tensor, bias: Tensor | None) -> str:
    """Empty, or why these kernels cannot run."""
    dtypes = {tensor.dtype for tensor in (x, weight, bias) if tensor is not None}
    if len(dtypes) > 1 or x.dtype not in NAMES:
        return f"no kernel for dtypes {', '.join(map(str, sorted(dtypes, key=str)))}"
    if x.shape[-1] != weight.shape[1] or (bias is not None and bias.shape != weight.shape[:1]):
        return "shapes do not fit"
    return "" if x.is_cpu and NAMES[x.dtype] in binding.CPU else binding.missing(NAMES[x.dtype], x.device)


def unprofitable(x: Tensor, weight: Tensor, bias: Tensor | None) -> str:
    """Empty, or why torch is faster."""
    return few(x, weight)


def linear_forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """W x + b."""
    y = product(x.reshape(-1, x.shape[-1]), weight.T, bias=bias, least=0)
    return y.view(*x.shape[:-1], len(weight))


def linear_backward(gradient: Tensor, x: Tensor, weight: Tensor, wanted: list[bool]) -> tuple[Tensor, Tensor]:
    """The gradients of x and W that are wanted; the others have no elements."""
    g, rows = gradient.reshape(-1, len(weight)), x.reshape(-1, x.shape[-1])
    of_x = product(g, weight, least=0).view(x.shape) if wanted[0] else x.new_empty(0)
    of_weight = product(g.T, rows, least=0) if wanted[1] else weight.new_empty(0)
    return of_x, of_weight
