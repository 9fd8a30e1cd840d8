"""The pages of the site: formulas that KaTeX knows, nothing from the network, notebooks that are the examples."""

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools" / "docs"))

import aliases  # noqa: E402
import gallery  # noqa: E402
import markup  # noqa: E402
import notebooks  # noqa: E402

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


@pytest.mark.parametrize("example", notebooks.examples(), ids=lambda example: example.name)
def test_a_notebook_is_its_example(example):
    notebook = json.loads(notebooks.notebook_text(example))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    about, *cells, last = notebook["cells"]
    assert "".join(about["source"]).startswith(f"# {example.title}\n")
    assert "".join(last["source"]) == "main([])"
    names = [cell["id"] for cell in notebook["cells"]]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name) for name in names)
    _, *body, call = ast.parse(example.source).body
    assert ast.unparse(call) == "if __name__ == '__main__':\n    main()"
    joined = "\n\n".join("".join(cell["source"]) for cell in cells)
    assert ast.dump(ast.parse(joined)) == ast.dump(ast.Module(body, type_ignores=[]))


def test_the_recorded_outputs_are_those_of_examples():
    assert {path.stem for path in notebooks.OUTPUT.glob("*")} <= {example.name for example in notebooks.examples()}


def test_the_gallery_shows_what_its_script_makes():
    made = {path.stem for path in gallery.FOLDER.glob("*")}
    assert made == set(gallery.COMMANDS)
    page = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\(images/gallery/([\w-]+)\.png\)", page)) == made


def test_pages_load_nothing_from_the_network():
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    sources = [settings, *((ASSETS / name).read_text(encoding="utf-8") for name in ("site.css", "site.js"))]
    for source in sources:
        assert not re.search(r"https?://", source)
    assert "font: false" in settings
    assert "polyfills: [assets/iframe-worker/shim.js]" in settings, "the plugin offline takes one from the network"


def test_tables_of_parameters_stack_on_a_phone():
    style = (ASSETS / "site.css").read_text(encoding="utf-8")
    phone = style[style.index("@media screen and (max-width: 44.98em)") :]
    (rule,) = re.findall(r"\.md-typeset table:not\(\[class\]\) > tbody > \.doc-section-item \{(.*?)\}", phone, re.S)
    assert "display: flex" in rule
    assert "flex-wrap: wrap" in rule
    assert "flex: 1 1 100%" in phone, "the description has a line of its own"


def test_pages_of_ops_link_to_pages_of_the_site():
    for path in ROOT.glob("fastlip/kernels/*/README.md"):
        text = FENCE.sub("", path.read_text(encoding="utf-8"))
        links = re.findall(r"\]\((?!https?:|#)([^)]+)\)", text)
        assert not [link for link in links if link.endswith("README.md")], f"{path}: there it is a page of the site"


def test_what_is_vendored_has_its_licence():
    for folder in (path for path in ASSETS.iterdir() if path.is_dir()):
        assert "ermission is hereby granted" in (folder / "LICENSE").read_text(encoding="utf-8")
        assert f"{folder.name}/" in (ASSETS / "README.txt").read_text(encoding="utf-8")


def test_the_types_of_signatures_are_explained():
    page = aliases.page()
    anchors = re.findall(r"^## (\w+) \{ #([\w.]+) \}$", page, re.M)
    assert len(set(anchors)) == len(anchors)
    assert {"Backend", "Padding", "Sides", "MethodName", "Reduction", "Weights"} <= {name for name, _ in anchors}
    assert 'PaddingMode = Literal["zeros", "circular"]' in page
    assert "[`nn.AOLConv2d`][fastlip.nn.AOLConv2d]" in page
