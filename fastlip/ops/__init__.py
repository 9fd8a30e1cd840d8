"""The functional form of every kernel: ``fastlip.ops.<op>(..., backend="auto")``.

Every folder here is an op and its public function has the folder's name: nobody edits a list.
"""

from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any

__all__ = sorted(info.name for info in iter_modules(__path__) if info.ispkg)  # pyright: ignore

for _name in __all__:
    globals()[_name] = getattr(import_module(f"fastlip.ops.{_name}"), _name)

if TYPE_CHECKING:

    def __getattr__(name: str) -> Any: ...
