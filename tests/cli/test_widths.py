"""Help fits a terminal of 80 columns, and an error is short enough to be read."""

import click
import pytest
from click.testing import CliRunner

from fastlip.cli.commands import COMMANDS
from fastlip.cli.group import main

MOST = 400  # characters of an error, with the longest lists of choices


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_fits_80_columns(command):
    found = CliRunner().invoke(main, [*command.split(), "--help"], terminal_width=80)
    assert found.exit_code == 0
    assert [line for line in found.output.splitlines() if len(line) > 80] == []


def mistakes():
    """Every option of every command that takes a name, with one that nothing has."""
    for name in COMMANDS:
        command = main.commands[name].load()
        arguments = ["nowhere"] if any(isinstance(item, click.Argument) for item in command.params) else []
        for option in command.params:
            if isinstance(option, click.Option) and isinstance(option.type, click.Choice):
                yield [name, *arguments, f"{option.opts[0]}=nothing"]
    for option in ("recipe", "set", "data", "model", "method", "loss"):
        value = "optimizer.nothing=1" if option == "set" else "nothing"
        yield ["train", f"--{option}={value}", "--out=nowhere/at/all"]


def test_errors_are_short(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = list(mistakes())
    assert len(found) > 10
    for command in found:
        code, _, errors = cli(*command)
        assert code != 0, command
        assert errors.count("\n") == 1, (command, errors)
        assert len(errors) <= MOST, (command, errors)
