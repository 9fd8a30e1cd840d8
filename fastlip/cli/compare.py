"""``fastlip compare``."""

from __future__ import annotations

import signal
from functools import partial
from pathlib import Path
from typing import Any

import click

from fastlip._files import printable
from fastlip.benchmarking import keep_pages
from fastlip.cli.options import recipe_options
from fastlip.study.settings import (
    DECIDED,
    Contender,
    Settings,
    contenders_of,
    continued,
    default_budget,
    default_options,
    load,
    save,
    seconds_of,
)

_LIST = "give it once for each, or a list with commas"


class Names(click.ParamType):
    """One name or several, separated by commas."""

    name = "names"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """The names."""
        names = tuple(name.strip() for name in value.split(",")) if isinstance(value, str) else value
        if not all(names):
            self.fail(f"{value!r} has an empty name", param, ctx)
        return names


@click.command()
@click.option(
    "--method", "--methods", "methods", type=Names(), multiple=True, help=f"Methods: {_LIST}.  [default: all]"
)
@click.option("--size", "--sizes", "sizes", type=Names(), multiple=True, help=f"Sizes: {_LIST}.  [default: XS]")
@click.option(
    "--backend",
    "--backends",
    "backends",
    type=Names(),
    multiple=True,
    help=f"Kernels: {_LIST}; side by side they show what kernels buy.  [default: auto; on digits auto,reference]",
)
@click.option(
    "--budget",
    help="How long each run trains: 20, 90s, 15m, 2h.  [default on digits: all runs share three minutes]",
)
@click.option(
    "--search", type=int, help="Random pairs of learning rate and weight decay to try before.  [default: 0, none]"
)
@click.option("--retry", is_flag=True, help="Try runs again that failed.")
@click.option("--report-only", is_flag=True, help="Write table, plots and report of what there is; run nothing.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the study.  [default: runs/compare-DATA]")
@partial(recipe_options, without=DECIDED)
def compare(
    methods: tuple[tuple[str, ...], ...],
    sizes: tuple[tuple[str, ...], ...],
    backends: tuple[tuple[str, ...], ...],
    budget: str | None,
    search: int | None,
    retry: bool,
    report_only: bool,
    out: Path | None,
    **options: Any,
):
    """Compares methods under one budget of training time, on your machine and data.

    Measures steps and memory, turns the budget into epochs, trains and certifies every network, and writes a table
    (table.csv, table.json), plots and report.html. The same command goes on with a study that was stopped (Ctrl-C);
    runs that are finished are not repeated, and further methods, sizes and backends are added. A run that fails is a
    row with its reason. Options beyond these are those of `fastlip train`, for all runs; on digits there are two
    layers in a block where the published network has five (--layers-per-block), so that all runs learn something.
    """
    given = {name: value for name, value in options.items() if value is not None}
    data = given.get("data", "digits")
    folder = out or Path("runs") / f"compare-{data}"
    lists = [[name for names in chosen for name in names] for chosen in (methods, sizes, backends)]
    known = _known(folder)
    if report_only and known is None:
        raise click.UsageError(f"{folder}: no study there, and --report-only runs none")
    data = (known.options if known else given).get("data", "digits")
    contenders = contenders_of(lists[0], lists[1], lists[2], data)
    seconds = None if budget is None else seconds_of(budget)
    if known is None:
        seconds = default_budget(data, len(contenders)) if seconds is None else seconds
        settings = Settings(seconds, search or 0, default_options(given))
    else:
        settings = continued(folder, known, seconds, search, given)
    _study(folder, settings, contenders, new=known is None, retry=retry, report_only=report_only)


def _known(folder: Path) -> Settings | None:
    """The settings of the study in this folder, if there is one."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    if not folder.is_dir():
        raise click.UsageError(f"{folder}: is not a folder")
    return load(folder)


def _study(
    folder: Path, settings: Settings, contenders: list[Contender], *, new: bool, retry: bool, report_only: bool
) -> None:
    from fastlip.data import load as load_data
    from fastlip.study.comparing import Comparison
    from fastlip.training.setup import device_of

    recipe = settings.recipe(contenders[0])
    device_of(recipe)
    data = load_data(recipe.data, recipe.path, recipe.image_size)
    if new:
        save(folder, settings)
    keep_pages()
    comparison = Comparison(folder, settings, contenders, data, click.echo)
    click.echo(str(data))
    click.echo(f"{len(contenders)} runs, each with {settings.budget:g} s of training, in {printable(folder)}")
    if retry:
        comparison.retry()
    if not report_only:
        _run(comparison)
    _conclude(comparison)


def _run(comparison: Any) -> None:
    from fastlip.training.watch import Interrupted

    try:
        comparison.run()
    except (Interrupted, KeyboardInterrupt) as stop:
        comparison.write_table()
        code = stop.exit_code if isinstance(stop, Interrupted) else 128 + signal.SIGINT
        click.echo(f"Error: {str(stop) or 'stopped by SIGINT'}; the same command goes on from here", err=True)
        raise click.exceptions.Exit(code) from None


def _conclude(comparison: Any) -> None:
    from fastlip.study.reporting import REPORT, write_report
    from fastlip.study.table import to_text

    comparison.write_table()
    rows = comparison.rows()
    notes = write_report(comparison)
    click.echo("\n".join(["", to_text(rows), "", *notes, f"report in {printable(comparison.folder / REPORT)}"]))
    if not any(row.finished for row in rows):
        raise click.ClickException(f"no run is finished; the first: {rows[0].reason}")
