"""The command ``fastlip``, and the one place where errors become one line and an exit code."""

from __future__ import annotations

import io
import signal
import sys
from typing import Any, NoReturn

import click
import torch

import fastlip
from fastlip.commands.bench import bench
from fastlip.commands.compare import compare
from fastlip.commands.doctor import doctor
from fastlip.commands.evaluate import audit, certify
from fastlip.commands.experiment import experiment
from fastlip.commands.export import export
from fastlip.commands.importing import import_
from fastlip.commands.train import train
from fastlip.training import distributed
from fastlip.training.watch import Interrupted, NotFiniteError

# What a user can cause: wrong values, files and numbers. Anything else is our mistake and shows its traceback.
USER_ERRORS = (ValueError, OSError, NotFiniteError, torch.OutOfMemoryError)


class OneLineErrors(click.Group):
    """A group that ends every failure with one line on stderr: exit 2 for usage, 1 for errors, 130 for Ctrl-C."""

    def main(self, *args: Any, **options: Any) -> NoReturn:
        """Runs a command and exits."""
        if isinstance(sys.stdout, io.TextIOWrapper):
            # Names of files need not be UTF-8, and the terminal's encoding need not have √: neither is an error.
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            code = super().main(*args, **{**options, "standalone_mode": False})
        except click.Abort:
            _fail("interrupted", 128 + signal.SIGINT)
        except click.ClickException as error:
            _fail(error.format_message(), error.exit_code)
        except Interrupted as stop:
            _fail(f"{stop}; `--resume` continues the run", stop.exit_code)
        except USER_ERRORS as error:
            if "--traceback" in sys.argv:
                raise
            _fail(_text(error), 1)
        except RuntimeError as error:
            if not distributed.is_lost(error):
                raise
            _fail("another process of the run has ended; `--resume` continues the run", 1)
        sys.exit(code if isinstance(code, int) else 0)


def _text(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def _fail(message: str, code: int) -> NoReturn:
    if distributed.may_report():
        click.echo(f"Error: {' '.join(message.split())}", err=True)
    sys.exit(code)


@click.group(cls=OneLineErrors, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(fastlip.__version__, prog_name="fastlip")
@click.option("--traceback", is_flag=True, help="Show where an error came from.")
def main(traceback: bool) -> None:
    """Trains, certifies and compares 1-Lipschitz networks."""


for command in (train, certify, audit, export, import_, compare, experiment, bench, doctor):
    main.add_command(command)
