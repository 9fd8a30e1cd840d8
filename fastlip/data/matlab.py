"""Arrays of numbers in MATLAB files of version 5, the format of ``save -v7`` and of SVHN.

A file is 128 bytes of header, which end with a version and an endian mark, and elements: a type and a number of
bytes (4 bytes each), the bytes, and padding to a multiple of 8. An element of at most 4 bytes may be packed: its
size and type are 2 bytes each, and its bytes follow at once. A matrix is an element that consists of its flags,
dimensions, name and values; a compressed element holds one in zlib's format.
(MathWorks, MAT-File Format, "Level 5 MAT-File".) SciPy reads these files too, but a damaged one can
end the process there.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastlip.data.images import DataError

_HEADER, _TAG = 128, 8
_MATRIX, _COMPRESSED = 14, 15
_MOST_BYTES = 2**31
# The types of values: codes of elements, and NumPy's names.
_TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_PARTS = 4  # flags, dimensions, name, values


@dataclass(frozen=True)
class _Element:
    kind: int
    content: memoryview


def read_matlab(file: Path) -> dict[str, np.ndarray]:
    """The arrays of numbers of a file by name, in the types in which they are stored; anything else is left out.

    Args:
        file: the file.

    Raises:
        DataError: no MATLAB file of version 5, or a truncated or damaged one.
    """
    if not file.is_file():
        raise DataError(f"{file}: no such file")
    if (size := file.stat().st_size) > _MOST_BYTES:
        raise DataError(f"{file}: got {size} bytes, expected at most {_MOST_BYTES}")
    content = file.read_bytes()
    mark = content[_HEADER - 4 : _HEADER]
    if mark not in (b"\x00\x01IM", b"\x01\x00MI"):
        got = mark.hex() or f"{len(content)} bytes"
        raise DataError(
            f"{file}: got {got} at byte 124, expected 0001494d or 01004d49: not a MATLAB file of version 5"
        )
    order = "<" if mark.endswith(b"IM") else ">"
    try:
        return dict(_arrays(memoryview(content)[_HEADER:], order))
    except (struct.error, ValueError, zlib.error) as error:
        raise DataError(f"{file}: cannot be read, the file is truncated or damaged: {error}") from None


def _arrays(content: memoryview, order: str) -> Iterator[tuple[str, np.ndarray]]:
    for element in _elements(content, order):
        if element.kind == _COMPRESSED:
            found = [*_elements(memoryview(_unpacked(element.content)), order)]
            element = found[0] if len(found) == 1 else element
        if element.kind != _MATRIX:
            raise ValueError(f"an element of type {element.kind}, expected a matrix")
        parts = [*_elements(element.content, order)]
        if len(parts) == _PARTS and parts[3].kind in _TYPES:
            yield _array(parts, order)


def _elements(content: memoryview, order: str) -> Iterator[_Element]:
    """The elements that follow one another."""
    start = 0
    while start < len(content):
        (word,) = struct.unpack_from(f"{order}I", content, start)
        if packed := word >> 16:
            kind, size, begin, end = word & 0xFFFF, packed, start + 4, start + _TAG
            if size > 4:
                raise ValueError(f"a packed element of {size} bytes, expected at most 4")
        else:
            kind, (size,) = word, struct.unpack_from(f"{order}I", content, start + 4)
            begin = start + _TAG
            # Only compressed elements are not padded.
            end = begin + size + (0 if kind == _COMPRESSED else -size % 8)
        if begin + size > len(content):
            raise ValueError(f"an element of {size} bytes, of which {max(0, len(content) - begin)} are there")
        yield _Element(kind, content[begin : begin + size])
        start = end


def _unpacked(content: memoryview) -> bytes:
    """The content of a compressed element; no more than the limit is unpacked."""
    unpacker = zlib.decompressobj()
    unpacked = unpacker.decompress(content, _MOST_BYTES)
    if not unpacker.eof:
        raise ValueError("a compressed element that does not end")
    return unpacked


def _array(parts: list[_Element], order: str) -> tuple[str, np.ndarray]:
    dimensions = np.frombuffer(parts[1].content, np.dtype(f"{order}i4")).tolist()
    kind = _TYPES[parts[3].kind]
    values = np.frombuffer(parts[3].content, np.dtype(f"{order}{kind}"))
    if min(dimensions, default=-1) < 0 or math.prod(dimensions) != values.size:
        raise ValueError(f"{values.size} values for an array of shape {tuple(dimensions)}")
    name = bytes(parts[2].content).decode("ascii", "replace")
    return name, values.astype(kind, copy=False).reshape(dimensions, order="F")
