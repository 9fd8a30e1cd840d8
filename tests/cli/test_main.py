"""What holds for every command."""

import subprocess
import sys

import pytest
from command_line import assert_one_line


def test_a_corrupt_checkpoint_is_one_line(cli, trained):
    file = trained / "checkpoint.pt"
    file.write_bytes(file.read_bytes()[:5000])
    for command in (["certify", trained], ["audit", trained], ["train", "--out", trained, "--resume"]):
        assert_one_line(cli(*command), "checkpoint.pt: corrupt checkpoint")


def test_a_bug_shows_its_traceback(cli, monkeypatch):
    from fastlip.cli import train

    def broken(*_):
        raise KeyError("bug")

    monkeypatch.setattr(train, "default_recipe", broken)
    with pytest.raises(KeyError, match="bug"):
        cli("train")


def test_the_module_is_the_command():
    process = subprocess.run(
        [sys.executable, "-m", "fastlip", "certify", "nowhere"], capture_output=True, text=True, check=False
    )
    assert process.returncode == 1
    assert process.stderr == "Error: nowhere: no such checkpoint\n"
