"""cayley in C++ and CUDA (csrc/cayley): real and complex, single and double precision, square and tall matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from fastlip.kernels.cayley import reference
from fastlip.kernels.common import binding
from fastlip.kernels.common.binding import CPU
from fastlip.kernels.common.precision import full_precision

binding.require()

_KINDS = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.complex64: "complex64",
    torch.complex128: "complex128",
}
_FORWARD = {dtype: f"cayley_forward_{kind}" for dtype, kind in _KINDS.items()}
_BACKWARD = {dtype: f"cayley_backward_{kind}" for dtype, kind in _KINDS.items()}
# The kernels that take their memory from the caller: CUDA's.
_WORKSPACE_FORWARD = {dtype: f"cayley_workspace_forward_{kind}" for dtype, kind in _KINDS.items()}
_WORKSPACE_BACKWARD = {dtype: f"cayley_workspace_backward_{kind}" for dtype, kind in _KINDS.items()}
# The largest n x n matrix that a CUDA block inverts on chip, in at most 163 KB (csrc/cayley/elimination.cuh).
_LARGEST = {torch.float32: 128, torch.float64: 128, torch.complex64: 128, torch.complex128: 64}
_RESCUED = 1 << 20  # numbers at a time, of matrices that are transformed again with pivots


def supports(M: Tensor) -> str:
    """Empty, or why these kernels cannot run."""
    name = _FORWARD.get(M.dtype)
    if name is None:
        return f"no kernel for dtype {M.dtype}"
    if M.is_cpu and name in CPU:
        return ""
    return binding.missing(_WORKSPACE_FORWARD[M.dtype], M.device) and binding.missing(name, M.device)


def cayley_forward(M: Tensor) -> tuple[Tensor, Tensor]:
    """Q, and B for tall and wide M (empty for square M). A wide M is transformed by its adjoint."""
    rows, columns = M.shape[-2:]
    wide = rows < columns
    if wide:
        M, rows, columns = M.mH, columns, rows
    M = M.contiguous().resolve_conj().resolve_neg()
    batch = M.numel() // (rows * columns)
    Q, B = torch.empty_like(M), M.new_empty(0 if rows == columns else (*M.shape[:-2], columns, columns))
    failed = torch.empty(batch, dtype=torch.bool, device=M.device)
    addresses = M.data_ptr(), Q.data_ptr(), B.data_ptr() if rows > columns else 0, failed.data_ptr()
    if not M.is_cpu or _WORKSPACE_FORWARD[M.dtype] in CPU:
        memory, largest, slots = _forward_workspace(M)
        sizes = memory.data_ptr(), memory.nbytes, batch, rows, columns, largest, slots
        binding.launch(_WORKSPACE_FORWARD[M.dtype], M.device, *addresses, *sizes)
    else:
        CPU[_FORWARD[M.dtype]](*addresses, batch, rows, columns)
        if failed.any():
            _repair(M, Q, B, failed.view(M.shape[:-2]))
    return Q.mH.resolve_conj().contiguous() if wide else Q, B


def cayley_backward(gradient: Tensor, Q: Tensor | None, M: Tensor | None, B: Tensor | None) -> Tensor:
    """The gradient for M: from Q if M is square, else from M and B."""
    rows, columns = gradient.shape[-2:]
    wide = rows < columns
    if wide:
        gradient, M, rows, columns = gradient.mH, None if M is None else M.mH, columns, rows
    gradient, saved = _plain(gradient), [None if tensor is None else _plain(tensor) for tensor in (Q, M, B)]
    result = torch.empty_like(gradient)
    batch = gradient.numel() // (rows * columns)
    pointers = [0 if tensor is None else tensor.data_ptr() for tensor in saved]
    addresses = gradient.data_ptr(), *pointers, result.data_ptr()
    if not gradient.is_cpu or _WORKSPACE_FORWARD[gradient.dtype] in CPU:
        memory = gradient.new_empty(2 * batch * columns**2)
        sizes = memory.data_ptr(), memory.nbytes, batch, rows, columns
        binding.launch(_WORKSPACE_BACKWARD[gradient.dtype], gradient.device, *addresses, *sizes)
    else:
        CPU[_BACKWARD[gradient.dtype]](*addresses, batch, rows, columns)
    return result.mH.resolve_conj().contiguous() if wide else result


def _forward_workspace(M: Tensor) -> tuple[Tensor, int, int]:
    """Memory, the largest matrix to invert on chip, and how many can be rescued at a time (cayley_cuda.cu)."""
    rows, n = M.shape[-2:]
    batch = M.numel() // (rows * n)
    extra = rows - n
    wide = torch.complex128 if M.is_complex() else torch.float64
    working = wide if extra else M.dtype
    slots = min(batch, max(1, _RESCUED // ((2 * n + rows) * n)))
    bytes_needed = slots * ((2 * n + rows) * n * wide.itemsize + 8 * n)
    if extra or n > _LARGEST[working]:
        numbers = n * n + n * n // 2 + 2 * extra * n + 3 * n + extra
        bytes_needed += batch * numbers * working.itemsize
    return torch.empty(bytes_needed, dtype=torch.uint8, device=M.device), _LARGEST[working], slots


def _repair(M: Tensor, Q: Tensor, B: Tensor, failed: Tensor) -> None:
    """Leaves to the reference, with its pivots, the matrices whose elimination without pivots is too inaccurate."""
    wide = torch.complex128 if M.is_complex() else torch.float64
    with full_precision(M.device):
        exact = reference.cayley(M[failed].to(wide))
    Q[failed] = exact.to(Q.dtype)
    if B.numel() > 0:
        columns = M.shape[-1]
        B[failed] = ((exact[..., :columns, :] + torch.eye(columns, dtype=wide)) / 2).to(B.dtype)


def _plain(tensor: Tensor) -> Tensor:
    """Contiguous numbers as they are in memory, no conjugation or sign left to be done by who reads them."""
    return tensor.contiguous().resolve_conj().resolve_neg()
