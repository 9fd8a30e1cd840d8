"""The method that docs/extend/layer.md adds: its files, and its examples, run in a copy of the package."""

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from test_documentation import BLOCKS, ROOT, SMALL, check_output

PAGE = BLOCKS["docs/extend/layer.md"]
FILES = {block.title: block.code for block in PAGE if block.title}
NEW = "fastlip/nn/scaled.py"
NAMES = ("ScaledConv2d", "ScaledLinear")
# Of the package, with the recipes, the exporter and the published checkpoints that this method does not need.
MOST_FILES = 6


def put_names(path, line):
    """Adds the page's import and the names to the public layers."""
    text = path.read_text()
    assert text.count("__all__ = [\n") == 1
    names = "".join(f'    "{name}",\n' for name in NAMES)
    path.write_text(text.replace("__all__ = [\n", f"{line}\n__all__ = [\n{names}"))


def put_literal(path, line):
    """Replaces the type with the methods' names."""
    text, count = re.subn(r"^MethodName = .*\n", lambda _: line, path.read_text(), flags=re.M)
    assert count == 1
    path.write_text(text)


CHANGES = {"fastlip/nn/__init__.py": put_names, "fastlip/models/literals.py": put_literal}


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A folder with a copy of the package to which the page's changes are made."""
    folder = tmp_path_factory.mktemp("copy")
    shutil.copytree(ROOT / "fastlip", folder / "fastlip", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for extension in (ROOT / "fastlip").glob("*.so"):
        (folder / "fastlip" / extension.name).symlink_to(extension)
    for title, code in FILES.items():
        if title in CHANGES:
            CHANGES[title](folder / title, code)
        else:
            assert not (folder / title).exists()
            (folder / title).write_text(code)
    return folder


def run(package, *arguments):
    """What a fresh Python prints that imports the copy."""
    environment = {**os.environ, "PYTHONPATH": str(package)}
    command = [sys.executable, *map(str, arguments)]
    process = subprocess.run(command, capture_output=True, text=True, check=False, cwd=package, env=environment)
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_the_page_adds_a_method(package):
    scripts = [block for block in PAGE if block.language == "python" and not block.title]
    assert len(scripts) == 2
    (package / "check.py").write_text("\n".join(block.code for block in scripts))
    check_output(run(package, "check.py"), "\n".join(block.expected for block in scripts))


def test_the_docstrings_keep_the_rules_of_public_ones(package):
    code = f"import sys\nsys.path.append({str(ROOT / 'tests')!r})\n"
    code += f"import fastlip\nnew = [getattr(fastlip.nn, name) for name in {NAMES}]\n"
    code += "from test_docstrings import missing, without_default\n"
    (package / "docstrings.py").write_text(f"{code}print([[*missing(one), *without_default(one)] for one in new])")
    assert run(package, "docstrings.py") == "[[], []]\n"


def test_the_page_trains_a_network_of_the_method(package):
    (block,) = (block for block in PAGE if block.language == "bash")
    program, *arguments = shlex.split(block.code)
    assert program == "fastlip"
    printed = run(package, "-m", "fastlip", *arguments, *SMALL["train"])
    assert "scaled XS:" in printed
    assert "Lipschitz bound    " in printed
    recipe = json.loads((package / "runs/scaled/recipe.json").read_text())
    assert (recipe["method"], recipe["lr"]) == ("scaled", 0.2)


def test_the_type_lists_the_methods_that_the_page_prints():
    (printed,) = (line for block in PAGE for line in block.expected.splitlines() if line.startswith("('aoc'"))
    listed = FILES["fastlip/models/literals.py"].partition("[")[2].rpartition("]")[0]
    assert ast.literal_eval(f"({listed})") == ast.literal_eval(printed)


def test_a_method_changes_few_files():
    assert set(FILES) == {NEW, *CHANGES}
    table = re.findall(r"^\| `(fastlip/[^`]+)` \|", (ROOT / "docs/extend/layer.md").read_text(), re.M)
    assert len(table) <= MOST_FILES
    assert set(CHANGES) < set(table)
    assert FILES[NEW].startswith('"""')
    assert max(map(len, FILES[NEW].splitlines())) <= 118
