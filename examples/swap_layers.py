"""An existing network made 1-Lipschitz: its layers are swapped in place, its weights are kept as a start.

A plain convolutional network is audited (its bound is large); every ``nn.Conv2d``, ``nn.Linear`` and ``nn.ReLU``
becomes an AOL layer or MaxMin with the same arguments and weights; and the audit finds at most 1. Then both learn the
digits for a few epochs, and are certified. Takes about half a minute on two cores.
"""

import argparse

import torch
from torch import nn

import fastlip
from fastlip import nn as lip
from fastlip.data import Batches, digits


def plain_network():
    """A network as one finds them."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 10),
    )


def swap(module):
    """Replaces the layers of a network, in place, and returns it."""
    for name, child in module.named_children():
        setattr(module, name, replacement(child))
        swap(child)
    return module


def replacement(layer):
    """The 1-Lipschitz layer that takes the place of this one; other modules stay."""
    if type(layer) is nn.ReLU:
        return lip.MaxMin()
    if type(layer) is nn.Conv2d:
        new = lip.AOLConv2d(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,
            layer.stride,
            layer.padding,
            layer.dilation,
            layer.groups,
            bias=layer.bias is not None,
            padding_mode=layer.padding_mode,
        )
    elif type(layer) is nn.Linear:
        new = lip.AOLLinear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    else:
        return layer
    with torch.no_grad():
        new.raw_weight.copy_(layer.weight)
        if layer.bias is not None:
            new.bias.copy_(layer.bias)
    return new


def train(model, batches, epochs):
    """A few epochs of SGD."""
    loss = fastlip.losses.OffsetCrossEntropy(offset=2**1.5 * 36 / 255, temperature=0.05)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for epoch in range(epochs):
        for images, labels in batches.epoch(epoch):
            optimizer.zero_grad()
            loss(model(images), labels).backward()
            optimizer.step()


def main(arguments=None):
    """Returns the certificates of the plain and of the swapped network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args(arguments)

    torch.manual_seed(0)
    torch.set_num_threads(1)  # the images are small: threads would wait for each other
    data = digits()
    certificates = []
    for title, model in (("plain", plain_network()), ("swapped", swap(plain_network()))):
        print(f"{title}: audited L {fastlip.audit(model, data.shape).bound:.4g}")
        train(model, Batches(data.train, data.divisor, 64), options.epochs)
        certificates.append(fastlip.certify(model.eval(), Batches(data.test, data.divisor, 120), [36 / 255]))
        print(f"after {options.epochs} epochs:\n{certificates[-1]}\n")
    return certificates


if __name__ == "__main__":
    main()
