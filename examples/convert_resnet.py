"""Converts a ResNet-18, trains it on the digits, audits and certifies it. Takes about a minute on two cores."""

import argparse

import torch
from torch import nn

import fastlip


class Block(nn.Module):
    """Two convolutions with batch norm, and a shortcut that has a strided convolution where the shape changes."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
        self.body = nn.Sequential(*first, nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs))
        changed = nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential(*changed) if stride > 1 else nn.Identity()

    def forward(self, x):
        """Sum of both, then ReLU."""
        return torch.relu(self.body(x) + self.shortcut(x))


def resnet18(w=16):
    """ResNet-18 of width w for small images of one channel."""
    stem = nn.Conv2d(1, w, 3, 1, 1, bias=False), nn.BatchNorm2d(w), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
    blocks = [Block(i * w, o * w, o // i) for o in (1, 2, 4, 8) for i in (max(o // 2, 1), o)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8 * w, 10))


def main(arguments=None):
    """Returns the report of the conversion and the certificate on the test digits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=20)
    epochs = parser.parse_args(arguments).epochs
    torch.manual_seed(0)
    torch.set_num_threads(1)  # images are so small that threads would mostly wait for each other
    data = fastlip.data.digits()
    train, test = (fastlip.data.Batches(part, data.divisor, 128) for part in (data.train, data.test))
    model, report = fastlip.convert(resnet18(), "lot", example=next(iter(train))[0], weights="fresh")
    loss = fastlip.losses.OffsetCrossEntropy(offset=0.4, temperature=0.05)
    optimizer = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.005, total_steps=epochs * len(train))
    for epoch in range(epochs):
        for images, labels in train.epoch(epoch):
            optimizer.zero_grad()
            loss(model(images), labels).backward()
            optimizer.step()
            schedule.step()
    print(f"audited L {fastlip.audit(model.eval(), data.shape).bound:.7f}")
    print(certificate := fastlip.certify(model, test, [36 / 255], bounds=(0, 1)))
    return report, certificate


if __name__ == "__main__":
    main()
