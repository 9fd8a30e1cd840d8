"""Conformal prediction sets of handwritten digits that hold under perturbations.

A set of classes is predicted for every image, so that it contains the true one with probability 90 %. Plain conformal
sets keep this promise for clean images only: an attack of L2 norm eps breaks it. For a 1-Lipschitz network the scores
move by at most L eps, and sets that allow for it keep the promise under every perturbation of that norm. The figures
are means over 100 random splits of the test images into calibration and test samples. ``--plain`` takes a network of
the same shape without a constraint, as is usual. With ``--figure`` coverage and size of the sets are drawn against
eps. The script takes about one minute on two cores.
"""

import argparse
import math

import torch

import fastlip
from fastlip.data import Batches, digits

ALPHA, SPLITS = 0.1, 100
TEMPERATURE = 0.05


def train(model, batches, epochs):
    """Trains by SGD with OneCycle; the loss asks for a margin of 2 sqrt(2) 36/255."""
    loss = fastlip.losses.OffsetCrossEntropy(offset=2**1.5 * 36 / 255, temperature=TEMPERATURE)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.1, total_steps=epochs * len(batches), cycle_momentum=False
    )
    for epoch in range(epochs):
        for images, labels in batches.epoch(epoch):
            optimizer.zero_grad()
            loss(model(images), labels).backward()
            optimizer.step()
            schedule.step()


def attacked(model, images, labels, eps, steps=10):
    """The images, each moved by an L2 norm of at most eps, by projected gradient ascent on the margin score."""
    delta = torch.zeros_like(images)
    for _ in range(steps if eps else 0):
        delta.requires_grad_()
        scores = model((images + delta).clamp(0, 1))
        others = scores.scatter(1, labels[:, None], -math.inf).amax(1)
        (gradient,) = torch.autograd.grad((others - scores.gather(1, labels[:, None])[:, 0]).sum(), delta)
        delta = delta.detach() + eps / 4 * gradient / norms(gradient)
        delta = delta * (eps * (1 - 1e-6) / norms(delta)).clamp(max=1)
    return (images + delta).clamp(0, 1)  # clipping to the pixels' range brings them nearer


def norms(x):
    """The L2 norm of each image, in a shape that broadcasts."""
    return x.flatten(1).norm(dim=1).clamp(min=1e-12)[:, None, None, None]


def measure(clean, moved, eps):
    """Means over the splits: coverage of plain and of robust sets of the moved images, and the size of both."""
    generator, rows = torch.Generator().manual_seed(0), []
    for _ in range(SPLITS):
        calibration, test = torch.randperm(len(clean), generator=generator).chunk(2)
        predictor = fastlip.conformal.calibrate(clean[calibration], ALPHA)
        plain, robust = predictor.sets(moved[test]), predictor.sets(moved[test], eps)
        sizes = [sets.sizes.double().mean().item() for sets in (plain, robust)]
        rows.append([plain.coverage, robust.coverage, *sizes])
    return torch.tensor(rows).mean(0).tolist()


def draw(found, path):
    """Coverage and size of both kinds of sets against eps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3), layout="constrained")
    for axes, column, title in zip(figure.subplots(1, 2), (0, 2), ("coverage under attack", "classes"), strict=True):
        for offset, name in enumerate(("plain sets", "robust sets")):
            axes.plot(list(found), [row[column + offset] for row in found.values()], "o-", label=name)
        axes.set(xlabel="L2 norm of the perturbation", title=title)
    figure.axes[0].axhline(1 - ALPHA, color="gray", linestyle=":")
    figure.axes[1].legend()
    figure.savefig(path)


def main(arguments=None):
    """Returns for each eps the means of :func:`measure`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="aol", choices=fastlip.models.METHODS)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--layers-per-block", type=int, default=5)
    parser.add_argument("--eps", type=float, nargs="+", default=[0.0, 0.1, 0.25, 0.5])
    parser.add_argument("--plain", action="store_true", help="a network of torch.nn layers of the same shape")
    parser.add_argument("--figure", help="file of the figure, such as conformal.png")
    options = parser.parse_args(arguments)

    torch.manual_seed(0)
    torch.set_num_threads(1)  # images are so small that threads would mostly wait for each other
    data = digits()
    model = fastlip.models.lip_conv_net(
        options.method, width=options.width, layers_per_block=options.layers_per_block, image_size=8, in_channels=1
    )
    if options.plain:
        model = fastlip.models.plain_twin(model)
    train(model, Batches(data.train, data.divisor, 64), options.epochs)
    model.eval().requires_grad_(False)

    ((images, labels),) = Batches(data.test, data.divisor, len(data.test.labels))
    clean = fastlip.certify_outputs(model, [(images, labels)])
    found = {}
    for eps in options.eps:
        moved = fastlip.certify_outputs(model, [(attacked(model, images, labels, eps), labels)])
        found[eps] = measure(clean, moved, eps)
        plain, robust, few, many = found[eps]
        print(f"eps {eps:.2f}: plain sets cover {plain:.1%} (size {few:.2f}), robust ones {robust:.1%} ({many:.2f})")
    if options.figure:
        draw(found, options.figure)
    return found


if __name__ == "__main__":
    main()
