"""Values published with deel-torchlip's tests, and those of deel-torchlip where it is installed."""

import pytest
import torch
import torch.nn.functional as F
from loss_inputs import CLASSES6, CLASSES8, LABELS6, LABELS8, LOGITS6, LOGITS8, SCORES6, SCORES8

from fastlip import losses

# (loss, scores, labels, value): alpha' = alpha / (1 + alpha) where the published test has alpha > 1.
PUBLISHED = [
    (losses.KR(), SCORES6, LABELS6, 1.0),
    (losses.Hinge(2.0), SCORES6, LABELS6, 4 / 6),
    (losses.MulticlassKR(reduction="auto"), LOGITS6, CLASSES6, 761 / 1800),
    (losses.MulticlassHKR(5 / 6, 2.0), LOGITS6, CLASSES6, 1071 / 200 / 6),
    (losses.TemperatureCrossEntropy(2.0), SCORES6, LABELS6, 0.279185),
    (losses.KR(reduction="none"), SCORES8, LABELS8, [1.0, 2.2, -0.2, 1.4, 2.6, 0.8, -0.4, 1.8]),
    (losses.Hinge(1.4, "none"), SCORES8, LABELS8, [0.2, 0, 0.8, 0, 0, 0.3, 0.9, 0]),
    (
        losses.HKR(2.5 / 3.5, 2.0, reduction="none"),
        SCORES8,
        LABELS8,
        [value / 3.5 for value in (0.25, -2.2, 2.95, -0.65, -2.6, 0.7, 3.4, -1.55)],
    ),
    (
        losses.TemperatureCrossEntropy(0.5, "none"),
        SCORES8,
        LABELS8,
        [1.15188, 0.91098, 1.43692, 1.06676, 0.84011, 1.19628, 1.48879, 0.98650],
    ),
    (
        losses.MulticlassKR(reduction="none"),
        LOGITS8,
        CLASSES8,
        [value / 225 for value in (326, 314, 120, 250, 496, -258, 396, 450)],
    ),
    (
        losses.MulticlassHinge(2.0, "none"),
        LOGITS8,
        CLASSES8,
        [value / 30 for value in (17, 13, 34, 15, 12, 62, 17, 45)],
    ),
    (losses.MultiMargin(0.7, "none"), LOGITS8, CLASSES8, [0, 0, 19 / 30, 0, 0, 35 / 30, 0, 0]),
    (
        losses.MulticlassHKR(2.5 / 3.5, 1.0, reduction="none"),
        LOGITS8,
        CLASSES8,
        [value / 900 / 3.5 for value in (-779, -656, 1395, -625, -1609, 4557, -1284, 825)],
    ),
    (losses.CategoricalHinge(1.1, "none"), LOGITS8, CLASSES8, [0, 0.4, 2.3, 0.1, 0, 3.9, 0.4, 0]),
    (
        losses.TemperatureCrossEntropy(2.0, "none"),
        LOGITS8,
        CLASSES8,
        [0.044275, 0.115109, 1.243572, 0.084923, 0.010887, 2.802300, 0.114224, 0.076357],
    ),
    (
        losses.SoftHKR(5 / 6, 0.2, reduction="none"),
        LOGITS8,
        CLASSES8,
        [
            value / 1.2
            for value in (
                *(-0.10878129, 0.12582462, 2.2788424, -0.17646402),
                *(-0.38242298, 3.4523692, -0.19672059, 1.1028761),
            )
        ],
    ),
    (losses.KR(reduction="sum"), SCORES8, LABELS8, 9.2),
    (losses.TemperatureCrossEntropy(1.5, "sum"), SCORES8, LABELS8, 2.19262),
]


@pytest.mark.parametrize(("loss", "scores", "labels", "value"), PUBLISHED)
def test_values_published_with_deel_torchlip(loss, scores, labels, value):
    torch.testing.assert_close(loss(scores, labels), torch.tensor(value), rtol=2e-6, atol=5e-6)


# (ours, the name and arguments of deel-torchlip's, its factor): its alpha' = alpha / (1 + alpha).
THEIRS = [
    (losses.MulticlassKR(), "KRMulticlassLoss", {}, 1.0),
    (losses.MulticlassHinge(0.8), "HingeMulticlassLoss", {"min_margin": 0.8}, 1.0),
    (losses.MulticlassHKR(0.75, 0.8), "HKRMulticlassLoss", {"alpha": 0.75, "min_margin": 0.8}, 1.0),
    (losses.CategoricalHinge(0.8), "CategoricalHingeLoss", {"min_margin": 0.8}, 1.0),
    (losses.TemperatureCrossEntropy(3.0), "TauCrossEntropyLoss", {"tau": 3.0}, 1.0),
]


@pytest.mark.parametrize(("loss", "their_name", "options", "factor"), THEIRS, ids=lambda value: str(value)[:24])
def test_values_equal_those_of_deel_torchlip_where_it_is_installed(loss, their_name, options, factor):
    torchlip = pytest.importorskip("deel.torchlip")
    theirs = getattr(torchlip, their_name)(**options)
    generator = torch.Generator().manual_seed(5)
    for _ in range(3):
        logits, labels = torch.randn(16, 5, generator=generator), torch.randint(5, (16,), generator=generator)
        one_hot = F.one_hot(labels, 5)
        labels_of_theirs = labels if their_name == "TauCrossEntropyLoss" else one_hot
        torch.testing.assert_close(loss(logits, labels), factor * theirs(logits, labels_of_theirs))
