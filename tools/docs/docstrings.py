"""What mkdocstrings does with every docstring that it collects."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import griffe

sys.path.insert(0, str(Path(__file__).parent))
from markup import to_markdown


class Docstrings(griffe.Extension):
    """Rewrites docstrings as Markdown."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """An object was collected."""
        if obj.docstring:
            obj.docstring.value = to_markdown(obj.docstring.value)
