"""Losses, blocks and layers at equal training time: what each choice is worth on the digits or on MNIST.

    python benchmarks/ablation.py --data mnist --path FOLDER --budget 30 --out FILE.json

Each arm has a few candidates for its learning rate and the values of its loss. A candidate is trained once and judged
on validation images, which are training images that no run trains on. The best one is then trained with three other
seeds and judged on images that decided nothing: of MNIST 5,000 more training images (its test images are not read),
of the digits their test images. Every run takes as many steps as fit into the budget, by the time of a step that is
measured beforehand. Finished runs are kept in --folder, and the same command continues. ``--again "layer: LipNeXt"``
trains that row alone and replaces it in --out. It takes the seconds per step that the row has there, so that it
still has the time of the other rows.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import itertools
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

import fastlip
from fastlip._machine import processor
from fastlip.certification import certify
from fastlip.data import Data, TensorImages, digits
from fastlip.data.mnist import training_images
from fastlip.study import running
from fastlip.study.measuring import measure
from fastlip.training.recipe import Recipe
from fastlip.training.recipe_files import default_recipe
from fastlip.training.setup import batches_of

EPS = (36 / 255, 0.5, 1.0)
_CHOOSING_SEED = 1000
_BASE = {"digits": "digits", "mnist": "mnist-minute"}
# Images that choose, and on MNIST as many that judge.
_VALIDATION = {"digits": 337, "mnist": 5000}
_MNIST_MEAN = (0.1307,)

Options = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Arm:
    """One choice: the options that make it, and candidates for the values that are chosen for it."""

    table: str
    name: str
    options: Options
    candidates: tuple[Options, ...]

    @property
    def label(self) -> str:
        """What no other arm is called."""
        return f"{self.table}: {self.name}"


def grid(**values: tuple[Any, ...]) -> tuple[Options, ...]:
    """All combinations of these values."""
    return tuple(dict(zip(values, found, strict=True)) for found in itertools.product(*values.values()))


_LOSS_SETTINGS = {
    "offset-ce": grid(offset=(2**0.5 * 0.5, 2**0.5), temperature=(0.1, 0.2), lr=(0.01, 0.03)),
    "emma": grid(radius=(0.5, 1.0), temperature=(0.1, 0.2), lr=(0.01, 0.03)),
    "logit-annealing": grid(offset=(2**0.5 * 0.5, 2**0.5), temperature=(0.1, 0.2), lr=(0.01, 0.03)),
}
_CONV = {"model": "lip_conv_net", "width": 8, "layers_per_block": 1, "optimizer": "adam", "radius_start": 0.05}
_EMMA = {"loss": "emma", "radius": 0.5, "radius_start": 0.05, "temperature": 0.2}
_RATES = grid(lr=(0.003, 0.01, 0.03))


def arms(data: str) -> Iterator[Arm]:
    """The choices that are compared on this data set."""
    for loss, candidates in _LOSS_SETTINGS.items():
        yield Arm("loss", loss, {**_CONV, "method": "cayley", "loss": loss}, candidates)
    small = {"width": 16, "depth": 2} if data == "mnist" else {"width": 16, "depth": 4}
    nadam = {"optimizer": "nadam", "schedule": "cosine", "warmup": 0.1, "clip_norm": 3.0}
    bro_net = {"model": "bro_net", "method": "bro", **small, **nadam, **_EMMA}
    for centering, quasi_residual in itertools.product((False, True), repeat=2):
        name = f"{'with' if centering else 'no'} centering, {'with' if quasi_residual else 'no'} quasi-residual"
        yield Arm("block", name, {**bro_net, "centering": centering, "quasi_residual": quasi_residual}, _RATES)
    yield Arm("layer", "Cayley, lip_conv_net", {**_CONV, **_EMMA, "method": "cayley"}, grid(lr=(0.01, 0.03)))
    yield Arm("layer", "BRO, lip_conv_net", {**_CONV, **_EMMA, "method": "bro"}, grid(lr=(0.01, 0.03)))
    yield Arm("layer", "BRO, bro_net", {**bro_net, "centering": True, "quasi_residual": True}, _RATES)
    lip_next = {"model": "lip_next", "method": "lot", "depth": 4, "patch": 4 if data == "mnist" else 2}
    rates = grid(lr=(0.003, 0.01, 0.03), manifold_lr=(0.002, 0.005, 0.02, 0.05))
    yield Arm("layer", "LipNeXt", {**lip_next, "width": 64, **nadam, "clip_norm": 0.0, **_EMMA}, rates)


def parts(name: str, path: str) -> tuple[Data, Data]:
    """The data with the images that choose, and with those that judge, in place of test images."""
    if name == "digits":
        data = digits()
        train, last = data.train, data.test
    else:
        train = training_images(path)
        train, last = split(train, _VALIDATION[name])
        data = Data("mnist", train, last, tuple("0123456789"), (1, 28, 28), 255.0, _MNIST_MEAN)
    train, validation = split(train, _VALIDATION[name])
    return dataclasses.replace(data, train=train, test=validation), dataclasses.replace(data, train=train, test=last)


def split(images: TensorImages, count: int) -> tuple[TensorImages, TensorImages]:
    """All images but the last ``count``, and those."""
    pixels, labels = images.all_pixels, images.labels
    return TensorImages(pixels[:-count], labels[:-count]), TensorImages(pixels[-count:], labels[-count:])


class Study:
    """The runs of an ablation, each kept in a file."""

    def __init__(self, name: str, path: str, budget: float, folder: Path, seconds: dict[str, float] | None = None):
        self.name, self.path, self.budget, self.folder = name, path, budget, folder
        self.choosing, self.judging = parts(name, path)
        self.arms = tuple(arms(name))
        self.seconds = self.measure(self.arms) if seconds is None else seconds

    def recipe(self, options: Options, **more: Any) -> Recipe:
        """The recipe of a run on one thread."""
        given = {"data": self.name, "path": self.path, "center": True, "threads": 1, **options, **more}
        return default_recipe(given, _BASE[self.name])

    def measure(self, arms: Sequence[Arm]) -> dict[str, float]:
        """Seconds of a training step of every arm, measured in turn, once."""
        file = self.folder / "seconds.json"
        if not file.exists():
            recipes = {arm.label: self.recipe({**arm.options, **arm.candidates[0]}) for arm in arms}
            found, failed = measure(recipes, self.judging, 60.0)
            if failed:
                raise SystemExit(str(failed))
            file.write_text(json.dumps({label: one.seconds_per_step for label, one in found.items()}))
        return json.loads(file.read_text())

    def run(self, arm: Arm, chosen: Options, seed: int, data: Data) -> dict[str, Any]:
        """Accuracy and CRA of one run."""
        options = {**arm.options, **chosen, "seed": seed}
        steps = int(self.budget / self.seconds[arm.label])
        epochs = steps / -(-len(data.train.labels) // self.recipe(options).batch_size)
        file = self.folder / f"run-{key({**options, 'epochs': epochs, 'judge': data is self.judging})}.json"
        if not file.exists():
            start = time.perf_counter()
            folder = self.folder / file.stem
            training = running.train(self.recipe(options, epochs=epochs), data, folder)
            took = time.perf_counter() - start
            found = certify(training.result.eval(), batches_of(training.recipe, data, data.test), eps=EPS)
            result = {
                "accuracy": found.accuracy,
                "cra": [found.cra[eps] for eps in EPS],
                "steps": steps,
                "seconds": took,
            }
            file.write_text(json.dumps(result))
        return json.loads(file.read_text())

    def choose(self, arm: Arm) -> Options:
        """The candidate with the highest mean CRA on the images that choose."""
        scores = {}
        for number, candidate in enumerate(arm.candidates):
            result = self.run(arm, candidate, _CHOOSING_SEED, self.choosing)
            scores[number] = statistics.mean(result["cra"])
            print(f"  {candidate}: mean CRA {scores[number]:.3f}, {result['steps']} steps", flush=True)
        return arm.candidates[max(scores, key=lambda number: scores[number])]

    def row(self, arm: Arm, seeds: int) -> dict[str, Any]:
        """The arm's figures with all seeds."""
        print(f"{arm.label}, {self.seconds[arm.label] * 1000:.1f} ms a step", flush=True)
        chosen = self.choose(arm)
        runs = [self.run(arm, chosen, seed, self.judging) for seed in range(seeds)]
        columns = {"accuracy": [run["accuracy"] for run in runs]}
        columns |= {f"cra_{eps:.4g}": [run["cra"][index] for run in runs] for index, eps in enumerate(EPS)}
        print(f"  -> {chosen}: " + ", ".join(f"{n} {statistics.mean(v):.4f}" for n, v in columns.items()), flush=True)
        about = {"table": arm.table, "name": arm.name, "chosen": chosen, "steps": runs[0]["steps"]}
        return {
            **about,
            "date": time.strftime("%Y-%m-%d"),
            "step_seconds": self.seconds[arm.label],
            "train_seconds": [run["seconds"] for run in runs],
            **columns,
        }


