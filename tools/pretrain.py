"""Makes the trained networks of ``create_model(..., pretrained=True)``: weights and a card for each.

    python tools/pretrain.py digits
    python tools/pretrain.py mnist --path FOLDER --methods cayley
    python tools/pretrain.py digits --choose

A network learns on training images alone, for a few minutes on one core. Its weights are rounded to 16 bits, loaded
again, audited and certified on images that were neither trained on nor used for any choice: the digits' test split,
and the last 5,000 of MNIST's 60,000 training images. MNIST's own test images are not used. ``--choose`` compares
learning rates on a validation part of the digits' training images, and writes nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import fastlip
from fastlip.data.mnist import training_images
from fastlip.models import METHODS, create_model
from fastlip.models.pretrained import FOLDER, ModelCard, load_weights, write

EPS = (36 / 255, 72 / 255, 108 / 255, 1.0)
RATES = (0.003, 0.01, 0.03)
# AOL's, Cayley's, CPL's, LOT's and SOC's were chosen on the digits by --choose; the others have AOL's and LOT's, and
# MNIST has the same.
RATE = {method: 0.01 for method in METHODS} | {"cayley": 0.03, "cpl": 0.003, "soc": 0.03}
RECIPE = {"optimizer": "Adam", "loss": "EMMA"}
STEPS = {"digits": 600, "mnist": 429}  # one epoch of MNIST
HELD_OUT = 12  # one in twelve of MNIST's training images: 5,000


class Part(NamedTuple):
    """Images (n, 1, h, h) in [0, 1] and labels (n,)."""

    images: Tensor
    labels: Tensor


class Task(NamedTuple):
    """Images to train and to certify on, what the latter are, the options of the network and the recipe."""

    train: Part
    test: Part
    about: str
    options: dict[str, Any]
    recipe: dict[str, Any]


def digits() -> Task:
    """The digits with the network of width 16."""
    data = fastlip.data.digits()
    parts = [Part(part.all_pixels / data.divisor, part.labels) for part in (data.train, data.test)]
    options = {"width": 16, "layers_per_block": 1, "image_size": 8, "in_channels": 1, "num_classes": 10}
    recipe = {**RECIPE, "steps": STEPS["digits"], "batch_size": 64, "radius": 0.6, "temperature": 0.1}
    return Task(*parts, "360 test images of scikit-learn's digits", options, recipe)


def mnist(path: str) -> Task:
    """MNIST's training images, the last of them held out, with the network of width 8."""
    images = training_images(path)
    pixels, labels = images.all_pixels / 255, images.labels
    cut = len(labels) - len(labels) // HELD_OUT
    train, held = Part(pixels[:cut], labels[:cut]), Part(pixels[cut:], labels[cut:])
    options = {"width": 8, "layers_per_block": 1, "image_size": 28, "in_channels": 1, "num_classes": 10}
    recipe = {**RECIPE, "steps": STEPS["mnist"], "batch_size": 128, "radius": 1.0, "temperature": 0.25}
    held_out = f"the last {len(held.labels):,} of MNIST's {len(labels):,} training images, held out"
    about = f"{held_out}; MNIST's test images were not used"
    return Task(train, held, about, options, recipe)


def train(model: nn.Module, part: Part, recipe: dict[str, Any]) -> nn.Module:
    """Trains by Adam with a learning rate that rises and falls, while the loss's radius rises."""
    steps, size = recipe["steps"], recipe["batch_size"]
    loss = fastlip.losses.EMMA(recipe["radius"], recipe["temperature"])
    ramp = fastlip.losses.RadiusRamp(loss, steps, 0.1 * recipe["radius"], recipe["radius"])
    optimizer = torch.optim.Adam(model.parameters(), recipe["lr"])
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe["lr"], total_steps=steps, cycle_momentum=False)
    for rows in shuffled(len(part.labels), size, steps):
        optimizer.zero_grad()
        loss(model(part.images[rows]), part.labels[rows]).backward()
        optimizer.step()
        schedule.step()
        ramp.step()
    return model.eval()


def shuffled(count: int, size: int, steps: int) -> Iterator[Tensor]:
    """The rows of each step: every image once, then all again in another order."""
    waiting = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        if len(waiting) < size:
            waiting = torch.randperm(count)
        yield waiting[:size]
        waiting = waiting[size:]


def certify(model: nn.Module, part: Part) -> fastlip.Certificate:
    """The certificate on these images, in batches."""
    batches = zip(part.images.split(500), part.labels.split(500), strict=True)
    return fastlip.certify(model, list(batches), list(EPS), bounds=(0, 1))


def make(name: str, method: str, task: Task, folder: Path, seed: int = 0) -> ModelCard:
    """Trains one network, writes its weights, and returns the card with the certificate of what was written."""
    options, recipe = {"method": method, **task.options}, {**task.recipe, "lr": RATE[method], "seed": seed}
    torch.manual_seed(seed)
    started = time.process_time()
    model = train(create_model("lip_conv_net", **options), task.train, recipe)
    recipe["cpu_seconds"] = round(time.process_time() - started)
    data = name.rpartition(".")[2]
    path = " --path FOLDER" if data == "mnist" else ""
    steps = f" --steps {recipe['steps']}" if recipe["steps"] != STEPS[data] else ""
    card = ModelCard(
        name=name,
        network="lip_conv_net",
        options=options,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        bounds=(0.0, 1.0),
        data=data,
        trained_on=len(task.train.labels),
        certified_on=task.about,
        n=len(task.test.labels),
        recipe=recipe,
        versions={"fastlip": fastlip.__version__, "torch": str(torch.__version__)},
        command=f"python tools/pretrain.py {data}{path} --methods {method}{steps}",
    )
    card = write(model, card, folder)
    found = certify(load_weights(create_model("lip_conv_net", **options), card, folder), task.test)
    figures = {"accuracy": found.accuracy, "cra": dict(found.cra), "lipschitz": found.lipschitz}
    return write(model, dataclasses.replace(card, **figures), folder)


def choose(methods: list[str], task: Task) -> None:
    """Prints the CRA of each learning rate on a fifth of the training images, after training on the others."""
    cut = len(task.train.labels) * 4 // 5
    parts = [Part(task.train.images[rows], task.train.labels[rows]) for rows in (slice(cut), slice(cut, None))]
    for method in methods:
        for lr in RATES:
            torch.manual_seed(0)
            model = create_model("lip_conv_net", method=method, **task.options)
            found = certify(train(model, parts[0], {**task.recipe, "lr": lr}), parts[1])
            print(f"{method:<8} lr {lr:<6} accuracy {found.accuracy:.4f}, CRA {found.cra[EPS[0]]:.4f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=["digits", "mnist"])
    parser.add_argument("--path", default="", help="folder of MNIST's training images and labels")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--steps", type=int, help="default: those of the recipe")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the weights and cards")
    parser.add_argument("--choose", action="store_true", help="compare learning rates instead")
    options = parser.parse_args()
    torch.set_num_threads(1)
    task = digits() if options.data == "digits" else mnist(options.path)
    if options.steps:
        task.recipe["steps"] = options.steps
    if options.choose:
        choose(options.methods, task)
        return
    for method in options.methods:
        print(make(f"{method}_xs.{options.data}", method, task, options.out), flush=True)


if __name__ == "__main__":
    main()
