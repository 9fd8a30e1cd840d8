"""Shared by tests and benchmarks: finds ops and their cases, compares backends, counts bytes kept for backward."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fastlip import ops
from fastlip.kernels import OPS
from fastlip.kernels.common.case import Case
from fastlip.kernels.common.dispatch import Op, registered
from fastlip.kernels.common.precision import everything_ieee

# The largest ratio of a backend's error to the reference's own, where both exceed a few roundings.
_ERROR_RATIO = 4.0
# The number of roundings that a single entry may be off by.
_ROUNDINGS = 4.0


def cases_of(op_name: str) -> ModuleType:
    """Returns the module ``fastlip.kernels.<op>.cases``.

    Args:
        op_name: str, the op's name.
    """
    return importlib.import_module(f"fastlip.kernels.{op_name}.cases")


def ops_with_cases() -> list[str]:
    """Returns the names of the ops that have cases: an op with kernels must have them, another one may."""
    return [name for name in OPS if find_spec(f"fastlip.kernels.{name}.cases") or op(name).backends]


def op_cases(bench: bool = False) -> Iterator[tuple[str, str, Case]]:
    """Yields (op name, case name, case) for every case of every op.

    Args:
        bench: bool, yields the cases for benchmarks instead of those for tests.

    >>> from fastlip import testing
    >>> next((op, name) for op, name, _ in testing.op_cases() if op == "maxmin")
    ('maxmin', 'image')
    """
    for op_name in ops_with_cases():
        for case_name, case in cases_of(op_name).CASES.items():
            if case.bench == bench:
                yield op_name, case_name, case


def dtypes_of(op_name: str) -> tuple[torch.dtype, ...]:
    """Returns the dtypes in which an op is tested.

    Args:
        op_name: str, the op's name.
    """
    return getattr(cases_of(op_name), "DTYPES", (torch.float64, torch.float32))


def backends_of(op_name: str) -> tuple[str, ...]:
    """Returns the names of an op's backends, the reference first.

    Args:
        op_name: str, the op's name.

    >>> from fastlip import testing
    >>> testing.backends_of("maxmin")
    ('reference', 'native', 'triton')
    """
    return ("reference", *op(op_name).backends)


def op(op_name: str) -> Op:
    """Returns the dispatcher of an op.

    Args:
        op_name: str, the op's name.
    """
    return registered[op_name]


def call(op_name: str, backend: str, case: Case, tensors: dict[str, Tensor]) -> Tensor:
    """Returns the output of an op's public function for the inputs of a case.

    Args:
        op_name: str, the op's name.
        backend: str, the backend that computes it.
        case: Case, which says what the other arguments are.
        tensors: dict of tensors, the inputs that ``case.make`` returns.
    """
    return getattr(ops, op_name)(**case.arguments(tensors), backend=backend)


def outputs_and_gradients(
    function: Callable[..., Tensor], tensors: dict[str, Tensor], seed: int = 1
) -> dict[str, Tensor]:
    """Returns the output of a function, and the gradient of each of its tensors for a random cotangent.

    Args:
        function: takes the tensors as keyword arguments and returns one tensor.
        tensors: dict of floating-point tensors.
        seed: int, seed of the cotangent.

    Returns:
        A dict with ``"output"``, and ``"gradient of <name>"`` for each tensor; zeros where the output does not depend
        on it.
    """
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}
    output = function(**leaves)
    cotangent = torch.randn(output.shape, generator=torch.Generator().manual_seed(seed), dtype=_wide(output.dtype))
    gradients = torch.autograd.grad(
        output, list(leaves.values()), cotangent.to(output), allow_unused=True, materialize_grads=True
    )
    return {"output": output.detach()} | {
        f"gradient of {name}": gradient for name, gradient in zip(leaves, gradients, strict=True)
    }


def check_agreement(op_name: str, backend: str, case: Case, dtype: torch.dtype, device: str = "cpu") -> None:
    """Checks that a backend's output and gradients agree with those of the float64 reference.

    The error of each, relative to its largest entry, must be at most 4 eps √length, where length is the number of
    terms of the op's longest sum. Below float64 it must also be at most four times the error that the reference
    itself makes in this dtype (or 4 eps, if that is more).

    Args:
        op_name: str, the op's name.
        backend: str, the backend to check.
        case: Case, the inputs.
        dtype: torch.dtype of the inputs.
        device: str, where the op runs.

    Raises:
        AssertionError: an error is larger than allowed.

    >>> from fastlip import testing
    >>> case = testing.cases_of("maxmin").CASES["image"]
    >>> testing.check_agreement("maxmin", "reference", case, torch.float32)
    """
    tensors = case.make(dtype, device)
    exact = {name: tensor.to(_wide(tensor.dtype)) for name, tensor in tensors.items()}
    with everything_ieee():  # cuDNN's convolutions use TF32 unless told otherwise
        truth = outputs_and_gradients(lambda **t: call(op_name, "reference", case, t), exact)
        ours = outputs_and_gradients(lambda **t: call(op_name, backend, case, t), tensors)
        theirs = outputs_and_gradients(lambda **t: call(op_name, "reference", case, t), tensors)
    for name, expected in truth.items():
        eps = torch.finfo(ours[name].dtype).eps
        error, allowed = _error(ours[name], expected), _ROUNDINGS * eps * case.length**0.5
        reference_error = _error(theirs[name], expected)
        if ours[name].dtype != expected.dtype:  # in float64 the reference is the truth itself, not a rival
            allowed = min(allowed, max(_ERROR_RATIO * reference_error, _ROUNDINGS * eps))
        if not error <= allowed:
            raise AssertionError(
                f"{op_name}, {backend}, {dtype}: {name} is off by {error:.2e} relative to its largest entry; "
                f"allowed {allowed:.2e}, the reference's own error is {reference_error:.2e}"
            )


def saved_bytes(function: Callable[..., Tensor], tensors: dict[str, Tensor]) -> int:
    """Returns the number of bytes that autograd keeps for the backward pass of a call; a storage counts once.

    Args:
        function: takes the tensors as keyword arguments.
        tensors: dict of floating-point tensors, all of which require gradients.
    """
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}
    return bytes_kept(lambda: function(**leaves))


def bytes_kept(function: Callable[[], Any], apart_from: Iterable[Tensor] = ()) -> int:
    """Returns the number of bytes that autograd keeps for the backward pass of a computation; a storage counts once.

    Args:
        function: computes something, without arguments.
        apart_from: tensors whose storages do not count.

    >>> from fastlip import testing
    >>> x = torch.ones(100, requires_grad=True)
    >>> testing.bytes_kept(lambda: x.exp()), testing.bytes_kept(lambda: x * x, apart_from=[x])
    (400, 0)
    """
    storages: dict[int, int] = {}
    others = {tensor.untyped_storage().data_ptr() for tensor in apart_from}
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function()
    return sum(size for address, size in storages.items() if address not in others)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.complex128 if dtype.is_complex else torch.float64


def _error(value: Any, expected: Tensor) -> float:
    if value.shape != expected.shape:
        raise AssertionError(f"got shape {tuple(value.shape)}, expected {tuple(expected.shape)}")
    if expected.numel() == 0:
        return 0.0
    scale = expected.abs().max().item() or 1.0
    return (value.to(expected.dtype) - expected).abs().max().item() / scale
