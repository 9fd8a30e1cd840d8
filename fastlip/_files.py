"""Files are written in one place: whole or not at all, with every error naming the file that was asked for."""

from __future__ import annotations

import io
import json
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any


def write_atomically(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Calls ``write(file)`` on a temporary file that replaces path once it is safely on disk.

    The temporary file lies in the same folder and has a name of its own, so that several writers do not meet; the
    last one to end wins. If anything fails it is removed, and path keeps its content. A link is followed.

    Raises:
        OSError: with path as its ``filename``: no such folder, no permission, a full disk.
        ValueError: path is no regular file, such as a folder or a device.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        raise ValueError(f"{path}: is not a regular file and cannot be replaced by one")
    temporary = target.with_name(f".{secrets.token_hex(8)}.tmp")
    failures: list[OSError] = []
    try:
        _write_new(temporary, write, failures)
        os.replace(temporary, target)
        _flush_folder(target.parent)
    except OSError as error:
        raise _named(error, path) from error
    except RuntimeError as error:
        # torch turns an error of the file that it writes to into one of its own, which names no file.
        if failures:
            raise _named(failures[0], path) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replaces a UTF-8 text file as a whole or not at all; see :func:`write_atomically`."""
    # Names of files may hold bytes that are no UTF-8 (as lone surrogates): they are written as \udc80.
    content = text.encode("utf-8", "backslashreplace")
    write_atomically(path, lambda file: file.write(content))


def write_json(path: Path, value: Any, indent: int | None = 2) -> None:
    """Replaces a JSON file; see :func:`write_atomically`."""
    write_text(path, json.dumps(value, indent=indent) + "\n")


def read_json(path: Path) -> Any:
    """What a JSON file holds; ValueError names a file that is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: damaged ({type(error).__name__}: {error})") from None


def printable(name: str | Path) -> str:
    r"""A file's name for people and programs: bytes that are no UTF-8, and control characters, as ``\xff``."""
    return "".join(c if c.isprintable() else _escaped(c) for c in str(name))


def _escaped(character: str) -> str:
    code = ord(character)
    # Python reads a byte that is no UTF-8 as a lone surrogate.
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else character.encode("unicode_escape").decode()


def _write_new(path: Path, write: Callable[[IO[bytes]], Any], failures: list[OSError]) -> None:
    with _Watched(io.FileIO(path, "xb")) as file:
        file.failures = failures
        write(file)
        file.flush()
        os.fsync(file.fileno())


class _Watched(io.BufferedWriter):
    """A file that takes note of errors in writing."""

    failures: list[OSError]

    def write(self, content: Any, /) -> int:
        """As ``io.BufferedWriter.write``."""
        try:
            return super().write(content)
        except OSError as error:
            self.failures.append(error)
            raise


def _named(error: OSError, path: Path) -> OSError:
    if error.errno is None:
        return OSError(f"{path}: {error}")
    return OSError(error.errno, error.strerror or os.strerror(error.errno), str(path))


def _flush_folder(folder: Path) -> None:
    if os.name != "posix":  # elsewhere a folder cannot be opened
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
