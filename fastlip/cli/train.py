"""``fastlip train``."""

from __future__ import annotations

import dataclasses
import itertools
import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastlip._files import printable, require_writable
from fastlip.certification.certificates import DEFAULT_EPS
from fastlip.cli.options import Sections, recipe_options
from fastlip.training import distributed
from fastlip.training.distributed import World
from fastlip.training.recipe import MOVABLE, Recipe
from fastlip.training.recipe_files import default_recipe, parse_setting
from fastlip.training.run_folder import RunFolder
from fastlip.training.text import duration, paragraph

if TYPE_CHECKING:
    from fastlip.training.loop import Training


@click.command(cls=Sections)
@click.option(
    "--recipe",
    "source",
    default="",
    show_default=False,
    help="Recipe: a name or a TOML file.  [default: the recipe for data and model]",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Value of a key of the recipe, such as optimizer.lr=0.05; repeat the option for several.",
)
@recipe_options
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Run folder.  [default: runs/DATA-METHOD-SIZE, with a number where a finished run has that name]",
)
@click.option("--resume", is_flag=True, help="Continue the run in the run folder from its last checkpoint.")
@click.option("--overwrite", is_flag=True, help="Replace the run in the run folder.")
@click.option(
    "--stop-after",
    type=click.IntRange(0),
    default=0,
    help="Number of epochs after which to stop; 0: do not stop before the end.",
)
@click.option(
    "--tensorboard/--no-tensorboard", default=True, help="Write TensorBoard events if TensorBoard is installed."
)
def train(
    source: str,
    settings: tuple[str, ...],
    out: Path | None,
    resume: bool,
    overwrite: bool,
    stop_after: int,
    tensorboard: bool,
    **options: Any,
):
    """Trains a 1-Lipschitz network and prints its certificate.

    The command writes recipe.json, checkpoint.pt and log.csv (after each epoch), certificate.json and the model's
    card (card.json, README.md) into the run folder. The defaults shown here are those of digits; other data sets,
    networks and methods have their own recipes. Ctrl-C saves the run, and `--resume` continues it (on a CPU bit for
    bit). `torchrun --nproc-per-node N -m fastlip train ...` trains with N processes.
    """
    if resume and (overwrite or source):
        raise click.UsageError(f"--resume and --{'overwrite' if overwrite else 'recipe'} exclude each other")
    given = _given(options, settings)
    world = distributed.join(options["device"] or Recipe.device)
    recipe, state, folder = None, None, None
    if world.is_main:
        recipe, state, folder = _prepare(given, source, out, resume, overwrite)
    recipe, state, folder = world.of_main((recipe, state, folder))
    _run(recipe, folder, state, stop_after, tensorboard, world)


def _given(options: dict[str, Any], settings: tuple[str, ...]) -> dict[str, Any]:
    """The fields of the recipe that the command line decides."""
    given = {name: value for name, value in options.items() if value is not None}
    for text in settings:
        name, value = parse_setting(text)
        if name in given:
            raise click.UsageError(f"--set {text}: {name} is given twice")
        given[name] = value
    return given


def _prepare(
    given: dict[str, Any], source: str, out: Path | None, resume: bool, overwrite: bool
) -> tuple[Recipe, dict[str, Any] | None, Path]:
    if not resume:
        recipe = default_recipe(given, source)
        folder = out or (_default_folder(recipe) if overwrite else _free_folder(_default_folder(recipe)))
        require_free(folder, overwrite)
        return recipe, None, folder
    folder = out or _latest(_default_folder(default_recipe(given)))
    recipe, state = _load(folder)
    recipe.refuse_changes(given)
    moved = {name: given[name] for name in MOVABLE if name in given}
    return dataclasses.replace(recipe, **moved), state, folder


def _numbered(folder: Path) -> Iterator[Path]:
    """The folder and those that runs of the same name have after it: ``folder-2``, ``folder-3`` and so on."""
    yield folder
    for number in itertools.count(2):
        yield folder.with_name(f"{folder.name}-{number}")


def _existing(folder: Path) -> list[Path]:
    """The numbered folders from the first on that hold something."""
    return list(itertools.takewhile(lambda place: not _is_empty(place), _numbered(folder)))


def _is_empty(place: Path) -> bool:
    return not place.exists() or (place.is_dir() and not any(place.iterdir()))


def _latest(folder: Path) -> Path:
    """The last of the numbered folders that exists; the first if none does."""
    return [folder, *_existing(folder)][-1]


