"""``fastlip doctor``."""

from __future__ import annotations

import json
from typing import Literal

import click

from fastlip.diagnosis import diagnose, doctor_text


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--require", type=click.Choice(["native", "triton"]), help="Fail if an operator cannot run on this backend."
)
def doctor(as_json: bool, require: Literal["native", "triton"] | None):
    """Shows which kernels this installation can run, and why it cannot run the others."""
    report = diagnose()
    click.echo(json.dumps(report, indent=2) if as_json else doctor_text(report))
    for op, backends in report["ops"].items():
        if require is not None and backends.get(require, "ok") != "ok":
            raise click.ClickException(f"{op}: {require}: {backends[require]}")
