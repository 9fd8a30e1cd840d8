"""Two points at a distance d: the Kantorovich-Rubinstein dual of their Diracs is d, and a network attains it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

import fastlip
from fastlip._progress import shown
from fastlip.losses import KR
from fastlip.study.experiments.common import BLUE, GREY, claim, dense_network, fit
from fastlip.study.plots import new_figure, open_axes

TITLE = "Two Diracs: KR tends to their distance"


def run(
    seed: int = 0,
    *,
    distances: Sequence[float] = (0.1, 0.3, 1.0, 3.0, 10.0),
    dimension: int = 8,
    width: int = 32,
    steps: int = 150,
) -> dict[str, Any]:
    """Maximises KR over 1-Lipschitz networks for pairs of points; the optimum is |x1 - x0|, never exceeded."""
    pairs = shown(list(enumerate(distances, seed)), "training")
    runs = [_run(distance, seed_of_run, dimension, width, steps) for seed_of_run, distance in pairs]
    ratios = [one["kr"] / one["distance"] for one in runs]
    rounding = 1e-4  # error of the distances between points whose coordinates are float32 numbers near 1
    return {
        "runs": runs,
        "claims": [
            claim("smallest KR / d", min(ratios), least=0.99),
            claim("largest KR / (audited L · d)", max(one["kr"] / one["bound"] for one in runs), most=1 + rounding),
        ],
    }


def _run(distance: float, seed: int, dimension: int, width: int, steps: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    direction = torch.nn.functional.normalize(torch.randn(dimension), dim=0)
    center = torch.randn(dimension)
    x = torch.stack((center - 0.5 * distance * direction, center + 0.5 * distance * direction))
    y = torch.tensor([0, 1])
    model = dense_network((dimension, width, width, 1))
    kr = KR()
    curve = fit(model, lambda f, y: -kr(f, y), lambda _: (x, y), steps, 0.02, lambda f, y: kr(f, y).item())
    with torch.no_grad():
        found = kr(model(x), y).item()
    bound = fastlip.audit(model, (dimension,)).bound * distance
    return {"distance": distance, "kr": found, "bound": bound, "curve": curve}


def draw(found: dict[str, Any]) -> Any:
    """Draws KR / d during training, and KR against d."""
    figure = new_figure(10, 4)
    left, right = figure.subplots(1, 2)
    figure.suptitle(TITLE)
    for index, one in enumerate(found["runs"]):
        shade = 0.35 + 0.65 * index / max(1, len(found["runs"]) - 1)
        ratio = [value / one["distance"] for value in one["curve"]]
        left.plot(ratio, color=BLUE, alpha=shade, label=f"d = {one['distance']:g}")
    left.axhline(1, color=GREY, linestyle="--", linewidth=1)
    left.set(xlabel="step", ylabel="KR / d")
    left.legend(frameon=False, loc="lower right")
    distances = [one["distance"] for one in found["runs"]]
    right.plot(distances, distances, color=GREY, linestyle="--", linewidth=1, label="KR = d")
    right.plot(distances, [one["kr"] for one in found["runs"]], "o", color=BLUE, label="found")
    right.set(xlabel="distance d", ylabel="KR after training", xscale="log", yscale="log")
    right.legend(frameon=False, loc="upper left")
    for axes in (left, right):
        open_axes(axes)
    return figure
