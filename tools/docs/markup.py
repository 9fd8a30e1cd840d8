"""Converts docstrings to Markdown: formulas keep their LaTeX, which the pages' KaTeX renders."""

from __future__ import annotations

import re

_FORMULA = re.compile(r"^([ ]*)\.\. math:: (.*\n(?:\1[ ]+\S.*\n)*)", re.M)
_FORMULA_IN_TEXT = re.compile(r":math:`([^`]*)`")
_NEXT_LINE = re.compile(r"\\qquad(?![A-Za-z])")
_ROLE = re.compile(r":(?:func|class|meth|mod):`([^`]*)`")
# What Markdown takes as it is: code, doctests and formulas.
_RAW = re.compile(
    r"(^ *```.*?^ *```$|^ *\$\$$.*?^ *\$\$$|\\\(.*?\\\)|^ *>>> .*?(?=\n *\n|\Z)|``.*?``|`[^`]*`)", re.M | re.S
)
_EXAMPLE = re.compile(r"^Example:$", re.M)
_BARE_DOCTEST = re.compile(r"^>>> .*?(?=\n *\n|\Z)", re.M | re.S)


def to_markdown(docstring: str) -> str:
    """The docstring in Markdown, without text that looks like HTML; doctests stand in sections of examples."""
    text = _BARE_DOCTEST.sub(_section, _EXAMPLE.sub("Examples:", docstring))
    text = _FORMULA.sub(_block, text + "\n")
    text = _ROLE.sub(_link, _FORMULA_IN_TEXT.sub(lambda match: rf"\({match[1]}\)", text))
    parts = _RAW.split(text)
    return "".join(part if index % 2 else part.replace("<", "&lt;") for index, part in enumerate(parts))


def formulas(docstring: str) -> list[str]:
    """The LaTeX of every formula of a docstring, as the pages have it."""
    blocks = [lines(match[2]) for match in _FORMULA.finditer(docstring + "\n")]
    return blocks + _FORMULA_IN_TEXT.findall(docstring)


def lines(latex: str) -> str:
    r"""A displayed formula: its parts between ``\qquad`` stand below each other, so that they fit a narrow page."""
    parts = [" ".join(part.split()) for part in _NEXT_LINE.split(latex)]
    if len(parts) == 1:
        return parts[0]
    return "\n".join((r"\begin{aligned}", " \\\\\n".join(f"& {part}" for part in parts), r"\end{aligned}"))


def _section(match: re.Match[str]) -> str:
    """A doctest as a section of its own: Markdown would read it as a quotation."""
    return "Examples:\n" + "".join(f"    {line}\n" for line in match[0].split("\n")).rstrip("\n")


def _block(match: re.Match[str]) -> str:
    text = "$$", *lines(match[2]).split("\n"), "$$"
    return "".join(f"{match[1]}{line}\n" for line in text)


def _link(match: re.Match[str]) -> str:
    name = match[1]
    return f"[`{name}`][{name}]" if name.startswith("fastlip.") else f"`{name}`"
