"""Reads files of ``torch.save`` that may come from anyone, within the memory that their size implies."""

from __future__ import annotations

import os
import pickle
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# Exceptions that damaged archives and pickles raise.
_DAMAGE = (
    zipfile.BadZipFile,
    pickle.UnpicklingError,
    struct.error,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)


class CheckpointError(ValueError):
    """A checkpoint that is missing, corrupt or of another program; the message names the file."""


def read(path: Path) -> Any:
    """Returns the content of a file of ``torch.save``, values and CPU tensors; CheckpointError if it is damaged."""
    try:
        # torch.load does not compare the archive's checksums, so that a flipped bit would change a weight.
        with zipfile.ZipFile(path) as archive:
            _check_sizes(path, archive)
            damaged = archive.testzip()
        if damaged:
            raise CheckpointError(f"{path}: corrupt checkpoint ({damaged} fails its checksum)")
        with warnings.catch_warnings():
            # torch warns about other protocols, asks for reports on them, and then refuses or reads the file.
            warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
            content = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except _DAMAGE as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise CheckpointError(f"{path}: corrupt checkpoint ({reason})") from None
    _check_tensors(path, content)
    return content


def _check_sizes(path: Path, archive: zipfile.ZipFile) -> None:
    """Refuses archives that grow when they are read: compressed ones (torch.save makes none), overlapping entries."""
    for entry in archive.infolist():
        if entry.compress_type != zipfile.ZIP_STORED:
            raise CheckpointError(f"{path}: corrupt checkpoint ({entry.filename} is compressed)")
    total, size = sum(entry.file_size for entry in archive.infolist()), os.path.getsize(path)
    if total > size:
        raise CheckpointError(f"{path}: corrupt checkpoint (its entries claim {total} bytes of {size})")


def _check_tensors(path: Path, content: Any) -> None:
    """Refuses tensors that are not dense or whose elements are not all in the file; a stride of 0 repeats one."""
    sizes: dict[int, int] = {}
    for tensor in _tensors(content):
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise CheckpointError(f"{path}: corrupt checkpoint (a tensor without dense values)")
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        if tensor.numel() * tensor.element_size() > storage.nbytes():
            raise CheckpointError(
                f"{path}: corrupt checkpoint (a tensor of shape {tuple(tensor.shape)} on {storage.nbytes()} bytes)"
            )
    total, size = sum(sizes.values()), os.path.getsize(path)
    if total > size:
        raise CheckpointError(f"{path}: corrupt checkpoint (its tensors claim {total} bytes of {size})")


def _tensors(content: Any) -> list[Tensor]:
    """All tensors in nested containers, which may contain one another."""
    found, seen, waiting = [], set(), [content]
    while waiting:
        item = waiting.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, Tensor):
            found.append(item)
        elif isinstance(item, dict):
            waiting += [*item.keys(), *item.values()]
        elif isinstance(item, (list, tuple, set)):
            waiting += item
    return found
