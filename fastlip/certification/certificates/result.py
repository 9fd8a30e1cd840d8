"""The result of ``fastlip.certify``: accuracy, certified robust accuracy and the radius of every sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fastlip.certification.auditing import Audit
from fastlip.certification.input_norms import InputNorm
from fastlip.certification.norms import share_above
from fastlip.certification.rounding import RoundingModel


@dataclass(frozen=True)
class Certificate:
    """The result of :func:`fastlip.certify` on n samples.

    Attributes:
        accuracy: the share of samples that are classified correctly; a tie is an error.
        cra: for each eps the share of samples that are classified correctly with a radius above eps.
        joint_cra: the same by margin / (sqrt 2 L) alone, which is what papers report.
        radii: (n,), certified radii, 0 for misclassified samples. They and all eps are in ``norm``: L2, or weighted
            if the network begins with :class:`fastlip.nn.InputWeights`.
        margins: (n,), f_y - max_{j != y} f_j as computed, negative for misclassified samples.
        labels: (n,), the classes y.
        predictions: (n,), the classes with the largest scores.
        lipschitz: the audited bound L of the network, by which margins are divided.
        rounding: the largest bound of the forward's error in L2 norm, for an image and those within its radius.
        n: the number of samples.
        audit: the bound of every layer.
        rounding_model: ``"worst-case"`` or ``"probabilistic"``, how ``rounding`` was bounded.
        class_radii: (n, c) if asked for, else None: how far each image may be moved with f_y still above f_j; 0 where
            it is not, inf at j = y.
        threshold: the score above which a network with one output predicts label 1.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), lip.CayleyLinear(4, 2)).eval()
        >>> images = torch.rand(8, 1, 2, 2)
        >>> certificate = fastlip.certify(model, [(images, model(images).argmax(1))], eps=[0.0])
        >>> certificate.accuracy, certificate.n, tuple(certificate.radii.shape)
        (1.0, 8, (8,))
    """

    accuracy: float
    cra: dict[float, float]
    joint_cra: dict[float, float]
    radii: Tensor
    margins: Tensor
    labels: Tensor
    predictions: Tensor
    lipschitz: float
    rounding: float
    n: int
    audit: Audit = field(repr=False)
    rounding_model: RoundingModel = "worst-case"
    class_radii: Tensor | None = field(default=None, repr=False)
    threshold: float = 0.0

    def curve(self, eps: float | Sequence[float] | Tensor) -> Tensor:
        """Certified robust accuracy at many radii.

        Args:
            eps: a radius, or (k,) radii, at least 0.

        Returns:
            (k,) shares of the samples, float64.

        Raises:
            ValueError: a radius that is negative or not finite.
            TypeError: a radius that is no number.
        """
        return share_above(self.radii, eps)

    @property
    def norm(self) -> InputNorm:
        """The norm of perturbations in which eps and radii are."""
        return self.audit.norm

    def feature_radii(self) -> Tensor:
        r"""How far each input alone may move, all others as they are, without changing the prediction: r / w_i.

        Returns:
            (n, \*input_shape), float64, in the units of the inputs.
        """
        return self.norm.feature_radii(self.radii)

    def lp_radii(self, p: float, weighted: bool = True) -> Tensor:
        r"""Certified radii in an L_p norm: no perturbation shorter in it changes the prediction.

        .. math:: r_p = r \; d^{\,\min(0,\; 1/p - 1/2)}

        d is the number of inputs: r / sqrt(d) for Linf, r for L1 (:func:`fastlip.certification.lp_factor`). If inputs
        have weights w, these are norms of w delta, or with ``weighted=False`` of delta itself: then r / max w for L1
        and L2, r / \|w\|_2 for Linf (:meth:`fastlip.certification.InputNorm.lp_factor`).

        Args:
            p: the norm, at least 1; ``math.inf`` for Linf.
            weighted: whether inputs are weighted in the L_p norm as in ``norm``; default True.

        Returns:
            (n,) radii in L_p norm, float64.

        Raises:
            ValueError: p below 1.
        """
        return self.radii * self.norm.lp_factor(p, weighted)

    def to_dict(self) -> dict[str, Any]:
        """The certificate as plain values, ready for JSON: eps become strings, tensors lists."""
        return {
            "accuracy": self.accuracy,
            "cra": {str(eps): share for eps, share in self.cra.items()},
            "joint_cra": {str(eps): share for eps, share in self.joint_cra.items()},
            **self.norm.to_dict(),
            "lipschitz": self.lipschitz,
            "rounding": self.rounding,
            "rounding_model": self.rounding_model,
            "threshold": self.threshold,
            "n": self.n,
            "radii": self.radii.tolist(),
            "margins": self.margins.tolist(),
            "audit": self.audit.to_dict(cost=False),
        }

    def __str__(self) -> str:
        lines = [f"accuracy {self.accuracy:.2%} of {self.n} samples"]
        for eps, share in self.cra.items():
            joint = self.joint_cra[eps]
            lines.append(f"certified at {eps:.4g}: {share:.2%}  (by margin / (sqrt 2 L) alone: {joint:.2%})")
        lines.append(f"Lipschitz constant at most {self.lipschitz:.9g} (audited; radii are divided by it)")
        lines += self.norm.remark()
        lines.append(
            f"error of the forward at most {self.rounding:.3g} ({self.rounding_model}; taken off the margins)"
        )
        return "\n".join(lines)
