"""Writes files as a whole or not at all; every error names the file that the caller passed."""

from __future__ import annotations

import contextlib
import io
import json
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any


def write_atomically(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Calls ``write(file)`` on a temporary file, and replaces path by it once it is safely on disk.

    The temporary file lies in the same folder and has a unique name, so that several writers do not disturb each
    other; the last one to finish wins. If anything fails, the temporary file is removed and path keeps its content.

    Args:
        path: file to write; if it is a link, its target is replaced.
        write: function that writes the content to a binary file.

    Raises:
        OSError: no such folder, no permission or a full disk; ``filename`` is path.
        ValueError: path is not a regular file, but a folder or a device.
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
        # torch replaces the error of a file that it writes to by its own error, which names no file.
        if failures:
            raise _named(failures[0], path) from error
        raise
    finally:
        # On a read-only file system this fails even if there is no such file, and would hide the error and its path.
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def require_writable(path: Path) -> None:
    """Raises, before long work, the error that :func:`write_atomically` would raise after it.

    Args:
        path: file that is to be written. Neither it nor anything else in its folder is changed.

    Raises:
        OSError: no such folder, no permission, a read-only file system, or no room for an empty file; ``filename``
            is path.
    """
    probe = Path(os.path.realpath(path)).with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        io.FileIO(probe, "xb").close()
        probe.unlink()
    except OSError as error:
        raise _named(error, path) from error


def write_text(path: Path, text: str) -> None:
    """Replaces a text file in UTF-8 as a whole or not at all; see :func:`write_atomically`."""
    # File names may hold bytes that are not UTF-8, as lone surrogates: they are written as \udc80.
    content = text.encode("utf-8", "backslashreplace")
    write_atomically(path, lambda file: file.write(content))


def write_json(path: Path, value: Any, indent: int | None = 2) -> None:
    """Replaces a JSON file as a whole or not at all; see :func:`write_atomically`."""
    write_text(path, json.dumps(value, indent=indent) + "\n")


def read_json(path: Path) -> Any:
    """Returns the content of a JSON file; ValueError names a damaged file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: damaged ({type(error).__name__}: {error})") from None


def printable(name: str | Path) -> str:
    r"""Returns a file's name with bytes that are not UTF-8, and control characters, as ``\xff``."""
    return "".join(c if c.isprintable() else _escaped(c) for c in str(name))


def _escaped(character: str) -> str:
    """The escape sequence of a character."""
    code = ord(character)
    # Python reads a byte that is not UTF-8 as a lone surrogate.
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else character.encode("unicode_escape").decode()


def _write_new(path: Path, write: Callable[[IO[bytes]], Any], failures: list[OSError]) -> None:
    """Writes a new file and flushes it to disk; errors in writing are appended to failures."""
    with _Watched(io.FileIO(path, "xb")) as file:
        file.failures = failures
        write(file)
        file.flush()
        os.fsync(file.fileno())


class _Watched(io.BufferedWriter):
    """A file that records errors in writing."""

    failures: list[OSError]

    def write(self, content: Any, /) -> int:
        """Writes as ``io.BufferedWriter`` does."""
        try:
            return super().write(content)
        except OSError as error:
            self.failures.append(error)
            raise


def _named(error: OSError, path: Path) -> OSError:
    """The error with path as the file that it names."""
    if error.errno is None:
        return OSError(f"{path}: {error}")
    return OSError(error.errno, error.strerror or os.strerror(error.errno), str(path))


def _flush_folder(folder: Path) -> None:
    """Flushes a folder's entries to disk, so that a rename survives a power failure."""
    if os.name != "posix":  # other systems cannot open a folder
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
