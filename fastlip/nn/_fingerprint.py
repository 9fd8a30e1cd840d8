"""Fingerprints of tensors: 64 bits that differ, but for chance, wherever a bit of the tensors differs."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from fastlip.kernels.common import binding

# Of these classes every tensor is its own data; any other subclass may compute what it shows.
PLAIN = frozenset({Tensor, nn.Parameter})
_CPU = torch.device("cpu")
_NOTHING = (0,) * 8  # addresses and sizes of the arrays that the kernel takes at once
_MASK = (1 << 63) - 1
_GOLDEN, _FIRST, _SECOND = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15  # odd, as int64
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.int64}


def is_plain(tensor: Tensor) -> bool:
    """Whether the tensor has bits of its own that can be read: no subclass, no meta tensor, strided."""
    return type(tensor) in PLAIN and not tensor.is_meta and tensor.layout is torch.strided


def plain_of(tensors: Iterable[Tensor | None]) -> list[Tensor]:
    """Those of the tensors that are plain (:func:`is_plain`)."""
    found = []
    for tensor in tensors:  # without a call for each of them: evaluation asks in each forward
        if tensor is None or type(tensor) not in PLAIN or tensor.is_meta or tensor.layout is not torch.strided:
            continue
        found.append(tensor)
    return found


def fingerprint(tensors: Iterable[Tensor]) -> tuple[Any, ...] | None:
    """A hash of the bits of tensors, with their shapes and dtypes; None if no hash can be computed now.

    Views are hashed as what they show, in whatever memory. -0.0 is not 0.0, and one NaN is not another. On a CPU a
    compiled kernel hashes all tensors in one call; elsewhere, or without it, torch does, and waits for the device.
    While a stream is captured nothing can be waited for, and the answer is None; so it is for what is not plain.
    """
    marks: list[Any] = []
    arrays: list[Tensor] = []
    places: list[int] = []  # the address and the number of bytes of each
    on_cpu = True
    for tensor in tensors:
        if type(tensor) not in PLAIN:
            return None
        marks += (tensor.dtype, tensor.shape)
        if not tensor.is_contiguous() or tensor.is_neg() or tensor.is_conj():
            tensor = _in_order(tensor.detach(), marks)
        on_cpu = on_cpu and tensor.is_cpu
        arrays.append(tensor)
        if on_cpu:
            places += (tensor.data_ptr(), tensor.nbytes)
    if on_cpu and (kernel := _kernel()):
        places += _NOTHING[len(places) % len(_NOTHING) :]
        result, seed = _result, 0
        for start in range(0, len(places), len(_NOTHING)):
            kernel(result.address, seed, *places[start : start + len(_NOTHING)])
            seed = result.value.value
        marks.append(seed)
    elif on_cpu:
        marks.append(_hash_by_torch(arrays))
    elif any(array.is_cuda for array in arrays) and torch.cuda.is_current_stream_capturing():
        return None
    else:
        marks += (*(array.device for array in arrays), _hash_by_torch(arrays))
    return tuple(marks)


def _in_order(tensor: Tensor, marks: list[Any]) -> Tensor:
    """The entries of a view, one after the other in memory; channels-last ones stay so, with a mark."""
    if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_neg():
        marks.append("channels last")
        tensor = tensor.permute(0, 2, 3, 1)
    return tensor.resolve_conj().resolve_neg().contiguous()


@cache
def _kernel() -> Any:
    reason = binding.missing("fingerprint", _CPU)
    return None if reason else binding.kernel("fingerprint", _CPU)


class _Result(threading.local):
    """Where the kernel writes: a place for each thread, because kernels run without Python's lock."""

    def __init__(self) -> None:
        self.value = ctypes.c_int64()
        self.address = ctypes.addressof(self.value)


_result = _Result()


def _hash_by_torch(arrays: Sequence[Tensor]) -> tuple[int, ...]:
    """For each array the sum of a bijective mix of its bits and positions, modulo 2^64; one wait for each device."""
    with torch.no_grad():
        sums = [_sum_of_mixed(array.detach(), seed) for seed, array in enumerate(arrays)]
    devices = dict.fromkeys(value.device for value in sums)
    together = [torch.stack([value for value in sums if value.device == device]) for device in devices]
    return tuple(value for values in together for value in values.tolist())


def _sum_of_mixed(array: Tensor, seed: int) -> Tensor:
    if array.is_complex():
        array = torch.view_as_real(array)
    bits = array.reshape(-1).view(_INTEGERS[array.element_size()]).to(torch.int64)
    position = torch.arange(seed << 48, (seed << 48) + bits.numel(), dtype=torch.int64, device=bits.device)
    value = bits + _mixed(position.mul_(_GOLDEN))
    return _mixed(value).sum()


def _mixed(value: Tensor) -> Tensor:
    """The finaliser of SplitMix64, in place. Shifts of int64 repeat the sign, which the masks take away."""
    for shift, factor in ((30, _FIRST), (27, _SECOND)):
        value ^= (value >> shift) & (_MASK >> (shift - 1))
        value *= factor
    value ^= (value >> 31) & (_MASK >> 30)
    return value
