"""HKR's alpha moves a classifier of digits along a front from robust to accurate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

import fastlip
from fastlip._progress import shown
from fastlip.losses import MulticlassHKR
from fastlip.study.experiments.common import BLUE, ORANGE, claim, dense_network, digits, fit, minibatches
from fastlip.study.plots import new_figure, open_axes

TITLE = "HKR on digits: alpha trades robustness for accuracy"
_EPS = (36 / 255, 0.5, 1.0)


def run(
    seed: int = 0,
    *,
    alphas: Sequence[float] = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 1.0),
    min_margin: float = 0.2,
    width: int = 128,
    steps: int = 300,
    batch_size: int = 256,
) -> dict[str, Any]:
    """Trains a dense network with MulticlassHKR at each alpha; certifies it on the test images.

    The hinge asks for a small margin, which favours accuracy. KR asks for the largest margins on average.
    """
    train, test = digits()
    runs = []
    for alpha in shown(alphas, "training"):
        torch.manual_seed(seed)
        model = dense_network((64, width, width, width, 10))
        loss = MulticlassHKR(alpha, min_margin)
        fit(model, loss, minibatches(*train, batch_size, seed), steps, 0.01)
        certificate = fastlip.certify(model, [test], eps=_EPS)
        runs.append(
            {
                "alpha": alpha,
                "accuracy": certificate.accuracy,
                "cra": list(certificate.cra.values()),
                "mean_margin": certificate.margins.mean().item() / certificate.lipschitz,
                "lipschitz": certificate.lipschitz,
            }
        )
    first, last = runs[0], runs[-1]
    gained, lost = last["accuracy"] - first["accuracy"], first["mean_margin"] - last["mean_margin"]
    return {
        "eps": list(_EPS),
        "min_margin": min_margin,
        "runs": runs,
        "claims": [
            claim("accuracy gained from the smallest alpha to the largest", gained, least=0.01),
            claim("mean margin lost from the smallest alpha to the largest", lost, least=0.1),
        ],
    }


def draw(found: dict[str, Any]) -> Any:
    """Draws accuracy against margins and against certified accuracy, with a point for each alpha."""
    figure = new_figure(11, 4.6)
    figure.suptitle(TITLE)
    left, right = figure.subplots(1, 2)
    runs = found["runs"]
    accuracy = [100 * one["accuracy"] for one in runs]
    certified = [100 * one["cra"][1] for one in runs]
    _front(left, [one["mean_margin"] for one in runs], accuracy, runs, BLUE)
    left.set(xlabel="mean margin f_y − max f_j, over L", ylabel="accuracy on test images, %")
    _front(right, certified, accuracy, runs, ORANGE)
    right.set(xlabel=f"certified accuracy at ε = {found['eps'][1]:g}, %", ylabel="accuracy on test images, %")
    return figure


def _front(axes: Any, x: Sequence[float], y: Sequence[float], runs: Sequence[dict[str, Any]], color: str) -> None:
    axes.plot(x, y, "o-", color=color)
    for a, b, one in zip(x, y, runs, strict=True):
        axes.annotate(
            f"α = {one['alpha']:g}",
            (a, b),
            xytext=(-7, -7),
            textcoords="offset points",
            ha="right",
            va="top",
            fontsize=8,
        )
    axes.margins(x=0.15, y=0.1)
    open_axes(axes)
