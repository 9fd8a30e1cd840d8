"""The only dispatch code: which backend runs an operator, and how the operator is registered with torch.

An op is a folder ``fastlip/kernels/<op>/``. Its ``api.py`` makes one :class:`Op` and defines on it the
operators that its kernels implement. A kernel backend is a module of that folder, imported when first needed:

- ``supports(*arguments) -> str``: empty, or the reason why this backend cannot run these arguments;
- optionally ``unprofitable(*arguments) -> str``: why ``"auto"`` should pass it over although it could run;
- one function per operator, of the operator's name and arguments (without ``backend``).

The reference is not a registered operator: it is ordinary PyTorch, differentiated by autograd itself.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from fastlip.kernels.common.gate import check_devices, is_onnx, materialized, refusal
from fastlip.kernels.common.literals import Backend

BACKENDS = ("auto", "reference", "native", "triton")
_FILES = {"native": "native", "triton": "triton_kernels"}
_LIBRARY = torch.library.Library("fastlip", "DEF")
# Looked up once: each call of an op asks them.
_is_compiling = torch.compiler.is_compiling
_is_traced = torch.compiler.is_dynamo_compiling
_dispatch_modes = torch._C._len_torch_dispatch_stack
_is_grad_enabled = torch.is_grad_enabled

# Tensors that a kernel may take as they are; subclasses and lists go through torch's dispatcher.
_PLAIN = frozenset((Tensor, Parameter, type(None)))

registered: dict[str, Op] = {}


def check_backend(backend: Any) -> Backend:
    """Returns the name of a backend, or raises ValueError with those allowed."""
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r}: allowed are {', '.join(map(repr, BACKENDS))}")
    return backend


class Op:
    """An op's kernel backends, in the order in which ``"auto"`` tries them; the reference comes last."""

    def __init__(self, name: str, backends: tuple[str, ...] = ("native", "triton")):
        self.name = name
        self.backends = backends
        self.modules: dict[str, ModuleType] = {}
        self._unprofitable: dict[str, Callable[..., str] | None] = {}
        registered[name] = self

    def choose(self, backend: str, *arguments: Any) -> str:
        """The backend to run: the one named, or under ``"auto"`` the first that supports the arguments."""
        if not _is_compiling() and (found := self._eager_choice(backend, arguments)):
            return found
        if backend == "reference":
            self._check_devices(arguments)
            return backend
        if backend != "auto":
            if backend not in BACKENDS:
                check_backend(backend)
            if reason := self.why_not(backend, *arguments):
                raise ValueError(f"fastlip.ops.{self.name}: backend={backend!r} cannot run here: {reason}")
            return backend
        for name in self.backends:
            if self.why_not(name, *arguments):
                continue
            unprofitable = self._unprofitable[name]
            if unprofitable is None or not unprofitable(*arguments):
                return name
        self._check_devices(arguments)
        return "reference"

    def _eager_choice(self, backend: str, arguments: tuple[Any, ...]) -> str:
        """As :meth:`choose`, with few calls, where no tracing goes on and the answer is a kernel; empty otherwise."""
        modules = self.modules
        if backend in modules:
            return "" if refusal(arguments) or modules[backend].supports(*arguments) else backend
        if backend != "auto" or refusal(arguments):
            return ""
        for name in self.backends:
            if name not in modules or modules[name].supports(*arguments):
                return ""
            unprofitable = self._unprofitable[name]
            if unprofitable is None or not unprofitable(*arguments):
                return name
        return ""

    def _check_devices(self, arguments: tuple[Any, ...]) -> None:
        if not _is_compiling():
            check_devices(f"fastlip.ops.{self.name}", arguments)

    def why_not(self, backend: str, *arguments: Any) -> str:
        """Why this backend cannot run these arguments; empty if it can."""
        compiling = _is_compiling()
        if compiling and _is_traced():
            _import_backends(self.name)
        if backend not in self.modules and (reason := self.status(backend)):
            return reason
        if compiling and is_onnx():
            return "torch.onnx.export knows torch's operators only: give it the copy that fastlip.export makes"
        if not compiling and (reason := refusal(arguments)):
            return reason
        return self.modules[backend].supports(*arguments)

    def add_module(self, backend: str, module: ModuleType) -> None:
        """Takes note of an imported backend."""
        self.modules[backend] = module
        self._unprofitable[backend] = getattr(module, "unprofitable", None)

    def status(self, backend: str) -> str:
        """Why this backend's module cannot be imported; empty if it can. For ``fastlip doctor``."""
        if _is_traced():
            _import_backends(self.name)
        if backend in self.modules:
            return ""
        if backend not in self.backends:
            return f"this op has no {backend} kernel"
        return _import_backend(self.name, backend)

    def define(self, schema: str, **autograd: Any) -> Operator:
        """Registers an operator ``fastlip::<name>`` whose last argument is ``str backend``."""
        return Operator(self, schema, **autograd)