def _free_folder(folder: Path) -> Path:
    """The first of the numbered folders that is free; UsageError if a run in one of the others is not finished."""
    taken = _existing(folder)
    for place in taken:
        run = RunFolder(place)
        if run.recipe.is_file() and not run.certificate.is_file():
            raise click.UsageError(
                f"{place}: holds an unfinished run. `fastlip train --resume --out {_quoted(place)}` continues"
                " it; --overwrite replaces it, --out names another folder"
            )
    return next(itertools.islice(_numbered(folder), len(taken), None))


def _run(
    recipe: Recipe, folder: Path, state: dict[str, Any] | None, stop_after: int, tensorboard: bool, world: World
) -> None:
    from fastlip.training.loop import Training
    from fastlip.training.setup import data_of, model_of, prepare_process

    started = time.perf_counter()
    prepare_process(recipe)
    data = data_of(recipe)
    model = model_of(recipe, data)
    if world.is_main:
        run = RunFolder(folder)
        run.claim(recipe) if state is None else require_writable(run.checkpoint)
    training = Training(model, recipe, data, folder, state, world)
    if world.is_main:
        _print_plan(training)
    if state is None:
        training.save()
    training.fit(stop_after, tensorboard)
    training.leave()
    if not world.is_main:
        return
    if not training.finished:
        click.echo(f"Stopped after {training.progress.epoch} of {recipe.epochs:g} epochs.")
        click.echo(f"Continue: fastlip train --resume --out {_quoted(folder)}")
        return
    click.echo("")
    _certify(training)
    _print_end(training, time.perf_counter() - started)


def _print_plan(training: Training) -> None:
    """Prints the data, the network and the run folder."""
    recipe, world = training.recipe, training.world
    count = sum(parameter.numel() for parameter in training.model.parameters())
    network = recipe.method if recipe.model == "lip_conv_net" else recipe.model
    together = f", {world.size} processes" if world.size > 1 else ""
    click.echo(paragraph(str(training.data), "  "))
    click.echo(f"{network} {recipe.size}: {count / 1e6:.3f} M parameters, {training.epochs} epochs{together}")
    click.echo(f"run folder {printable(training.folder.path)}\n")


def _print_end(training: Training, seconds: float) -> None:
    """How long it took, where the run is, and what to do with it."""
    folder = training.folder.path
    click.echo(f"\nTrained and certified in {duration(seconds)}; run folder {printable(folder)}")
    click.echo(f"Attack it:   fastlip certify {_quoted(folder)} --attack apgd")
    click.echo(f"Deploy it:   fastlip export {_quoted(folder)} --out net.onnx")


def _quoted(folder: Path) -> str:
    """The folder as a shell reads it."""
    return shlex.quote(printable(folder))


def _certify(training: Training) -> None:
    from fastlip.cli.evaluate import report_certificate
    from fastlip.training.card import make_card, put_card
    from fastlip.training.checkpoint import describe

    recipe, data = training.recipe, training.data
    figures = report_certificate(training.result, recipe, data, DEFAULT_EPS)
    training.folder.write_certificate(figures)
    put_card(training.folder, make_card(training.result, recipe, describe(data), figures))


def _load(folder: Path) -> tuple[Recipe, dict[str, Any] | None]:
    """A run's recipe and its state; no state where it ended before its first checkpoint."""
    run = RunFolder(folder)
    if not run.checkpoint.exists() and run.recipe.is_file():
        return run.read_recipe(), None
    recipe, _, state = run.load_run()
    return recipe, state


def _default_folder(recipe: Recipe) -> Path:
    network = recipe.method if recipe.model == "lip_conv_net" else recipe.model
    return Path("runs") / f"{recipe.data.replace(':', '.')}-{network}-{recipe.size}"


def require_free(folder: Path, overwrite: bool) -> None:
    """Raises UsageError where the folder holds something that must not be replaced."""
    if _is_empty(folder):
        return
    if not folder.is_dir():
        raise click.UsageError(f"{folder}: is not a folder")
    if not overwrite:
        raise click.UsageError(
            f"{folder}: exists; --resume continues it, --overwrite replaces it, --out names another"
        )
    recipe = RunFolder(folder).recipe
    if not recipe.is_file():
        raise click.UsageError(f"{folder}: is not a run folder (no {recipe.name}); --overwrite replaces only runs")
