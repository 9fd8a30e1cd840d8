"""cayley in C++ and CUDA (csrc/cayley): real and complex, single and double precision, square and tall matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from fastlip.kernels.cayley import reference
from fastlip.kernels.cayley.api import new_inverse
from fastlip.kernels.common import binding, gpu
from fastlip.kernels.common.precision import full_precision

binding.require()

_NAMES = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.complex64: "complex64",
    torch.complex128: "complex128",
}
# The largest n x n matrix that a CUDA block inverts on chip where its shared memory allows.
_LARGEST = {torch.float32: 128, torch.float64: 128, torch.complex64: 128, torch.complex128: 64}
_RESCUED = 1 << 20  # numbers at a time, of matrices that are transformed again with pivots


def supports(M: Tensor) -> str:
    """Empty, or why these kernels cannot run."""
    if M.dtype not in _NAMES:
        return f"no kernel for dtype {M.dtype}"
    return "" if _in_workspace(M) else binding.missing(f"cayley_forward_{_NAMES[M.dtype]}", M.device)


def cayley_forward(M: Tensor) -> tuple[Tensor, Tensor]:
    """Q, and B for tall M (empty for square M)."""
    M = _plain(M)
    Q, B = torch.empty_like(M), new_inverse(M)
    batch, rows, columns = sizes = _sizes(M)
    failed = torch.empty(batch, dtype=torch.bool, device=M.device)
    addresses = M.data_ptr(), Q.data_ptr(), B.data_ptr() if rows > columns else 0, failed.data_ptr()
    if _in_workspace(M):
        name = f"cayley_workspace_forward_{_NAMES[M.dtype]}"
        memory, largest, slots = _forward_workspace(M)
        binding.launch(name, M.device, *addresses, memory.data_ptr(), memory.nbytes, *sizes, largest, slots)
        return Q, B
    binding.launch(f"cayley_forward_{_NAMES[M.dtype]}", M.device, *addresses, *sizes)
    if failed.any():
        _repair(M, Q, B, failed.view(M.shape[:-2]))
    return Q, B


def cayley_backward(gradient: Tensor, Q: Tensor | None, M: Tensor | None, B: Tensor | None) -> Tensor:
    """The gradient for M: from Q if M is square, else from M and B."""
    gradient = _plain(gradient)
    result = torch.empty_like(gradient)
    saved = [None if tensor is None else _plain(tensor) for tensor in (Q, M, B)]
    addresses = [0 if tensor is None else tensor.data_ptr() for tensor in saved]
    sizes = batch, _, columns = _sizes(gradient)
    name, memory = "cayley_backward", ()
    if _in_workspace(gradient):
        workspace = gradient.new_empty(2 * batch * columns**2)
        name, memory = "cayley_workspace_backward", (workspace.data_ptr(), workspace.nbytes)
    name = f"{name}_{_NAMES[gradient.dtype]}"
    binding.launch(name, gradient.device, gradient.data_ptr(), *addresses, result.data_ptr(), *memory, *sizes)
    return result


def _in_workspace(M: Tensor) -> bool:
    """Whether the kernels are those that take their memory from the caller: CUDA's."""
    return not binding.missing(f"cayley_workspace_forward_{_NAMES[M.dtype]}", M.device)


def _forward_workspace(M: Tensor) -> tuple[Tensor, int, int]:
    """Memory, the largest matrix to invert on chip, and how many can be rescued at a time (cayley_cuda.cu)."""
    batch, rows, n = _sizes(M)
    extra = rows - n
    wide = torch.complex128 if M.is_complex() else torch.float64
    working = wide if extra else M.dtype
    slots = min(batch, max(1, _RESCUED // ((2 * n + rows) * n)))
    bytes_needed = slots * ((2 * n + rows) * n * wide.itemsize + 8 * n)
    largest = _largest(working, M.device)
    if extra or n > largest:
        numbers = n * n + n * n // 2 + 2 * extra * n + 3 * n + extra
        bytes_needed += batch * numbers * working.itemsize
    return torch.empty(bytes_needed, dtype=torch.uint8, device=M.device), largest, slots


def _largest(dtype: torch.dtype, device: torch.device) -> int:
    """The largest n x n matrix that a block inverts on chip."""
    if device.type != "cuda":  # the same kernels run on the CPU in tests
        return _LARGEST[dtype]
    limit = gpu.shared_memory(device)
    return next((n for n in range(_LARGEST[dtype], 0, -1) if on_chip_bytes(n, dtype) <= limit), 0)


def on_chip_bytes(n: int, dtype: torch.dtype) -> int:
    """Shared memory that an inverse takes (csrc/cayley/elimination.cuh, OnChip::numbers)."""
    size, panel = -(-n // 4) * 4, 16
    return (size * (size + 4) + panel * size + 2 * panel**2) * dtype.itemsize


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


def _sizes(M: Tensor) -> tuple[int, int, int]:
    rows, columns = M.shape[-2:]
    return M.numel() // (rows * columns), rows, columns
