"""Makes an existing network 1-Lipschitz: replaces its layers in place, and keeps its weights as initialisation.

The audit of a plain convolutional network gives a large bound. Then every ``nn.Conv2d`` and ``nn.Linear`` is replaced
by an AOL layer with the same arguments and weights, every ``nn.ReLU`` by MaxMin, and the audit gives at most 1. Both
networks learn the digits for a few epochs and are certified. The script takes about half a minute on two cores.
"""

import argparse

import torch
from torch import nn

import fastlip
from fastlip import nn as lip
from fastlip.data import Batches, digits


def plain_network():
    """A usual convolutional network."""
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
    """Replaces the layers of a network in place, and returns the network."""
    for name, child in module.named_children():
        setattr(module, name, replacement(child))
        swap(child)
    return module


def replacement(layer):
    """The 1-Lipschitz layer that replaces this layer; the layer itself if there is none."""
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
    """Trains by SGD for a few epochs."""
    loss = fastlip.losses.OffsetCrossEntropy(offset=2**1.5 * 36 / 255, temperature=0.05)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for epoch in range(epochs):
        for images, labels in batches.epoch(epoch):
            optimizer.zero_grad()
            loss(model(images), labels).backward()
            optimizer.step()


def main(arguments=None):
    """Returns the certificates of the plain and the swapped network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args(arguments)

    torch.manual_seed(0)
    torch.set_num_threads(1)  # images are so small that threads would mostly wait for each other
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
