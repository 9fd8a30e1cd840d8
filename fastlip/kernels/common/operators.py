"""Operators: how a kernel is registered with torch, and how a call of one reaches it in few steps."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from itertools import chain
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from fastlip.kernels.common.checks import check_backend
from fastlip.kernels.common.derivatives import differentiated, guarded
from fastlip.kernels.common.gate import materialized
from fastlip.kernels.common.geometry import from_numbers
from fastlip.kernels.common.one_step import in_full_precision, is_needed, is_wide
from fastlip.kernels.common.precision import full_precision

if TYPE_CHECKING:
    from fastlip.kernels.common.dispatch import Op

LIBRARY = torch.library.Library("fastlip", "DEF")
# Looked up once: each call of an op asks them.
_is_compiling = torch.compiler.is_compiling
_dispatch_modes = torch._C._len_torch_dispatch_stack
_is_grad_enabled = torch.is_grad_enabled
_transforms_are_active = torch._C._are_functorch_transforms_active
_tracing_state = torch._C._get_tracing_state
_is_wrapper = torch._C._dispatch_isTensorSubclassLike
_exclude = torch._C._SetExcludeDispatchKeyGuard
_is_excluded = torch._C._dispatch_tls_is_dispatch_key_excluded
_conjugate, _negative = torch._C.DispatchKey.Conjugate, torch._C.DispatchKey.Negative

# Tensors that a kernel may take as they are. Subclasses go through torch's dispatcher.
_PLAIN = frozenset((Tensor, Parameter))


class Saving:
    """Values that an operator saves for its backward, by names in its schema (:meth:`Op.define`) or by a function."""

    def __init__(self, saves: tuple[str, ...], keeps: tuple[str, ...], function: Callable[..., None] | None):
        self._saves, self._keeps, self.function = saves, keeps, function
        self.tensor_names = [entry.split()[0] for entry in saves]
        self.condition = -1

    def resolve(self, names: list[str]) -> None:
        """Finds the names among those of the operator's arguments and outputs, after which stands None."""
        present, absent = [], []
        for name, *condition in (entry.split() for entry in self._saves):
            word, other = condition or ("always", "")
            self.condition = names.index(other) if other else self.condition
            present.append(len(names) if word == "unless" else names.index(name))
            absent.append(len(names) if word == "if" else names.index(name))
        while absent and absent[-1] == len(names):
            absent.pop()
        self.present, self.absent = self.pick(present), self.pick(absent)
        self.options = self.pick([names.index(name) for name in self._keeps])

    def has(self, arguments: list[Any]) -> bool:
        """Whether these arguments of a schema are all found again in the backward."""
        kept = {*self._keeps, *(entry for entry in self._saves if entry in self.tensor_names)}
        kept |= {name for name, *condition in map(str.split, self._saves) if condition == ["if", name]}
        return all(argument.name in kept for argument in arguments)

    def recall(self, ctx: Any) -> dict[str, Any]:
        """The saved values by name, in the backward."""
        tensors = zip(self.tensor_names, ctx.saved_tensors, strict=False)  # what is absent at the end is not saved
        return {**dict(tensors), **dict(zip(self._keeps, ctx.options, strict=True))}

    @staticmethod
    def pick(positions: list[int]) -> Callable[[tuple[Any, ...]], tuple[Any, ...]]:
        """A compiled function that takes these entries out of a tuple: a function of Python would cost more."""
        if len(positions) > 1:
            return itemgetter(*positions)
        return itemgetter(slice(positions[0], positions[0] + 1) if positions else slice(0))

    def setup_context(self, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Saves them. Outputs that only the backward reads have no gradients: torch need not fill any with zeros."""
        ctx.set_materialize_grads(False)
        if self.function is not None:
            self.function(ctx, inputs, output)
            return
        values = (*inputs, output, None) if isinstance(output, Tensor) else (*inputs, *output, None)
        other = values[self.condition]
        ctx.save_for_backward(*(self.absent if other is None or other.numel() == 0 else self.present)(values))
        ctx.options = self.options(values)


class Operator:
    """A kernel's entry into torch: schema, fake, and one backward for all devices. :meth:`Op.define` makes it.

    The kernel returns its public output first; any further outputs are what the backward needs. Calling the
    operator returns the public output.

    Plain eager calls skip the dispatcher (about 30 µs a call) and go to an ``autograd.Function`` made of the same
    functions; compilation, fake tensors and dispatch modes see the registered operator.
    """

    def __init__(
        self, op: Op, schema: str, fake: Callable[..., Any], saving: Saving, derivatives: tuple[Any, Any, bool]
    ):
        self.op = op
        self.name = schema.partition("(")[0]
        self.kernels: dict[str, Callable[..., Any]] = {}
        LIBRARY.define(schema)
        for device in ("CPU", "CUDA"):
            LIBRARY.impl(self.name, self.run, device)
        name = f"fastlip::{self.name}"
        backward = guarded(name, op.name, *derivatives)
        torch.library.register_fake(name, fake, lib=LIBRARY)
        self.packet = getattr(torch.ops.fastlip, self.name).default
        self.arguments = [argument.name for argument in self.packet._schema.arguments]
        saving.resolve([*self.arguments, *(output.name for output in self.packet._schema.returns)])
        torch.library.register_autograd(name, backward, setup_context=saving.setup_context, lib=LIBRARY)
        types = [str(argument.type) for argument in self.packet._schema.arguments]
        positions = [position for position, kind in enumerate(types) if kind in ("Tensor", "Optional[Tensor]")]
        self.tensors = Saving.pick(positions)
        self.lists = [position for position, kind in enumerate(types) if kind == "List[Tensor]"]
        self.tensor_lists = Saving.pick(self.lists)
        self.apply = _autograd_function(self.name, self.kernels, saving, backward)

    def __call__(self, *arguments: Any) -> Tensor:
        """Runs the kernel of the backend named last; returns the public output."""
        if self.lists or _is_compiling() or _dispatch_modes():
            return self.first(self.dispatched(*arguments))
        differentiable = False
        for tensor in self.tensors(arguments):
            if tensor is not None:
                if type(tensor) not in _PLAIN or tensor.is_neg() or tensor.is_conj() or not tensor.data_ptr():
                    return self.first(self.dispatched(*arguments))
                differentiable = differentiable or tensor.requires_grad
        kernel = self.kernels.get(arguments[-1]) or self.find(arguments[-1])
        if differentiable and _is_grad_enabled():
            return self.apply(*arguments)
        return self.first(kernel(*arguments[:-1]))

    @staticmethod
    def first(outputs: Any) -> Tensor:
        """The public output."""
        return outputs if isinstance(outputs, Tensor) else outputs[0]

    def outputs(self, *arguments: Any) -> Any:
        """Every output of the operator, for use inside another operator's backward."""
        if self.lists or _is_compiling() or _is_grad_enabled() or _dispatch_modes():
            return self.dispatched(*arguments)
        for tensor in self.tensors(arguments):
            if tensor is not None and type(tensor) not in _PLAIN:
                return self.dispatched(*arguments)
        return self.run(*arguments)

    def dispatched(self, *arguments: Any) -> Any:
        """The operator as torch's dispatcher runs it, for modes, transforms and compilers."""
        if not _is_compiling() and _dispatch_modes() and "torch.utils.flop_counter" in sys.modules:
            importlib.import_module("fastlip.kernels.common.flops").tell_counters()
        return self.packet(*arguments)

    def run(self, *arguments: Any) -> Any:
        """Calls the kernel of the backend named by the last argument, with numbers at every address."""
        for tensor in chain(self.tensors(arguments), *self.tensor_lists(arguments)):
            if tensor is not None and (tensor.is_neg() or tensor.is_conj() or not tensor.data_ptr()):
                arguments = tuple(materialized(self.name, argument) for argument in arguments)
                break
        kernel = self.kernels.get(arguments[-1]) or self.find(arguments[-1])
        if not _is_excluded(_conjugate):
            return kernel(*arguments[:-1])
        # Below a dispatch mode torch's operations ignore that a tensor is conjugated (X.mH) or negated.
        with _exclude(_conjugate, False), _exclude(_negative, False):
            return kernel(*arguments[:-1])

    def find(self, backend: str) -> Callable[..., Any]:
        """Returns the backend's kernel for this operator."""
        if reason := self.op.status(backend):
            raise ValueError(f"fastlip::{self.name}: backend={backend!r} cannot run here: {reason}")
        kernel = self.kernels[backend] = getattr(self.op.modules[backend], self.name)
        return kernel


class MainOperator(Operator):
    """The operator that a public function calls. Layers call it with arguments that they have checked.

    ``OPERATOR(*arguments, backend)`` chooses the backend as :meth:`Op.choose` does and runs it, the reference
    included. The last argument may be ``"auto"``.
    """

    def __init__(
        self,
        op: Op,
        schema: str,
        fake: Callable[..., Any],
        saving: Saving,
        derivatives: tuple[Any, Any, bool],
        reference: Callable[..., Tensor],
        precision: Callable[[torch.device], AbstractContextManager[object]] | None,
        nested: bool,
        without: tuple[str, ...],
    ):
        backward, plain, twice = derivatives
        needed = [a for a in torch._C.parse_schema(f"fastlip::{schema}").arguments[:-1] if a.name not in without]
        if plain is None and saving.has(needed):
            plain = self._differentiate_reference
        super().__init__(op, schema, fake, saving, (backward, plain, twice))
        self.saving = saving
        self.reference, self.precision, self.nested = reference, precision, nested
        self.positions = [i for i, name in enumerate(self.arguments[:-1]) if name not in without]
        self.inputs = Saving.pick(self.positions)
        kinds = [str(argument.type) for argument in self.packet._schema.arguments]
        # Among those, the tensors.
        self.places = [n for n, i in enumerate(self.positions) if kinds[i] in ("Tensor", "Optional[Tensor]")]
        self.geometry = self.arguments.index("geometry") if "geometry" in self.arguments else None

    def __call__(self, *arguments: Any) -> Tensor:
        """Runs the operator on the backend named last, or under ``"auto"`` on the best one; its public output."""
        op, backend, compiling = self.op, arguments[-1], _is_compiling()
        # The compiler cannot follow compiled functions.
        inputs = tuple([arguments[i] for i in self.positions]) if compiling else self.inputs(arguments)
        chosen, differentiable = "", False  # stays empty for all that is traced, watched, refused or unusual
        if not (compiling or _transforms_are_active() or _tracing_state() is not None or _dispatch_modes()):
            # What gate.refusal asks, in one loop: this is most of what a small kernel's call costs.
            tensors, device = self.tensors(arguments), None
            for tensor in chain(tensors, *self.tensor_lists(arguments)) if self.lists else tensors:
                if tensor is None:
                    continue
                if type(tensor) not in _PLAIN or _is_wrapper(tensor) or tensor.is_neg() or tensor.is_conj():
                    break
                differentiable, place = differentiable or tensor.requires_grad, tensor.get_device()
                if not tensor.data_ptr() or place != (place if device is None else device):
                    break
                device = place
            else:
                if forward_ad._current_level < 0:
                    if backend == "auto":
                        chosen = "reference"
                        for name, unprofitable, supports in op.on_cpu if device == -1 else op.elsewhere:
                            if supports is None:  # not imported yet
                                chosen = ""
                                break
                            if (unprofitable is None or not unprofitable(*inputs)) and not supports(*inputs):
                                chosen = name
                                break
                    elif backend == "reference" or (
                        backend in op.modules and not op.modules[backend].supports(*inputs)
                    ):
                        chosen = backend
        unusual = not chosen
        if unusual:
            handed_on = self.nested and check_backend(backend) != "auto" and backend not in op.backends
            chosen = op.choose("reference" if handed_on else backend, *inputs)
        if chosen == "reference":
            options = (backend,) if self.nested else ()
            return self.reference(*inputs, *options) if self.precision is None else self._referenced(inputs, options)
        if self.geometry is not None:
            arguments = self._with_numbers(arguments)
        differentiable = differentiable and _is_grad_enabled()
        if unusual or (differentiable and self.lists):  # an autograd.Function takes no lists
            return Operator.__call__(self, *arguments[:-1], chosen)
        kernel = self.kernels.get(chosen) or self.find(chosen)
        if differentiable:
            return self.apply(*arguments[:-1], chosen)
        outputs = kernel(*arguments[:-1])
        return outputs if isinstance(outputs, Tensor) else outputs[0]

    def _referenced(self, inputs: Sequence[Any], options: tuple[Any, ...]) -> Tensor:
        """The reference; if its precision is full, that of its gradients is too."""
        if self.precision is None:
            return self.reference(*inputs, *options)
        device = inputs[0].device
        if self.precision is full_precision and (_is_compiling() or is_needed(device) or is_wide(device)):
            return in_full_precision(self._of_tensors(inputs, options), *(inputs[at] for at in self.places))
        with self.precision(device):
            return self.reference(*inputs, *options)

    def _of_tensors(self, inputs: Sequence[Any], options: tuple[Any, ...]) -> Callable[..., Tensor]:
        """The reference with these inputs, as a function of the tensors among them."""

        def function(*tensors: Tensor | None) -> Tensor:
            arguments = list(inputs)
            for place, tensor in zip(self.places, tensors, strict=True):
                arguments[place] = tensor
            return self.reference(*arguments, *options)

        return function

    def _with_numbers(self, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """The arguments with a geometry, or several, as the numbers that a schema has a type for."""
        at = self.geometry or 0
        value: Any = arguments[at]
        if isinstance(value, list):
            numbers = ()
            for geometry in value:
                numbers += geometry.numbers
        else:
            numbers = () if value is None else value.numbers  # None: a matrix
        return *arguments[:at], numbers, *arguments[at + 1 :]

    def _differentiate_reference(self, ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        """The backward without kernels, for every op that saves its arguments: the reference's, by autograd."""
        values = self.saving.recall(ctx)
        inputs: list[Any] = [self._restored(values.get(self.arguments[i]), i) for i in self.positions]
        tensors = [inputs[place] for place in self.places]

        def function(*leaves: Tensor | None) -> Tensor:
            for place, leaf in zip(self.places, leaves, strict=True):
                inputs[place] = leaf
            return self._referenced(inputs, ("reference",) if self.nested else ())

        needed = [ctx.needs_input_grad[self.positions[place]] for place in self.places]
        found: list[Tensor | None] = [None] * len(self.arguments)
        for place, value in zip(self.places, differentiated(function, tensors, needed, gradient), strict=True):
            found[self.positions[place]] = value
        return tuple(found)

    def _restored(self, value: Any, position: int) -> Any:
        """An argument as the reference takes it: torch's dispatcher makes lists of tuples, numbers of a geometry."""
        if position == self.geometry:
            return from_numbers(tuple(value))[0] if value else None
        return tuple(value) if isinstance(value, list) else value


def _autograd_function(
    name: str, kernels: dict[str, Callable[..., Any]], saving: Saving, backward: Callable[..., Any]
) -> Callable[..., Tensor]:
    """An ``autograd.Function``'s apply, of an operator whose last argument names one of the kernels."""

    def forward(ctx: Any, *arguments: Any) -> Tensor:
        outputs = kernels[arguments[-1]](*arguments[:-1])
        single = isinstance(outputs, Tensor)
        if function is not None:
            function(ctx, arguments, outputs)
        else:  # as Saving.setup_context, without a call
            values = (*arguments, outputs, None) if single else (*arguments, *outputs, None)
            other = values[condition]
            ctx.save_for_backward(*(absent if other is None or other.numel() == 0 else present)(values))
            ctx.options = options(values)
        return outputs if single else outputs[0]

    function, condition, options = saving.function, saving.condition, saving.options
    present, absent = saving.present, saving.absent
    members = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    made = type(name, (torch.autograd.Function,), members)
    # What Function.apply calls once it has found that no functorch transform is active.
    return getattr(super(torch.autograd.Function, made), "apply")  # noqa: B009
