"""Every code block of the documentation runs, and prints what the page says that it prints.

The blocks of a page run in order, in one namespace and one temporary folder. ``fastlip`` commands run in this process
with the settings of ``SMALL`` after their own. A ``text`` block right after a block is its output; … is anything, and
``<!-- output: MARKER -->`` before it allows other figures (``FIGURES``). A block with a title is a file. What CI runs
elsewhere has a marker in the page and a line in ``ELSEWHERE``.
"""

import contextlib
import inspect
import io
import math
import re
import shlex
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from click.testing import CliRunner

import fastlip
from fastlip.cli import main
from fastlip.kernels import OPS

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools" / "docs"))

import benchmarks_page  # noqa: E402
import hooks  # noqa: E402
import pictures  # noqa: E402
from markup import to_markdown  # noqa: E402

NETWORK = ["--width=2", "--layers-per-block=1"]
TRAINING = [*NETWORK, "--batch-size=512", "--epochs=1", "--threads=1", "--no-tensorboard"]
SMALL = {
    "train": TRAINING,
    "certify": [],
    "audit": [],
    "export": [],
    "doctor": [],
    "compare": ["--methods=aol,cayley", "--budget=0.1", *NETWORK, "--batch-size=512", "--threads=1"],
    # Without the compiled network, which takes half a minute.
    "bench": ["--batch-size=2", "--image-size=4", "--layers-per-block=1", "--rounds=1", "--contestant=fused"],
}
SETUP = "python3 -m venv .venv && . .venv/bin/activate && pip install -c constraints.txt -e"
# Marker of a block, and the file that runs it.
ELSEWHERE = {
    "tests": ".ci/run",
    "run by tests/test_examples.py": "tests/test_examples.py",
    "run by tests/test_interoperability.py": "tests/test_interoperability.py",
    "run by tests/test_new_backend.py": "tests/test_new_backend.py",
    "run by tests/test_new_loss.py": "tests/test_new_loss.py",
    "run by tests/test_new_method.py": "tests/test_new_method.py",
    "run by tests/test_pretrained.py": "tests/test_pretrained.py",
    "run by tests/test_published.py": "tests/test_published.py",
}
BLOCK = re.compile(
    r"^(?:<!-- (?P<marker>[\w./ -]+) -->\n)?"
    r"```(?P<language>\w+)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<code>.*?)^```\n"
    r"(?:\n(?:<!-- output: (?P<figures>[a-z ]+) -->\n)?```text\n(?P<expected>.*?)^```\n)?",
    re.M | re.S,
)
# By how much each figure of a block's output may differ from the page: training differs between processors, and
# SMALL trains shorter.
FIGURES = {"": None, "close figures": 5.0, "other figures": float("inf")}
FIGURE = re.compile(r"\d[\d.]*(?:e[+-]?\d+)?")


class Block(NamedTuple):
    marker: str
    language: str
    title: str
    code: str
    figures: str
    expected: str


def pages():
    found = [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("fastlip/kernels/*/README.md"),
    ]
    return {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in sorted(found)}


def blocks_of(text):
    return [Block(*(value or "" for value in match.groups())) for match in BLOCK.finditer(text)]


PAGES = pages()
BLOCKS = {page: blocks_of(text) for page, text in PAGES.items()}


@pytest.mark.parametrize(
    "page", [page for page, blocks in BLOCKS.items() if any(b.language != "text" for b in blocks)]
)
def test_the_blocks_of_a_page_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    namespace = {"__name__": "__main__"}
    try:
        for block in BLOCKS[page]:
            if block.marker not in ELSEWHERE and block.language != "text":
                check_output(run(block, namespace, page), block.expected, FIGURES[block.figures])
    finally:
        torch.set_num_threads(threads)


def run(block, namespace, page):
    """What the block prints."""
    if block.title:
        Path(block.title).parent.mkdir(parents=True, exist_ok=True)
        Path(block.title).write_text(block.code)
        return ""
    if block.language == "python":
        with contextlib.redirect_stdout(io.StringIO()) as output:
            exec(compile(block.code, page, "exec"), namespace)
        return output.getvalue()
    assert block.language == "bash", f"{page}: nothing runs a {block.language} block"
    return "".join(run_command(line, block.marker) for line in block.code.replace("\\\n", " ").splitlines())


