"""The only dispatch code: which backend runs an operator, and how the operator is registered with torch.

An op is a folder ``fastlip/kernels/<op>/``. Its ``api.py`` makes one :class:`Op` and defines on it the operators that
its kernels implement. A kernel backend is a module of that folder, imported when first needed:

- ``supports(*inputs) -> str``: empty, or the reason why this backend cannot run these inputs;
- optionally ``unprofitable(*inputs) -> str``: why ``"auto"`` should pass it over although it could run. It may be
  asked first, and must answer for every input that the public function lets through. Or
  ``unprofitable_compiled(*inputs)``, which is asked only in a program that is being compiled;
- one function per operator, with the operator's name and arguments (without ``backend``).

The reference is not a registered operator: it is ordinary PyTorch, differentiated by autograd itself.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fastlip.kernels.common.checks import check_backend
from fastlip.kernels.common.compiled import constant
from fastlip.kernels.common.gate import check_devices, is_onnx, refusal
from fastlip.kernels.common.operators import MainOperator, Operator, Saving

__all__ = ["Op", "check_backend", "registered"]

_FILES = {"native": "native", "triton": "triton_kernels"}
_is_compiling = torch.compiler.is_compiling
_is_traced = torch.compiler.is_dynamo_compiling

registered: dict[str, Op] = {}


class Op:
    """An op's kernel backends, in the order in which ``"auto"`` tries them; the reference comes last."""

    def __init__(self, name: str, backends: tuple[str, ...] = ("native", "triton")):
        self.name = name
        self.backends = backends
        self.modules: dict[str, ModuleType] = {}
        self.unprofitable: dict[str, Callable[..., str] | None] = {}
        self.missing: dict[str, str] = {}  # why a module cannot be imported
        # What "auto" tries for tensors on the CPU, and on other devices: a name with the module's unprofitable and
        # supports, which is None until the module is imported.
        self.on_cpu: list[tuple[str, Any, Any]] = [(name, None, None) for name in backends]
        self.elsewhere = self.on_cpu
        registered[name] = self

    def choose(self, backend: str, *inputs: Any) -> str:
        """Returns the backend to run: the one named, or under ``"auto"`` the first that supports the inputs."""
        if backend == "reference":
            self._check_devices(inputs)
            return backend
        if backend != "auto":
            check_backend(backend)
            if reason := self.why_not(backend, *inputs):
                raise ValueError(f"fastlip.ops.{self.name}: backend={backend!r} cannot run here: {reason}")
            return backend
        for name in self.backends:
            if self.why_not(name, *inputs):
                continue
            unprofitable = self.unprofitable[name]
            if unprofitable is None and _is_compiling():
                unprofitable = getattr(self.modules[name], "unprofitable_compiled", None)
            if unprofitable is None or not unprofitable(*inputs):
                return name
        self._check_devices(inputs)
        return "reference"

    def _check_devices(self, inputs: tuple[Any, ...]) -> None:
        if not _is_compiling():
            check_devices(f"fastlip.ops.{self.name}", inputs)

    def why_not(self, backend: str, *inputs: Any) -> str:
        """Returns why this backend cannot run these inputs; empty if it can."""
        compiling = _is_compiling()
        if compiling and _is_traced():
            _import_backends(self.name)
        if backend not in self.modules and (reason := self.status(backend)):
            return reason
        if compiling and is_onnx():
            return "torch.onnx.export knows torch's operators only: give it the copy that fastlip.export makes"
        if not compiling and (reason := refusal(inputs)):
            return reason
        return self.modules[backend].supports(*inputs)

    def add_module(self, backend: str, module: ModuleType) -> None:
        """Registers an imported backend module."""
        self.modules[backend] = module
        self.unprofitable[backend] = getattr(module, "unprofitable", None)
        self.list_backends()

    def list_backends(self) -> None:
        """Lists anew what ``"auto"`` tries."""
        self.elsewhere = [
            (name, self.unprofitable.get(name), getattr(self.modules.get(name), "supports", None))
            for name in self.backends
            if name not in self.missing
        ]
        needs_gpu = "triton" in self.modules and not sys.modules["triton"].knobs.runtime.interpret
        self.on_cpu = [entry for entry in self.elsewhere if not (needs_gpu and entry[0] == "triton")]

    def status(self, backend: str) -> str:
        """Returns why this backend's module cannot be imported; empty if it can. For ``fastlip doctor``."""
        if _is_traced():
            _import_backends(self.name)
        if backend in self.modules:
            return ""
        if backend not in self.backends:
            return f"this op has no {backend} kernel"
        return _import_backend(self.name, backend)

    def define(
        self,
        schema: str,
        *,
        fake: Callable[..., Any],
        saves: tuple[str, ...] = (),
        keeps: tuple[str, ...] = (),
        setup_context: Callable[..., None] | None = None,
        backward: Callable[..., Any] | None = None,
        plain_backward: Callable[..., Any] | None = None,
        twice: bool = False,
    ) -> Operator:
        """Registers ``fastlip::<name>``, an operator that runs on the backend that its last argument names.

        Args:
            schema: as torch writes it; the last argument is ``str backend``, and the public output comes first.
            fake: computes outputs without numbers, for compilation.
            saves: names of the tensors in the schema, inputs and outputs, that the backward finds in
                ``ctx.saved_tensors``. ``"Q unless B"`` and ``"M if B"`` save them where B has no, or any, numbers;
                otherwise None stands for them, or nothing at the end of the list.
            keeps: names of other arguments, which the backward finds in ``ctx.options``.
            setup_context: in place of saves and keeps, as in ``torch.library.register_autograd``.
            backward: as in ``torch.library.register_autograd``; without one, differentiation is refused.
            plain_backward: the same of torch's own operations, for batched gradients and for gradients of gradients.
                Default None: :meth:`main` differentiates the reference if all its arguments are saved and kept.
            twice: the backward may be differentiated itself.
        """
        return Operator(self, schema, fake, Saving(saves, keeps, setup_context), (backward, plain_backward, twice))

    def main(
        self,
        schema: str,
        *,
        reference: Callable[..., Tensor],
        precision: Callable[[torch.device], AbstractContextManager[object]] | None = None,
        nested: bool = False,
        without: tuple[str, ...] = (),
        fake: Callable[..., Any],
        saves: tuple[str, ...] = (),
        keeps: tuple[str, ...] = (),
        setup_context: Callable[..., None] | None = None,
        backward: Callable[..., Any] | None = None,
        plain_backward: Callable[..., Any] | None = None,
        twice: bool = False,
    ) -> MainOperator:
        """As :meth:`define`, for the operator that a public function calls: a call of it chooses the backend.

        Args:
            reference: takes the same arguments, without the backend.
            precision: the context in which the reference runs, from the device.
            nested: the reference is given the backend as well, for the ops that it calls itself.
            without: names of arguments for the kernels alone, which the reference, ``supports`` and ``unprofitable``
                are not given.
        """
        derivatives = Saving(saves, keeps, setup_context), (backward, plain_backward, twice)
        return MainOperator(self, schema, fake, *derivatives, reference, precision, nested, without)


@constant
def _import_backends(op_name: str) -> None:
    """Imports what can be imported. Tracing keeps seeing ``modules`` as it was when it first looked there."""
    for backend in registered[op_name].backends:
        _import_backend(op_name, backend)


@constant
def _import_backend(op_name: str, backend: str) -> str:
    if reason := registered[op_name].missing.get(backend):
        return reason
    try:
        module = importlib.import_module(f"fastlip.kernels.{op_name}.{_FILES[backend]}")
    except ImportError as error:
        registered[op_name].missing[backend] = str(error)
        registered[op_name].list_backends()
        return str(error)
    registered[op_name].add_module(backend, module)
    return ""
