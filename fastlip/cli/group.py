"""The command ``fastlip``, and the only place where errors become one line and an exit code."""

from __future__ import annotations

import importlib
import io
import os
import signal
import sys
from typing import Any, NoReturn

import click

import fastlip
from fastlip._extras import MissingPackageError
from fastlip.cli.commands import COMMANDS


class Later(click.Command):
    """A command whose module is imported when it is used."""

    def __init__(self, name: str, place: str, short_help: str):
        super().__init__(name, short_help=short_help)
        self.place = place

    def load(self) -> click.Command:
        """The command itself."""
        module, _, attribute = self.place.partition(":")
        return getattr(importlib.import_module(f"fastlip.cli.{module}"), attribute)

    def make_context(self, *args: Any, **options: Any) -> click.Context:
        """The context of the command itself."""
        return self.load().make_context(*args, **options)

    def get_help(self, ctx: click.Context) -> str:
        """The help of the command itself."""
        return self.load().get_help(ctx)


class OneLineErrors(click.Group):
    """A group that ends every failure with one line on stderr. Exit codes: usage 2, other errors 1, Ctrl-C 130."""

    def main(self, *args: Any, **options: Any) -> NoReturn:
        """Runs a command and exits."""
        if isinstance(sys.stdout, io.TextIOWrapper):
            # Names of files may not be UTF-8, and the terminal's encoding may not have √. Neither is an error.
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            code = super().main(*args, **{**options, "standalone_mode": False})
        except click.Abort:
            _fail("interrupted", 128 + signal.SIGINT)
        except click.ClickException as error:
            _fail(error.format_message(), error.exit_code)
        except _interruption() as stop:
            _fail(f"{stop}; `--resume` continues the run", stop.exit_code)
        except _user_errors() as error:
            if "--traceback" in sys.argv:
                raise
            _fail(_text(error), 1)
        except RuntimeError as error:
            from fastlip.training import distributed

            if not distributed.is_lost(error):
                raise
            _fail("another process of the run has ended; `--resume` continues the run", 1)
        sys.exit(code if isinstance(code, int) else 0)


# An except clause evaluates its expression only when there is an error: without one, nothing here imports torch.
def _interruption() -> Any:
    from fastlip.training.watch import Interrupted

    return Interrupted


def _user_errors() -> tuple[type[BaseException], ...]:
    """Errors that a user can cause by values, files and numbers; any other error is a bug and shows its traceback."""
    import torch

    from fastlip.training.watch import NotFiniteError

    return ValueError, OSError, MissingPackageError, NotFiniteError, torch.OutOfMemoryError


def _text(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def _fail(message: str, code: int) -> NoReturn:
    if _may_report():
        click.echo(f"Error: {' '.join(message.split())}", err=True)
    sys.exit(code)


def _may_report() -> bool:
    # torchrun sets this variable. Without it this process is the only one, and need not import torch to know that.
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return True
    from fastlip.training import distributed

    return distributed.may_report()


@click.group(
    cls=OneLineErrors,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
)
@click.version_option(fastlip.__version__, prog_name="fastlip")
@click.option("--traceback", is_flag=True, help="Show the traceback of an error.")
@click.pass_context
def main(context: click.Context, traceback: bool) -> None:
    """Trains, certifies and compares 1-Lipschitz networks."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


for name, (place, short_help) in COMMANDS.items():
    main.add_command(Later(name, place, short_help))
