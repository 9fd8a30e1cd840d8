"""``fastlip compare``."""

from __future__ import annotations

import dataclasses
import signal
from functools import partial
from pathlib import Path
from typing import Any

import click

from fastlip._files import printable
from fastlip.benchmarking import keep_pages
from fastlip.cli.options import Sections, recipe_options
from fastlip.study.axes import Axes, axis_of, contenders_of
from fastlip.study.contenders import Contender
from fastlip.study.settings import (
    DECIDED,
    Settings,
    continued,
    data_of,
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


@click.command(cls=Sections)
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
    "--model", "--models", "models", type=Names(), multiple=True, help=f"Network; {_LIST}.  [default: the recipe's]"
)
@click.option(
    "--recipe",
    "--recipes",
    "recipes",
    type=Names(),
    multiple=True,
    help=f"Recipe, a name or a TOML file; {_LIST}.  [default: the recipe for data and model]",
)
@click.option(
    "--loss", "--losses", "losses", type=Names(), multiple=True, help=f"Loss; {_LIST}.  [default: the recipe's]"
)
@click.option(
    "--set",
    "variations",
    multiple=True,
    metavar="KEY=VALUE[,VALUE]",
    help="Values of a key of the recipe to compare, such as data.center=true,false; each --set is an axis.",
)
@click.option(
    "--seeds", type=int, default=1, help="Number of seeds of each run; tables then have means ± standard deviations."
)
@click.option(
    "--plain/--no-plain", default=True, help="Train the network of torch's own layers too, whose L is not bounded."
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
    budget: str | None,
    search: int | None,
    retry: bool,
    report_only: bool,
    out: Path | None,
    **options: Any,
):
    """Compares methods under one budget of training time, on your machine and data.

    The command measures steps and memory, converts the budget into epochs, trains and certifies every network, and
    writes report.html, plots and tables (table.csv, .md, .tex, .json) into a folder. It compares every combination of
    methods, sizes, backends, models, recipes, losses and values of --set, each with --seeds seeds. Interrupt it at
    any time (Ctrl-C); rerun the same command to resume. Finished runs are not repeated, and further ones are added. A
    run that fails becomes a row with the reason. The other options are those of `fastlip train` and hold for all
    runs. On digits a block has two layers, where the published network has five (--layers-per-block), so that all
    runs learn something.
    """
    axes = _axes(options)
    given = {name: value for name, value in options.items() if value is not None}
    if axes.recipes and "data" not in given:
        given["data"] = data_of(axes.recipes)
    folder = out or Path("runs") / f"compare-{given.get('data', 'digits').replace(':', '.')}"
    known = _known(folder)
    if report_only and known is None:
        raise click.UsageError(f"{folder}: has no study, and --report-only runs none")
    seconds = None if budget is None else seconds_of(budget)
    if known is None:
        settings, contenders = _planned(axes, seconds, search or 0, given)
    else:
        settings = continued(folder, known[0], seconds, search, given)
        bare = report_only and axes == Axes(plain=axes.plain)
        contenders = known[1] if bare else contenders_of(axes, settings)
    earlier = known[1] if known else []
    _study(folder, settings, contenders, earlier, new=known is None, retry=retry, report_only=report_only)


def _axes(options: dict[str, Any]) -> Axes:
    """The axes; their options are taken out of the others."""
    lists: dict[str, Any] = {
        name: tuple(one for several in options.pop(name) for one in several)
        for name in ("methods", "sizes", "backends", "models", "recipes", "losses")
    }
    variations = [axis_of(text) for text in options.pop("variations")]
    fields = [axis[0][0] for axis in variations]
    for field in fields:
        if fields.count(field) > 1 or options.get(field) is not None:
            raise click.UsageError(f"--set: {field} is given twice")
    return Axes(**lists, settings=tuple(variations), seeds=options.pop("seeds"), plain=options.pop("plain"))


def _planned(
    axes: Axes, seconds: float | None, search: int, given: dict[str, Any]
) -> tuple[Settings, list[Contender]]:
    """Settings and runs of a new study."""
    data = given.get("data", "digits")
    # Whether a default exists depends on the data, its value on the number of runs.
    settings = Settings(
        default_budget(data, 1) if seconds is None else seconds, search, default_options(given, axes.recipes)
    )
    contenders = contenders_of(axes, settings)
    if seconds is None:
        settings = dataclasses.replace(settings, budget=default_budget(data, len(contenders)))
    return settings, contenders


def _known(folder: Path) -> tuple[Settings, list[Contender]] | None:
    """Settings and runs of the study in this folder, if there is one."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    if not folder.is_dir():
        raise click.UsageError(f"{folder}: is not a folder")
    return load(folder)


def _study(
    folder: Path,
    settings: Settings,
    contenders: list[Contender],
    earlier: list[Contender],
    *,
    new: bool,
    retry: bool,
    report_only: bool,
) -> None:
    from fastlip.study.comparing import Comparison
    from fastlip.training.setup import data_of as load_data
    from fastlip.training.setup import device_of

    recipe = settings.recipe(contenders[0])
    device_of(recipe)
    data = load_data(recipe)
    if new or not report_only:
        save(folder, settings, dict.fromkeys((*contenders, *earlier)))
    keep_pages()
    comparison = Comparison(folder, settings, contenders, earlier, data, click.echo)
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
    from fastlip.study.formats import to_text
    from fastlip.study.reporting import REPORT, write_report
    from fastlip.study.verdict import verdict

    comparison.write_table()
    rows, groups = comparison.rows(), comparison.groups()
    notes = write_report(comparison)
    result = verdict(groups, comparison.settings.budget)
    click.echo(f"\n{to_text(groups)}\n\n{click.wrap_text(result, 78)}\n")
    click.echo("\n".join([*notes, f"report in {printable(comparison.folder / REPORT)}"]))
    if not any(row.finished for row in rows):
        raise click.ClickException(f"no run is finished; the first: {rows[0].reason}")
