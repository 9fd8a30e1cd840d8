"""The extension of mkdocstrings that converts every docstring to Markdown."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import griffe

sys.path.insert(0, str(Path(__file__).parent))
from markup import to_markdown


class Docstrings(griffe.Extension):
    """Converts the docstrings that mkdocstrings collects to Markdown."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Converts the docstring of a collected object."""
        if obj.docstring:
            obj.docstring.value = to_markdown(obj.docstring.value)
