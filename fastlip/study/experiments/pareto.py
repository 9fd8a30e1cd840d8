"""HKR's alpha moves a classifier of digits along a front from robust to accurate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

import fastlip
from fastlip.losses import MulticlassHKR
from fastlip.study.experiments.common import BLUE, ORANGE, claim, dense_network, digits, fit, minibatches
from fastlip.study.plots import new_figure, plain_axes

TITLE = "HKR on digits: alpha trades robustness for accuracy"
_EPS = (36 / 255, 0.5, 1.0)


def run(
    seed: int = 0,
    *,
    alphas: Sequence[float] = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 1.0),
    min_margin: float = 1.0,
    width: int = 128,
    steps: int = 300,
    batch_size: int = 256,
) -> dict[str, Any]:
    """Trains a dense network with MulticlassHKR at each alpha; certifies it on the test images."""
    train, test = digits()
    runs = []
    for alpha in alphas:
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
    return {
        "eps": list(_EPS),
        "runs": runs,
        "claims": [
            claim(
                "accuracy gained from the smallest alpha to the largest",
                last["accuracy"] - first["accuracy"],
                least=0.02,
            ),
            claim(
                "mean margin lost from the best alpha to the largest",
                max(r["mean_margin"] for r in runs) - last["mean_margin"],
                least=0.02,
            ),
        ],
    }


def draw(found: dict[str, Any]) -> Any:
    """The front: accuracy against margins and against certified accuracy, each point an alpha."""
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
        axes.annotate(f"α = {one['alpha']:g}", (a, b), xytext=(6, -10), textcoords="offset points", fontsize=8)
    axes.margins(x=0.15, y=0.1)
    plain_axes(axes)
