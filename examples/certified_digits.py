"""Handwritten digits from training to certificate to attack.

Shows the four steps of certified classification: a network of 1-Lipschitz layers, a loss that asks for margins, a
certificate that divides by the audited Lipschitz bound, and an attack that bounds robust accuracy from above.
The digits come with scikit-learn. The script takes about one minute on two cores.
"""

import argparse

import torch

import fastlip
from fastlip.data import Batches, digits

EPS = [36 / 255, 72 / 255, 1.0]


def train(model, batches, epochs):
    """Trains by SGD with OneCycle; the loss asks for a margin of 2 sqrt(2) 36/255."""
    loss = fastlip.losses.OffsetCrossEntropy(offset=2**1.5 * 36 / 255, temperature=0.05)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.1, total_steps=epochs * len(batches), cycle_momentum=False
    )
    for epoch in range(epochs):
        for images, labels in batches.epoch(epoch):
            optimizer.zero_grad()
            value = loss(model(images), labels)
            value.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1}: loss {value.item():.3f}")


def main(arguments=None):
    """Returns the certificate and the result of the attack."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="aol", choices=fastlip.models.METHODS)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--layers-per-block", type=int, default=5)
    options = parser.parse_args(arguments)

    torch.manual_seed(0)
    torch.set_num_threads(1)  # images are so small that threads would mostly wait for each other
    data = digits()
    model = fastlip.models.lip_conv_net(
        options.method, width=options.width, layers_per_block=options.layers_per_block, image_size=8, in_channels=1
    )
    train(model, Batches(data.train, data.divisor, 64), options.epochs)

    test = Batches(data.test, data.divisor, 120)
    certificate = fastlip.certify(model.eval(), test, EPS)
    print(certificate)
    attack = fastlip.attack(model, test, EPS, steps=20, restarts=1, certificate=certificate)
    print(attack)
    return certificate, attack


if __name__ == "__main__":
    main()
