"""Draws the pictures of the README and the documentation into docs/images.

``python tools/docs/pictures.py cost`` draws training_cost.svg from benchmarks/results/steps_*.json.
``python tools/docs/pictures.py certificates --run runs/digits-aol-XS`` draws certificates.png: it trains a network on
points of the plane, and certifies and attacks a run of ``fastlip train``. This takes about a minute. For the front
page of the documentation it draws each panel alone as well, on a light and on a dark ground:
certificates_plane_dark.png and so on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from torch import Tensor, nn

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Circle

import fastlip
from fastlip import nn as lip
from fastlip.data import Batches, digits

sys.path.insert(0, str(Path(__file__).parent))
from tables import ROOT, TITLES, read

IMAGES = ROOT / "docs" / "images"
SIZES = ("XS", "S")
COLOURS = ("#4269d0", "#efb118", "#3ca951")
# Ground and ink of the two schemes of the documentation.
THEMES = {"light": ("#ffffff", "#000000"), "dark": ("#1e2129", "#e2e4e9")}
INKED = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
LOW, HIGH = -0.08, 1.08  # of the plane that is drawn
EVERY = 9  # every ninth point has a circle: more circles would overlap
STYLE = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "fastlip"}


def cost_digest() -> str:
    """Digest of the figures of training_cost.svg; the picture contains it, so that a test finds an old picture."""
    bars = json.dumps([_bars(size) for size in SIZES])
    return hashlib.sha256(bars.encode()).hexdigest()


def _bars(size: str) -> list[tuple[str, float, float]]:
    """(method, ratio to the fastest plain network, ratio to it as it is) of training steps with the kernels."""
    _, found = read(f"steps_{size}_cpu_*.json")
    rows = [row for row in found["rows"] if row["contestant"] == "fused" and row.get("train_to_best")]
    bars = [(TITLES[row["method"]], row["train_to_best"], row["train"]) for row in rows]
    return sorted(bars, key=lambda bar: -bar[1])


def draw_cost() -> None:
    """Draws training steps as ratios to the same network of ``nn.Conv2d`` layers."""
    figure, axes = plt.subplots(1, len(SIZES), figsize=(7.6, 2.9), layout="constrained")
    for axis, size in zip(axes, SIZES, strict=True):
        _, found = read(f"steps_{size}_cpu_*.json")
        labels, to_best, to_eager = zip(*_bars(size), strict=True)
        axis.barh(labels, to_best, color=COLOURS[0], label="to the fastest plain network")
        axis.plot(to_eager, labels, "o", color=COLOURS[1], label="to the eager plain network")
        axis.axvline(1, color="black", linewidth=1, label="plain nn.Conv2d")
        axis.set_xlim(left=0)
        axis.set_title(f"network {size}, batch {found['options']['batch_size']}", fontsize=9)
        axis.set_xlabel("time of a training step (plain network = 1)")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside upper center", ncols=3, frameon=False)
    metadata = {"Date": None, "Creator": "tools/docs/pictures.py", "Description": cost_digest()}
    figure.savefig(IMAGES / "training_cost.svg", metadata=metadata)


def plane() -> tuple[Tensor, Tensor]:
    """Points of a spiral with three arms of 60 points in the unit square, and the arms' numbers as labels."""
    generator = torch.Generator().manual_seed(0)
    radius = torch.linspace(0.12, 0.46, 60)
    points = []
    for arm in range(3):
        angle = 2 * math.pi * arm / 3 + 5.0 * radius + 0.12 * torch.randn(60, generator=generator)
        points.append(0.5 + torch.stack((radius * angle.cos(), radius * angle.sin()), 1))
    return torch.cat(points), torch.arange(3).repeat_interleave(60)


def plane_network(points: Tensor, labels: Tensor) -> nn.Module:
    """A 1-Lipschitz network of five dense layers, trained on all points."""
    torch.manual_seed(0)
    model = nn.Sequential(lip.ZeroChannelPad(64), *(_block() for _ in range(4)), lip.CayleyLinear(64, 3))
    loss = fastlip.losses.OffsetCrossEntropy(offset=2**1.5 * 0.04, temperature=0.02)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 600)
    for _ in range(600):
        optimizer.zero_grad()
        loss(model(points), labels).backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def _block() -> nn.Module:
    return nn.Sequential(lip.CayleyLinear(64, 64), lip.MaxMin())