def run_command(line, marker):
    if marker == "set-up":
        assert line.startswith(f'{SETUP} ".[train]" && ')  # which .ci/run runs, with the tests' packages
        line = line.rpartition(" && ")[2]
    program, command, *arguments = shlex.split(line.partition("  # ")[0])
    assert program == "fastlip", f"nothing runs {line!r}"
    assert command in SMALL, f"{line!r}: no small settings for it"
    result = CliRunner().invoke(main, [command, *arguments, *SMALL[command]])
    if not isinstance(result.exception, (SystemExit, type(None))):
        raise result.exception
    assert result.exit_code == 0, result.stderr
    return result.stdout


def check_output(printed, expected, tolerance=None):
    agree = agrees(printed, expected) if tolerance is None else agrees_but_for_figures(printed, expected, tolerance)
    assert not expected or agree, f"printed\n{printed}\nthe page says\n{expected}"


def agrees_but_for_figures(printed, expected, tolerance):
    """The same words; figures within tolerance, in order, where … hides none of them."""
    if not agrees(FIGURE.sub("#", printed), FIGURE.sub("#", expected)):
        return False
    if math.isinf(tolerance):
        return True
    pairs = zip(*(map(float, FIGURE.findall(text)) for text in (printed, expected)), strict=True)
    return all(abs(one - other) <= tolerance for one, other in pairs)


def agrees(printed, expected):
    """Whether the parts of expected between … follow each other in printed, the outer ones at its ends."""
    text = " ".join(printed.split())
    first, *others = (" ".join(part.split()) for part in expected.split("…"))
    if not others or not text.startswith(first):
        return text == first
    position = len(first)
    for part in others[:-1]:
        found = text.find(part, position)
        if found < 0:
            return False
        position = found + len(part)
    return text.endswith(others[-1]) and len(text) - len(others[-1]) >= position


def test_the_readme_certifies():
    namespace = {}
    run(next(block for block in BLOCKS["README.md"] if block.language == "python"), namespace, "README.md")
    certificate = fastlip.certify(namespace["model"], namespace["test"], eps=[36 / 255])
    assert certificate.lipschitz == fastlip.audit(namespace["model"], (1, 8, 8)).bound <= 1 + 1e-6
    assert certificate.cra[36 / 255] > 0.7


def test_the_readme_is_short():
    assert len(PAGES["README.md"].splitlines()) <= 110


def test_figures_of_outputs_are_compared():
    assert agrees_but_for_figures("L 0.74, 93.9% of 360", "L 0.73, 94.2% of 360", 5)
    assert not agrees_but_for_figures("L 0.74, 83.9% of 360", "L 0.73, 94.2% of 360", 5)
    assert not agrees_but_for_figures("bound 0.74", "L 0.74", 5)
    assert agrees_but_for_figures("a 1\nb 2\nc 3e-6", "a 7 … c 9", math.inf)
    assert not agrees_but_for_figures("a 1\nb 2\nd 3", "a 7 … c 9", math.inf)


@pytest.mark.parametrize("name", ["docs/benchmarks.md", "docs/guide/pretrained.md"])
def test_the_figures_of_a_page_are_those_of_the_results(name):
    page = PAGES[name]
    assert benchmarks_page.refresh(page) == page, "run `python tools/docs/benchmarks_page.py`"


def test_the_figures_of_the_digits_are_collected(tmp_path):
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        from digits import measure
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
    row = measure("aol", tmp_path, *TRAINING)
    assert row["method"] == "aol"
    assert 0 <= row["joint_cra"][str(36 / 255)] <= row["accuracy"] <= 1
    assert row["seconds"] > 0


