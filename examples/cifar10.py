"""Training on CIFAR-10 from its official binary files, with augmentation, and the certificate.

Shows the data interface and the recipe of the comparison paper (Prach et al., CVPR 2024) in a training loop of your
own: XS ConvNet, SGD with OneCycle, offset cross-entropy, shifts of 4 pixels and flips. ``PATH`` is the folder that
holds ``data_batch_1.bin`` ... ``test_batch.bin``, or the folder above it. An epoch takes about two minutes on two
cores. ``fastlip train --data cifar10 --path PATH`` does the same, with checkpoints and logs.
"""

import argparse
import sys

import torch

import fastlip
from fastlip.data import Augmentation, Batches, DataError, load

EPS = [36 / 255, 72 / 255, 108 / 255, 1.0]


def train(model, batches, epochs, lr):
    """Trains by SGD with OneCycle, and prints a line for each epoch."""
    loss = fastlip.losses.OffsetCrossEntropy(offset=2**1.5 * 36 / 255, temperature=0.25)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=lr, total_steps=epochs * len(batches), cycle_momentum=False
    )
    for epoch in range(epochs):
        total = 0.0
        for images, labels in batches.epoch(epoch):
            optimizer.zero_grad()
            value = loss(model(images), labels)
            value.backward()
            optimizer.step()
            schedule.step()
            total += value.item() * len(labels)
        print(f"epoch {epoch + 1}: loss {total / batches.image_count:.4f}", flush=True)


def main(arguments=None):
    """Returns the certificate of the test images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", help="folder of the binary version of CIFAR-10")
    parser.add_argument("--method", default="aol", choices=fastlip.models.METHODS)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--lr", type=float, default=0.06)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--layers-per-block", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)

    torch.manual_seed(0)
    try:
        data = load("cifar10", options.path)
    except DataError as error:
        sys.exit(f"cifar10.py: {error}")
    print(data)
    model = fastlip.models.lip_conv_net(
        options.method, width=options.width, layers_per_block=options.layers_per_block
    )
    model.to(options.device)
    placement = {"mean": data.mean, "device": options.device}
    augmented = Batches(data.train, data.divisor, 256, augmentation=Augmentation(shift=4, flip=True), **placement)
    train(model, augmented, options.epochs, options.lr)
    certificate = fastlip.certify(model.eval(), Batches(data.test, data.divisor, 256, **placement), EPS)
    print(certificate)
    return certificate


if __name__ == "__main__":
    main()
