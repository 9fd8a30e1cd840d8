"""A signed distance function learnt by HKR from points inside and outside of a shape."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import fastlip
from fastlip.losses import HKR
from fastlip.study.experiments.common import GREY, INK, Batch, claim, dense_network, fit
from fastlip.study.plots import new_figure

TITLE = "A signed distance function, learnt by HKR"
# Two discs apart from each other, (x, y, radius), in the square of side 2.
_DISCS = ((-0.45, -0.25, 0.35), (0.45, 0.35, 0.25))
_MARGIN = 0.02


def distance(x: Tensor) -> Tensor:
    """The signed distance (n,) of points (n, 2), positive inside: the largest over the discs, which are disjoint."""
    discs = torch.tensor(_DISCS)
    return (discs[:, 2] - torch.cdist(x, discs[:, :2])).amax(1)


def run(
    seed: int = 0,
    *,
    width: int = 64,
    depth: int = 4,
    steps: int = 2000,
    batch_size: int = 512,
    lr: float = 0.01,
    grid: int = 81,
) -> dict[str, Any]:
    """Trains with HKR and nearly all weight on the hinge.

    The hinge makes the sign correct, and KR makes |f| as large as a 1-Lipschitz function allows: f is the signed
    distance (Béthune et al. 2022; Coiffier and Béthune 2024 use it for shapes).
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = dense_network((2, *[width] * depth, 1))
    fit(model, HKR(0.99, _MARGIN), lambda _: _points(batch_size, generator), steps, lr, what="training")
    axis = torch.linspace(-1, 1, grid)
    x = torch.cartesian_prod(axis, axis)
    values, norms = _values_and_gradients(model, x)
    true = distance(x)
    away = true.abs() > _MARGIN
    errors = (values - true).abs()
    return {
        "grid": grid,
        "values": values.tolist(),
        "true": true.tolist(),
        "norms": norms.tolist(),
        "mean_error": errors.mean().item(),
        "largest_error": errors.max().item(),
        "claims": [
            claim("mean gradient norm", norms.mean().item(), least=0.95),
            claim("largest gradient norm", norms.max().item(), most=fastlip.audit(model, (2,)).bound + 1e-5),
            claim("mean |f - signed distance|", errors.mean().item(), most=0.03),
            claim(
                "fraction of points with the right sign, away from the boundary",
                ((values > 0) == (true > 0))[away].double().mean().item(),
                least=0.98,
            ),
        ],
    }


def _points(count: int, generator: torch.Generator) -> Batch:
    """Uniform points, half of them inside and half outside."""
    inside, outside = [], []
    while sum(map(len, inside)) < count // 2 or sum(map(len, outside)) < count // 2:
        x = 2 * torch.rand(4 * count, 2, generator=generator) - 1
        is_inside = distance(x) > 0
        inside.append(x[is_inside])
        outside.append(x[~is_inside])
    half = count // 2
    x = torch.cat((torch.cat(inside)[:half], torch.cat(outside)[:half]))
    return x, (torch.arange(2 * half) < half).long()


def _values_and_gradients(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    values = model(x)[:, 0]
    (gradients,) = torch.autograd.grad(values.sum(), x)
    return values.detach(), gradients.norm(dim=1)


def draw(found: dict[str, Any]) -> Any:
    """Draws the level lines of the learnt function, those of the true distance, and the norm of the gradient."""
    figure = new_figure(13, 4.2)
    figure.suptitle(TITLE)
    size = found["grid"]
    axis = torch.linspace(-1, 1, size)
    images = (
        ("learnt f", found["values"], "RdBu", (-1.1, 1.1)),
        ("signed distance", found["true"], "RdBu", (-1.1, 1.1)),
        ("gradient norm of f", found["norms"], "viridis", (0.8, 1.0)),
    )
    true = torch.tensor(found["true"]).view(size, size).T
    for axes, (title, values, colors, (low, high)) in zip(figure.subplots(1, 3), images, strict=True):
        image = torch.tensor(values).view(size, size).T
        shown = axes.pcolormesh(axis, axis, image, cmap=colors, vmin=low, vmax=high, shading="gouraud")
        if colors == "RdBu":
            levels = [0.1 * i for i in range(-11, 12)]
            axes.contour(axis, axis, image, levels=levels, colors=GREY, linewidths=0.5)
            axes.contour(axis, axis, image, levels=[0.0], colors=INK, linewidths=1.8)
        else:
            axes.contour(axis, axis, true, levels=[0.0], colors="white", linewidths=1.2)
        axes.set(title=title, aspect="equal", xticks=[-1, 0, 1], yticks=[-1, 0, 1])
        figure.colorbar(shown, ax=axes, shrink=0.85)
    return figure
