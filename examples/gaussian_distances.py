"""Wasserstein distances of Gaussians by a certified critic, next to WGAN-GP's and that of spectral normalisation.

A 1-Lipschitz f gives a lower bound of the Wasserstein-1 distance: its mean over one distribution minus that over
the other. WGAN-GP keeps its critic near 1-Lipschitz by a penalty of the gradient (Gulrajani et al., NeurIPS 2017),
``spectral_norm`` divides each weight by an estimate of its norm; orthogonal layers are 1-Lipschitz by construction.
All estimate distances that are known: W1 = |m| for a translation by m, and |s - 1| E|x| for a scaling by s. Estimates
are computed on fresh samples, and divided by the audited bound, but for WGAN-GP's. The script takes about one minute
on one core.
"""

import argparse
import math
import pkgutil
from functools import partial

import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

import fastlip
from fastlip import nn as lip

FRESH = 200_000  # number of fresh samples for an estimate


def network(linear, activation, inputs, width):
    """A critic. Orthogonal layers with MaxMin make it 1-Lipschitz, and gradients keep their norm."""
    hidden = [part for _ in range(2) for part in (linear(width, width), activation())]
    return nn.Sequential(linear(inputs, width), activation(), *hidden, linear(width, 1))


# The layers of each critic, the weight of its gradient penalty, and the learning rate.
CRITICS = {
    "certified": (lip.BjorckLinear, lip.MaxMin, 0.0, 0.005),
    "spectral_norm": (lambda *sizes: spectral_norm(nn.Linear(*sizes)), partial(nn.LeakyReLU, 0.2), 0.0, 0.005),
    "WGAN-GP": (nn.Linear, partial(nn.LeakyReLU, 0.2), 10.0, 0.001),
}


def critic_step(critic, optimizer, real, fake, penalty):
    """A step of the critic: its estimate of W1 rises, and the penalty between both kinds of samples falls."""
    loss = critic(fake).mean() - critic(real).mean()
    if penalty:
        between = real.lerp(fake, torch.rand(len(real), 1)).requires_grad_()
        (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
        loss = loss + penalty * (slope.norm(dim=1) - 1).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def gaussians():
    """Pairs: title, dimension, a map from a standard normal to the other Gaussian, and their W1."""
    norm = {d: math.sqrt(2) * math.gamma((d + 1) / 2) / math.gamma(d / 2) for d in (2, 8)}  # E|x|
    return (
        ("shift, 2-D", 2, lambda x: x + torch.tensor([2.0, 1.0]), math.sqrt(5)),
        ("shift, 32-D", 32, lambda x: x + 0.5, math.sqrt(8)),
        ("scale, 2-D", 2, lambda x: 3 * x, 2 * norm[2]),
        ("scale, 8-D", 8, lambda x: 3 * x, 2 * norm[8]),
    )


def estimate(critic, dimension, second, steps):
    """The estimate of W1 of a standard normal and the other Gaussian, and the critic's audited bound."""
    linear, activation, penalty, lr = critic
    critic = network(linear, activation, dimension, 64)
    optimizer = torch.optim.Adam(critic.parameters(), lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        critic_step(critic, optimizer, second(torch.randn(512, dimension)), torch.randn(512, dimension), penalty)
        schedule.step()
    bound = fastlip.audit(critic.eval(), (dimension,)).bound
    with torch.no_grad():
        difference = (
            critic(second(torch.randn(FRESH, dimension))).mean() - critic(torch.randn(FRESH, dimension)).mean()
        )
    return difference.item() / (1 if penalty else bound), bound


def draw(found, path):
    """The estimates over the true distances."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    for offset, kind in enumerate(CRITICS):
        places = [index + 0.27 * (offset - 1) for index in range(len(found))]
        axes.bar(places, [row[kind][0] for row in found.values()], 0.27, label=kind)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xticks(range(len(found)), list(found))
    axes.set(title="estimate / true distance", ylim=(0, 1.5))
    axes.legend(loc="upper center", ncols=3)
    figure.savefig(path)


def main(arguments=None):
    """Returns for each pair and critic (estimate over true distance, audited bound)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--linear", default="fastlip.nn:BjorckLinear", help="or such as deel.torchlip:SpectralLinear")
    parser.add_argument("--figure", help="file of the figure, such as gaussians.png")
    options = parser.parse_args(arguments)
    found, certified = {}, (pkgutil.resolve_name(options.linear), *CRITICS["certified"][1:])
    for title, dimension, second, exact in gaussians():
        for kind, critic in (CRITICS | {"certified": certified}).items():
            torch.manual_seed(0)
            value, bound = estimate(critic, dimension, second, options.steps)
            found.setdefault(title, {})[kind] = value / exact, bound
            print(
                f"{title}: W1 {exact:.3f}, {kind} {value:.3f} ({value / exact:.1%}), L at most {bound:.4g}",
                flush=True,
            )
    if options.figure:
        draw(found, options.figure)
    return found


if __name__ == "__main__":
    main()
