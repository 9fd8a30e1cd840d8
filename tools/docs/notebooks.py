"""The scripts of examples/ as notebooks, and as sections of the documentation's page of examples.

``python tools/docs/notebooks.py write --out FOLDER`` writes a notebook for each script; the documentation has the
same ones to download. ``python tools/docs/notebooks.py record wasserstein`` runs scripts, all that need no data of
your own if none is named, and writes what they print to examples/output/, from where notebooks and pages take it.
``tests/test_examples.py`` compares it with what the scripts print.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "examples"
OUTPUT = FOLDER / "output"
_SENTENCE = re.compile(r"\.\s+|\Z")
_MAIN = re.compile(r'\n\nif __name__ == "__main__":\n    main\(\)\n$')


class Example(NamedTuple):
    """A script: its docstring's first sentence and the rest of it, its source, and its recorded output or ''."""

    name: str
    title: str
    text: str
    source: str
    output: str


def read(path: Path) -> Example:
    """The parts of a script."""
    source = path.read_text(encoding="utf-8")
    title, text = _SENTENCE.split(ast.get_docstring(ast.parse(source)) or path.stem, maxsplit=1)
    recorded = OUTPUT / f"{path.stem}.txt"
    output = recorded.read_text(encoding="utf-8") if recorded.is_file() else ""
    return Example(path.stem, " ".join(title.split()), to_markdown(text), source, output)


def to_markdown(text: str) -> str:
    """A docstring in Markdown: code has one backtick."""
    return text.replace("``", "`")


def examples() -> list[Example]:
    """Every script, by name."""
    return [read(path) for path in sorted(FOLDER.glob("*.py"))]


def section(example: Example) -> str:
    """A section of the page of examples, with the source in a section that unfolds."""
    parts = [
        f"## {example.title}",
        example.text,
        f"`python examples/{example.name}.py` · [notebook](notebooks/{example.name}.ipynb)",
    ]
    if example.output:
        parts.append(f"```text\n{example.output}```")
    fold = f'??? example "examples/{example.name}.py"\n\n{_indented(_fenced(example.source))}'
    parts.append(f"<div data-search-exclude markdown>\n\n{fold}\n\n</div>")
    return "\n\n".join(parts)


def _fenced(source: str) -> str:
    return f"```python\n{source}```"


def _indented(text: str) -> str:
    return "".join(f"    {line}" if line.strip() else line for line in text.splitlines(keepends=True))


def notebook(example: Example) -> dict[str, Any]:
    """A notebook (nbformat 4.5): the docstring as text, a cell for each part of the script, and a call of main."""
    cells = [_cell("about", "markdown", f"# {example.title}\n\n{example.text}")]
    cells += [_cell(name, "code", code) for name, code in pieces(example.source)]
    cells.append(_cell("run", "code", "main([])", example.output))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    about = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return {"cells": cells, "metadata": about, "nbformat": 4, "nbformat_minor": 5}


def pieces(source: str) -> list[tuple[str, str]]:
    """Name and source of each part of a script: what comes before the first function, then every function or class.

    The docstring and the call of main at the end are left out.
    """
    lines = _MAIN.sub("\n", source).splitlines()
    body = ast.parse("\n".join(lines)).body
    nodes = body[1:] if ast.get_docstring(ast.parse(source)) is not None else body
    starts = [nodes[0].lineno - 1]
    starts += [_first_line(node) for node in nodes[1:] if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    ends = [*starts[1:], len(lines)]
    names = ["set-up", *(node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef))]
    found = zip(names, starts, ends, strict=True)
    return [(name, "\n".join(lines[start:end]).strip()) for name, start, end in found]


def _first_line(node: ast.FunctionDef | ast.ClassDef) -> int:
    return min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)]) - 1


def _cell(name: str, kind: str, source: str, output: str = "") -> dict[str, Any]:
    cell: dict[str, Any] = {"cell_type": kind, "id": name.replace("_", "-"), "metadata": {}, "source": _lines(source)}
    if kind == "code":
        stream = {"name": "stdout", "output_type": "stream", "text": _lines(output)}
        cell |= {"execution_count": None, "outputs": [stream] if output else []}
    return cell


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def notebook_text(example: Example) -> str:
    """The notebook's file."""
    return json.dumps(notebook(example), indent=1, ensure_ascii=False) + "\n"


def record(names: list[str]) -> None:
    """Runs scripts, and writes what they print."""
    OUTPUT.mkdir(exist_ok=True)
    for name in names or [example.name for example in examples() if "`PATH`" not in example.text]:
        print(name, flush=True)
        command = (sys.executable, str(FOLDER / f"{name}.py"))
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        (OUTPUT / f"{name}.txt").write_text(done.stdout, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("record").add_argument("names", nargs="*", help="names of scripts, such as wasserstein")
    commands.add_parser("write").add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if options.command == "record":
        record(options.names)
        return
    options.out.mkdir(parents=True, exist_ok=True)
    for example in examples():
        (options.out / f"{example.name}.ipynb").write_text(notebook_text(example), encoding="utf-8")


if __name__ == "__main__":
    main()
