"""The signed distance of a star, learnt by 1-Lipschitz networks, and rays that never overshoot.

Sphere tracing moves a ray from x by f(x) / L. If L bounds the Lipschitz constant of f, no ray passes f = 0 unseen.
Two networks of orthogonal layers learn f: one from points labelled inside or outside (HKR loss), the other by points
of the outline, where f = 0, and gradients of norm 1 (eikonal loss). A plain network learns by the eikonal loss, as is
usual; its rays move with L = 1, others with the audited L. It takes about one minute.
"""

import argparse
import math
import pkgutil

import torch
from torch import nn

import fastlip
from fastlip import nn as lip

SIDE, STOP = 1.5, 1e-3  # of the square [-1.5, 1.5]^2; a ray has arrived where f is below STOP
CORNERS = torch.view_as_real(torch.polar(torch.tensor([1.0, 0.45]).repeat(5), torch.arange(0.5, 2.5, 0.2) * math.pi))


def signed_distance(x):
    """The exact distance of points (n, 2) to the star's outline, negative inside."""
    end = CORNERS.roll(-1, 0)
    edge, to = end - CORNERS, x[:, None] - CORNERS
    share = ((to * edge).sum(-1) / edge.square().sum(-1)).clamp(0, 1)
    above, below_end = to[..., 1] >= 0, x[:, None, 1] < end[:, 1]
    left = edge[:, 0] * to[..., 1] > edge[:, 1] * to[..., 0]
    inside = ((above & below_end & left) | ~(above | below_end | left)).sum(1) % 2 == 1
    return (to - share[..., None] * edge).norm(dim=-1).amin(1) * torch.where(inside, -1, 1)


def network(linear, activation, width=64, depth=4):
    """A function of the plane."""
    hidden = [part for _ in range(depth) for part in (linear(width, width), activation())]
    return nn.Sequential(linear(2, width), activation(), *hidden, linear(width, 1))


def hkr(model, x, near):
    """HKR: the signs of f are right, and f is as large outside and as small inside as a slope of 1 allows."""
    points = torch.cat((x, near + 0.05 * torch.randn_like(near)))
    return fastlip.losses.HKR(alpha=0.99, min_margin=0.02)(model(points), signed_distance(points) > 0)


def eikonal(model, x, near):
    """f = 0 on the outline, gradients have norm 1, and f has the right sign in the plane."""
    (slope,) = torch.autograd.grad((y := model(x.requires_grad_())).sum(), x, create_graph=True)
    wrong = torch.relu(-y[:, 0] * signed_distance(x.detach()).sign())
    return model(near).abs().mean() + wrong.mean() + 0.1 * (slope.norm(dim=1) - 1).square().mean()


def train(model, loss, steps, lr):
    """Trains by Adam, with fresh points in each step."""
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer := torch.optim.Adam(model.parameters()), lr, steps)
    for _ in range(steps):
        edges, share = torch.randint(10, (256,)), torch.rand(256, 1)
        near = CORNERS[edges].lerp(CORNERS.roll(-1, 0)[edges], share)
        optimizer.zero_grad()
        loss(model, torch.rand(256, 2) * 2 * SIDE - SIDE, near).backward()
        optimizer.step()
        schedule.step()
    return model.eval().requires_grad_(False)


def trace(model, bound, rays):
    """Traces rays from a circle: how many arrive, and how many see f <= 0 at the end of a step or before it."""
    x = torch.view_as_real(torch.polar(torch.full((rays,), SIDE), 2 * math.pi * torch.rand(rays)))
    way = nn.functional.normalize(0.7 * (2 * torch.rand(rays, 2) - 1) - x, dim=1)
    y, overshot = model(x)[:, 0], torch.zeros(rays, dtype=torch.bool)
    for _ in range(500):
        moving = ((y >= STOP) & (x.norm(dim=1) < 1.001 * SIDE)).nonzero()[:, 0]
        step = way[moving] * ((y[moving] - STOP / 2) / bound)[:, None]  # f stays above STOP / 2: roundings are less
        overshot[moving] |= model(x[moving] + torch.rand(len(moving), 1) * step)[:, 0] <= 0
        x[moving] += step
        y[moving] = model(x[moving])[:, 0]
        overshot |= y <= 0
    return (y < STOP).sum().item(), overshot.sum().item()


def draw(models, found, path):
    """The level sets of each function, and its zero set in red."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.4), layout="constrained")
    along = torch.linspace(-SIDE, SIDE, 151)
    for axes, model, (name, row) in zip(figure.subplots(1, 3), models, found.items(), strict=True):
        values = model(torch.cartesian_prod(along, along)).reshape(151, 151).T
        axes.contourf(along, along, values, [i / 10 for i in range(-6, 13)], cmap="RdBu_r", vmin=-1.2, vmax=1.2)
        axes.contour(along, along, values, [0], colors="red")
        axes.set_title(f"{name}\nmean error {row[0]:.3f}, {row[3]} rays overshoot", fontsize=9)
    figure.savefig(path)


def main(arguments=None):
    """Returns for each network (mean error, audited L, rays that arrived, rays that overshot)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--rays", type=int, default=100_000)
    parser.add_argument("--linear", default="fastlip.nn:CayleyLinear", help="or such as deel.torchlip:SpectralLinear")
    parser.add_argument("--figure", help="file of the figure, such as signed_distance.png")
    options = parser.parse_args(arguments)
    bounded, plain = (pkgutil.resolve_name(options.linear), lip.MaxMin), (nn.Linear, lambda: nn.Softplus(100))
    jobs = {"HKR": (bounded, hkr), "eikonal": (bounded, eikonal), "plain, eikonal": (plain, eikonal)}
    found, models = {}, []
    for name, (parts, loss) in jobs.items():
        torch.manual_seed(0)
        points = torch.rand(10_000, 2) * 2 * SIDE - SIDE
        models.append(model := train(network(*parts), loss, options.steps, 0.002 if parts is plain else 0.01))
        error = (model(points)[:, 0] - signed_distance(points)).abs().mean().item()
        bound = fastlip.audit(model, (2,)).bound
        found[name] = error, bound, *trace(model, 1.0 if parts is plain else bound, options.rays)
        print("{}: mean error {:.3f}, L at most {:.4g}, {} rays arrive, {} overshoot".format(name, *found[name]))
    if options.figure:
        draw(models, found, options.figure)
    return found


if __name__ == "__main__":
    main()
