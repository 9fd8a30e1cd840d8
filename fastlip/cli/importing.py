"""``fastlip import``: makes a run folder of a published checkpoint, which every other command takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import click
import torch
from torch import Tensor

from fastlip._files import printable
from fastlip.models.literals import OfficialMethodName
from fastlip.official import METHODS, load_official, read_sizes
from fastlip.training.recipe import Recipe
from fastlip.training.recipe_files import read
from fastlip.training.run_folder import RunFolder

PublishedData = Literal["cifar10", "cifar100", "tinyimagenet"]
# Side of the images, number of classes, and the mean that the published training subtracts.
_DATA: dict[PublishedData, tuple[int, int, tuple[float, float, float]]] = {
    "cifar10": (32, 10, (0.4914, 0.4822, 0.4465)),
    "cifar100": (32, 100, (0.5071, 0.4865, 0.4409)),
    "tinyimagenet": (64, 200, (0.485, 0.456, 0.406)),
}
# The entries under which training scripts keep the weights.
_NAMES = ("state_dict", "model_state_dict", "model")


@click.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--method", type=click.Choice(METHODS), required=True, help="Parametrization of its layers.")
@click.option("--data", type=click.Choice(list(_DATA)), default="cifar10", help="Data set on which it was trained.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Run folder to write.")
@click.option("--overwrite", is_flag=True, help="Replace the run in the run folder.")
def import_(file: Path, method: OfficialMethodName, data: PublishedData, out: Path, overwrite: bool):
    """Makes a run folder of FILE, a published ConvNet checkpoint of the comparison paper; prints its audited bound.

    `fastlip certify`, `audit` and `export` take the run folder like one of `fastlip train` (certify with --path, the
    folder of the images). The network computes the same function as the published code: see fastlip.load_official.
    """
    from fastlip.cli.train import require_free
    from fastlip.training.card import make_card, put_card
    from fastlip.training.progress import Progress

    require_free(out, overwrite)
    weights = _weights(file)
    side, classes, mean = _DATA[data]
    model = load_official(weights, method, side, classes)
    width, layers_per_block = read_sizes(weights)
    sizes = {"method": method, "width": width, "layers_per_block": layers_per_block, "model": "published_conv_net"}
    recipe = Recipe.from_dict(read(f"{data}-comparison").values_for(sizes))
    about = {"name": data, "shape": [3, side, side], "divisor": 255.0, "mean": list(mean), "class_count": classes}
    card = make_card(model, recipe, about, imported=file.name)
    folder = RunFolder(out)
    folder.claim(recipe)
    state = {
        "recipe": recipe.to_dict(),
        "data": about,
        "model": model.state_dict(),
        "optimizer": {},
        "scheduler": {},
        "progress": asdict(Progress(epoch=round(recipe.epochs))),
    }
    folder.save_state(state)
    put_card(folder, card)
    click.echo(
        f"{method} network of width {width}: Lipschitz bound {card['audit']['bound']:.7f} (audited),"
        f" run {printable(out)}"
    )


def _weights(file: Path) -> dict[str, Tensor]:
    from fastlip.training import checkpoint

    if not file.is_file():
        raise checkpoint.CheckpointError(f"{file}: no such file")
    content = checkpoint.read(file)
    for name in _NAMES:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise checkpoint.CheckpointError(f"{file}: has no state dict (names and tensors)")
    for name, value in content.items():
        if value.is_complex() or not value.isfinite().all():
            raise checkpoint.CheckpointError(f"{file}: {name} has values that are not finite real numbers")
    return {_without_prefix(name): _single(value) for name, value in content.items()}


def _without_prefix(name: Any) -> str:
    return str(name).removeprefix("module.")


def _single(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() and value.dtype != torch.float32 else value
