"""``fastlip export``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

import fastlip
from fastlip import hub
from fastlip.deployment import FORMATS, Format
from fastlip.deployment.formats import format_of


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="File to write.")
@click.option(
    "--format",
    "kind",
    type=click.Choice(FORMATS),
    help="Format of the file.  [default: by its suffix: .pt or .pth, .pt2, .onnx]",
)
@click.option("--radius", is_flag=True, help="Add the certified radius of each prediction as a second output.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def export(run: Path, out: Path, kind: Format | None, radius: bool, as_json: bool):
    """Writes the network of RUN (a run folder or a checkpoint) to a file that loads and runs without fastlip.

    torch: a module for torch.load(FILE, weights_only=False). pt2: a program for torch.export.load. onnx: a model for
    any ONNX runtime. All take images (n, c, h, w) for any n, scaled and centred as the output of this command says.
    Steps are printed to stderr; ONNX takes a few seconds to a minute.
    """
    try:
        format_of(out, kind)
    except ValueError as error:
        raise click.BadParameter(f"{error} (--format)", param_hint="--out") from None
    recipe, data, model, card = hub.read(run, device="cpu")
    mean = list(data["mean"]) if recipe.center else []
    facts: dict[str, Any] = {"divisor": data["divisor"], "mean": mean, "data": data["name"]}
    if card.get("certificate"):
        facts["certificate"] = card["certificate"]
    bounds = (0.0 - max(mean, default=0.0), 1.0 - min(mean, default=0.0))
    shape = tuple(data["shape"])
    found = fastlip.export(
        model, out, shape, format=kind, radius=radius, bounds=bounds, facts=facts, progress=not as_json
    )
    if as_json:
        click.echo(json.dumps({**found.to_dict(), "divisor": data["divisor"], "mean": mean}, indent=2))
        return
    centred = f" - {mean}" if mean else ""
    click.echo(f"{found}\nscale              stored value / {data['divisor']:g}{centred}")
