"""The options of an attack, checked."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from fastlip.certification.attacks.ball import Bounds
from fastlip.certification.attacks.objective import LOSSES, AttackLoss
from fastlip.certification.certificates import Certificate
from fastlip.certification.input_norms import InputNorm, require_same
from fastlip.inspection.evaluation import check_eps
from fastlip.nn.arguments import positive_int

AttackKind = Literal["pgd", "apgd"]
# The default losses of each.
KINDS: dict[AttackKind, tuple[AttackLoss, ...]] = {"pgd": ("margin",), "apgd": ("ce", "dlr")}


@dataclass(frozen=True)
class Plan:
    """The checked options of a search; ``runs`` lists its parts as (loss, restart)."""

    kind: AttackKind
    losses: tuple[AttackLoss, ...]
    steps: int
    restarts: int
    step_size: float

    @classmethod
    def checked(
        cls, kind: AttackKind, losses: Sequence[AttackLoss] | None, steps: int, restarts: int, step_size: float | None
    ) -> Plan:
        """The plan; ValueError or TypeError names the argument that is not allowed."""
        if kind not in KINDS:
            raise ValueError(f"kind={kind!r}: allowed are {', '.join(map(repr, KINDS))}")
        chosen = KINDS[kind] if losses is None else tuple(losses)
        if not chosen or isinstance(losses, str) or not set(chosen) <= set(LOSSES):
            raise ValueError(f"losses={losses!r}: expected some of {', '.join(map(repr, LOSSES))}, in a sequence")
        positive_int("steps", steps)
        positive_int("restarts", restarts)
        if step_size is not None and kind != "pgd":
            raise ValueError(f"step_size={step_size!r}: kind={kind!r} finds its own")
        size = 2.5 / steps if step_size is None else step_size
        if not (math.isfinite(size) and size > 0):
            raise ValueError(f"step_size={step_size!r}: expected a positive number")
        return cls(kind, chosen, steps, restarts, float(size))

    def runs(self) -> Iterator[tuple[AttackLoss, int]]:
        """Every loss and restart, in order."""
        for loss in self.losses:
            for restart in range(self.restarts):
                yield loss, restart


class Radii:
    """The radii to attack, per sample: those asked for, and the certified ones if there is a certificate."""

    def __init__(self, eps: Sequence[float] | Tensor, certificate: Certificate | None):
        if certificate is not None and not isinstance(certificate, Certificate):
            raise TypeError(f"certificate: got {type(certificate).__name__}, expected a fastlip Certificate")
        if certificate is not None and certificate.threshold:
            raise ValueError(
                f"certificate: its threshold is {certificate.threshold}, expected 0: an attack goes by the sign of "
                "the score, so subtract the threshold in the model"
            )
        self.per_sample = isinstance(eps, Tensor)
        self.values = torch.as_tensor(eps, dtype=torch.float64).detach().cpu()
        self.certificate = certificate
        if self.per_sample and self.values.dim() == 1:
            self.values = self.values[:, None]
        if self.values.dim() != (2 if self.per_sample else 1) or not self.values.numel():
            raise ValueError(
                f"eps: got shape {tuple(self.values.shape)}, expected numbers, or a tensor (n,) or (n, k) of radii"
            )
        check_eps([self.values.amin().item(), self.values.amax().item()])

    def asked(self, start: int, count: int) -> Tensor:
        """(count, k): the radii asked for of samples start to start + count."""
        if self.per_sample:
            return self._rows("eps", self.values, start, count)
        return self.values.expand(count, -1)

    def certified(self, start: int, count: int) -> Tensor:
        """(count,): the certified radii of these samples, 0 without a certificate."""
        if self.certificate is None:
            return torch.zeros(count, dtype=torch.float64)
        return self._rows("certificate", self.certificate.radii, start, count)

    def check_norm(self, norm: InputNorm) -> None:
        """Refuses a certificate whose radii are in another norm than those of the attack."""
        if self.certificate is not None:
            require_same("certificate", self.certificate.norm, norm, "the attack is")

    def check_certificate(self, start: int, margins: Tensor, labels: Tensor) -> None:
        """Refuses a certificate that was made for other samples, another model or another dtype."""
        if self.certificate is None:
            return
        rows = slice(start, start + len(margins))
        # Both evaluations are off by the stated rounding at most: each of two logits, in L2 norm together.
        allowed = 2 * math.sqrt(2) * self.certificate.rounding
        differences = (margins.double() - self.certificate.margins[rows]).abs()
        if not (differences <= allowed).all() or not torch.equal(labels, self.certificate.labels[rows]):
            raise ValueError(
                "certificate: its labels or margins are not those of this model on this loader; it must have been"
                f" made of both, in the same order and dtype (margins differ by up to {differences.amax():.2g},"
                f" rounding explains {allowed:.2g})"
            )

    def check_count(self, n: int) -> None:
        """Refuses more radii than samples."""
        given = {"eps": len(self.values) if self.per_sample else n}
        given["certificate"] = n if self.certificate is None else self.certificate.n
        for name, count in given.items():
            if count != n:
                raise ValueError(f"{name}: got {count} radii, the loader has {n} samples")

    def _rows(self, name: str, values: Tensor, start: int, count: int) -> Tensor:
        if len(values) < start + count:
            raise ValueError(f"{name}: got {len(values)} radii, the loader has at least {start + count} samples")
        return values[start : start + count]


def box(bounds: Bounds, x: Tensor, where: str) -> tuple[Tensor, Tensor]:
    """The least and largest values of every entry of the images x (b, ...), both (b, ...)."""
    if bounds is None:
        return torch.full_like(x, -math.inf), torch.full_like(x, math.inf)
    low, high = (_limit(bounds, value, x) for value in bounds)
    if not (low <= high).all():
        raise ValueError(f"bounds={bounds!r}: expected low <= high")
    slack = 4 * torch.finfo(x.dtype).eps * torch.maximum(low.abs(), high.abs()).clamp_min(1)
    if not ((x >= low - slack) & (x <= high + slack)).all():
        raise ValueError(
            f"bounds: the images of {where} have values from {x.amin():.4g} to {x.amax():.4g}, outside of"
            f" {low.amin():.4g} to {high.amax():.4g}; bounds=None sets none"
        )
    return torch.minimum(low, x), torch.maximum(high, x)


def make_generator(seed: Any) -> torch.Generator:
    """The generator given, or one with this seed."""
    if isinstance(seed, torch.Generator):
        return seed
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed={seed!r}: expected an int or a torch.Generator, got {type(seed).__name__}")
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed={seed}: expected 0 to 2**63 - 1")
    return torch.Generator().manual_seed(seed)


def check_bounds(bounds: Any) -> None:
    """Raises ValueError unless bounds are None or a pair."""
    if bounds is not None and (not isinstance(bounds, (tuple, list)) or len(bounds) != 2):
        raise ValueError(f"bounds={bounds!r}: expected (low, high) or None")


def _limit(bounds: Any, value: Any, x: Tensor) -> Tensor:
    try:
        return torch.as_tensor(value, dtype=x.dtype, device=x.device).expand(x.shape[1:])
    except (RuntimeError, TypeError, ValueError):
        raise ValueError(
            f"bounds={bounds!r}: expected numbers, or tensors that broadcast to an image {tuple(x.shape[1:])}"
        ) from None
