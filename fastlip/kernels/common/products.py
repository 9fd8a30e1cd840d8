"""Products of real matrices on a CPU: by our own kernel where torch's library leaves half of the processor unused."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from fastlip.kernels.common import binding
from fastlip.kernels.common.binding import CPU
from fastlip.kernels.common.compiled import constant
from fastlip.kernels.common.precision import FULL, cpu_products
from fastlip.kernels.common.sizes import surely_below

LEAST = 1 << 20  # multiply-adds of one product from which the kernel wins
WORTHWHILE = 3 << 19  # the same for a call of an operator
NAMES = {torch.float32: "product_float32", torch.float64: "product_float64"}


@cache
def is_faster() -> bool:
    """Whether the kernel's vectors are wider than those of torch's library: AVX-512 on a processor that is AMD's.

    MKL multiplies with 32-byte vectors there (torch 2.13: 105 GFLOP/s, where the kernel has 200).
    """
    try:
        if binding.library("cpu").instruction_set != "avx512":
            return False
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text()
    except (ImportError, OSError):
        return False


@constant
def _is_faster_when_compiled() -> bool:
    """The same, which no compiler traces: a compiled program has the answer of the machine that compiles it."""
    return is_faster()


def few(x: Tensor, weight: Tensor) -> str:
    """Why torch's product of each of these vectors with this matrix is as fast, an operator's own time counted."""
    work, compiling = x.numel() * len(weight), torch.compiler.is_compiling()
    little = surely_below(work, WORTHWHILE) if compiling else work < WORTHWHILE
    if little or not (x.is_cpu and (_is_faster_when_compiled() if compiling else is_faster())):
        return "torch multiplies as fast here"
    return "" if x.dtype == weight.dtype == torch.float32 else f"no measurement for {x.dtype}"


def product(
    a: Tensor,
    b: Tensor,
    *,
    out: Tensor | None = None,
    alpha: float = 1.0,
    add: bool = False,
    bias: Tensor | None = None,
    least: int = LEAST,
) -> Tensor:
    """alpha a b, or bias + alpha a b, or with ``add`` out + alpha a b, in ``out`` if it is given.

    Args:
        a: (m, k), real.
        b: (k, n), of the same dtype.
        out: (m, n); shares no memory with a, b and bias.
        alpha: a factor.
        add: whether the product is added to what is in ``out``.
        bias: (n,).
        least: multiply-adds from which the kernel runs, if the precision of float32 products is full; 0: always.

    Torch multiplies what the kernel cannot: an ``out`` that is not contiguous. What does not fit is torch's error.
    """
    rows, columns = len(a), b.shape[1]
    if least and not (rows * a.shape[1] * columns >= least and a.is_cpu and is_faster() and cpu_products() in FULL):
        return _by_torch(a, b, out, alpha, add, bias)
    if out is None:
        out = a.new_empty((rows, columns))
    kind = a.dtype
    fits = kind in NAMES and kind == b.dtype == out.dtype and out.is_contiguous() and out.shape == (rows, columns)
    fits = fits and a.shape[1] == b.shape[0]
    if not (fits and (bias is None or (bias.dtype == kind and bias.shape == (columns,)))):
        return _by_torch(a, b, out, alpha, add, bias)
    # Of each factor the neighbours in a row or in a column are next in memory.
    a, b = a if 1 in a.stride() else a.contiguous(), b if 1 in b.stride() else b.contiguous()
    bias = None if bias is None else bias.contiguous()
    CPU[NAMES[kind]](
        a.data_ptr(), b.data_ptr(), out.data_ptr(), 0 if bias is None else bias.data_ptr(),
        rows, columns, a.shape[1], *a.stride(), *b.stride(), out.stride(0), float(alpha), add,
    )  # fmt: skip
    return out


def _by_torch(a: Tensor, b: Tensor, out: Tensor | None, alpha: float, add: bool, bias: Tensor | None) -> Tensor:
    if add and out is not None:
        return out.addmm_(a, b, alpha=alpha)
    if bias is not None:
        return torch.addmm(bias, a, b, alpha=alpha, out=out)
    found = torch.mm(a, b, out=out)
    return found if alpha == 1 else found.mul_(alpha)
