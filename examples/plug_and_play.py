"""Deblurring with a learnt denoiser that is firmly nonexpansive, so that the iteration converges.

Plug-and-play methods put a denoiser D where a convex method has a proximal step: x <- D(x - t A^T (A x - y)) for a
blur A and an image y. If D = (I + Q) / 2 with a 1-Lipschitz Q, then D is firmly nonexpansive, and for t <= 2 / |A|^2
the residual |x_(k+1) - x_k| never grows (Pesquet et al., SIAM J. Imaging Sci. 2021). This D, and one with a usual Q,
learn from one photograph and deblur crops of another. ``--figure`` draws the results. Takes about one minute.
"""

import argparse
from functools import partial

import torch
from sklearn.datasets import load_sample_images
from torch import nn
from torch.nn.functional import conv2d, mse_loss, pad

import fastlip
from fastlip import nn as lip

# The layers of Q, the activation between them, and the learning rate.
KINDS = {
    "firmly nonexpansive": (partial(lip.SLLConv2d, kernel_size=3), nn.Identity, 0.01),
    "plain": (partial(nn.Conv2d, kernel_size=3, padding=1), nn.ReLU, 0.003),
}


class Denoiser(nn.Module):
    """D = (I + Q) / 2; firmly nonexpansive if Q is 1-Lipschitz."""

    def __init__(self, convolution, activation, width=16, depth=3):
        super().__init__()
        layers = [part for _ in range(depth) for part in (convolution(width, width), activation())]
        self.q = nn.Sequential(lip.ZeroChannelPad(width), *layers, convolution(width, width), lip.FirstChannels(1))

    def forward(self, x):
        """The denoised images, (n, 1, h, w)."""
        return (x + self.q(x)) / 2


def crops(image, n, side):
    """Random crops of a grey image, (n, 1, side, side)."""
    corners = zip(*(torch.randint(size - side + 1, (n,)).tolist() for size in image.shape), strict=True)
    return torch.stack([image[None, i : i + side, j : j + side] for i, j in corners])


def train(denoiser, image, sigma, steps, lr):
    """Removes noise of standard deviation sigma from crops."""
    optimizer = torch.optim.Adam(denoiser.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps)
    for _ in range(steps):
        clean = crops(image, 16, 24)
        optimizer.zero_grad()
        mse_loss(denoiser(clean + sigma * torch.randn_like(clean)), clean).backward()
        optimizer.step()
        schedule.step()
    return denoiser.eval().requires_grad_(False)


def blur(x):
    """Convolves with a Gaussian of standard deviation 1.6 pixels, circularly: symmetric, and of norm 1."""
    line = torch.exp(-torch.arange(-4, 5, dtype=x.dtype).square() / (2 * 1.6**2))
    kernel = (line[:, None] * line / line.sum() ** 2)[None, None]
    return conv2d(pad(x, (4, 4, 4, 4), mode="circular"), kernel)


def restore(denoiser, observed, truth, iterations):
    """The last image of the iteration in float64, and residuals and PSNR of each step, for each image."""
    denoiser, x, residuals, quality = denoiser.double(), observed, [], []
    for _ in range(iterations):
        before, x = x, denoiser(x - 1.9 * blur(blur(x) - observed))
        residuals.append((x - before).flatten(1).norm(dim=1))
        quality.append(-10 * (before - truth).square().flatten(1).mean(1).log10())
    return x, torch.stack(residuals), torch.stack(quality)


def draw(found, images, path):
    """Residuals and PSNR against the iteration, and crops."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.4), layout="constrained")
    top, bottom = figure.subfigures(2, 1)
    curves, pictures = top.subplots(1, 2), bottom.subplots(1, len(images))
    for axes, row, title in zip(curves, (0, 1), ("|x_(k+1) - x_k|", "PSNR (dB)"), strict=True):
        for name, parts in found.items():
            axes.plot(parts[row].mean(1), label=name)
        axes.set(title=title, xlabel="iteration k", yscale=("log", "linear")[row])
        axes.legend(loc=("lower left", "center right")[row])
    for axes, (name, crop) in zip(pictures, images.items(), strict=True):
        axes.imshow(crop[0, 0].numpy(), cmap="gray", vmin=0, vmax=1)
        axes.set(title=name, xticks=[], yticks=[])
    figure.savefig(path)


def main(arguments=None):
    """Returns for each denoiser (residuals, PSNR), both (iterations, crops), and the audited bound of Q."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--side", type=int, default=64, help="side of the crops")
    parser.add_argument("--figure", help="file of the figure, such as plug_and_play.png")
    options = parser.parse_args(arguments)
    china, flower = (torch.tensor(image).float().mean(2) / 255 for image in load_sample_images().images)
    torch.manual_seed(0)
    truth = crops(flower[:, 320:], 4, options.side).double()
    observed = blur(truth) + 0.01 * torch.randn(truth.shape)
    found, images = {}, {"truth": truth, "blurred": observed}
    for name, (*layers, lr) in KINDS.items():
        denoiser = train(Denoiser(*layers), china, 0.05, options.steps, lr)
        bound = fastlip.audit(denoiser.q, (1, options.side, options.side)).bound
        images[name], residuals, quality = restore(denoiser, observed, truth, 150)
        found[name] = residuals, quality, bound
        grew = (residuals[1:] > residuals[:-1] + 1e-12).sum().item()
        print(f"{name}: L of Q at most {bound:.4g}, the residual grows in {grew} of {residuals[1:].numel()} steps")
        print(f"    PSNR {quality[0].mean():.2f} dB before, {quality[-1].mean():.2f} dB after")
    if options.figure:
        draw(found, images, options.figure)
    return found


if __name__ == "__main__":
    main()
