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

_LIST = "repeat the option for several, or separate them by commas"


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
    "--method", "--methods", "methods", type=Names(), multiple=True, help=f"Method; {_LIST}.  [default: all]"
)
@click.option("--size", "--sizes", "sizes", type=Names(), multiple=True, help=f"Size; {_LIST}.  [default: XS]")
@click.option(
    "--backend",
    "--backends",
    "backends",
    type=Names(),
    multiple=True,
    help=f"Kernels; {_LIST}. Several show what the kernels gain.  [default: auto; on digits auto,reference]",
)
@click.option(
    "--budget",
    help="Training time of each run: 20, 90s, 15m, 2h.  [default on digits: three minutes divided by all runs]",
)
@click.option(
    "--search",
    type=int,
    help="Number of random pairs of learning rate and weight decay to try before training.  [default: 0]",
)
@click.option("--retry", is_flag=True, help="Repeat the runs that failed.")
@click.option(
    "--report-only", is_flag=True, help="Write table, plots and report of the finished runs, and run nothing."
)
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

    The command measures steps and memory, converts the budget into epochs, trains and certifies every network, and
    writes a table (table.csv, table.json), plots and report.html. Interrupt it at any time (Ctrl-C); rerun the same
    command to resume. Finished runs are not repeated, and further methods, sizes and backends are added. A run that
    fails becomes a row with the reason. The other options are those of `fastlip train` and hold for all runs. On
    digits a block has two layers, where the published network has five (--layers-per-block), so that all runs learn
    something.
    """
    given = {name: value for name, value in options.items() if value is not None}
    data = given.get("data", "digits")
    folder = out or Path("runs") / f"compare-{data}"
    lists: list[list[Any]] = [[name for names in chosen for name in names] for chosen in (methods, sizes, backends)]
    known = _known(folder)
    if report_only and known is None:
        raise click.UsageError(f"{folder}: has no study, and --report-only runs none")
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
        click.echo(f"Error: {str(stop) or 'stopped by SIGINT'}; rerun the same command to resume", err=True)
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
