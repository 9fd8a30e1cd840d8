"""Second derivatives of ops whose first ones Triton computes: tests/gpu/test_interpreter.py runs this file."""

import pytest
import torch

from fastlip import testing

triton = pytest.importorskip("triton", minversion="3.6")
pytestmark = pytest.mark.skipif(
    not triton.knobs.runtime.interpret, reason="runs in the process that tests/gpu/test_interpreter.py starts"
)

CASES_OF_AN_OP = 2
LONG = ("spectral_exp", "spectral_polar")  # a hundred launches


def smallest_cases():
    """The smallest cases of each op that has a Triton kernel: programs take the interpreter long."""
    found = {}
    for op_name, case_name, case in testing.op_cases():
        size = sum(torch.Size(shape).numel() for shape in case.shapes.values())
        empty = any(0 in shape for shape in case.shapes.values())
        if "triton" in testing.backends_of(op_name) and size and not empty:
            found.setdefault(op_name, []).append((size, case_name, case))
    for op_name, cases in found.items():
        ordered = sorted(cases, key=lambda item: item[:2])[:CASES_OF_AN_OP]
        for index, (_, case_name, case) in enumerate(ordered):
            marks = pytest.mark.slow if index or op_name in LONG else ()
            yield pytest.param(op_name, case, id=f"{op_name}-{case_name}", marks=marks)


def second_derivatives(op_name, backend, case, tensors):
    """The gradients of a directional derivative of the gradient, for each tensor."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}
    generator = torch.Generator().manual_seed(1)

    def weights(like):
        wide = torch.complex128 if like.is_complex() else torch.float64
        return torch.randn(like.shape, generator=generator, dtype=wide).to(like.dtype)

    options = {"allow_unused": True, "materialize_grads": True}
    y = testing.call(op_name, backend, case, leaves)
    first = torch.autograd.grad(y, list(leaves.values()), weights(y), create_graph=True, **options)
    # The square gives every op a second derivative, also those that are linear in each piece.
    slope = sum((gradient.conj() * weights(gradient)).real.sum().square() for gradient in first)
    slope = slope + (y.conj() * weights(y)).real.sum().square()
    return torch.autograd.grad(slope, list(leaves.values()), **options)


@pytest.mark.parametrize(("op_name", "case"), list(smallest_cases()))
def test_second_derivatives_are_those_of_the_reference(op_name, case):
    tensors = case.make(torch.float32)
    wide = {True: torch.complex128, False: torch.float64}
    exact = {name: tensor.to(wide[tensor.is_complex()]) for name, tensor in tensors.items()}
    try:
        ours = second_derivatives(op_name, "triton", case, tensors)
    except ValueError as error:
        if "cannot run here: " not in str(error):
            raise
        pytest.skip(str(error))
    theirs = second_derivatives(op_name, "reference", case, tensors)
    eps = torch.finfo(torch.float32).eps
    for name, found, plain, expected in zip(
        tensors, ours, theirs, second_derivatives(op_name, "reference", case, exact), strict=True
    ):
        scale = expected.abs().amax().clamp_min(torch.finfo(torch.float32).tiny)
        error, usual = ((value.to(expected.dtype) - expected).abs().amax() / scale for value in (found, plain))
        assert error <= max(4 * usual, 4 * eps * case.length**0.5), name
