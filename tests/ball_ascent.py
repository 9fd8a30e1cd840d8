"""Gradient ascent inside L2 balls: a plain attack, for tests of what certificates promise."""

import torch


def ascended(x, radii, gain, steps=20, step=0.2):
    """The samples x (n, ...) moved to where a function is larger, each inside the ball of its radius (n,).

    ``gain`` maps samples to the sum of their values; ``step`` is a share of the radius.
    """
    radii = (torch.as_tensor(radii).to(x) * (1 - 1e-5)).expand(len(x)).reshape(-1, *[1] * (x.dim() - 1))
    delta = torch.randn_like(x) / 1000
    for _ in range(steps):
        delta.requires_grad_()
        (gradient,) = torch.autograd.grad(gain(x + delta), delta)
        delta = delta.detach() + step * radii * gradient / lengths(gradient)
        delta = delta * (radii / lengths(delta)).clamp_max(1)
    return x + delta


def lengths(x):
    """The L2 norm of each sample, in a shape that broadcasts to x."""
    return x.flatten(1).norm(dim=1).clamp_min(1e-12).reshape(-1, *[1] * (x.dim() - 1))