@torch.compiler.assume_constant_result
def _import_backends(op_name: str) -> None:
    """Imports what can be imported. Tracing keeps seeing ``modules`` as it was when it first looked there."""
    for backend in registered[op_name].backends:
        _import_backend(op_name, backend)


@torch.compiler.assume_constant_result
def _import_backend(op_name: str, backend: str) -> str:
    try:
        module = importlib.import_module(f"fastlip.kernels.{op_name}.{_FILES[backend]}")
    except ImportError as error:
        return str(error)
    registered[op_name].add_module(backend, module)
    return ""


class Operator:
    """A kernel's entry into torch: schema, fake, and one backward for all devices.

    The kernel returns its public output first; any further outputs are what the backward needs. Calling the
    operator returns the public output. An operator without ``backward`` refuses to be differentiated.

    Plain eager calls skip the dispatcher (about 30 µs a call) and go to an ``autograd.Function`` made of the same
    three functions; compilation, fake tensors and dispatch modes see the registered operator.
    """

    def __init__(
        self,
        op: Op,
        schema: str,
        *,
        fake: Callable[..., Any],
        setup_context: Callable[..., None] | None = None,
        backward: Callable[..., Any] | None = None,
        plain_backward: Callable[..., Any] | None = None,
        twice: bool = False,
    ):
        self.op = op
        self.name = schema.partition("(")[0]
        self.kernels: dict[str, Callable[..., Any]] = {}
        backward = self._refuse_backward if backward is None else _choosing(op.name, backward, plain_backward, twice)
        setup_context = setup_context or _save_nothing
        _LIBRARY.define(schema)
        for device in ("CPU", "CUDA"):
            _LIBRARY.impl(self.name, self.run, device)
        torch.library.register_fake(f"fastlip::{self.name}", fake, lib=_LIBRARY)
        torch.library.register_autograd(f"fastlip::{self.name}", backward, setup_context=setup_context, lib=_LIBRARY)
        self.packet = getattr(torch.ops.fastlip, self.name).default
        types = [str(argument.type) for argument in self.packet._schema.arguments]
        self.tensors = [position for position, kind in enumerate(types) if kind in ("Tensor", "Optional[Tensor]")]
        self.lists = [position for position, kind in enumerate(types) if kind == "List[Tensor]"]
        function = _autograd_function(self.name, self.run, setup_context, backward)
        # What Function.apply calls once it has found that no functorch transform is active.
        self.apply: Callable[..., Tensor] = getattr(super(torch.autograd.Function, function), "apply")  # noqa: B009

    def __call__(self, *arguments: Any) -> Tensor:
        """The public output."""
        # One loop: this is most of what a small kernel's call costs. Inside transforms no kernel is chosen.
        plain, differentiable = not (self.lists or _is_traced() or _dispatch_modes()), False
        for position in self.tensors:
            tensor = arguments[position]
            if tensor is not None:
                plain = plain and type(tensor) in _PLAIN
                differentiable = differentiable or tensor.requires_grad
        if not plain:
            outputs = self.dispatched(*arguments)
        elif differentiable and _is_grad_enabled():
            return self.apply(*arguments)
        else:
            outputs = self.run(*arguments)
        return outputs if isinstance(outputs, Tensor) else outputs[0]

    def outputs(self, *arguments: Any) -> Any:
        """Every output of the operator, for use inside another operator's backward."""
        if _is_compiling() or _is_grad_enabled() or _dispatch_modes() or not self._is_plain(arguments):
            return self.dispatched(*arguments)
        return self.run(*arguments)

    def dispatched(self, *arguments: Any) -> Any:
        """The operator as torch's dispatcher runs it, for all that looks on."""
        if not _is_compiling() and _dispatch_modes() and "torch.utils.flop_counter" in sys.modules:
            importlib.import_module("fastlip.kernels.common.flops").tell_counters()
        return self.packet(*arguments)

    def run(self, *arguments: Any) -> Any:
        """Calls the kernel of the backend named by the last argument, with numbers at every address."""
        for position in self.tensors:
            tensor = arguments[position]
            if tensor is not None and (tensor.is_neg() or tensor.is_conj() or not tensor.data_ptr()):
                arguments = tuple(materialized(self.name, argument) for argument in arguments)
                break
        if self.lists:
            arguments = tuple(materialized(self.name, argument) for argument in arguments)
        return (self.kernels.get(arguments[-1]) or self._find(arguments[-1]))(*arguments[:-1])

    def _find(self, backend: str) -> Callable[..., Any]:
        if reason := self.op.status(backend):
            raise ValueError(f"fastlip::{self.name}: backend={backend!r} cannot run here: {reason}")
        kernel = self.kernels[backend] = getattr(self.op.modules[backend], self.name)
        return kernel

    def _is_plain(self, arguments: tuple[Any, ...]) -> bool:
        if self.lists:
            return False
        for position in self.tensors:
            if type(arguments[position]) not in _PLAIN:
                return False
        return True

    def _refuse_backward(self, ctx: Any, *gradients: Tensor) -> Any:
        raise RuntimeError(
            f"fastlip::{self.name} has no derivative: for gradients of gradients use backend='reference'"
        )


