"""The first run: recordings of a terminal and of a pipe, folders of later runs, warnings, and the help.

``python tests/cli/test_first_run.py`` makes the recordings anew.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from command_line import SMALL, assert_one_line
from terminal import frames, record, screen, without_figures

from fastlip.certification.certificates import Certificate
from fastlip.training.doubts import doubts
from fastlip.training.logs import Table
from fastlip.training.text import duration, paragraph, radius_name

RECORDINGS = Path(__file__).parent / "recordings"
WIDTH = 72


def compared(name, text):
    """Compares a text with a recording, apart from figures."""
    assert without_figures(text) == without_figures((RECORDINGS / name).read_text(encoding="utf-8"))


def in_terminal():
    """What the first run leaves in a terminal, and everything that it shows there."""
    code, written = record("train", *SMALL)
    assert code == 0, written
    return written


def in_pipe():
    """What the first run writes to stdout and stderr if neither is a terminal."""
    process = subprocess.run(
        [sys.executable, "-m", "fastlip", "train", *SMALL], capture_output=True, text=True, check=True
    )
    return f"{process.stdout}--- stderr\n{process.stderr}"


@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
def test_the_first_run_in_a_terminal(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written = in_terminal()
    compared("terminal.txt", screen(written))
    shown = frames(written)
    assert max(map(len, shown)) <= WIDTH
    bars = [frame for frame in shown if "%|" in frame and "batch" not in frame]
    assert bars
    assert min(len(frame.split("|")[1]) for frame in bars) >= 20


def test_the_first_run_in_a_pipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = in_pipe()
    compared("pipe.txt", text)
    assert max(map(len, text.splitlines())) <= WIDTH
    assert "\r" not in text


def test_a_later_run_has_a_folder_of_its_own(cli, tmp_path):
    for _ in range(3):
        code, output, errors = cli("train", *SMALL)
        assert code == 0, errors
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == [
        "digits-aol-XS",
        "digits-aol-XS-2",
        "digits-aol-XS-3",
    ]
    assert "fastlip certify runs/digits-aol-XS-3 --attack" in output
    assert cli("train", *SMALL, "--overwrite")[0] == 0
    assert len(list((tmp_path / "runs").iterdir())) == 3


def test_an_unfinished_run_says_how_to_continue(cli, tmp_path):
    code, output, _ = cli("train", *SMALL, "--stop-after=1")
    assert code == 0
    assert "Stopped after 1 of 2 epochs." in output
    assert "fastlip train --resume --out runs/digits-aol-XS" in output
    again = cli("train", *SMALL)
    assert_one_line(again, "runs/digits-aol-XS: holds an unfinished run. `fastlip train --resume --out runs/", 2)
    assert again[1] == "", "before any work"
    assert cli("train", "--resume")[0] == 0
    assert (tmp_path / "runs" / "digits-aol-XS" / "certificate.json").is_file()
    assert cli("train", *SMALL, "--stop-after=1")[0] == 0
    assert cli("train", "--resume")[0] == 0
    assert (tmp_path / "runs" / "digits-aol-XS-2" / "certificate.json").is_file(), "the last one is continued"


def test_a_network_that_has_learnt_nothing_is_noticed(cli, tmp_path):
    code, _, errors = cli("train", *SMALL, "--lr=1e-6")
    assert code == 0
    assert "is near chance: below 20.0% with 10 classes" in " ".join(errors.split())
    assert max(map(len, errors.splitlines())) <= WIDTH
    code, output, _ = cli("certify", "runs/digits-aol-XS", "--json")
    assert json.loads(output)["accuracy"] < 0.3, "warnings are no part of JSON"


def certificate(predictions, labels, lipschitz=1.0):
    predictions, labels = torch.tensor(predictions), torch.tensor(labels)
    accuracy = (predictions == labels).double().mean().item()
    nothing = torch.zeros(len(labels), dtype=torch.float64)
    return Certificate(accuracy, {}, {}, nothing, nothing, labels, predictions, lipschitz, 0.0, len(labels), None)  # type: ignore[arg-type]


def test_doubts():
    assert doubts(certificate([0, 1, 2, 3], [0, 1, 2, 3]), 4) == []
    (constant,) = doubts(certificate([2, 2, 2, 2], [2, 2, 2, 1]), 4)
    assert "every image is classified as class 2" in constant
    (chance,) = doubts(certificate([0, 1, 2, 0], [0, 2, 1, 3]), 4)
    assert "accuracy of 25.0% is near chance: below 50.0% with 4 classes" in chance
    assert doubts(certificate([0, 1, 1, 1], [0, 0, 1, 1]), 2) == []
    assert len(doubts(certificate([0, 1, 1, 0], [0, 0, 1, 1]), 2)) == 1
    (shrinking,) = doubts(certificate([0, 1], [0, 1], 0.02), 2)
    assert "the audited bound L is 0.02, far below 1" in shrinking
    assert doubts(certificate([0, 1], [0, 1], 0.5), 2, 0.5) == []


def test_the_table_of_epochs():
    row = {"epoch": 7, "train_loss": 0.0495, "images_per_second": 12345.6}
    row |= {f"{split}_{what}": 0.5 for split in ("train", "test") for what in ("accuracy", "cra")}
    for epochs in (7, 30, 999):
        table = Table(epochs, 36 / 255)
        lines = [*table.head, table.line(row)]
        assert max(map(len, lines)) <= WIDTH
        assert lines[1].count("CRA(36/255)") == 2
        assert lines[2].split()[:3] == [f"7/{epochs}", "0.0495", "50.0%"]
        assert len(lines[1]) == len(lines[2])


def test_texts():
    assert [duration(s) for s in (0.04, 9.94, 24.6, 60, 200, 3599, 7500)] == [
        "0.0 s",
        "9.9 s",
        "25 s",
        "1 min 0 s",
        "3 min 20 s",
        "59 min 59 s",
        "2 h 5 min",
    ]
    assert [radius_name(eps) for eps in (36 / 255, 0.3, 1.0)] == ["36/255", "0.3", "1"]
    assert paragraph("word " * 30, "  ").splitlines()[1].startswith("  word")


def test_bare_fastlip_is_its_help(cli):
    code, output, _ = cli()
    assert code == 0
    assert output == cli("--help")[1]
    assert "train" in output


def test_the_help_imports_no_torch():
    program = "import sys; from fastlip.__main__ import main; sys.argv = ['fastlip', '--help']\n"
    program += "try: main()\nexcept SystemExit: print('torch' in sys.modules)"
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert process.stdout.splitlines()[-1] == "False"


@pytest.mark.parametrize("command", ["train", "compare"])
def test_options_of_a_recipe_stand_under_headings(cli, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "80")
    code, output, _ = cli(command, "--help")
    assert code == 0
    lines = output.splitlines()
    assert max(map(len, lines)) <= 80
    headings = [line for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert headings == ["Options:", "Data:", "Network:", "Optimiser and schedule:", "Loss:", "Run:"]
    places = {heading: lines.index(heading) for heading in headings}
    lr = next(index for index, line in enumerate(lines) if line.strip().startswith("--lr "))
    assert places["Optimiser and schedule:"] < lr < places["Loss:"]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        (RECORDINGS / "terminal.txt").write_text(screen(in_terminal()), encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        (RECORDINGS / "pipe.txt").write_text(in_pipe(), encoding="utf-8")
