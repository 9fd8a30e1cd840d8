"""``fastlip`` and ``python -m fastlip``: the command line, or one line that says what it lacks."""

from __future__ import annotations

import sys

from fastlip._extras import MissingPackageError, needed_for


def main() -> None:
    """Runs the command line and exits."""
    try:
        with needed_for("the command line"):
            from fastlip.cli import main as command_line
    except MissingPackageError as error:
        sys.exit(f"Error: {error}")
    command_line(prog_name="fastlip")


if __name__ == "__main__":
    main()
