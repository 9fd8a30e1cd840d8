"""Text for terminals: paragraphs, durations, and the names of radii."""

from __future__ import annotations

import textwrap

from fastlip._progress import WIDTH


def paragraph(text: str, indent: str = "") -> str:
    """The text in lines of at most 72 columns; the second and later ones begin with indent."""
    return textwrap.fill(text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def duration(seconds: float) -> str:
    """A time such as ``0.4 s``, ``25 s``, ``3 min 20 s`` or ``2 h 5 min``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min"


def radius_name(eps: float) -> str:
    """The text 36/255 for a radius that is a multiple of 1/255, otherwise the number."""
    steps = round(eps * 255)
    return f"{steps}/255" if abs(eps * 255 - steps) < 1e-9 and steps % 255 else f"{eps:g}"
