"""fastlip.metrics against fastlip.certify and the formula."""

import math

import pytest
import torch
import torch.distributed as dist

import fastlip
from fastlip import nn as lip
from fastlip.metrics import CertifiedRobustAccuracy

EPS = [0.0, 0.05, 0.2]


def classifier(head):
    torch.manual_seed(0)
    model = torch.nn.Sequential(lip.CayleyLinear(6, 8), lip.MaxMin(), head).eval()
    x, labels = torch.randn(200, 6), torch.randint(4, (200,))
    labels[:100] = model(x[:100]).argmax(1).clamp(max=3)
    return model, x, labels


@pytest.mark.parametrize("head", [lip.CayleyLinear(8, 4), torch.nn.Linear(8, 4)], ids=["joint", "linear"])
def test_agrees_with_the_certificate(head):
    model, x, labels = classifier(head)
    metric = CertifiedRobustAccuracy(EPS, fastlip.losses.class_slopes(model))
    for rows in torch.arange(200).split(70):
        metric.update(model(x[rows]), labels[rows])
    certificate = fastlip.certify(model, [(x, labels)], eps=EPS[1:])
    expected = torch.tensor([certificate.accuracy, *certificate.cra.values()])
    assert 0 < expected[2] < expected[0] < 1
    torch.testing.assert_close(metric.compute(), expected, atol=0.0051, rtol=0)  # a sample may be at the edge


def test_one_score():
    metric = CertifiedRobustAccuracy(EPS)
    scores, labels = torch.tensor([0.1, 0.3, -0.1, -0.3]), torch.tensor([1, 1, 0, 1])
    for shape in ((4,), (4, 1)):
        torch.testing.assert_close(metric(scores.reshape(shape), labels), torch.tensor([0.75, 0.75, 0.25]))
    assert metric.counts.tolist() == [8, 6, 6, 2]
    metric.reset()
    assert metric.compute().isnan().all()


def test_a_call_returns_the_value_of_its_batch():
    metric = CertifiedRobustAccuracy(0.5)
    high, low = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5, 0.0]])
    assert metric(high, [0]).item() == 1
    assert metric(low, [0]).item() == 0
    assert metric.compute().item() == 0.5
    assert CertifiedRobustAccuracy(0.5, slopes=0.9)(low, [0]).item() == 1
    assert metric.state_dict() == {}
    assert not metric(torch.tensor([[math.sqrt(0.5), 0.0]]), [0]).item(), "a radius of eps is not above eps"


def test_processes_add_their_counts(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        metric = CertifiedRobustAccuracy(0.0)
        metric.update(torch.eye(2), [0, 0])
        assert metric.compute().item() == 0.5
        assert metric.counts.tolist() == [2, 1]
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (([-1.0],), "eps=-1.0: expected numbers, at least 0"),
        ((0.1, 0.0), "slopes=0.0: expected a positive number"),
        ((0.1, torch.ones(2, 3)), r"slopes: got shape \(2, 3\)"),
    ],
)
def test_refuses(arguments, text):
    with pytest.raises(ValueError, match=text):
        CertifiedRobustAccuracy(*arguments)


def test_refuses_slopes_of_other_classes():
    with pytest.raises(ValueError, match=r"slopes: got shape \(3, 3\), expected those of 2 classes"):
        CertifiedRobustAccuracy(0.1, torch.ones(3, 3)).update(torch.eye(2), [0, 1])
