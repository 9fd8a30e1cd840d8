"""Settings that a state dict lacks: fields of the section ``model`` of the authors' configuration files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Names that the published code gives to the convolutions, in lower case, and whether this reader has them.
_BACKBONES = ("bro", "brov2", "hybridbro", "hybridbrov2", "nonortho")


@dataclass(frozen=True)
class Settings:
    """The fields that decide on the function, with the defaults of the published code.

    Attributes:
        unit_rows: whether the head's rows are divided by their norms (``use_lln``).
        v2: whether reflectors are the second version (``backbone_type`` ending in ``v2``).
        quasi_residual: whether convolutions have an identity in V (``backbone_quasi_residual``).
        dense_quasi_residual: whether dense reflectors have it (``dense_quasi_residual``).
        zero_padding: whether reflectors pad images with zeros (``backbone_zero_padding``).
        patch: side of the windows of a neck of L2 norms (``neck_conv_patch_size``).
    """

    unit_rows: bool = True
    v2: bool = False
    quasi_residual: bool = True
    dense_quasi_residual: bool = True
    zero_padding: bool = True
    patch: int = 4

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Settings:
        """The settings of a configuration's section ``model``; ValueError names a field that is not supported."""
        if not isinstance(config, Mapping):
            raise TypeError(f"config: got {type(config).__name__}, expected the section 'model' as a dict")
        backbone = str(config.get("backbone_type", "bro")).lower()
        _allow("backbone_type", backbone, _BACKBONES)
        _allow("act_name", str(config.get("act_name", "MinMax")).lower(), ("minmax",))
        _allow("neck_conv_patch_size_2", config.get("neck_conv_patch_size_2", 0), (0,))
        patch = config.get("neck_conv_patch_size", 4)
        if type(patch) is not int or patch < 1:
            raise ValueError(f"config: neck_conv_patch_size={patch!r}: expected a positive int")
        flags = {
            "unit_rows": "use_lln",
            "quasi_residual": "backbone_quasi_residual",
            "dense_quasi_residual": "dense_quasi_residual",
            "zero_padding": "backbone_zero_padding",
        }
        values = {field: config.get(name, True) for field, name in flags.items()}
        for field, name in flags.items():
            _allow(name, values[field], (True, False))
        return cls(v2=backbone.endswith("v2"), patch=patch, **values)


def _allow(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    if value not in allowed:
        verb = "is" if len(allowed) == 1 else "are"
        raise ValueError(f"config: {name}={value!r}: allowed {verb} {', '.join(map(repr, allowed))}")
