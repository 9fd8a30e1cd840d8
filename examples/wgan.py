"""A WGAN of handwritten digits with a certified critic, next to WGAN-GP.

The critic of a Wasserstein GAN must be 1-Lipschitz. WGAN-GP asks for it by a penalty of the gradient (Gulrajani et
al., NeurIPS 2017), at the price of a second derivative in every step; orthogonal layers are 1-Lipschitz by
construction. Two generators of the same size learn from these critics for the same number of steps. The judges are
the exact W1 of their images to test digits, an assignment problem that SciPy solves, and the eye: ``--figure``
draws digits. It takes about one minute on one core.
"""

import argparse
import time

import torch
from scipy.optimize import linear_sum_assignment
from torch import nn

import fastlip
from fastlip import nn as lip
from fastlip.data import digits


def certified_critic(inputs, width):
    """Orthogonal layers with MaxMin: 1-Lipschitz, and gradients keep their norm."""
    hidden = [part for _ in range(2) for part in (lip.BjorckLinear(width, width), lip.MaxMin())]
    return nn.Sequential(lip.BjorckLinear(inputs, width), lip.MaxMin(), *hidden, lip.BjorckLinear(width, 1))


def plain_critic(inputs, width):
    """The same network of plain layers, for WGAN-GP."""
    hidden = [part for _ in range(2) for part in (nn.Linear(width, width), nn.LeakyReLU(0.2))]
    return nn.Sequential(nn.Linear(inputs, width), nn.LeakyReLU(0.2), *hidden, nn.Linear(width, 1))


# The critic, the weight of its gradient penalty, and the learning rate.
CRITICS = {"certified": (certified_critic, 0.0, 0.002), "WGAN-GP": (plain_critic, 10.0, 0.001)}


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


def generate(kind, images, steps):
    """A generator of images, trained against a critic with five steps to each of its own; and the critic's bound."""
    make, penalty, lr = CRITICS[kind]
    critic, generator = make(64, 128), nn.Sequential(nn.Linear(16, 128), nn.ReLU(), nn.Linear(128, 64), nn.Sigmoid())
    first = torch.optim.Adam(critic.parameters(), lr, betas=(0.5, 0.9))
    second = torch.optim.Adam(generator.parameters(), 0.002, betas=(0.5, 0.9))
    for step in range(6 * steps):
        fake = generator(torch.randn(128, 16))
        if step % 6 < 5:
            critic_step(critic, first, images[torch.randint(len(images), (128,))], fake.detach(), penalty)
        else:
            second.zero_grad()
            critic(fake).mean().neg().backward()
            second.step()
    return generator.requires_grad_(False), fastlip.audit(critic.eval(), (64,)).bound


def distance(x, y):
    """The exact W1 of two sets of as many images."""
    cost = torch.cdist(x, y).double().numpy()
    return cost[linear_sum_assignment(cost)].mean()


def draw(rows, path):
    """Digits of the data and of both generators."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.8), layout="constrained")
    for axes, (name, row) in zip(figure.subplots(len(rows), 1), rows.items(), strict=True):
        framed = nn.functional.pad(row[:32].reshape(2, 16, 8, 8), (2, 2, 2, 2))
        axes.imshow(framed.permute(0, 2, 1, 3).reshape(24, 192).numpy(), cmap="gray_r")
        axes.set_title(name, fontsize=9)
        axes.set_axis_off()
    figure.savefig(path)


def main(arguments=None):
    """Returns the distances of training and generated digits to test digits, and the certified critic's bound."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300, help="steps of a generator")
    parser.add_argument("--figure", help="file of the figure, such as wgan.png")
    options = parser.parse_args(arguments)
    data = digits()
    images, tests = ((part / data.divisor).flatten(1) for part in (data.train.all_pixels, data.test.all_pixels))
    torch.manual_seed(0)
    rows = {"training digits": images[torch.randperm(len(images))[: len(tests)]]}
    for kind in CRITICS:
        torch.manual_seed(0)
        began = time.process_time()
        generator, bound = generate(kind, images, options.steps)
        print(f"{kind}: L of the critic at most {bound:.4g}, {time.process_time() - began:.0f} s of the processor")
        rows[kind] = generator(torch.randn(len(tests), 16))
    away = {kind: distance(row, tests) for kind, row in rows.items()}
    print("exact W1 to test digits:", ", ".join(f"{kind} {value:.2f}" for kind, value in away.items()))
    if options.figure:
        draw(rows, options.figure)
    return away


if __name__ == "__main__":
    main()
