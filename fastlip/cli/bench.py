"""``fastlip bench``: training and evaluation steps next to plain convolutions, alternating in one run."""

from __future__ import annotations

import ast
import errno
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import torch

from fastlip import _figures
from fastlip._files import require_writable
from fastlip._machine import processor
from fastlip._progress import Ticks
from fastlip.benchmarking import CONTESTANTS, DisagreementError, Row, Setting, keep_pages, picture, run, why_not
from fastlip.benchmarking.literals import Contestant
from fastlip.models import METHODS, SIZES
from fastlip.models.literals import MethodName

_PICTURES = ("png", "pdf", "svg", "jpg", "jpeg", "webp", "eps", "ps", "tif", "tiff")
_USUAL: tuple[Contestant, ...] = ("fused", "reference", "plain channels-last", "plain compiled")
_BATCH_SIZES = {"XS": 256, "S": 64, "M": 16, "L": 16}


@click.command()
@click.option(
    "--method",
    "methods",
    multiple=True,
    help=f"One of {', '.join(METHODS)}; repeat the option for several.  [default: all]",
)
@click.option("--size", type=click.Choice(list(SIZES)), default="XS", help="Size of the network.")
@click.option("--batch-size", type=click.IntRange(1), help="Images in a step.  [default: XS 256, S 64, M 16, L 16]")
@click.option("--image-size", type=click.IntRange(2), default=32, help="Side of the images in pixels.")
@click.option("--layers-per-block", type=click.IntRange(1), default=5, help="Convolutions in each block.")
@click.option("--rounds", type=click.IntRange(1), default=7, help="Number of timed steps of each network.")
@click.option("--device", default="cpu", help="Where to run: cpu, cuda or cuda:1.")
@click.option(
    "--contestant",
    "contestants",
    type=click.Choice(CONTESTANTS),
    metavar="NAME",
    multiple=True,
    help=f"Network to time next to plain: {', '.join(CONTESTANTS)}. Repeat the option for several.  "
    f"[default: {', '.join(_USUAL)}]",
)
@click.option(
    "--option",
    "layer_options",
    metavar="NAME=VALUE",
    multiple=True,
    help="Argument of the methods' convolutions, such as terms=5 or recompute=True; repeat the option for several.",
)
@click.option(
    "--scale",
    default=1.0,
    show_default=True,
    help="Factor of the weights, which may grow in training. SOC's kernels then have larger norms.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="File for a picture of the ratios.")
def bench(
    methods: tuple[MethodName, ...],
    contestants: tuple[Contestant, ...],
    as_json: bool,
    plot: Path | None,
    **options: Any,
):
    """Times steps of each method's network with fused kernels, in PyTorch operations, and next to plain convolutions.

    All networks alternate in one process, after a check that fused and reference agree. Each ratio to the same
    network of plain convolutions is the median over the rounds; below 1 is faster than plain. "to best" are the
    ratios to the fastest plain network: as it is, channels-last, or compiled. "saved" is the ratio of the bytes that
    autograd keeps for the backward pass.
    """
    options["batch_size"] = options["batch_size"] or _BATCH_SIZES[options["size"]]
    options["layer_options"] = dict(map(_parse_option, options["layer_options"]))
    if plot:
        _check_plot(plot)
    pages_kept = keep_pages()
    settings = [Setting(method, **options) for method in methods or METHODS]
    rows: list[Row] = []
    with Ticks(sum(setting.stages for setting in settings)) as ticks:
        for setting in settings:
            found = _rows_of(setting, contestants or _USUAL, ticks)
            ticks.hide()
            for row in found:
                if not as_json:
                    _print_row(row, header=not rows)
                rows.append(row)
    if not rows:
        raise click.ClickException("nothing was timed: no contestant can run next to these methods")
    if plot:
        title = f"ConvNet {options['size']}, batch {options['batch_size']}, {options['device']}"
        with _figures.own_style():
            _figures.save(plot, picture.draw(rows, title), _kind(plot))
    if as_json:
        about = {**options, **_machine(), "pages_kept": pages_kept}
        click.echo(json.dumps({"options": about, "rows": [row.to_dict() for row in rows]}, indent=2))


def _rows_of(setting: Setting, contestants: Sequence[Contestant], ticks: Ticks) -> list[Row]:
    """The rows of one method; none if no contestant can run next to it."""
    able: list[Contestant] = [name for name in contestants if not _left_out(name, setting.method, setting.device)]
    if not able:
        return []
    try:
        return run(setting, able, lambda: ticks.tick(setting.method))
    except DisagreementError as error:
        raise click.ClickException(f"{error}: not timed") from None
    except (TypeError, ValueError) as error:  # an argument that the method's layers do not take
        if not setting.layer_options:
            raise
        raise click.ClickException(f"{setting.method}: {error}") from None


def _parse_option(text: str) -> tuple[str, Any]:
    """Name and value of NAME=VALUE. The value is a Python literal, otherwise a string."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise click.BadParameter(f"{text!r}: expected NAME=VALUE", param_hint="--option")
    try:
        return name, ast.literal_eval(value)
    except (SyntaxError, ValueError):
        return name, value


def _left_out(contestant: Contestant, method: MethodName, device: str) -> bool:
    reason = why_not(contestant, method, device)
    if reason:
        click.echo(f"left out: {reason}", err=True)
    return bool(reason)


def _machine() -> dict[str, Any]:
    return {"torch": torch.__version__, "threads": torch.get_num_threads(), "processor": processor()}


def _print_row(row: Row, *, header: bool) -> None:
    if header:
        click.echo("ratios to plain           train  evaluate  saved | to the best plain | train")
        click.echo(f"{'':48} |  train  evaluate |    ms")
    saved = f"{'-':>6}" if row.saved is None else f"{row.saved:>6.2f}"
    ratios = (row.train_to_best, 7), (row.evaluate_to_best, 9)
    best = [f"{'-':>{width}}" if ratio is None else f"{ratio:>{width}.2f}" for ratio, width in ratios]
    click.echo(
        f"{row.method:<6} {row.contestant:<18} {row.train:>5.2f} {row.evaluate:>9.2f} {saved} |"
        f"{best[0]} {best[1]} | {row.train_ms:>5.0f}"
    )


def _kind(path: Path) -> str:
    """The kind of picture that the suffix names."""
    return path.suffix[1:].lower() or "png"


def _check_plot(path: Path) -> None:
    """Raises an error, before anything is timed, for a plot that could not be written."""
    if missing := _figures.missing():
        raise click.ClickException(f"--plot: {missing}")
    if _kind(path) not in _PICTURES:
        raise click.UsageError(f"--plot={path}: expected a name that ends in one of {', '.join(_PICTURES)}")
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path.parent))
    require_writable(path)