def key(values: Options) -> str:
    """A short name for these values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def replace(out: Path, label: str, seeds: int, study: Study) -> None:
    """Trains the row with this label, and replaces it in the file."""
    found = json.loads(out.read_text())
    by_label = {arm.label: arm for arm in study.arms}
    found["rows"] = [study.row(by_label[label], seeds) if label_of(row) == label else row for row in found["rows"]]
    out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def label_of(row: dict[str, Any]) -> str:
    """The label of the arm that this row is of."""
    return f"{row['table']}: {row['name']}"


def earlier_seconds(out: Path, label: str, budget: float) -> dict[str, float]:
    """Seconds per step of the rows in this file; exits unless it has this row, trained with this budget."""
    found = json.loads(out.read_text())
    seconds = {label_of(row): row["step_seconds"] for row in found["rows"]}
    if label not in seconds:
        raise SystemExit(f"--again={label!r}: allowed are {', '.join(map(repr, seconds))}")
    if found["budget"] != budget:
        raise SystemExit(f"--budget={budget:g}: {out} has {found['budget']:g}")
    return seconds


def main() -> None:
    """Runs what is missing, and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=("digits", "mnist"), required=True)
    parser.add_argument("--path", default="", help="folder of MNIST's training images and labels")
    parser.add_argument("--budget", type=float, required=True, help="seconds of training steps of each run")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("build/ablation"), help="where finished runs are kept")
    parser.add_argument("--again", metavar="ROW", help="train this row of --out again, such as 'layer: LipNeXt'")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    folder = options.folder / f"{options.data}-{options.budget:g}"
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    seconds = options.again and earlier_seconds(options.out, options.again, options.budget)
    study = Study(options.data, options.path, options.budget, folder, seconds)
    if options.again:
        replace(options.out, options.again, options.seeds, study)
        return
    rows = [study.row(arm, options.seeds) for arm in study.arms]
    given = f"--data {options.data} --budget {options.budget:g}{' --path FOLDER' if options.path else ''}"
    about = {
        "command": f"python benchmarks/ablation.py {given} --out FILE",
        "budget": options.budget,
        "date": time.strftime("%Y-%m-%d"),
        "machine": processor(),
        "torch": torch.__version__,
        "fastlip": fastlip.__version__,
        "eps": EPS,
        "validation_images": _VALIDATION[options.data],
        "judging_images": len(study.judging.test.labels),
    }
    options.out.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
