"""Names that others chose reach cards and terminals as text."""

import json
import os
import subprocess
import sys

import pytest
from click.testing import CliRunner
from PIL import Image

from fastlip.cli import main
from fastlip.training.card import card_text
from fastlip.training.markdown import markdown

NAMES = [r"$\frac{$", "a_b $x^$ <b>", "caf\udce9\ud800", "two\nlines", "$$$", "a\x1b[31mred", "| pipe |", "100 %"]


def test_a_name_is_plain_text_in_markdown():
    assert markdown("a_b|<script>*$`") == r"a\_b\|\<script\>\*\$\`"
    assert markdown("Käse 猫") == "Käse 猫"


def card(name):
    return {
        "model": {"network": "lip_conv_net", "method": "aol", "size": "XS", "parameters": 1, "imported": name},
        "input": {"data": name, "shape": [1, 8, 8], "divisor": 16.0, "mean": [], "classes": 10},
        "certificate": {},
        "audit": {"bound": 1.0, "layers": [{"name": name, "kind": "A", "bound": 1.0, "exact": True, "how": "h"}]},
        "recipe": {"path": name},
        "versions": {},
    }


@pytest.mark.parametrize("name", [*NAMES, "<script>alert(1)</script>", "![x](http://x)", "# head", "`code`"])
def test_a_card_has_names_as_text(name):
    text = card_text(card(name))
    lines, plain = text.splitlines(), card_text(card("plain")).splitlines()
    assert len(lines) == len(plain)
    body, _, recipe = text.partition("## Recipe")
    assert not any(mark in body for mark in ("<", "\x1b", "![")) or r"\<" in body or r"\!\[" in body
    assert body.replace(markdown(name), "plain") == card_text(card("plain")).partition("## Recipe")[0]
    assert json.loads(recipe.split("```")[1].removeprefix("json")) == {"path": name}


def test_names_and_signs_that_the_terminal_lacks_are_no_error(tmp_path):
    for split in ("train", "val"):
        for name in (b"caf\xe9", b"dog"):
            folder = os.fsencode(tmp_path) + b"/d\xe9/" + split.encode() + b"/" + name
            os.makedirs(folder)
            for i in range(2):
                Image.new("RGB", (32, 32), (99 * i, 0, 0)).save(os.fsdecode(folder + b"/%d.png" % i))
    options = ["--data", "folder", "--path", os.fsdecode(os.fsencode(tmp_path) + b"/d\xe9"), "--method", "aol"]
    options += ["--epochs", "1", "--width", "2", "--layers-per-block", "1", "--batch-size", "4", "--lr", "0.1"]
    options += ["--no-tensorboard", "--threads", "1", "--out", str(tmp_path / "run")]
    command = [sys.executable, "-m", "fastlip", "train", *options]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    run = subprocess.run(command, env=environment, capture_output=True)
    assert run.returncode == 0, run.stderr
    assert rb"d\xe9: 4 training" in run.stdout
    assert (tmp_path / "run" / "card.json").is_file()
    assert CliRunner().invoke(main, ["certify", str(tmp_path / "run"), "--json"]).exit_code == 0
