"""The temperature of cross-entropy decides between accuracy and robustness, in one dimension and on two moons."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

import fastlip
from fastlip._extras import needed_for
from fastlip._progress import shown
from fastlip.losses import TemperatureCrossEntropy
from fastlip.study.experiments.common import BLUE, GREEN, GREY, INK, RED, Batch, claim, dense_network, fit
from fastlip.study.plots import new_figure, open_axes

TITLE = "Temperature: small is robust, large is accurate"
# (centre, label, fraction of its class). The small group of class 0 lies between those of class 1. To classify it
# costs the margins of all points around it, and the best 1-Lipschitz function on average (KR's) rises across it.
_GROUPS = ((0.0, 0, 0.9), (1.0, 1, 0.5), (2.0, 0, 0.1), (3.0, 1, 0.5))
_DEVIATION = 0.12
# The colours of classes 0 and 1 in every panel: those of negative and positive scores in the colour map RdBu.
_CLASSES = ((0, RED), (1, BLUE))
_LARGEST_SCORE = 1.5  # of the colour map


def mixture(count: int, seed: int) -> Batch:
    """The one-dimensional mixture: points (n, 1), labels (n,), equally many of each class."""
    generator = torch.Generator().manual_seed(seed)
    parts = [(center, label, round(share * count / 2)) for center, label, share in _GROUPS]
    x = torch.cat([c + _DEVIATION * torch.randn(n, 1, generator=generator) for c, _, n in parts])
    return x, torch.cat([torch.full((n,), label) for _, label, n in parts])


def moons(count: int, seed: int) -> Batch:
    """Two moons that overlap a little: points (n, 2), labels (n,)."""
    with needed_for("the moons"):
        from sklearn.datasets import make_moons

    x, y = make_moons(count, noise=0.12, random_state=seed)
    return torch.from_numpy(x).float(), torch.from_numpy(y)


def run(
    seed: int = 0,
    *,
    temperatures: Sequence[float] = (0.1, 0.5, 2.0, 8.0, 32.0, 128.0),
    count: int = 400,
    width: int = 32,
    steps: int = 300,
) -> dict[str, Any]:
    """Trains on both data sets at each temperature; certifies each network on its training points."""
    found: dict[str, Any] = {"temperatures": list(temperatures)}
    for name, make in (("mixture", mixture), ("moons", moons)):
        x, y = make(count, seed)
        grid = _grid(x)
        runs = [_run(x, y, grid, tau, seed, width, steps) for tau in shown(temperatures, name)]
        found[name] = {"x": x.tolist(), "y": y.tolist(), "grid": grid.tolist(), "runs": runs}
    coldest, hottest = ([found[name]["runs"][i] for name in ("mixture", "moons")] for i in (0, -1))
    found["claims"] = [
        claim(f"accuracy on the {name} gained from the smallest to the largest temperature", gained, least=0.02)
        for name, gained in _differences(coldest, hottest, "accuracy")
    ] + [
        claim(f"mean margin on the {name} lost from the smallest to the largest temperature", -gained, least=0.02)
        for name, gained in _differences(coldest, hottest, "mean_margin")
    ]
    return found


def _differences(coldest: list[Any], hottest: list[Any], what: str) -> list[tuple[str, float]]:
    pairs = zip(("mixture", "moons"), coldest, hottest, strict=True)
    return [(name, hot[what] - cold[what]) for name, cold, hot in pairs]


def _run(x: Tensor, y: Tensor, grid: Tensor, tau: float, seed: int, width: int, steps: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    model = dense_network((x.shape[1], width, width, width, 1))
    fit(model, TemperatureCrossEntropy(tau), lambda _: (x, y), steps, 0.02)
    bound = fastlip.audit(model, (x.shape[1],)).bound
    with torch.no_grad():
        scores, curve = model(x)[:, 0], model(grid)[:, 0]
    # A binary score keeps its sign within the distance |score| / L.
    margins = torch.where(y == 1, scores, -scores).double() / bound
    return {
        "temperature": tau,
        "accuracy": (margins > 0).double().mean().item(),
        "mean_margin": margins.mean().item(),
        "median_radius": margins.clamp_min(0).median().item(),
        "lipschitz": bound,
        "scores": curve.tolist(),
    }


def _grid(x: Tensor) -> Tensor:
    low, high = x.amin(0) - 0.5, x.amax(0) + 0.5
    if x.shape[1] == 1:
        return torch.linspace(low.item(), high.item(), 200)[:, None]
    return torch.cartesian_prod(*(torch.linspace(a, b, 60) for a, b in zip(low.tolist(), high.tolist(), strict=True)))


def draw(found: dict[str, Any]) -> Any:
    """Draws the functions learnt at three temperatures, and accuracy and margins at all temperatures."""
    figure = new_figure(15, 7)
    figure.suptitle(TITLE)
    grid = figure.subplots(2, 4)
    chosen = sorted({0, len(found["temperatures"]) // 2, len(found["temperatures"]) - 1})
    pictures: tuple[tuple[str, Callable[..., None]], ...] = (("mixture", _draw_line), ("moons", _draw_plane))
    for row, (name, picture) in zip(grid, pictures, strict=True):
        for axes, index in zip(row, chosen, strict=False):
            one = found[name]["runs"][index]
            picture(axes, found[name], one)
            axes.set_title(f"τ = {one['temperature']:g}: accuracy {one['accuracy']:.1%}", fontsize=10)
        _draw_trade(row[3], found[name]["runs"])
    return figure


def _draw_line(axes: Any, data: dict[str, Any], one: dict[str, Any]) -> None:
    x, y = torch.tensor(data["x"])[:, 0], torch.tensor(data["y"])
    places, scores = [point[0] for point in data["grid"]], torch.tensor(one["scores"])
    axes.plot(places, scores, color=INK, linewidth=1.6)
    axes.axhline(0, color=GREY, linewidth=0.8)
    for (_, color), side in zip(_CLASSES, (scores.clamp_max(0), scores.clamp_min(0)), strict=True):
        axes.fill_between(places, side, color=color, alpha=0.25, linewidth=0)
    low, high = min(one["scores"]), max(one["scores"])
    step = 0.06 * (high - low)
    for label, color in _CLASSES:
        points = x[y == label]
        axes.plot(points, torch.full_like(points, low - (2 + label) * step), "|", color=color, markersize=7)
    axes.set_xlabel("x (ticks: points of class 0 and 1)")
    axes.set_ylabel("score")
    open_axes(axes)


def _draw_plane(axes: Any, data: dict[str, Any], one: dict[str, Any]) -> None:
    side = round(len(data["grid"]) ** 0.5)
    grid = torch.tensor(data["grid"]).view(side, side, 2)
    scores = torch.tensor(one["scores"]).view(side, side)
    x, y = torch.tensor(data["x"]), torch.tensor(data["y"])
    levels = torch.linspace(-_LARGEST_SCORE, _LARGEST_SCORE, 21).tolist()
    axes.contourf(grid[..., 0], grid[..., 1], scores, levels=levels, cmap="RdBu", alpha=0.6, extend="both")
    axes.contour(grid[..., 0], grid[..., 1], scores, levels=[0.0], colors=INK, linewidths=1.6)
    for label, color in _CLASSES:
        points = x[y == label]
        axes.plot(points[:, 0], points[:, 1], ".", color=color, markersize=3)
    axes.set(aspect="equal", xticks=[], yticks=[])


def _draw_trade(axes: Any, runs: list[dict[str, Any]]) -> None:
    temperatures = [one["temperature"] for one in runs]
    axes.plot(temperatures, [one["accuracy"] for one in runs], "o-", color=INK, label="accuracy")
    axes.plot(temperatures, [one["mean_margin"] for one in runs], "s-", color=GREEN, label="mean signed margin")
    axes.set(xscale="log", xlabel="temperature τ", ylim=(0, None))
    open_axes(axes)
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, 1.16), ncols=2, fontsize=9)
