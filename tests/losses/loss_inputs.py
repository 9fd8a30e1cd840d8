"""Scores, logits and labels for the tests of losses, and the losses of each kind."""

import torch
import torch.nn.functional as F

from fastlip import losses

SCORES6 = torch.tensor([0.5, 1.5, -0.5, -0.5, -1.5, 0.5]).view(-1, 1)
LABELS6 = torch.tensor([1, 1, 1, 0, 0, 0])
SCORES8 = torch.tensor([0.5, 1.1, -0.1, 0.7, -1.3, -0.4, 0.2, -0.9]).view(-1, 1)
LABELS8 = torch.tensor([1, 1, 1, 1, 0, 0, 0, 0])
LOGITS6 = torch.tensor(
    [[2, 0.2, -0.5], [-1, -1.2, 0.3], [0.8, 2, 0], [0, 1, -0.5], [2.4, -0.4, -1.1], [-0.1, -1.7, 0.6]]
)
CLASSES6 = torch.tensor([0, 0, 0, 1, 1, 2])
LOGITS8 = torch.tensor(
    [
        [1.5, 0.2, -0.5],
        [1, -1.2, 0.3],
        [0.8, 2, -2],
        [0, 1, -0.5],
        [-0.8, 2, 0],
        [2.4, -0.4, -1.1],
        [-0.1, -1.7, 0.6],
        [1.2, 1.3, 2.5],
    ]
)
CLASSES8 = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2])

MULTICLASS = [
    losses.OffsetCrossEntropy(0.4, 0.25),
    losses.TemperatureCrossEntropy(3.0),
    losses.MulticlassHinge(),
    losses.MulticlassKR(),
    losses.MulticlassHKR(0.7),
    losses.SoftHKR(0.7).eval(),
    losses.LseHKR(0.7),
    losses.MultiMargin(),
    losses.CategoricalHinge(),
    losses.EMMA(0.005),  # so small that no class is level: there its gradient is not that of its values
    losses.LogitAnnealing(0.5),
]
BINARY = [losses.OffsetCrossEntropy(0.4), losses.TemperatureCrossEntropy(3.0)]
BINARY += [losses.Hinge(), losses.KR(), losses.HKR(0.7)]


def name(loss):
    return type(loss).__name__


def gradient(loss, logits, labels):
    logits = logits.clone().requires_grad_()
    return torch.autograd.grad(loss(logits, labels), logits)[0]


def soft_labels(share=0.7):
    return share * F.one_hot(CLASSES8, 3).float() + (1 - share) * F.one_hot(CLASSES8.roll(3), 3).float()
