"""``fastlip certify`` and ``fastlip audit``."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from torch import nn

import fastlip
from fastlip import hub
from fastlip._files import printable, require_writable
from fastlip.certification.attacks import KINDS, AttackResult, BrokenCertificateWarning
from fastlip.certification.attacks.result import broken_text
from fastlip.certification.certificates import Certificate
from fastlip.cli.options import eps_option
from fastlip.cli.report import attack_lines, write_report
from fastlip.data import Batches, Data
from fastlip.data.own import is_place
from fastlip.models import TITLES
from fastlip.published.entries import is_published
from fastlip.training import archives
from fastlip.training.card import describe_certificate
from fastlip.training.doubts import doubts
from fastlip.training.recipe import Recipe
from fastlip.training.run_folder import Report, RunFolder, Split
from fastlip.training.text import paragraph, radius_name

_RUN = click.argument("run", type=click.Path(path_type=Path))
_PATH = click.option("--path", help="Folder of the data set's files, if they have moved.")
_DATA = click.option("--data", metavar="MODULE:FUNCTION", help="The run's own data set, if it is one of code.")
_DEVICE = click.option("--device", help="Where to run: auto, cpu, cuda or cuda:1.  [default: the run's]")
_BACKEND = click.option("--backend", help="Kernels: auto, reference, native or triton.  [default: the run's]")
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.command()
@_RUN
@eps_option
@click.option("--split", type=click.Choice(["test", "train"]), default="test", help="Images to certify.")
@click.option(
    "--attack",
    type=click.Choice(tuple(KINDS)),
    help="Attack every image as well, within each --eps and within its own certified radius.",
)
@click.option("--steps", type=click.IntRange(1), help="Gradient steps in each restart of the attack.  [default: 40]")
@click.option(
    "--restarts", type=click.IntRange(1), help="Restarts of the attack for each loss and radius.  [default: 3]"
)
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="Seed of the attack's random starts.  [default: 0]")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the report.  [default: certify-SPLIT in RUN]")
@_PATH
@_DATA
@_DEVICE
@_BACKEND
@_JSON
def certify(
    run: Path,
    eps: Sequence[float],
    split: Split,
    attack: str | None,
    steps: int | None,
    restarts: int | None,
    seed: int | None,
    out: Path | None,
    as_json: bool,
    **moved: Any,
):
    """Certifies the network of RUN: prints its accuracy, certified accuracy and audited bound.

    RUN is a run folder or a checkpoint. The command writes certificate.json, radii.csv (a line for each image) and
    curve.png (accuracy against eps). With --attack it also bounds robust accuracy from above. If an attack breaks a
    certificate, the images are saved in broken.pt, and the exit code is 1.
    """
    options = {"steps": steps, "restarts": restarts, "seed": seed}
    how = {name: value for name, value in options.items() if value is not None}
    if how and attack is None:
        raise click.UsageError(f"--{next(iter(how))} needs --attack")
    recipe, data, model = open_run(run, moved)
    _check_eps(eps, data)
    report = Report(out) if out else RunFolder.at(run).report(split)
    _make_folder(report)
    certificate = certify_split(model, recipe, data, eps, split=split, quiet=as_json)
    figures = describe_certificate(certificate, recipe.method, data, split)
    found = None
    if attack is not None:
        found = attack_split(model, recipe, data, certificate, split=split, quiet=as_json, kind=attack, **how)
        figures["attack"] = {**found.to_dict(), "seed": seed or 0}
    title = f"{TITLES[recipe.method]} {recipe.size}, {data.name} ({certificate.n} {split} images)"
    notes = write_report(report, figures, certificate, found, title)
    if as_json:
        click.echo(json.dumps(figures, indent=2))
    else:
        lines = [] if found is None else attack_lines(found, certificate, radius_name)
        click.echo("\n".join([*lines, *notes, f"report in {printable(report.path)}"]))
    if found is not None and len(found.broken):
        raise click.ClickException(f"{broken_text(found.broken)}; saved in {report.broken}")


def _check_eps(eps: Sequence[float], data: Data) -> None:
    """UsageError for a radius beyond which every image in [0, 1] lies: it was meant in grey levels."""
    farthest = math.sqrt(math.prod(data.shape))
    for radius in eps:
        if radius > farthest:
            raise click.UsageError(
                f"--eps {radius:g}: images in [0, 1] are at most {farthest:.3g} apart; {radius:g} grey levels are"
                f" --eps {radius:g}/255"
            )


def _make_folder(report: Report) -> None:
    """Makes the folder of a report; UsageError, before any work, if nothing can be written there."""
    try:
        report.path.mkdir(parents=True, exist_ok=True)
        require_writable(report.certificate)
    except OSError as error:
        reason = error.strerror or error
        raise click.UsageError(f"{report.path}: {reason}; --out names another folder for the report") from None


@click.command()
@_RUN
@_DEVICE
@_BACKEND
@_JSON
def audit(run: Path, as_json: bool, **moved: Any):
    """Prints an upper bound on the Lipschitz constant of each layer of RUN and of the network.

    RUN is a run folder or a checkpoint. Its data set is not needed. It may also be a checkpoint that the authors'
    code of LiResNet or BRONet wrote: its published constants are printed next to the bounds.
    """
    result: fastlip.Audit | fastlip.PublishedAudit
    if (published := _published_checkpoint(run)) is not None:
        if any(value is not None for value in moved.values()):
            raise click.UsageError(f"--device, --backend: {run} is no run of fastlip, and is audited on the CPU")
        result = _audit_published(run, published)
    else:
        opened = hub.read(run, **moved)
        result = fastlip.audit(opened.model, input_shape=tuple(opened.data["shape"]))
    if as_json:
        click.echo(json.dumps(result.to_dict(), indent=2))
    else:
        click.echo(str(result))


def _published_checkpoint(file: Path) -> Mapping[str, Any] | None:
    """The content of a checkpoint of the authors' code, or of a state dict of its networks; None for others."""
    content = archives.read(file) if file.is_file() else None
    return content if is_published(content) else None


