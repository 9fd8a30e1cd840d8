"""Every code block of the documentation runs, and prints what the page says that it prints.

The blocks of a page run in order, in one namespace and one temporary folder. ``fastlip`` commands run in this process
with the settings of ``SMALL`` behind their own. A ``text`` block right behind a block is its output; … is anything.
A block with a title is a file. What CI runs elsewhere has a marker in the page and a line in ``ELSEWHERE``.
"""

import contextlib
import io
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

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools" / "docs"))

import hooks  # noqa: E402
from markup import to_markdown  # noqa: E402

NETWORK = ["--width=2", "--layers-per-block=1"]
TRAINING = [*NETWORK, "--batch-size=512", "--epochs=1", "--threads=1", "--no-tensorboard"]
SMALL = {
    "train": TRAINING,
    "certify": [],
    "audit": [],
    "export": [],
    "doctor": [],
    "compare": ["--methods=aol,cayley", "--budget=0.5", *NETWORK, "--batch-size=512", "--threads=1"],
    "bench": ["--batch-size=2", "--image-size=4", "--layers-per-block=1", "--rounds=1"],
}
SETUP = "python3 -m venv .venv && . .venv/bin/activate && pip install -c constraints.txt -e"
# Marker of a block, and the file that runs it.
ELSEWHERE = {
    "tests": ".ci/run",
    "run by tests/test_examples.py": "tests/test_examples.py",
    "run by tests/test_new_backend.py": "tests/test_new_backend.py",
}
BLOCK = re.compile(
    r"^(?:<!-- (?P<marker>[\w./ -]+) -->\n)?"
    r"```(?P<language>\w+)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<code>.*?)^```\n"
    r"(?:\n```text\n(?P<expected>.*?)^```\n)?",
    re.M | re.S,
)


class Block(NamedTuple):
    marker: str
    language: str
    title: str
    code: str
    expected: str


def pages():
    found = [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("fastlip/ops/*/README.md"),
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
                check_output(run(block, namespace, page), block.expected)
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


def check_output(printed, expected):
    assert not expected or agrees(printed, expected), f"printed\n{printed}\nthe page says\n{expected}"


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


def test_the_ten_lines_certify():
    namespace = {}
    run(next(block for block in BLOCKS["README.md"] if block.language == "python"), namespace, "README.md")
    audit, certificate = namespace["audit"], namespace["certificate"]
    assert audit.bound <= 1 + 1e-6
    assert certificate.lipschitz == audit.bound
    assert namespace["model"](namespace["images"]).shape == (16, 10)


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
    assert len([block for _, block in excepted if not block.title]) <= 8
    for page, block in excepted:
        there = (ROOT / ELSEWHERE[block.marker]).read_text(encoding="utf-8")
        if block.marker == "tests":
            assert "<!-- tests -->" in there, "read from the README"
        elif block.marker.endswith("new_backend.py"):
            assert page in there
        else:
            for line in block.code.splitlines():
                assert Path(shlex.split(line)[1]).stem in there, f"{page}: {line}"


def test_two_commands_set_up_a_fresh_machine():
    setup, tests = [block for block in BLOCKS["README.md"] if block.language == "bash"][:2]
    assert (setup.marker, setup.code) == ("set-up", f'{SETUP} ".[train]" && fastlip train\n')
    assert (tests.marker, tests.code) == ("tests", f'{SETUP} ".[test]" && pytest\n')


def test_every_public_name_is_in_the_reference():
    reference = "\n".join(hooks.expand(PAGES[page]) for page in PAGES if page.startswith("docs/api/"))
    shown = set(re.findall(r"^::: (\S+)$", reference, re.M)) | {
        name for name in re.findall(r"\[`(fastlip\.\w+)`\]\(\w+\.md\)", reference)
    }
    public = {f"fastlip.{name}" for name in fastlip.__all__}
    public |= {f"fastlip.nn.{name}" for name in fastlip.nn.__all__}
    public |= {f"fastlip.ops.{name}.{name}" for name in fastlip.ops.__all__}
    public |= {f"fastlip.losses.{name}" for name in fastlip.losses.__all__}
    public |= {f"fastlip.models.{name}" for name in ("lip_conv_net", "sll_net")}
    assert public <= shown, f"not in docs/api: {sorted(public - shown)}"
    for command in main.commands:
        assert f"## fastlip {command}\n" in reference


def test_every_page_of_the_mathematics_is_an_op_readme():
    for name in fastlip.ops.__all__:
        page = hooks.op_page(name)
        assert page.startswith(f"# {name}\n")
        assert f"[fastlip.ops.{name}.{name}]" in page


def test_formulas_become_unicode():
    formula = "    .. math:: r_i = \\sum_{j,\\delta} |v_{ij}|, \\qquad\n              P = W / \\sqrt{r_i}\n"
    lines = "    ```text\n    r_i = Σ_(j,δ) |v_ij|,\n    P = W / √r_i\n    ```\n"
    assert to_markdown(f"Bound.\n\n{formula}").rstrip() == f"Bound.\n\n{lines}".rstrip()
    link = "[`fastlip.audit`][fastlip.audit]"
    assert to_markdown("Of <w, x>, :func:`fastlip.audit`.").rstrip() == f"Of &lt;w, x>, {link}."
