"""The loss that docs/extend/loss.md adds: the page is applied to a copy of the package, which then trains with it."""

import json
import shlex
import shutil
import subprocess
import sys

import pytest
from test_documentation import BLOCKS, ROOT, SMALL, check_output

PAGE = BLOCKS["docs/extend/loss.md"]


def apply(path, diff):
    """Replaces the old lines of each hunk, which occur once, by its new lines."""
    text = path.read_text()
    for hunk in diff.split("@@\n"):
        lines = hunk.splitlines(keepends=True)
        old, new = ("".join(line[1:] for line in lines if line[0] in marks) for marks in (" -", " +"))
        assert text.count(old) == 1, f"{path.name}: the page shows lines that are not there:\n{old}"
        text = text.replace(old, new)
    path.write_text(text)


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A folder with a copy of the package in which the page has been followed."""
    folder = tmp_path_factory.mktemp("package")
    shutil.copytree(ROOT / "fastlip", folder / "fastlip", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for block in PAGE:
        if block.title and block.language == "diff":
            apply(folder / block.title, block.code)
        elif block.title:
            (folder / block.title).write_text(block.code)
    return folder


def run(folder, *arguments):
    process = subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, check=False, cwd=folder
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_the_page_adds_a_loss_whose_docstring_is_right(package):
    (check,) = (block for block in PAGE if block.language == "python" and not block.title)
    code = "\nimport doctest, torch, fastlip, fastlip.losses.power_hinge as page\n"
    code += "print(doctest.testmod(page, extraglobs={'torch': torch, 'fastlip': fastlip}))"
    (package / "check.py").write_text(check.code + code)
    *printed, examples = run(package, "check.py").splitlines(keepends=True)
    check_output("".join(printed), check.expected)
    assert examples == "TestResults(failed=0, attempted=2)\n"


def test_the_docstring_keeps_the_rules_of_public_ones(package):
    code = f"import sys\nsys.path.append({str(ROOT / 'tests')!r})\n"
    code += "from test_docstrings import missing, without_default\nfrom fastlip.losses import PowerHinge as new\n"
    (package / "docstring.py").write_text(f"{code}print([*missing(new), *without_default(new)])")
    assert run(package, "docstring.py") == "[]\n"


def test_the_command_line_trains_with_it(package):
    (commands,) = (block for block in PAGE if block.language == "bash")
    program, *arguments = shlex.split(commands.code)
    assert (program, arguments[0]) == ("fastlip", "train")
    run(package, "-m", "fastlip", *arguments, *SMALL["train"])
    recipe = json.loads((package / "runs" / "cubic" / "recipe.json").read_text())
    assert (recipe["loss"], recipe["exponent"]) == ("power-hinge", 3)


def test_the_page_touches_three_files():
    assert {block.title for block in PAGE if block.title} == {
        "fastlip/losses/power_hinge.py",
        "fastlip/losses/__init__.py",
        "fastlip/training/recipe.py",
    }
