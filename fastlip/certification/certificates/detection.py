"""``fastlip.certify_detector``: what one-class detectors detect at least, under every perturbation."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fractions import Fraction
from numbers import Real
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fastlip.certification.certificates.outputs import CertifiedOutputs, check_outputs
from fastlip.certification.input_norms import InputNorm
from fastlip.losses.labels import binary, is_binary
from fastlip.nn.arguments import one_of

Attacked = Literal["both", "normal", "anomalies"]


class DetectionRates(NamedTuple):
    """Rates of a detector at one threshold.

    Attributes:
        detection: the share of the anomalies that are detected at least.
        false_alarm: the share of the normal samples that are taken for anomalies at most.

    Example:
        >>> model = torch.nn.Sequential(lip.CayleyLinear(4, 1)).eval()
        >>> x = torch.rand(16, 4)
        >>> detector = fastlip.certify_detector(fastlip.certify_outputs(model, [(x, torch.arange(16) % 2)]))
        >>> detector.rates(10.0, eps=0.5)
        DetectionRates(detection=1.0, false_alarm=1.0)
    """

    detection: float
    false_alarm: float


@dataclass(frozen=True)
class DetectorCertificate:
    """The result of :func:`fastlip.certify_detector`.

    Attributes:
        scores: (n,), the outputs, high for normal samples.
        normal: (n,), whether a sample is normal.
        outputs: those of the network, with the bounds of their change.

    Example:
        >>> model = torch.nn.Sequential(lip.CayleyLinear(4, 1)).eval()
        >>> x = torch.rand(16, 4)
        >>> outputs = fastlip.certify_outputs(model, [(x, model(x)[:, 0] > model(x).median())])
        >>> detector = fastlip.certify_detector(outputs)
        >>> detector.auroc, detector.certified_auroc(0.01) <= 1.0, detector.certified_auroc(9.0)
        (1.0, True, 0.0)
    """

    scores: Tensor
    normal: Tensor
    outputs: CertifiedOutputs = field(repr=False)

    @property
    def norm(self) -> InputNorm:
        """The norm of perturbations in which all eps are: L2, or weighted by a first layer ``InputWeights``."""
        return self.outputs.norm

    @property
    def auroc(self) -> float:
        """The area under the ROC curve without a perturbation; a tie counts one half."""
        high, low = self.scores[self.normal], self.scores[~self.normal].sort().values
        below = torch.searchsorted(low, high) + torch.searchsorted(low, high, right=True)
        return below.double().mean().item() / (2 * len(low))

    def certified_auroc(self, eps: float, attacked: Attacked = "both") -> float:
        """A lower bound of the area under the ROC curve if every sample is perturbed; a tie counts against it.

        Args:
            eps: the norm of the perturbations, at least 0.
            attacked: which samples are perturbed: ``"both"`` (default), ``"normal"`` or ``"anomalies"``.

        Returns:
            The share of pairs of a normal sample and an anomaly whose worst scores are still in the right order.

        Raises:
            ValueError: another eps or name.
        """
        low, high = self._worst(eps, attacked)
        return torch.searchsorted(high.sort().values, low).double().mean().item() / len(high)

    def rates(self, threshold: float, eps: float, attacked: Attacked = "both") -> DetectionRates:
        """Bounds of the detection and the false alarm rate, if samples with scores above the threshold are normal.

        Args:
            threshold: the number with which scores are compared.
            eps: the norm of the perturbations, at least 0.
            attacked: see :meth:`certified_auroc`.

        Returns:
            :class:`fastlip.certification.DetectionRates`.

        Raises:
            TypeError: threshold is not a number.
            ValueError: another eps or name, or a threshold that is NaN.
        """
        if isinstance(threshold, bool) or not isinstance(threshold, Real):
            raise TypeError(f"threshold={threshold!r}: expected a number")
        if math.isnan(threshold):
            raise ValueError("threshold=nan: expected a number")
        low, high = self._worst(eps, attacked)
        return DetectionRates((high < threshold).double().mean().item(), (low <= threshold).double().mean().item())

    def threshold_at(self, false_alarm: float, eps: float = 0.0, attacked: Attacked = "both") -> float:
        """The largest threshold at which the bound of the false alarm rate is within a limit, on these samples.

        Args:
            false_alarm: the limit, from 0 to 1 (excluded).
            eps: the norm of the perturbations; default 0.
            attacked: see :meth:`certified_auroc`.

        Returns:
            The threshold; -inf if there is no bound.

        Raises:
            TypeError: false_alarm is not a number.
            ValueError: another limit, eps or name.
        """
        if isinstance(false_alarm, bool) or not isinstance(false_alarm, Real):
            raise TypeError(f"false_alarm={false_alarm!r}: expected a number from 0 to below 1")
        if not 0 <= false_alarm < 1:
            raise ValueError(f"false_alarm={false_alarm}: expected a number from 0 to below 1")
        low = self._worst(eps, attacked)[0].sort().values
        alarms = int(Fraction(str(float(false_alarm))) * len(low))  # of the decimal number: 0.29 of 100 are 29
        return math.nextafter(low[alarms].item(), -math.inf)

    def _worst(self, eps: float, attacked: Attacked) -> tuple[Tensor, Tensor]:
        """The least scores of the normal samples, and the largest ones of the anomalies."""
        one_of("attacked", attacked, ("both", "normal", "anomalies"))
        moved, still = self.outputs.interval(eps), self.outputs.interval(0.0)
        low = (still if attacked == "anomalies" else moved).low
        high = (still if attacked == "normal" else moved).high
        return low.reshape(-1)[self.normal], high.reshape(-1)[~self.normal]


def certify_detector(outputs: CertifiedOutputs) -> DetectorCertificate:
    r"""Certifies a one-class detector: a network whose one output f is high for normal samples, low for anomalies.

    .. math:: \mathrm{AUROC}(\varepsilon) \ge \frac{1}{n m} \sum_{i=1}^{n} \sum_{j=1}^{m}
              \left[ f(x_i) - c_i(\varepsilon) > f(a_j) + c_j(\varepsilon) \right],
              \qquad c_i(\varepsilon) = L \varepsilon + e_i(\varepsilon)

    A perturbation of norm at most eps moves a score by at most c(eps). So the scores of the n normal samples x_i are
    lowered by it and those of the m anomalies a_j raised: a pair counts only if it is then still in the right order,
    and a tie counts against the detector. Rates at a threshold follow in the same way. Certified AUROC of 1-Lipschitz
    signed distance functions: Béthune et al., *Robust One-Class Classification with Signed Distance Function using
    1-Lipschitz Neural Networks* (ICML 2023).

    Args:
        outputs: those of a network with outputs (n,) or (n, 1) and labels 1 (normal) and 0 or -1 (anomaly), by
            :func:`fastlip.certify_outputs`.

    Returns:
        A :class:`fastlip.certification.DetectorCertificate`.

    Raises:
        ValueError: several outputs, no labels or other labels, or samples of one kind only.

    Example:
        >>> model = torch.nn.Sequential(lip.CayleyLinear(4, 8), lip.MaxMin(), lip.CayleyLinear(8, 1)).eval()
        >>> normal, anomalies = torch.zeros(8, 4), torch.ones(8, 4)
        >>> batches = [(normal, torch.ones(8)), (anomalies, -torch.ones(8))]
        >>> detector = fastlip.certify_detector(fastlip.certify_outputs(model, batches))
        >>> detector.certified_auroc(0.1) <= detector.auroc
        True
    """
    check_outputs(outputs)
    if not is_binary(outputs.values):
        raise ValueError(f"outputs: got shape {tuple(outputs.values.shape)}, expected one score, (n,) or (n, 1)")
    scores, normal = binary(outputs.values, outputs.known_targets(), wait=True)
    normal = normal.reshape(-1)
    if normal.all() or not normal.any():
        raise ValueError(
            f"labels: all are of {'normal samples' if normal.all() else 'anomalies'}, expected both kinds"
        )
    return DetectorCertificate(scores.reshape(-1), normal, outputs)
