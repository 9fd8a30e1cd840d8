"""cayley in C++ (csrc/cayley): real and complex, single and double precision, square and tall matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from fastlip.ops import _native
from fastlip.ops.cayley import new_inverse, reference

_native.require()

_FORWARD = {
    torch.float32: "cayley_forward_float32",
    torch.float64: "cayley_forward_float64",
    torch.complex64: "cayley_forward_complex64",
    torch.complex128: "cayley_forward_complex128",
}
_BACKWARD = {dtype: name.replace("forward", "backward") for dtype, name in _FORWARD.items()}


def supports(M: Tensor) -> str:
    """Empty, or why these kernels cannot run."""
    name = _FORWARD.get(M.dtype)
    return _native.missing(name, M.device.type) if name else f"no kernel for dtype {M.dtype}"


def cayley_forward(M: Tensor) -> tuple[Tensor, Tensor]:
    """Q, and B for tall M (empty for square M)."""
    M = _plain(M)
    Q, B = torch.empty_like(M), new_inverse(M)
    batch, rows, columns = _sizes(M)
    failed = torch.empty(batch, dtype=torch.bool)
    inverse = B.data_ptr() if rows > columns else 0
    _native.launch(
        _FORWARD[M.dtype], M.device, M.data_ptr(), Q.data_ptr(), inverse, failed.data_ptr(), batch, rows, columns
    )
    if failed.any():
        _repair(M, Q, B, failed.view(M.shape[:-2]))
    return Q, B


def cayley_backward(gradient: Tensor, Q: Tensor | None, M: Tensor | None, B: Tensor | None) -> Tensor:
    """The gradient for M: from Q if M is square, else from M and B."""
    gradient = _plain(gradient)
    result = torch.empty_like(gradient)
    saved = [None if tensor is None else _plain(tensor) for tensor in (Q, M, B)]
    addresses = [0 if tensor is None else tensor.data_ptr() for tensor in saved]
    name = _BACKWARD[gradient.dtype]
    _native.launch(name, gradient.device, gradient.data_ptr(), *addresses, result.data_ptr(), *_sizes(gradient))
    return result


def _repair(M: Tensor, Q: Tensor, B: Tensor, failed: Tensor) -> None:
    """Leaves to the reference, with its pivots, the matrices whose elimination without pivots is too inaccurate."""
    wide = torch.complex128 if M.is_complex() else torch.float64
    with torch.autocast(M.device.type, enabled=False):
        exact = reference.cayley(M[failed].to(wide))
    Q[failed] = exact.to(Q.dtype)
    if B.numel() > 0:
        columns = M.shape[-1]
        B[failed] = ((exact[..., :columns, :] + torch.eye(columns, dtype=wide)) / 2).to(B.dtype)


def _plain(tensor: Tensor) -> Tensor:
    """Contiguous numbers as they are in memory, no conjugation or sign left to be done by who reads them."""
    return tensor.contiguous().resolve_conj().resolve_neg()


def _sizes(M: Tensor) -> tuple[int, int, int]:
    rows, columns = M.shape[-2:]
    return M.numel() // (rows * columns), rows, columns
