"""Progress bars on a terminal: on stderr, in 72 columns, gone when the work is done."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, TypeVar

from fastlip import _extras

WIDTH = 72
Item = TypeVar("Item")
_FORMAT = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"


def shown(items: Iterable[Item], what: str, total: int | None = None) -> Iterable[Item]:
    """The items, with a bar that shows how many were taken, if there is a terminal and tqdm is installed."""
    if not sys.stderr.isatty() or _extras.missing("tqdm"):
        return items
    from tqdm import tqdm

    return tqdm(items, desc=what, total=total, bar_format=_FORMAT, ncols=WIDTH, leave=False, file=sys.stderr)


class Ticks:
    """A bar that is advanced by hand, below lines that are printed meanwhile.

    Args:
        total: number of ticks of the whole work.
    """

    def __init__(self, total: int):
        self._bar: Any = None
        if sys.stderr.isatty() and not _extras.missing("tqdm"):
            from tqdm import tqdm

            self._bar = tqdm(total=total, bar_format=_FORMAT, ncols=WIDTH, leave=False, file=sys.stderr)

    def __enter__(self) -> Ticks:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def tick(self, what: str) -> None:
        """Advances the bar by one; what is being done stands before it."""
        if self._bar is not None:
            self._bar.set_description_str(what, refresh=False)
            self._bar.update()

    def hide(self) -> None:
        """Takes the bar away, so that a line can be printed; the next tick shows it again."""
        if self._bar is not None:
            self._bar.clear()
