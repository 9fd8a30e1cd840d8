"""The runs of a study: a method or the plain twin, with a size, a backend, a variant of the recipe and a seed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

from fastlip.kernels.common.literals import Backend
from fastlip.models import TITLES
from fastlip.models.literals import MethodName
from fastlip.training.literals import Size

PLAIN = "plain"
# Fields that decide which plain twin a network has.
NETWORK = ("model", "width", "layers_per_block", "depth", "patch")
# Fields whose values are names that say what they are.
_NAMED = ("loss", "model", "recipe", "optimizer", "schedule")


@dataclass(frozen=True)
class Contender:
    """One run of a study.

    Args:
        method: the layers of its network, or ``"plain"`` for the twin of ``torch.nn`` layers.
        size: size of its network.
        backend: the kernels.
        recipe: name or file of its recipe; "": the recipe for data set and network.
        changes: fields in which its recipe differs from that recipe with the study's options, and their values.
        seed: its seed; None: the recipe's.
    """

    method: MethodName | Literal["plain"]
    size: Size
    backend: Backend = "auto"
    recipe: str = ""
    changes: tuple[tuple[str, Any], ...] = ()
    seed: int | None = None

    @property
    def name(self) -> str:
        """The name of its folder."""
        seed = "" if self.seed is None else f"-seed{self.seed}"
        return f"{self.method}-{self.size}-{self.backend}{self.variant}{seed}"

    @property
    def group(self) -> str:
        """A name for the contenders that differ from this one in backend and seed only."""
        return f"{self.method}-{self.size}{self.variant}"

    @property
    def variant(self) -> str:
        """The end of a name that tells its recipe and changes; "" for the study's own recipe."""
        parts = [Path(self.recipe).stem] if self.recipe else []
        parts += [text_of(name, value) for name, value in self.changes]
        return "".join(f"-{re.sub(r'[^A-Za-z0-9.=_+-]', '_', part)}" for part in parts)

    @property
    def title(self) -> str:
        """The method as papers write it."""
        return TITLES.get(self.method, self.method)

    @property
    def is_plain(self) -> bool:
        """Whether its network has no bound on its Lipschitz constant."""
        return self.method == PLAIN

    def with_seed(self, seed: int | None) -> Contender:
        """The same contender with this seed."""
        return replace(self, seed=seed)

    def to_dict(self) -> dict[str, Any]:
        """The contender as values that JSON can hold."""
        return {**asdict(self), "changes": dict(self.changes)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Contender:
        """The contender that :meth:`to_dict` described; TypeError or ValueError for other values."""
        return cls(**{**values, "changes": tuple(values["changes"].items())})

    @classmethod
    def named(cls, name: str) -> Contender:
        """The contender of this name, with the study's own recipe and seed."""
        method, size, backend = name.rsplit("-", 2)
        return cls(cast(MethodName, method), cast(Size, size), cast(Backend, backend))


def text_of(field: str, value: Any) -> str:
    """A field of a recipe with its value, as tables name a variant: ``emma``, ``no center`` or ``lr=0.1``."""
    if field in _NAMED:
        return str(value)
    if isinstance(value, bool):
        return field if value else f"no {field}"
    return f"{field}={value:g}" if isinstance(value, float) else f"{field}={value}"
