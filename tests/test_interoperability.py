"""The recipes of docs/guide/interoperability.md for other packages, where these are installed."""

from pathlib import Path

import pytest
import torch
from test_documentation import BLOCKS

PAGE = "docs/guide/interoperability.md"
SETUP, *_ = [block for block in BLOCKS[PAGE] if block.language == "python"]
RECIPES = {block.title: block for block in BLOCKS[PAGE] if block.title}


@pytest.fixture
def names(tmp_path, monkeypatch):
    """What the page has defined before a recipe."""
    monkeypatch.chdir(tmp_path)
    threads, namespace = torch.get_num_threads(), {"__name__": "__main__"}
    exec(compile(SETUP.code, PAGE, "exec"), namespace)
    namespace["model"] = namespace["network"]()
    namespace["images"], namespace["labels"] = next(iter(namespace["train"]))
    yield namespace
    torch.set_num_threads(threads)


@pytest.mark.filterwarnings("ignore")  # of these packages
@pytest.mark.parametrize("package", RECIPES)
def test_a_recipe_runs(package, names):
    pytest.importorskip(package)
    exec(compile(RECIPES[package].code, PAGE, "exec"), names)


def test_there_is_a_recipe_for_each_package_of_the_extra():
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    (line,) = [line for line in text.splitlines() if line.startswith("frameworks = ")]
    assert sorted(RECIPES) == sorted(
        part.strip(' "') for part in line[line.index("[") + 1 : line.index("]")].split(",")
    )
