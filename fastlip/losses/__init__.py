r"""Losses for 1-Lipschitz classifiers: each trades accuracy against certified robustness in a different way.

A 1-Lipschitz network cannot raise its margins by scaling its outputs. The loss therefore decides where on the
accuracy-robustness curve training ends (Béthune et al., *Pay attention to your loss*, NeurIPS 2022, arXiv
2104.05097). Parameters and values follow deel-torchlip, so that results carry over.

Binary losses (``Hinge``, ``KR``, ``HKR``) take scores (n,), (n, 1), or (n, c) for c binary problems. Their labels are
{0, 1} or {-1, 1}, of any dtype and as many elements as the scores, or class numbers (n,) for one problem per class.
Multiclass losses take logits (n, c), c >= 2. Their labels are integers (n,), or one-hot rows (n, c) with entries
{0, 1} or {-1, 1}. The two cross-entropies take both kinds, and soft labels: rows of probabilities (n, c). Labels may
be tensors, NumPy arrays or lists.

Every loss has ``reduction``: ``"mean"`` (also ``"auto"``), ``"sum"`` or ``"none"`` (one value per sample). 16-bit
logits are raised to float32, and the loss is float32. Labels out of range, shapes that do not fit and parameters out
of range raise ValueError; labels or scores of a wrong type raise TypeError.
"""

from __future__ import annotations

from typing import Literal

from fastlip.losses.annealing import LogitAnnealing
from fastlip.losses.base import Loss
from fastlip.losses.classification import OffsetCrossEntropy, TemperatureCrossEntropy
from fastlip.losses.emma import EMMA, RadiusRamp
from fastlip.losses.margins import CategoricalHinge, Hinge, MulticlassHinge, MultiMargin
from fastlip.losses.slopes import class_slopes
from fastlip.losses.soft_hkr import LseHKR, SoftHKR
from fastlip.losses.wasserstein import HKR, KR, MulticlassHKR, MulticlassKR

__all__ = [
    "EMMA",
    "HKR",
    "KR",
    "CategoricalHinge",
    "Hinge",
    "LogitAnnealing",
    "Loss",
    "LseHKR",
    "MultiMargin",
    "MulticlassHKR",
    "MulticlassHinge",
    "MulticlassKR",
    "OffsetCrossEntropy",
    "RadiusRamp",
    "SoftHKR",
    "TemperatureCrossEntropy",
    "class_slopes",
]

# The losses that recipes know: their names there, for type checkers, and the classes by these names.
LossName = Literal["offset-ce", "temperature-ce", "hkr", "emma", "logit-annealing"]
_IN_RECIPES: tuple[type[Loss], ...] = (
    OffsetCrossEntropy,
    TemperatureCrossEntropy,
    MulticlassHKR,
    EMMA,
    LogitAnnealing,
)
RECIPE_LOSSES: dict[str, type[Loss]] = {loss.recipe_name: loss for loss in _IN_RECIPES}
