"""Accuracy and certificate of the plain network on the digits: the same ConvNet without a constraint.

``python benchmarks/digits_plain.py --out benchmarks/results/digits_plain_cpu.json`` trains by cross-entropy with each
learning rate on four fifths of the training images, takes the one that is best on the last fifth, and trains on all
training images with it. Test images decide nothing. Initial weights have the variance 1 / inputs: with torch's own, a
third of that, the signal dies out in this many layers without normalisation, and the network does not learn. It takes
about two minutes.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

import fastlip
from fastlip._machine import processor
from fastlip.data import Batches, Data, TensorImages

LEARNING_RATES = (0.003, 0.01, 0.03, 0.1)
SEEDS = (0, 1, 2)
EPS = [36 / 255]


def split(images: TensorImages) -> tuple[TensorImages, TensorImages]:
    """Four fifths to train with, and the last fifth to choose by."""
    count = len(images.labels)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    first, second = (order[: 4 * count // 5], order[4 * count // 5 :])
    return tuple(TensorImages(images.pixels(rows), images.labels[rows]) for rows in (first, second))


def train(data: Data, images: TensorImages, lr: float, seed: int, epochs: int, width: int) -> nn.Module:
    """The plain twin of the ConvNet, by the schedule of the recipe of the digits."""
    torch.manual_seed(seed)
    model = fastlip.models.plain_twin(
        fastlip.models.lip_conv_net("aol", width=width, image_size=8, in_channels=1, num_classes=10)
    )
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
    batches = Batches(images, data.divisor, 64, mean=data.mean, seed=seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    steps = epochs * len(batches)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=steps, cycle_momentum=False)
    for epoch in range(epochs):
        for pixels, labels in batches.epoch(epoch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(pixels), labels).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, data: Data, images: TensorImages) -> float:
    """The fraction of images that are classified correctly."""
    found = [
        model(pixels).argmax(1) == labels for pixels, labels in Batches(images, data.divisor, 360, mean=data.mean)
    ]
    return torch.cat(found).float().mean().item()


def measure(epochs: int, width: int) -> dict[str, Any]:
    """The chosen learning rate, and the certificate of the test images for each seed."""
    data = fastlip.data.digits()
    first, second = split(data.train)
    validated = {}
    for lr in LEARNING_RATES:
        validated[lr] = accuracy(train(data, first, lr, 0, epochs, width), data, second)
        print(f"lr {lr}: {validated[lr]:.4f} of the validation images", flush=True)
    best = max(validated, key=lambda lr: validated[lr])
    rows = []
    for seed in SEEDS:
        model = train(data, data.train, best, seed, epochs, width)
        certificate = fastlip.certify(model, Batches(data.test, data.divisor, 360, mean=data.mean), EPS)
        rows.append({"seed": seed, "accuracy": certificate.accuracy, "lipschitz": certificate.lipschitz})
        rows[-1]["cra"] = certificate.cra
        print(f"lr {best}, seed {seed}: {rows[-1]}", flush=True)
    return {"lr": best, "validation": validated, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    about = {
        "command": "python benchmarks/digits_plain.py",
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{processor()}, one thread",
        "torch": torch.__version__,
        "epochs": options.epochs,
        "width": options.width,
    }
    found = {**about, **measure(options.epochs, options.width)}
    options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