def _audit_published(file: Path, content: Mapping[str, Any]) -> fastlip.PublishedAudit:
    """The audit of a checkpoint of the authors' code; ClickException if something else is in its place."""
    try:
        return fastlip.audit_published(content)
    except (TypeError, ValueError) as error:
        raise click.ClickException(f"{file}: {error}") from None


def open_run(run: Path, moved: Mapping[str, Any]) -> tuple[Recipe, Data, nn.Module]:
    """A run's recipe, data and trained model. ``moved`` replaces path, device and backend where it is not None.

    Raises:
        UsageError: data of code that ``moved`` does not name.
    """
    from fastlip.training import checkpoint
    from fastlip.training.setup import data_of, model_of, prepare_process

    recipe, _, state = RunFolder.at(run).load_run()
    recipe = dataclasses.replace(recipe, **{name: value for name, value in moved.items() if value is not None})
    prepare_process(recipe)
    if is_place(recipe.data) and moved.get("data") != recipe.data:
        # A checkpoint may come from anywhere, and must not decide by itself what runs here.
        raise click.UsageError(f"{run}: its data come from code. Pass --data {recipe.data} to run it")
    data = data_of(recipe)
    model = model_of(recipe, data)
    checkpoint.load_model(model, state, data)
    return recipe, data, model


def report_certificate(model: nn.Module, recipe: Recipe, data: Data, eps: Sequence[float]) -> dict[str, Any]:
    """Certifies the model on the test images, prints the figures, and returns them as values that JSON can hold."""
    certificate = certify_split(model, recipe, data, eps)
    return describe_certificate(certificate, recipe.method, data, "test")


def certify_split(
    model: nn.Module, recipe: Recipe, data: Data, eps: Sequence[float], *, split: Split = "test", quiet: bool = False
) -> Certificate:
    """Certifies the model on a split, and prints the figures unless quiet; reasons to doubt them go to stderr."""
    batches = _batches(recipe, data, split)
    certificate = fastlip.certify(model.eval(), batches, eps=list(eps), progress=_shows_progress(quiet))
    if not quiet:
        click.echo("\n".join(_certificate_lines(certificate, split, data.divisor)))
    for doubt in doubts(certificate, len(data.classes), recipe.lipschitz):
        click.echo(paragraph(f"Warning: {doubt}", "  "), err=True)
    return certificate


def _certificate_lines(certificate: Certificate, split: Split, divisor: float) -> list[str]:
    lines = [f"accuracy           {certificate.accuracy:8.2%}   ({certificate.n} {split} images)"]
    for radius, share in certificate.cra.items():
        joint = certificate.joint_cra[radius]
        lines.append(f"CRA at {radius_name(radius):<11} {share:8.2%}   (by margin/(√2·L) alone {joint:.2%})")
    error = f"{certificate.rounding:.3g}  ({certificate.rounding_model}; subtracted from the margins)"
    return [
        *lines,
        f"Lipschitz bound    {certificate.lipschitz:.7f}  (audited; radii are divided by it)",
        f"Rounding error     {error}",
        f"Radii are L2 distances of images in [0, 1] (stored value / {divisor:g}).",
    ]


def attack_split(
    model: nn.Module, recipe: Recipe, data: Data, certificate: Certificate, *, split: Split, quiet: bool, **how: Any
) -> AttackResult:
    """Attacks the images of a split within each eps of their certificate and within their certified radii."""
    batches = _batches(recipe, data, split)
    with warnings.catch_warnings():
        # The command ends with this as an error, after the report is written.
        warnings.simplefilter("ignore", BrokenCertificateWarning)
        return fastlip.attack(
            model.eval(),
            batches,
            list(certificate.cra),
            bounds=(-batches.mean, 1 - batches.mean),
            certificate=certificate,
            progress=_shows_progress(quiet),
            **how,
        )


def _batches(recipe: Recipe, data: Data, split: Split) -> Batches:
    from fastlip.training.setup import batches_of

    return batches_of(recipe, data, data.test if split == "test" else data.train)


def _shows_progress(quiet: bool) -> bool:
    return not quiet and sys.stderr.isatty()