def test_the_plain_network_of_the_digits_is_measured(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import digits_plain

    monkeypatch.setattr(digits_plain, "LEARNING_RATES", (0.01, 0.02))
    monkeypatch.setattr(digits_plain, "SEEDS", (0,))
    found = digits_plain.measure(epochs=1, width=2)
    assert found["lr"] == max(found["validation"], key=found["validation"].get)
    (row,) = found["rows"]
    assert row["cra"][36 / 255] <= row["accuracy"] <= 1 < row["lipschitz"]


def test_the_chart_shows_the_figures_of_the_results():
    chart = (ROOT / "docs" / "images" / "training_cost.svg").read_text(encoding="utf-8")
    assert pictures.cost_digest() in chart, "run `python tools/docs/pictures.py cost`"


def test_links_of_the_readme_lead_somewhere():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", PAGES["README.md"]):
        assert (ROOT / target).is_file(), target


def test_outputs_are_compared():
    assert agrees("a  b\nc", "a b c\n")
    assert agrees("layer 1 of 3: 0.99", "layer … of 3: 0.…")
    assert agrees("one two", "…two")
    for wrong in ("one", "two …", "one … three", "one two … two", "one two three"):
        assert not agrees("one two", wrong)


def test_no_block_escapes():
    for page, text in PAGES.items():
        fences = re.findall(r"^\s*```.*$", text, re.M)
        outputs = sum(bool(block.expected) for block in BLOCKS[page])
        assert len(fences) == 2 * (len(BLOCKS[page]) + outputs), f"{page}: a fence that is not read"


def test_what_runs_elsewhere_is_short_and_runs_there():
    excepted = [(page, block) for page, blocks in BLOCKS.items() for block in blocks if block.marker in ELSEWHERE]
    others = [block for page, block in excepted if not (block.title or page.startswith("docs/jobs/"))]
    assert len(others) <= 11
    for page, block in excepted:
        there = (ROOT / ELSEWHERE[block.marker]).read_text(encoding="utf-8")
        if block.marker == "tests":
            assert "<!-- tests -->" in there, "read from the README"
        elif any(name in block.marker for name in ("test_new_", "test_interoperability", "test_published")):
            assert page in there
        else:
            for line in block.code.splitlines():
                assert Path(shlex.split(line)[1]).stem in there, f"{page}: {line}"


def test_two_commands_set_up_a_fresh_machine():
    setup, tests = [block for block in BLOCKS["README.md"] if block.language == "bash"][:2]
    assert (setup.marker, setup.code) == ("set-up", f'{SETUP} ".[train]" && fastlip train\n')
    assert (tests.marker, tests.code) == ("tests", f'{SETUP} ".[test]" && pytest -n auto --dist worksteal\n')


def test_every_public_name_is_in_the_reference():
    reference = "\n".join(hooks.expand(PAGES[page]) for page in PAGES if page.startswith("docs/api/"))
    shown = set(re.findall(r"^::: (\S+)$", reference, re.M)) | {
        name for name in re.findall(r"\[`(fastlip\.\w+)`\]\(\w+\.md\)", reference)
    }
    public = {f"fastlip.{name}" for name in fastlip.__all__}
    public |= {f"fastlip.nn.{name}" for name in fastlip.nn.__all__}
    public |= {f"fastlip.ops.{name}" for name in fastlip.ops.__all__}
    public |= {f"fastlip.losses.{name}" for name in fastlip.losses.__all__}
    functions = [name for name in fastlip.models.__all__ if inspect.isfunction(getattr(fastlip.models, name))]
    public |= {f"fastlip.models.{name}" for name in functions}
    assert public <= shown, f"not in docs/api: {sorted(public - shown)}"
    for command in main.commands:
        assert f"## fastlip {command}\n" in reference


def test_every_page_of_the_mathematics_is_an_op_readme():
    for name in OPS:
        page = hooks.op_page(name)
        assert page.startswith(f"# {name}\n")
        assert f"[fastlip.ops.{name}]" in page


def test_docstrings_become_markdown():
    formula = "    .. math:: r_i = \\sum_{j} |v_{ij}| < 1, \\qquad\n              P = W / \\sqrt{r_i}\n"
    lines = (
        "$$",
        r"\begin{aligned}",
        r"& r_i = \sum_{j} |v_{ij}| < 1, \\",
        r"& P = W / \sqrt{r_i}",
        r"\end{aligned}",
        "$$",
    )
    block = "".join(f"    {line}\n" for line in lines)
    assert to_markdown(f"Bound.\n\n{formula}").rstrip() == f"Bound.\n\n{block}".rstrip()
    assert to_markdown(".. math:: a < b\n") == "$$\na < b\n$$\n\n"
    assert to_markdown("As :math:`a < b`.").rstrip() == r"As \(a < b\)."
    section = "Examples:\n    >>> 1 < 2\n    True\n"
    for examples in (">>> 1 < 2\nTrue\n", section, section.replace("Examples", "Example")):
        assert to_markdown(f"Less.\n\n{examples}").rstrip() == f"Less.\n\n{section}".rstrip()
    link = "[`fastlip.audit`][fastlip.audit]"
    assert to_markdown("Of <w, x>, :func:`fastlip.audit`.").rstrip() == f"Of &lt;w, x>, {link}."
