"""Docstrings for mkdocstrings: formulas as Unicode, Sphinx roles as links, and no text that looks like HTML."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import griffe

sys.path.insert(0, str(Path(__file__).parent))
from formulas import to_unicode  # noqa: E402

_FORMULA = re.compile(r"^([ ]*)\.\. math:: (.*\n(?:\1[ ]+\S.*\n)*)", re.M)
_ROLE = re.compile(r":(?:func|class|meth|mod):`([^`]*)`")
_CODE = re.compile(r"(``.*?``|`[^`]*`|^```.*?^```)", re.M | re.S)


def to_markdown(docstring: str) -> str:
    """The docstring in Markdown."""
    text = _ROLE.sub(_link, _FORMULA.sub(_block, docstring + "\n"))
    parts = _CODE.split(text)
    return "".join(part if index % 2 else part.replace("<", "&lt;") for index, part in enumerate(parts))


def _block(match: re.Match[str]) -> str:
    lines = ("```text", *to_unicode(match[2]).split("\n"), "```")
    return "".join(f"{match[1]}{line}\n" for line in lines)


def _link(match: re.Match[str]) -> str:
    name = match[1]
    return f"[`{name}`][{name}]" if name.startswith("fastlip.") else f"`{name}`"


class Docstrings(griffe.Extension):
    """Rewrites every docstring that is collected."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """An object was collected."""
        if obj.docstring:
            obj.docstring.value = to_markdown(obj.docstring.value)
