"""Hooks of mkdocs that insert text from the package into the documentation, so that it is written only once.

A line ``<!-- insert: NAME argument -->`` of a page is replaced by the result of the function NAME in ``INSERTIONS``.
The README of each op becomes a page, and each script of examples/ a notebook.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

import fastlip
import fastlip.nn
from fastlip.cli import main as command_line
from fastlip.kernels import OPS

sys.path.insert(0, str(Path(__file__).parent))
import aliases
import notebooks

ROOT = Path(__file__).resolve().parents[2]
MATHEMATICS = "Mathematics"
_INSERTION = re.compile(r"^<!-- insert: (\w+) ?(.*?) -->$", re.M)


def on_config(config: Any) -> Any:
    """Adds a page for every op to the navigation."""
    (chapter,) = (entry[MATHEMATICS] for entry in config.nav if MATHEMATICS in entry)
    chapter += [{name: f"ops/{name}.md"} for name in OPS]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Adds a page for each op, with the text of its README, and the notebooks."""
    from mkdocs.structure.files import File

    for name in OPS:
        files.append(File.generated(config, f"ops/{name}.md", content=op_page(name)))
    for example in notebooks.examples():
        text = notebooks.notebook_text(example)
        files.append(File.generated(config, f"notebooks/{example.name}.ipynb", content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Expands the insertions of a page."""
    return expand(markdown)


def expand(markdown: str) -> str:
    """The page with its insertions; KeyError names one that is unknown."""
    return _INSERTION.sub(lambda match: INSERTIONS[match[1]](*match[2].split()), markdown)


def op_page(name: str) -> str:
    """The page with an op's mathematics: its README and a link to its function."""
    text = (ROOT / "fastlip" / "kernels" / name / "README.md").read_text(encoding="utf-8")
    return f"{text}\nThe function: [`fastlip.ops.{name}`][fastlip.ops.{name}].\n"


def layers(*elsewhere: str) -> str:
    """A section for each module of fastlip.nn with its public names, except those that the page lists elsewhere."""
    names: dict[str, list[str]] = {}
    for name in sorted(set(fastlip.nn.__all__) - set(elsewhere)):
        names.setdefault(getattr(fastlip.nn, name).__module__, []).append(name)
    return "\n\n".join(
        f"## {_title(module)}\n\n" + "\n\n".join(f"::: fastlip.nn.{name}" for name in names[module])
        for module in sorted(names, key=lambda module: (not _has_weights(names[module]), module))
    )


def operators() -> str:
    """A section for the public function of every op."""
    return "\n\n".join(f"## {name}\n\n::: fastlip.ops.{name}" for name in fastlip.ops.__all__)


def members(module: str) -> str:
    """Every public name of a module."""
    return "\n\n".join(f"::: {module}.{name}" for name in importlib.import_module(module).__all__)


def commands() -> str:
    """The help of every command."""
    sections = []
    for name, command in command_line.commands.items():
        context = click.Context(command, info_name=f"fastlip {name}", max_content_width=100)
        sections.append(f"## fastlip {name}\n\n```text\n{command.get_help(context)}\n```")
    return "\n\n".join(sections)


def scripts() -> str:
    """A section for each script of examples/."""
    return "\n\n".join(map(notebooks.section, notebooks.examples()))


def _has_weights(names: list[str]) -> bool:
    """Whether a class among these is a layer with a constrained weight."""
    return any(hasattr(getattr(fastlip.nn, name), "reset_parameters") and _is_bounded(name) for name in names)


def _is_bounded(name: str) -> bool:
    return hasattr(getattr(fastlip.nn, name), "lipschitz_bound")


def _title(module: str) -> str:
    """The first line of a module's docstring."""
    text = inspect.getdoc(importlib.import_module(module)) or module
    return text.partition("\n")[0].rstrip(".")


INSERTIONS: dict[str, Callable[..., str]] = {
    "aliases": aliases.page,
    "commands": commands,
    "layers": layers,
    "members": members,
    "operators": operators,
    "scripts": scripts,
}
