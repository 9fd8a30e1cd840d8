"""The cross-entropies: limits, the comparison paper's formula, soft labels, smoothing and class weights."""

import math

import pytest
import torch
import torch.nn.functional as F
from loss_inputs import CLASSES8, LABELS8, LOGITS8, SCORES8, gradient, soft_labels

from fastlip import losses


def test_offset_cross_entropy_without_offset_is_cross_entropy():
    expected = F.cross_entropy(LOGITS8, CLASSES8)
    torch.testing.assert_close(losses.OffsetCrossEntropy(0.0, 1.0)(LOGITS8, CLASSES8), expected)
    torch.testing.assert_close(losses.TemperatureCrossEntropy(1.0)(LOGITS8, CLASSES8), expected)


def test_offset_cross_entropy_is_the_comparison_papers_loss():
    u, t = 2 * math.sqrt(2) * 36 / 255, 0.25
    expected = t * F.cross_entropy((LOGITS8 - u * F.one_hot(CLASSES8, 3)) / t, CLASSES8)
    torch.testing.assert_close(losses.OffsetCrossEntropy(u, t)(LOGITS8, CLASSES8), expected)


def test_cold_offset_cross_entropy_is_the_hinge_on_the_margin():
    cold, hinge = losses.OffsetCrossEntropy(0.9, 1e-4), losses.CategoricalHinge(0.9)
    torch.testing.assert_close(cold(LOGITS8, CLASSES8), hinge(LOGITS8, CLASSES8), atol=2e-4, rtol=0)
    torch.testing.assert_close(gradient(cold, LOGITS8, CLASSES8), gradient(hinge, LOGITS8, CLASSES8))


def test_two_classes_are_one_score_against_zero():
    loss = losses.OffsetCrossEntropy(0.7, 0.3)
    two = torch.cat((torch.zeros_like(SCORES8), SCORES8), 1)
    torch.testing.assert_close(loss(SCORES8, LABELS8), loss(two, LABELS8))


def test_temperature_limits_of_the_gradient():
    one_hot = F.one_hot(CLASSES8, 3)
    small = gradient(losses.TemperatureCrossEntropy(1e-4, "sum"), LOGITS8, CLASSES8)
    torch.testing.assert_close(small, 1 / 3 - one_hot.float(), atol=2e-4, rtol=0)
    large = gradient(losses.TemperatureCrossEntropy(1e4, "sum"), LOGITS8, CLASSES8)
    torch.testing.assert_close(large, F.one_hot(LOGITS8.argmax(1), 3) - one_hot.float())


def test_the_extremes_of_temperature_cross_entropy_are_kr_and_the_worst_rival():
    """tau -> 0: the gradient of KR where each class is as frequent; tau -> infinity: that of max_j f_j - f_y."""
    logits, labels = torch.randn(9, 3, generator=torch.Generator().manual_seed(4)), torch.arange(9) % 3
    small = gradient(losses.TemperatureCrossEntropy(1e-4), logits, labels)
    kr = gradient(lambda *both: -losses.MulticlassKR()(*both), logits, labels)
    # One against the rest in three classes of three: 3/2 (1/c - onehot), averaged over the three classes.
    torch.testing.assert_close(kr, 1.5 * small, atol=2e-4, rtol=0)
    large = gradient(losses.TemperatureCrossEntropy(1e5), logits, labels)
    worst = gradient(lambda f, y: (f.amax(1) - f.gather(1, y[:, None])[:, 0]).mean(), logits, labels)
    torch.testing.assert_close(large, worst)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_soft_labels_as_in_torch(reduction):
    soft = soft_labels()
    found = losses.TemperatureCrossEntropy(4.0, reduction=reduction)(LOGITS8, soft)
    torch.testing.assert_close(found, F.cross_entropy(4 * LOGITS8, soft, reduction=reduction) / 4)


def test_the_offset_of_soft_labels_follows_the_probabilities():
    soft, offset, temperature = soft_labels(), 0.6, 0.25
    found = losses.OffsetCrossEntropy(offset, temperature)(LOGITS8, soft)
    shifted = (LOGITS8 - offset * soft) / temperature
    torch.testing.assert_close(found, -(temperature * soft * shifted.log_softmax(1)).sum(1).mean())


@pytest.mark.parametrize("weight", [None, torch.tensor([0.5, 2.0, 1.0]), [1, 0, 3]])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_smoothing_and_class_weights_as_in_torch(weight, soft, reduction):
    labels = soft_labels() if soft else CLASSES8
    loss = losses.OffsetCrossEntropy(0.0, reduction=reduction, label_smoothing=0.1, weight=weight)
    weight = None if weight is None else torch.as_tensor(weight, dtype=torch.float32)
    expected = F.cross_entropy(LOGITS8, labels, weight, reduction=reduction, label_smoothing=0.1)
    torch.testing.assert_close(loss(LOGITS8, labels), expected)


def test_smoothing_is_a_soft_label():
    loss, smoothed = losses.OffsetCrossEntropy(0.5, 0.25), losses.OffsetCrossEntropy(0.5, 0.25, label_smoothing=0.3)
    soft = 0.7 * F.one_hot(CLASSES8, 3) + 0.1
    torch.testing.assert_close(smoothed(LOGITS8, CLASSES8), loss(LOGITS8, soft))


def test_one_score_takes_a_probability():
    scores, soft = SCORES8[:, 0], torch.linspace(0.1, 0.9, 8)
    found = losses.OffsetCrossEntropy(0.0)(scores, soft)
    torch.testing.assert_close(found, F.binary_cross_entropy_with_logits(scores, soft))
    torch.testing.assert_close(losses.OffsetCrossEntropy(0.0)(SCORES8, soft[:, None]), found)


def test_class_weights_are_a_buffer_that_moves_with_the_loss():
    loss = losses.TemperatureCrossEntropy(2.0, weight=[1.0, 2.0, 3.0])
    assert set(loss.state_dict()) == {"weight"}
    assert loss.to("meta").weight.device.type == "meta"
    assert not losses.TemperatureCrossEntropy(2.0).state_dict()


def test_soft_labels_compile():
    loss = losses.OffsetCrossEntropy(0.5, 0.25)
    compiled = torch.compile(loss, backend="eager", fullgraph=True)
    for labels in (soft_labels(), F.one_hot(CLASSES8, 3).float(), 2 * F.one_hot(CLASSES8, 3).float() - 1):
        torch.testing.assert_close(compiled(LOGITS8, labels), loss(LOGITS8, labels))


@pytest.mark.parametrize(
    ("options", "labels", "message"),
    [
        ({"label_smoothing": 1.5}, CLASSES8, r"label_smoothing=1\.5"),
        ({"weight": [1.0, -1.0, 1.0]}, CLASSES8, "weight="),
        ({"weight": [1.0, float("nan"), 1.0]}, CLASSES8, "weight="),
        ({"weight": [1.0, 2.0]}, CLASSES8, "weight: got 2 class weights, expected 3"),
        ({}, 2 * soft_labels(), "labels: soft labels are probabilities"),
        ({}, soft_labels() - 0.4, "labels: soft labels are probabilities"),
    ],
)
def test_errors_of_soft_labels_and_class_options(options, labels, message):
    with pytest.raises(ValueError, match=message):
        losses.OffsetCrossEntropy(0.5, **options)(LOGITS8, labels)
