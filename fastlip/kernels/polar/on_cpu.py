"""polar in C++ (csrc/polar): real and complex, single and double precision, matrices of any shape."""

from __future__ import annotations

import torch
from torch import Tensor

from fastlip.kernels.common import binding
from fastlip.kernels.common.precision import full_precision
from fastlip.kernels.polar.newton_schulz import decomposed
from fastlip.kernels.polar.reference import adjoint_from_factor, join, split

_NAMES = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.complex64: "complex64",
    torch.complex128: "complex128",
}
_LARGEST = {torch.float32: 1024}  # else 128: until when this is faster for matrices as layers have them (README.md)


def supports(V: Tensor, reals: int) -> str:
    """Empty, or why these kernels cannot run."""
    if V.dtype not in _NAMES:
        return f"no kernel for dtype {V.dtype}"
    return binding.missing(f"polar_forward_{_NAMES[V.dtype]}", V.device)


def unprofitable(V: Tensor, reals: int) -> str:
    """Empty, or why the reference is faster."""
    side = min(V.shape[-2:])
    return "" if side <= _LARGEST.get(V.dtype, 128) else f"of {side} rows or columns, the decomposition is faster"


def polar_forward(V: Tensor, reals: int) -> tuple[Tensor, Tensor]:
    """Q, and which matrices were decomposed."""
    parts = [factors(part) for part in split(V, reals)]
    Q = join([Q for Q, _ in parts], V.dtype)
    return Q, torch.cat([failed.flatten() for _, failed in parts])


def polar_backward(gradient: Tensor, V: Tensor, Q: Tensor, failed: Tensor, reals: int) -> Tensor:
    """The gradient of V."""
    parts = zip(*(split(tensor, reals) for tensor in (gradient, V, Q)), strict=True)
    return join([adjoints(*part) for part in parts], V.dtype)


def factors(V: Tensor) -> tuple[Tensor, Tensor]:
    """Q, and which matrices were decomposed: those of condition numbers beyond about 1 / eps, and zeros."""
    V = _plain(V)
    Q, failed = _launch("forward", V)
    if failed.any():
        with full_precision(V.device):
            Q[failed] = decomposed(V[failed], 0)
    return Q, failed


def adjoints(gradient: Tensor, V: Tensor, Q: Tensor) -> Tensor:
    """The gradient of V; of ill-conditioned matrices from the eigenvectors of H."""
    gradient, V, Q = map(_plain, (gradient, V, Q))
    result, failed = _launch("backward", gradient, Q, V)
    if failed.any():
        with full_precision(V.device):
            result[failed] = adjoint_from_factor(gradient[failed], Q[failed], V[failed])
    return result


def _plain(tensor: Tensor) -> Tensor:
    """Contiguous numbers as they are in memory, no conjugation or sign left to be done by who reads them."""
    return tensor.contiguous().resolve_conj().resolve_neg()


def _launch(direction: str, *inputs: Tensor) -> tuple[Tensor, Tensor]:
    """The kernel's result, and for which matrices there is none."""
    result = torch.empty_like(inputs[0])
    failed = torch.empty(result.shape[:-2], dtype=torch.bool)
    addresses = [tensor.data_ptr() for tensor in (*inputs, result, failed)]
    name = f"polar_{direction}_{_NAMES[result.dtype]}"
    binding.launch(name, result.device, *addresses, failed.numel(), *result.shape[-2:])
    return result, failed
