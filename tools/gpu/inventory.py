"""What the package has: operators, CUDA kernels, tensors that its caches hold, tensors within arguments."""

from __future__ import annotations

import contextlib
import gc
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
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


def kept_tensors() -> dict[str, list[Tensor]]:
    """The tensors that the package's modules keep between calls, by what holds them.

    Each lru_cache; tensors and containers that are a module's, or those of a function, a class or an object in it.
    """
    found, seen = {}, set()
    for module_name, module in list(sys.modules.items()):
        if module_name.startswith("fastlip.") and module is not None:
            for name, value in list(vars(module).items()):
                # Many are imported by several modules; and what other packages keep is their own affair.
                if id(value) in seen or isinstance(value, ModuleType) or name.startswith("__"):
                    continue
                seen.add(id(value))
                if held := _held(value):
                    found[f"{module_name}.{name}"] = held
    return found


def _held(value: Any) -> list[Tensor]:
    if type(value).__module__.partition(".")[0] == "torch":
        return _contained(value)
    if callable(getattr(value, "cache_info", None)) and callable(value):
        return [tensor for item in gc.get_referents(value) for tensor in tensors(item)]
    attributes = tuple(getattr(value, "__dict__", {}).values())
    given = (*(getattr(value, "__defaults__", None) or ()), *_closed_over(value))
    return [tensor for item in (value, *attributes, *given) for tensor in _contained(item)]


def _closed_over(value: Any) -> Iterator[Any]:
    for cell in getattr(value, "__closure__", None) or ():
        with contextlib.suppress(ValueError):  # nothing is in it yet
            yield cell.cell_contents


def _contained(value: Any) -> list[Tensor]:
    """As tensors, of sets and mappings of any kind too; torch's own objects are not asked, as some of them warn."""
    if type(value).__module__.partition(".")[0] == "torch" and not issubclass(type(value), Tensor):
        return []
    if isinstance(value, (set, frozenset)):
        value = list(value)
    elif isinstance(value, Mapping) and not isinstance(value, dict):
        value = list(value.values())
    return tensors(value)


def cuda_kernels() -> frozenset[str]:
    """The names of all kernels in csrc, which ``fastlip._cuda`` has."""
    return frozenset(
        name
        for path in sorted((ROOT / "csrc").glob("*/*_cuda.cu"))
        for name in re.findall(r"^FASTLIP_KERNEL\((\w+),", path.read_text(), re.MULTILINE)
    )
