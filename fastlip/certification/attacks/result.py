"""The result of an attack, and the file that keeps the evidence against a certificate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastlip._files import write_atomically
from fastlip.certification.attacks.objective import AttackLoss
from fastlip.certification.attacks.options import AttackKind
from fastlip.certification.input_norms import L2, InputNorm
from fastlip.inspection.evaluation import radii_of

_FORMAT = 1


class BrokenCertificateWarning(RuntimeWarning):
    """An attack succeeded inside a certified radius: the certificate, or the model it is read for, is wrong."""


@dataclass(frozen=True)
class AttackResult:
    """The result of :func:`fastlip.attack` on n samples and k radii.

    Attributes:
        kind: ``"pgd"`` or ``"apgd"``.
        losses: the losses that were climbed.
        steps: the number of gradients per restart.
        restarts: their number for each loss and radius.
        n: the number of samples.
        accuracy: the share of correct samples without attack; a tie is an error.
        robust_accuracy: for each eps an upper bound of the share of samples that stay correct at every distance below
            eps; empty if radii were given per sample.
        radii: (n, k), where each sample was attacked.
        success: (n, k), whether an image strictly inside the radius fools the model.
        distances: (n,), the distance in ``norm``, recomputed in float64, of the nearest such image that was found:
            0 for samples that are misclassified as they are, inf where none was found.
        found: (m,), the indices of the samples that were broken.
        images: (m, ...), the images that broke them.
        predictions: (m,), the classes that the model assigns to these.
        evidence: by name, the samples whose certificate was broken; see :meth:`save_broken`.
        norm: the :class:`fastlip.certification.InputNorm` of perturbations, in which radii and distances are.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2)).eval()
        >>> images = torch.rand(8, 1, 2, 2)
        >>> found = fastlip.attack(model, [(images, model(images).argmax(1))], eps=[0.1], steps=5)
        >>> tuple(found.success.shape), len(found.broken)
        ((8, 1), 0)
    """

    kind: AttackKind
    losses: tuple[AttackLoss, ...]
    steps: int
    restarts: int
    n: int
    accuracy: float
    robust_accuracy: dict[float, float]
    radii: Tensor = field(repr=False)
    success: Tensor = field(repr=False)
    distances: Tensor = field(repr=False)
    found: Tensor = field(repr=False)
    images: Tensor = field(repr=False)
    predictions: Tensor = field(repr=False)
    evidence: dict[str, Tensor] = field(repr=False)
    norm: InputNorm = field(default=L2, repr=False)

    @property
    def broken(self) -> Tensor:
        """The indices of the samples whose certificate was broken; empty where no certificate was given."""
        return self.evidence.get("index", torch.empty(0, dtype=torch.long))

    @property
    def attacked(self) -> Tensor:
        """(n, k): samples that are correct as they are, at radii above 0."""
        return (self.distances > 0)[:, None] & (self.radii > 0)

    @property
    def success_rate(self) -> list[float]:
        """For each of the k radii, the share of the attacked samples that were broken inside it."""
        attacked = self.attacked.sum(0).clamp_min(1)
        return (self.success.sum(0) / attacked).tolist()

    def curve(self, eps: float | Sequence[float] | Tensor) -> Tensor:
        """An upper bound of robust accuracy at many eps, (k,) to (k,); samples not broken count as robust.

        Args:
            eps: a radius or radii, at least 0.
        """
        values = torch.tensor(radii_of(eps), dtype=torch.float64)
        wrong_first = torch.where(self.distances > 0, self.distances, -1.0).sort().values
        return (self.n - torch.searchsorted(wrong_first, values)).double() / self.n

    def save_broken(self, path: str | Path) -> None:
        """Writes the samples whose certificate was broken, atomically; ``torch.load(weights_only=True)`` reads it.

        The file holds a dict of tensors, one row per sample: index, image, adversarial, label, prediction,
        distance and certified radius (``radius``); and the attack's kind, and ``input_weights`` if there are any.

        Args:
            path: the file.

        Raises:
            ValueError: no certificate was broken.
        """
        if not len(self.broken):
            raise ValueError("save_broken: no certificate was broken")
        weights = {} if self.norm.weights is None else {"input_weights": self.norm.weights}
        state = {"format": _FORMAT, "kind": self.kind, **self.evidence, **weights}
        write_atomically(Path(path), lambda file: torch.save(state, file))

    def to_dict(self) -> dict[str, Any]:
        """The result as plain values, ready for JSON: eps become strings, tensors lists, infinite distances None."""
        return {
            "kind": self.kind,
            **self.norm.to_dict(),
            "losses": list(self.losses),
            "steps": self.steps,
            "restarts": self.restarts,
            "n": self.n,
            "accuracy": self.accuracy,
            "robust_accuracy": {str(eps): share for eps, share in self.robust_accuracy.items()},
            "success_rate": self.success_rate,
            "distances": [value if value < float("inf") else None for value in self.distances.tolist()],
            "broken": self.broken.tolist(),
        }

    def __str__(self) -> str:
        lines = [f"accuracy {self.accuracy:.2%} of {self.n} samples"]
        lines += [f"under attack at {eps:.4g}: at most {share:.2%}" for eps, share in self.robust_accuracy.items()]
        lines.append(f"{self.kind} ({', '.join(self.losses)}), {self.steps} steps, {self.restarts} restarts")
        lines += self.norm.remark()
        if len(self.broken):
            lines.append(broken_text(self.broken))
        return "\n".join(lines)


def broken_text(broken: Tensor) -> str:
    """One line: how many certificates an attack broke, and of which samples."""
    some = ", ".join(map(str, broken[:5].tolist())) + (", ..." if len(broken) > 5 else "")
    count = f"{len(broken)} certificate{'s' if len(broken) > 1 else ''}"
    return f"{count} broken: an attack succeeded within the certified radius (sample {some})"
