"""What the package has: operators, CUDA kernels, tensors that its caches hold, tensors within arguments."""

from __future__ import annotations

import gc
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import Tensor

import fastlip.ops  # noqa: F401 - registers every op
from fastlip.kernels import OPS
from fastlip.kernels.common.dispatch import Operator

ROOT = Path(__file__).resolve().parents[2]


def tensors(value: Any) -> list[Tensor]:
    """Every tensor in nested lists, tuples and dictionaries."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return []
    return [tensor for item in value for tensor in tensors(item)]


def nbytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def operators() -> Iterator[Operator]:
    """Every operator that kernels implement."""
    for op in OPS:
        module = sys.modules.get(f"fastlip.kernels.{op}.api")
        yield from (value for value in vars(module or SimpleNamespace()).values() if isinstance(value, Operator))


def kept_tensors() -> dict[str, int]:
    """How many tensors each lru_cache of the package holds, by its function's name."""
    found = {}
    for module_name, module in list(sys.modules.items()):
        if module_name.startswith("fastlip.") and module is not None:
            for name, value in list(vars(module).items()):
                if callable(getattr(value, "cache_info", None)) and callable(value):
                    held = sum(len(tensors(item)) for item in gc.get_referents(value))
                    found[f"{module_name}.{name}"] = held
    return found


def cuda_kernels() -> frozenset[str]:
    """The names of all kernels in csrc, which ``fastlip._cuda`` has."""
    return frozenset(
        name
        for path in sorted((ROOT / "csrc").glob("*/*_cuda.cu"))
        for name in re.findall(r"^FASTLIP_KERNEL\((\w+),", path.read_text(), re.MULTILINE)
    )
