"""The command line ``fastlip``, with one file for each command."""

from fastlip.cli.group import main

__all__ = ["main"]
