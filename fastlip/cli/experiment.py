"""``fastlip experiment``."""

from __future__ import annotations

import time
from pathlib import Path

import click

from fastlip.study.experiments import EXPERIMENTS
from fastlip.training.text import duration, paragraph


@click.command()
@click.argument("name", type=click.Choice(list(EXPERIMENTS)))
@click.option(
    "--seed", type=click.IntRange(0, 2**31 - 1), default=0, help="Seed of data, initialisation and batches."
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the results.  [default: runs/experiments]")
def experiment(name: str, seed: int, out: Path | None):
    """Runs an experiment of "Pay attention to your loss" (Béthune et al., NeurIPS 2022), with a figure.

    temperature: a small one is robust, a large one accurate. pareto: HKR's alpha trades robustness for accuracy on
    digits. signed-distance: HKR learns a signed distance function. two-diracs: KR tends to the distance of two
    points. random-labels: a 1-Lipschitz network memorises them. Each experiment takes less than a minute, writes
    NAME.json and NAME.png, and fails if a claim that it checks does not hold.
    """
    from fastlip import _figures
    from fastlip._files import printable, require_writable, write_json
    from fastlip.kernels.common.threads import one_thread
    from fastlip.study.experiments import module_of

    started = time.perf_counter()
    module, folder = module_of(name), out or Path("runs") / "experiments"
    if folder.exists() and not folder.is_dir():
        raise click.UsageError(f"--out={printable(folder)}: is not a folder")
    folder.mkdir(parents=True, exist_ok=True)
    require_writable(folder / f"{name}.json")
    click.echo(module.TITLE)
    with one_thread():
        found = module.run(seed)
    write_json(folder / f"{name}.json", {"seed": seed, **found}, indent=None)
    missing = _figures.missing()
    if not missing:
        with _figures.own_style():
            _figures.save(folder / f"{name}.png", module.draw(found))
    for claim in found["claims"]:
        bounds = [f"{word} {claim[word]:g}" for word in ("least", "most") if claim[word] is not None]
        click.echo(
            paragraph(f"{claim['value']:10.4f}  {claim['claim']} (expected: at {', '.join(bounds)})", " " * 12)
        )
    click.echo(f"figure left out: {missing}" if missing else f"figure in {printable(folder / name)}.png")
    click.echo(f"numbers in {printable(folder / name)}.json; took {duration(time.perf_counter() - started)}")
    wrong = [claim["claim"] for claim in found["claims"] if not claim["holds"]]
    if wrong:
        raise click.ClickException(f"not found with seed {seed}: {'; '.join(wrong)}")
