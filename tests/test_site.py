"""The pages of the site: formulas that KaTeX knows, nothing from the network, notebooks that are the examples."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools" / "docs"))

import markup  # noqa: E402

ASSETS = ROOT / "docs" / "assets"
KATEX = ASSETS / "katex" / "katex.min.js"
FENCE = re.compile(r"^ *```.*?^ *```$", re.M | re.S)
DISPLAYED, IN_TEXT = re.compile(r"^\$\$\n(.*?)\n\$\$$", re.M | re.S), re.compile(r"\\\((.+?)\\\)")


def formulas():
    """Every formula of the documentation, with its file."""
    for path in [*ROOT.glob("docs/**/*.md"), *ROOT.glob("fastlip/kernels/*/README.md")]:
        text = FENCE.sub("", path.read_text(encoding="utf-8"))
        yield from ((path, formula) for form in (DISPLAYED, IN_TEXT) for formula in form.findall(text))
    for path in (ROOT / "fastlip").rglob("*.py"):
        yield from ((path, formula) for formula in markup.formulas(path.read_text(encoding="utf-8")))


FORMULAS = list(formulas())


def test_formulas_are_found():
    pages = {path.name for path, _ in FORMULAS}
    assert {"mathematics.md", "README.md", "aol.py", "run.py"} <= pages


def test_katex_knows_every_command():
    known = set(re.findall(r'"(\\\\[A-Za-z]+)"', KATEX.read_text(encoding="utf-8")))
    known |= {r"\\begin", r"\\end", r"\\left", r"\\right"}
    for path, formula in FORMULAS:
        for command in re.findall(r"\\[A-Za-z]+", formula):
            assert "\\" + command in known, f"{path}: {formula}"


@pytest.mark.skipif(shutil.which("node") is None, reason="no node to run KaTeX with")
def test_katex_renders_every_formula():
    script = (
        f"const katex = require({str(KATEX)!r});"
        "for (const formula of JSON.parse(require('fs').readFileSync(0, 'utf8')))"
        " katex.renderToString(formula, {displayMode: true, strict: 'error'});"
    )
    source = json.dumps([formula for _, formula in FORMULAS])
    done = subprocess.run(("node", "-e", script), input=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
