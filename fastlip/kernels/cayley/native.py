"""cayley and spectral_cayley in C++ and CUDA (csrc/cayley): real and complex, single and double precision."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastlip.kernels.cayley import reference
from fastlip.kernels.common import binding, gpu
from fastlip.kernels.common.binding import CPU
from fastlip.kernels.common.checks import VOLUMES
from fastlip.kernels.common.fourier import Size, cached_kernel_phases
from fastlip.kernels.common.precision import full_precision
from fastlip.kernels.spectral_conv.frequencies import COMPLEX, kernel_spectrum_adjoint

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
# The largest n x n matrix that a CUDA block inverts on chip where its shared memory allows.
_LARGEST = {torch.float32: 128, torch.float64: 128, torch.complex64: 128, torch.complex128: 64}
# What transforms the spectrum of real taps.
_OF_TAPS = {torch.float32: _FORWARD[torch.complex64], torch.float64: _FORWARD[torch.complex128]}
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
    if M.is_cpu and _WORKSPACE_FORWARD[M.dtype] not in CPU:
        return _forward_on_cpu(M)
    rows, columns = M.shape[-2:]
    wide = rows < columns
    if wide:
        M, rows, columns = M.mH, columns, rows
    M = _plain(M)
    batch = M.numel() // (rows * columns)
    Q, B = torch.empty_like(M), M.new_empty(0 if rows == columns else (*M.shape[:-2], columns, columns))
    failed = torch.empty(batch, dtype=torch.bool, device=M.device)
    addresses = M.data_ptr(), Q.data_ptr(), B.data_ptr() if rows > columns else 0, failed.data_ptr()
    memory, largest, slots = _forward_workspace(M)
    sizes = memory.data_ptr(), memory.nbytes, batch, rows, columns, largest, slots
    binding.launch(_WORKSPACE_FORWARD[M.dtype], M.device, *addresses, *sizes)
    return Q.mH.resolve_conj().contiguous() if wide else Q, B


def _forward_on_cpu(M: Tensor) -> tuple[Tensor, Tensor]:
    """As :func:`cayley_forward`; these kernels read and write wide matrices as they are."""
    M = M.contiguous().resolve_conj().resolve_neg()
    rows, columns = M.shape[-2:]
    larger, smaller = max(rows, columns), min(rows, columns)
    batch = M.numel() // (rows * columns)
    Q, B = torch.empty_like(M), M.new_empty(0 if rows == columns else (*M.shape[:-2], smaller, smaller))
    failed = torch.empty(batch, dtype=torch.bool)
    addresses = M.data_ptr(), Q.data_ptr(), B.data_ptr() if rows != columns else 0, failed.data_ptr()
    CPU[_FORWARD[M.dtype]](*addresses, batch, larger, smaller, rows < columns)
    if failed.any():
        _repair(M, Q, B, failed.view(M.shape[:-2]))
    return Q, B


def cayley_backward(gradient: Tensor, Q: Tensor | None, M: Tensor | None, B: Tensor | None) -> Tensor:
    """The gradient for M: from Q if M is square, else from M and B."""
    rows, columns = gradient.shape[-2:]
    wide, on_cpu = rows < columns, gradient.is_cpu and _WORKSPACE_FORWARD[gradient.dtype] not in CPU
    turned = wide and not on_cpu
    if turned:
        gradient, M = gradient.mH, None if M is None else M.mH
    rows, columns = max(rows, columns), min(rows, columns)
    gradient, saved = _plain(gradient), [None if tensor is None else _plain(tensor) for tensor in (Q, M, B)]
    result = torch.empty_like(gradient)
    batch = gradient.numel() // (rows * columns)
    pointers = [0 if tensor is None else tensor.data_ptr() for tensor in saved]
    addresses = gradient.data_ptr(), *pointers, result.data_ptr()
    if on_cpu:
        CPU[_BACKWARD[gradient.dtype]](*addresses, batch, rows, columns, wide)
    else:
        memory = gradient.new_empty(2 * batch * columns**2)
        sizes = memory.data_ptr(), memory.nbytes, batch, rows, columns
        binding.launch(_WORKSPACE_BACKWARD[gradient.dtype], gradient.device, *addresses, *sizes)
    return result.mH.resolve_conj().contiguous() if turned else result


def _forward_workspace(M: Tensor) -> tuple[Tensor, int, int]:
    """Memory, the largest matrix to invert on chip, and how many can be rescued at a time (cayley_cuda.cu)."""
    rows, n = M.shape[-2:]
    batch = M.numel() // (rows * n)
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
        columns = B.shape[-1]
        exact = exact.mH if M.shape[-2] < M.shape[-1] else exact
        B[failed] = ((exact[..., :columns, :] + torch.eye(columns, dtype=wide)) / 2).to(B.dtype)


def _plain(tensor: Tensor) -> Tensor:
    """Contiguous numbers as they are in memory, no conjugation or sign left to be done by who reads them."""
    return tensor.contiguous().resolve_conj().resolve_neg()


def supports_taps(weight: Tensor, *_: Any) -> str:
    """Empty, or why these kernels cannot run."""
    if weight.dim() != 4:
        return VOLUMES
    name = _OF_TAPS.get(weight.dtype)
    if name is None:
        return f"no kernel for dtype {weight.dtype}"
    if not weight.is_cpu:
        return "on other devices than the CPU, cayley's kernels transform the spectrum"
    return "" if name in CPU else binding.missing(name, weight.device)


def spectral_cayley_forward(weight: Tensor, fft_size: Size, dilation: Size, groups: int) -> tuple[Tensor, Tensor]:
    """The transforms at each frequency, and B of tall and wide matrices."""
    Q, B = cayley_forward(_spectrum(weight, fft_size, dilation, groups))
    return Q.view(len(Q), *weight.shape[:2]), B


def spectral_cayley_backward(
    gradient: Tensor,
    weight: Tensor,
    Q: Tensor | None,
    B: Tensor | None,
    fft_size: Size,
    dilation: Size,
    groups: int,
) -> Tensor:
    """The gradient of the weight; matrices that are not square are computed again."""
    gradient = gradient.unflatten(1, (groups, -1))
    if Q is None:
        of_spectrum = cayley_backward(gradient, None, _spectrum(weight, fft_size, dilation, groups), B)
    else:
        of_spectrum = cayley_backward(gradient, Q.unflatten(1, (groups, -1)), None, None)
    return kernel_spectrum_adjoint(of_spectrum.flatten(1, 2), weight.shape, fft_size, dilation)


def _spectrum(weight: Tensor, fft_size: Size, dilation: Size, groups: int) -> Tensor:
    """(F, groups, cout / groups, cin / groups): ``kernel_spectrum``, which nothing can follow here."""
    cout, cin, kh, kw = weight.shape
    dtype, size, step = COMPLEX[weight.dtype], (fft_size[0], fft_size[1]), (dilation[0], dilation[1])
    phases = cached_kernel_phases((kh, kw), size, step, weight.device, dtype)
    taps = weight.permute(2, 3, 0, 1).reshape(kh * kw, -1).to(dtype)
    return (phases @ taps).view(len(phases), groups, cout // groups, cin)