def plane_figures(side: int = 400) -> dict[str, Any]:
    """Points, labels and radii of the plane, and on a grid the predicted classes and the certified radii."""
    points, labels = plane()
    model = plane_network(points, labels)
    along = torch.linspace(LOW, HIGH, side)
    with torch.no_grad():
        best = model(torch.cartesian_prod(along, along)).topk(2)
    radii_there = (best.values[:, 0] - best.values[:, 1]).reshape(side, side).T / math.sqrt(2)
    return {
        "points": points.tolist(),
        "labels": labels.tolist(),
        "radii": fastlip.certify(model, [(points, labels)], eps=[0.02]).radii.tolist(),
        "classes": best.indices[:, 0].reshape(side, side).T,
        "radii_there": radii_there,
    }


def draw_plane(axis: Axes, found: dict[str, Any], ground: str) -> None:
    """Draws the predicted classes of the plane, and the certified radii of every ninth training point."""
    colours = torch.tensor([matplotlib.colors.to_rgb(colour) for colour in COLOURS])
    strength = (0.1 + 3 * found["radii_there"]).clamp(max=0.55)[..., None]
    background = (1 - strength) * torch.tensor(matplotlib.colors.to_rgb(ground)) + strength * colours[
        found["classes"]
    ]
    axis.imshow(background.numpy(), origin="lower", extent=(LOW, HIGH, LOW, HIGH))
    ink = plt.rcParams["text.color"]
    for index, ((x, y), label) in enumerate(zip(found["points"], found["labels"], strict=True)):
        axis.plot(x, y, "o", color=COLOURS[label], markersize=3, markeredgecolor=ink, markeredgewidth=0.4)
        if index % EVERY == 0:
            axis.add_patch(Circle((x, y), found["radii"][index], facecolor="none", edgecolor=ink, linewidth=0.8))
    axis.set(xlim=(LOW, HIGH), ylim=(LOW, HIGH))
    axis.set_axis_off()
    axis.set_title("in a circle, the predicted class cannot change", fontsize=9)


def digits_figures(run: Path) -> dict[str, Any]:
    """Certified accuracy and accuracy under attack of a run, in percent, by the length of the perturbation."""
    data = digits()
    test = Batches(data.test, data.divisor, 120, mean=data.mean)
    model = fastlip.hub.load(run).eval()
    attacked = [float(eps) for eps in np.arange(0.1, 1.25, 0.1)]
    certificate = fastlip.certify(model, test, eps=attacked)
    (mean,) = data.mean
    how = {"steps": 20, "restarts": 1, "bounds": (0 - mean, 1 - mean)}
    found: Any = fastlip.attack(model, test, eps=attacked, certificate=certificate, **how)
    eps = torch.linspace(0, 1.2, 241)
    upper = [certificate.accuracy, *found.robust_accuracy.values()]
    return {
        "certified": (eps.tolist(), (100 * certificate.curve(eps)).tolist()),
        "attacked": ([0, *attacked], [100 * value for value in upper]),
    }


def draw_digits(axis: Axes, found: dict[str, Any], ground: str) -> None:
    """Draws certified accuracy and accuracy under attack against the length of the perturbation."""
    axis.plot(*found["certified"], color=COLOURS[0], label="certified (at least)")
    axis.plot(*found["attacked"], "o-", color=COLOURS[1], markersize=3, label="under a PGD attack (at most)")
    axis.set(xlim=(0, 1.2), ylim=(0, 100), facecolor=ground)
    axis.set_xlabel("length of the perturbation (L2, pixels in [0, 1])")
    axis.set_ylabel("correct test images, %")
    axis.set_title("digits, trained by `fastlip train`", fontsize=9)
    axis.legend(frameon=False)


def draw_certificates(run: Path) -> None:
    """Draws both panels side by side, and each alone on a light and on a dark ground."""
    torch.set_num_threads(1)
    panels = {"plane": (draw_plane, plane_figures()), "digits": (draw_digits, digits_figures(run))}
    figure, axes = plt.subplots(1, 2, figsize=(7.6, 3.4), width_ratios=(1, 1.15), layout="constrained")
    for axis, (draw, found) in zip(axes, panels.values(), strict=True):
        draw(axis, found, "white")
    figure.savefig(IMAGES / "certificates.png", dpi=130)
    for theme, (ground, ink) in THEMES.items():
        with plt.rc_context(dict.fromkeys(INKED, ink)):
            for name, (draw, found) in panels.items():
                figure, axis = plt.subplots(figsize=(3.9, 3.5), layout="constrained", facecolor=ground)
                draw(axis, found, ground)
                figure.savefig(IMAGES / f"certificates_{name}_{theme}.png", dpi=180)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", choices=("certificates", "cost"))
    parser.add_argument("--run", type=Path, default=ROOT / "runs" / "digits-aol-XS", help="folder of a run")
    options = parser.parse_args()
    IMAGES.mkdir(exist_ok=True)
    with plt.rc_context(STYLE):
        if options.picture == "cost":
            draw_cost()
        else:
            draw_certificates(options.run)


if __name__ == "__main__":
    main()
