"""Converted networks are trained, certified, fused, traced and exported."""

import pytest
import torch
import torch.nn.functional as F
from converted_networks import IMAGES, Function, ResNet, convert, disturb
from torch import nn

import fastlip


def digits():
    data = fastlip.data.digits()
    return [(part.all_pixels / 16, part.labels) for part in (data.train, data.test)]


def train(model, images, labels, epochs, rate, temperature):
    """Cross-entropy with a margin, by Adam."""
    size = 128
    steps = len(images) // size
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=epochs * steps)
    for _ in range(epochs):
        for chosen in torch.randperm(len(images))[: steps * size].split(size):
            scores = model(images[chosen]) - 0.4 * F.one_hot(labels[chosen], 10)
            optimizer.zero_grad()
            F.cross_entropy(scores / temperature, labels[chosen]).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def test_a_converted_resnet_learns_the_digits():
    torch.manual_seed(0)
    (images, labels), test = digits()
    converted, _ = convert(ResNet(), IMAGES, weights="fresh")
    train(converted, images, labels, 8, 0.02, 0.1)
    certificate = fastlip.certify(converted, [test])
    assert certificate.accuracy > 0.5
    assert certificate.cra[36 / 255] > 0


@pytest.mark.slow
def test_a_converted_resnet_certifies_the_digits():
    # ResNet-18's blocks up to 2 x 2 pixels: 98.3 % accuracy, 87.2 % CRA(36/255), after 13 s of training on one core.
    torch.manual_seed(0)
    (images, labels), test = digits()
    converted, report = convert(ResNet(width=16, blocks=(2, 2, 2)), IMAGES, "lot", weights="fresh")
    assert report.complete
    train(converted, images, labels, 30, 0.005, 0.05)
    certificate = fastlip.certify(converted, [test])
    assert fastlip.audit(converted, IMAGES).bound <= 1 + 1e-5
    assert certificate.cra[36 / 255] > 0.8


@pytest.mark.parametrize("method", ["aol", "lot"])
def test_a_converted_model_is_fused_and_traced(method):
    converted, _ = convert(ResNet(width=4), IMAGES, method)
    x = torch.rand(3, *IMAGES)
    expected = disturb(converted).eval()(x)
    assert torch.allclose(fastlip.fuse(converted)(x), expected, atol=1e-5)
    assert torch.allclose(fastlip.unfuse(converted)(x), expected, atol=1e-4)
    assert torch.allclose(torch.fx.symbolic_trace(converted)(x), expected, atol=1e-4)
    assert torch.allclose(torch.export.export(converted, (x,)).module()(x), expected, atol=1e-4)
    with fastlip.freeze(converted):
        assert torch.allclose(converted(x), expected, atol=1e-4)


def test_a_network_without_norms_is_exported():
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), Function(lambda self, x: x + x.tanh())
    )
    converted, _ = convert(model, IMAGES)
    x = torch.rand(3, *IMAGES)
    expected = converted.eval()(x)
    assert torch.allclose(fastlip.export(converted, IMAGES)(x), expected, atol=1e-5)
