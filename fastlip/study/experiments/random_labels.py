"""A 1-Lipschitz network memorises random labels: the constraint limits the margins, not the fit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import fastlip
from fastlip.losses import TemperatureCrossEntropy
from fastlip.study.experiments.common import BLUE, ORANGE, claim, dense_network, digits, fit
from fastlip.study.plots import new_figure, open_axes

TITLE = "1-Lipschitz networks memorise random labels, with small margins"


def run(
    seed: int = 0,
    *,
    count: int = 1000,
    width: int = 256,
    depth: int = 3,
    steps: int = 350,
    temperature: float = 100.0,
) -> dict[str, Any]:
    """Fits digits with their labels and with random labels; certifies both networks on their training images."""
    (images, labels), _ = digits()
    images, labels = images[:count], labels[:count]
    drawn = torch.randint(10, (len(images),), generator=torch.Generator().manual_seed(seed))
    runs = {}
    for name, target in (("random", drawn), ("true", labels)):
        torch.manual_seed(seed)
        model = dense_network((64, *[width] * depth, 10))
        loss = TemperatureCrossEntropy(temperature)
        curve = fit(model, loss, _all(images, target), steps, 0.01, _accuracy, f"{name} labels")
        certificate = fastlip.certify(model, [(images, target)], eps=())
        runs[name] = {
            "accuracy": certificate.accuracy,
            "curve": curve,
            "radii": certificate.radii.tolist(),
            "median_radius": certificate.radii.median().item(),
            "lipschitz": certificate.lipschitz,
        }
    ratio = runs["random"]["median_radius"] / runs["true"]["median_radius"]
    return {
        "count": len(images),
        "runs": runs,
        "claims": [
            claim("accuracy on random labels", runs["random"]["accuracy"], least=1.0),
            claim("audited L", runs["random"]["lipschitz"], most=1 + 1e-4),
            claim("smallest certified radius with random labels", min(runs["random"]["radii"]), least=1e-6),
            claim("median radius, random labels over true labels", ratio, most=0.5),
        ],
    }


def _all(x: Tensor, y: Tensor) -> Any:
    return lambda _: (x, y)


def _accuracy(scores: Tensor, y: Tensor) -> float:
    return (scores.argmax(1) == y).double().mean().item()


def draw(found: dict[str, Any]) -> Any:
    """Training accuracy, and certified radii, with random and with true labels."""
    figure = new_figure(11, 4.2)
    figure.suptitle(f"{TITLE} ({found['count']} digits)")
    left, right = figure.subplots(1, 2)
    looks = (("random", ORANGE, "--"), ("true", BLUE, "-"))
    for name, color, dash in looks:
        one = found["runs"][name]
        left.plot([100 * a for a in one["curve"]], color=color, linestyle=dash, label=f"{name} labels")
        radii = sorted(one["radii"])
        shares = [100 * (1 - i / len(radii)) for i in range(len(radii))]
        right.step(radii, shares, color=color, linestyle=dash, where="pre", label=f"{name} labels")
    left.set(xlabel="step", ylabel="accuracy on training images, %", ylim=(0, 103))
    left.legend(frameon=False, loc="lower right")
    right.set(xlabel="certified L2 radius", ylabel="images with a larger radius, %", xlim=(0, None), ylim=(0, 103))
    right.legend(frameon=False, loc="upper right")
    for axes in (left, right):
        open_axes(axes)
    return figure
