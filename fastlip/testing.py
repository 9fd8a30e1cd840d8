"""What tests and benchmarks share: discovery of ops and cases, the agreement gate, bytes saved for backward."""

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

# An error may exceed the reference's own by this factor, above the rounding of single entries.
_ERROR_RATIO = 4.0
_ROUNDINGS = 4.0


def cases_of(op_name: str) -> ModuleType:
    """The module ``fastlip.kernels.<op>.cases``."""
    return importlib.import_module(f"fastlip.kernels.{op_name}.cases")


def ops_with_cases() -> list[str]:
    """The ops that have cases: all with kernels must, references may."""
    return [name for name in OPS if find_spec(f"fastlip.kernels.{name}.cases") or op(name).backends]


def op_cases(bench: bool = False) -> Iterator[tuple[str, str, Case]]:
    """(op, case name, case) of every op: those for tests, or those for benchmarks."""
    for op_name in ops_with_cases():
        for case_name, case in cases_of(op_name).CASES.items():
            if case.bench == bench:
                yield op_name, case_name, case


def dtypes_of(op_name: str) -> tuple[torch.dtype, ...]:
    """The dtypes in which an op is tested."""
    return getattr(cases_of(op_name), "DTYPES", (torch.float64, torch.float32))


def backends_of(op_name: str) -> tuple[str, ...]:
    """Every backend of an op, the reference first."""
    return ("reference", *op(op_name).backends)


def op(op_name: str) -> Op:
    """The op's dispatcher."""
    return registered[op_name]


def call(op_name: str, backend: str, case: Case, tensors: dict[str, Tensor]) -> Tensor:
    """The op's public function on a case's inputs."""
    return getattr(ops, op_name)(**case.arguments(tensors), backend=backend)


def outputs_and_gradients(
    function: Callable[..., Tensor], tensors: dict[str, Tensor], seed: int = 1
) -> dict[str, Tensor]:
    """The function's output and its gradient for every floating-point tensor, by name, for a random cotangent."""
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
    """Raises AssertionError unless outputs and gradients agree with the float64 reference to rounding.

    Both the backend and the reference run in dtype; each quantity's error, relative to its largest entry, must be
    at most ``4 eps sqrt(length)``, and below float64 at most four times the reference's own error (or a single
    rounding).
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
    """Bytes that autograd keeps for the backward pass of a call, each storage counted once."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}
    return bytes_kept(lambda: function(**leaves))


def bytes_kept(function: Callable[[], Any], apart_from: Iterable[Tensor] = ()) -> int:
    """Bytes that autograd keeps for the backward pass of what the function computes, each storage counted once.

    The storages of the tensors in apart_from do not count.
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
