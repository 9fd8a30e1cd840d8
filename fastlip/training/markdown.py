"""Text that others chose (names of folders, files, layers) inside Markdown."""

from __future__ import annotations

import re

# Everything that Markdown, or the HTML inside it, could take for more than text.
_MARKS = re.compile(r"([\\`*_\[\]<>|$#~&!])")


def markdown(text: str) -> str:
    r"""The text in one line, shown as it is: ``a\_b``, ``\<b\>``; what does not print becomes ``\\x1b``."""
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return _MARKS.sub(r"\\\1", line)
