"""``fastlip doctor``."""

from __future__ import annotations

import json

import click

from fastlip.diagnosis import diagnose, doctor_text


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(as_json: bool):
    """Says which kernels this installation can run, and why it cannot run the others."""
    report = diagnose()
    click.echo(json.dumps(report, indent=2) if as_json else doctor_text(report))