def _choosing(
    op_name: str, backward: Callable[..., Any], plain: Callable[..., Any] | None, twice: bool
) -> Callable[..., Any]:
    """The backward that the kernels implement, or the plain one where the gradients are no tensors for kernels.

    The plain one is made of torch's own operations, and also runs where the gradient is itself to be differentiated,
    unless the kernels' backward can be (twice).
    """

    def choose(ctx: Any, *gradients: Any) -> Any:
        if _is_compiling():
            return backward(ctx, *gradients)
        reason = refusal(gradients[:1])  # of the public output: what else a kernel returns may be on the host
        if plain is not None and (reason or (not twice and _is_grad_enabled())):
            return plain(ctx, *gradients)
        if reason:
            raise RuntimeError(f"gradients of fastlip.ops.{op_name}: {reason}: use backend='reference'")
        return backward(ctx, *gradients)

    return choose


def differentiated(
    function: Callable[..., Tensor], inputs: Sequence[Tensor | None], needed: Sequence[bool], gradient: Tensor
) -> list[Tensor | None]:
    """The gradients of those inputs of a function that need one, by autograd: differentiable, and of any kind.

    The inputs are taken as independent of each other, whatever they were made of.
    """
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        leaves = [None if x is None else (x if x.requires_grad else x.requires_grad_()) for x in _aliases(inputs)]
        output = function(*leaves)
        wanted = [leaf for leaf, need in zip(leaves, needed, strict=True) if need and leaf is not None]
        found = iter(torch.autograd.grad(output, wanted, gradient, create_graph=again, allow_unused=True))
    return [next(found) if need and leaf is not None else None for leaf, need in zip(leaves, needed, strict=True)]


def _aliases(tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    return [None if tensor is None else tensor.view_as(tensor) for tensor in tensors]


def _save_nothing(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    pass


def _autograd_function(
    name: str, run: Callable[..., Any], setup_context: Callable[..., None], backward: Callable[..., Any]
) -> type[torch.autograd.Function]:
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        outputs = run(*arguments)
        setup_context(ctx, arguments, outputs)
        return outputs if isinstance(outputs, Tensor) else outputs[0]

    members = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    return type(name, (torch.autograd.Function,), members)
