"""Certified detection: against scikit-learn, all pairs one by one, and perturbations that reach the bound."""

import math

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

import fastlip
from fastlip import nn as lip


@pytest.fixture
def layer():
    """A linear score w x: a perturbation eps w / |w| moves it by exactly eps |w|."""
    return nn.Sequential(nn.Linear(5, 1)).double().eval()


def samples(count=60):
    labels = (torch.arange(count) % 3 > 0).long()
    return torch.randn(count, 5, dtype=torch.float64) + labels[:, None] / 2, labels


def certified(model, x, labels):
    return fastlip.certify_detector(fastlip.certify_outputs(model, [(x, labels)]))


@pytest.mark.parametrize("attacked", ["both", "normal", "anomalies"])
def test_the_certified_curve_of_a_linear_score_is_that_under_the_worst_attack(layer, attacked):
    x, labels = samples()
    layer[0].weight.data.fill_(1.0)
    detector = certified(layer, x, labels)
    assert detector.auroc == pytest.approx(roc_auc_score(labels, layer(x).detach()[:, 0]))
    direction = layer[0].weight.detach() / layer[0].weight.detach().norm()
    for eps in (0.0, 0.1, 0.4):
        # Both kinds move towards each other, as far as they may.
        moves = -eps * labels.double() * (attacked != "anomalies") + eps * (1 - labels) * (attacked != "normal")
        worst = layer(x + moves[:, None] * direction).detach()[:, 0]
        found = detector.certified_auroc(eps, attacked)
        assert found == pytest.approx(roc_auc_score(labels, worst), abs=1e-9)
        for threshold in (0.0, 1.0):
            rates = detector.rates(threshold, eps, attacked)
            assert rates.detection == (worst < threshold)[labels == 0].double().mean()
            assert rates.false_alarm == (worst <= threshold)[labels == 1].double().mean()
    assert detector.certified_auroc(100.0, attacked) == 0


@pytest.mark.parametrize("tail", [nn.Identity(), nn.Flatten(0)], ids=["(n, 1)", "(n,)"])
@pytest.mark.parametrize("encode", [lambda y: y, lambda y: 2 * y - 1, lambda y: y > 0, lambda y: y.float()[:, None]])
def test_labels_in_every_encoding(tail, encode):
    model = nn.Sequential(lip.CayleyLinear(5, 8), lip.MaxMin(), lip.CayleyLinear(8, 1), tail).double().eval()
    x, labels = samples()
    detector = certified(model, x, encode(labels))
    assert detector.normal.tolist() == (labels > 0).tolist()
    low, high = detector.outputs.interval(0.2)
    pairs = [(a > b).item() for a in low.reshape(-1)[labels > 0] for b in high.reshape(-1)[labels == 0]]
    assert detector.certified_auroc(0.2) == pytest.approx(sum(pairs) / len(pairs))


def test_ties_count_against_the_detector():
    constant = nn.Sequential(nn.Linear(5, 1)).double().eval()
    constant[0].weight.data.zero_()
    detector = certified(constant, *samples())
    assert detector.auroc == 0.5
    assert detector.certified_auroc(0.0) == 0
    bias = constant[0].bias.item()
    assert detector.rates(bias, 0.0) == (0.0, 1.0)


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.29, 0.99])
def test_a_threshold_keeps_the_false_alarms(layer, rate):
    detector = certified(layer, *samples(300))
    for eps in (0.0, 0.2):
        threshold = detector.threshold_at(rate, eps)
        low = detector.outputs.interval(eps).low[:, 0][detector.normal]
        assert detector.rates(threshold, eps).false_alarm <= rate
        above = math.nextafter(math.nextafter(threshold, math.inf), math.inf)
        assert (low <= above).double().mean() > rate, "no larger threshold does"
    assert detector.threshold_at(rate, 0.2) <= detector.threshold_at(rate, 0.2, "anomalies")


def test_what_is_refused(layer):
    x, labels = samples()
    detector = certified(layer, x, labels)
    with pytest.raises(ValueError, match="labels: all are of normal samples"):
        certified(layer, x, torch.ones(60))
    with pytest.raises(ValueError, match="labels: all are of anomalies"):
        certified(layer, x, torch.zeros(60))
    with pytest.raises(ValueError, match=r"outputs: got shape \(60, 2\), expected one score"):
        certified(nn.Linear(5, 2).double().eval(), x, labels)
    with pytest.raises(ValueError, match="no labels"):
        fastlip.certify_detector(fastlip.certify_outputs(layer, [x]))
    with pytest.raises(ValueError, match="attacked='all': allowed are"):
        detector.certified_auroc(0.1, "all")
    with pytest.raises(ValueError, match="false_alarm=1"):
        detector.threshold_at(1.0)
    with pytest.raises(ValueError, match="eps=-1"):
        detector.certified_auroc(-1)
    with pytest.raises(ValueError, match="threshold=nan"):
        detector.rates(math.nan, 0.1)
    with pytest.raises(TypeError, match="threshold='0': expected a number"):
        detector.rates("0", 0.1)
    with pytest.raises(TypeError, match="false_alarm='1%': expected a number"):
        detector.threshold_at("1%")
