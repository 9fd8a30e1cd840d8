"""Old import paths of public names: ``from fastlip.auditing import audit`` and the like keep working."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

# The old path of each module that has moved, and where it is now.
MOVED = {
    "fastlip.attacks": "fastlip.certification.attacks",
    "fastlip.auditing": "fastlip.certification.auditing",
    "fastlip.certificates": "fastlip.certification.certificates",
}
_OPS, _KERNELS = "fastlip.ops.", "fastlip.kernels.{}.api"


class _Moved(Loader):
    """Imports the module at its new path, and enters it under the old one too."""

    def __init__(self, path: str):
        self.path = path

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """An empty module, which :meth:`exec_module` replaces."""
        return ModuleType(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Replaces the empty module."""
        sys.modules[module.__name__] = importlib.import_module(self.path)


class _OldPaths(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """A module that has moved; None for all others."""
        return ModuleSpec(fullname, _Moved(MOVED[fullname])) if fullname in MOVED else None


def keep_old_paths() -> None:
    """Makes ``import`` find the modules under the names that they had up to version 0.1."""
    sys.meta_path.append(_OldPaths())


def keep_old_op_paths(ops: Sequence[str]) -> None:
    """The same for ``fastlip.ops.<op>``, which were packages: for those that are imported."""
    for op in ops:
        sys.modules.setdefault(_OPS + op, sys.modules[_KERNELS.format(op)])
