"""Escapes text that others chose (names of folders, files, layers) for Markdown."""

from __future__ import annotations

import re

# Every character that Markdown, or HTML in it, could interpret.
_MARKS = re.compile(r"([\\`*_\[\]<>|$#~&!])")


def markdown(text: str) -> str:
    r"""The text in one line with its marks escaped: ``a\_b``, ``\<b\>``; unprintable characters become ``\\x1b``."""
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return _MARKS.sub(r"\\\1", line)
