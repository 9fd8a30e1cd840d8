"""What ops return, and its gradients of any order, are IEEE float32 or better, outside of layers too."""

import pytest
import torch
from tf32_model import CPU, LOWER, TF32, reset

import fastlip
from fastlip import testing
from fastlip.kernels.cayley import reference as cayley
from fastlip.kernels.common import precision
from fastlip.kernels.common.dispatch import registered


@pytest.fixture(autouse=True)
def _settings_come_back():
    yield
    reset()


# The results of these are images, in the precision that the user sets.
OF_IMAGES = "conv_chain", "conv_exp", "sdp_residual", "spectral_conv"
OPS = sorted(name for name, op in registered.items() if op.backends and name not in OF_IMAGES)


def differentiated_twice(function, tensors):
    """Whatever products a function's value, its gradients and their gradients are made of."""
    leaves = [tensor for tensor in tensors if tensor.requires_grad]
    options = {"allow_unused": True}
    y = function(*tensors)
    y = torch.view_as_real(y.resolve_conj()) if y.is_complex() else y
    first = torch.autograd.grad((y * y).sum(), leaves, create_graph=True, **options)
    total = sum(gradient.abs().square().sum() for gradient in first if gradient is not None)
    second = torch.autograd.grad(total, leaves, **options) if total.requires_grad else ()
    return [gradient for gradient in (*first, *second) if gradient is not None]


def cases_of(op_name):
    for name, case in testing.cases_of(op_name).CASES.items():
        if not case.bench and sum(torch.Size(shape).numel() for shape in case.shapes.values()) < 5000:
            tensors = case.make(torch.float32, "cpu")
            assert all(isinstance(tensor, torch.Tensor) for tensor in tensors.values())
            for tensor in tensors.values():
                tensor.requires_grad_(tensor.is_floating_point() or tensor.is_complex())
            yield name, case, tensors


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("lower", ["high", "oneDNN"])
@pytest.mark.parametrize("op_name", OPS)
def test_ops_and_their_gradients_are_full_outside_of_layers(op_name, lower, backend):
    LOWER[lower]()
    ran = 0
    for name, case, tensors in cases_of(op_name):

        def function(*values, case=case, names=tuple(tensors)):
            return testing.call(op_name, backend, case, dict(zip(names, values, strict=True)))

        with TF32() as mode:
            assert differentiated_twice(function, list(tensors.values())), name
        assert mode.rounded == 0, name
        ran += 1
    assert ran


def test_so_is_the_spectrum_of_a_kernel():
    torch.set_float32_matmul_precision("high")
    kernel = torch.randn(3, 2, 3, 3, requires_grad=True)
    with TF32() as mode:
        assert differentiated_twice(lambda kernel: fastlip.ops.kernel_spectrum(kernel, (5, 4)), [kernel])
    assert mode.rounded == 0


def test_a_gradient_of_lower_precision_is_seen():
    """What autograd computes of the same reference outside of its step."""
    torch.set_float32_matmul_precision("high")
    M = torch.randn(4, 4, requires_grad=True)

    def planted(M):
        with precision.full_precision(CPU):
            return cayley.cayley(M)

    with TF32() as mode:
        planted(M)
        assert mode.rounded == 0
        differentiated_twice(planted, [M])
    assert mode.rounded


@pytest.mark.parametrize("lower", ["high", "oneDNN"])
def test_second_gradients_are_those_of_full_precision(lower):
    """Computed by another route: a graph of gradients of gradients that is made step by step."""
    M = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    wanted = differentiated_twice(lambda M: fastlip.ops.cayley(M, backend="reference"), [M])
    LOWER[lower]()
    for backend in ("auto", "reference"):
        single = M.detach().float().requires_grad_()
        found = differentiated_twice(lambda M, backend=backend: fastlip.ops.cayley(M, backend=backend), [single])
        for value, expected in zip(found, wanted, strict=True):
            torch.testing.assert_close(value.double(), expected, rtol=1e-4, atol=1e-4)


def test_a_compiled_op_is_wider_where_products_are_lowered():
    seen = set()

    def backend(graph, _):
        values = [node.meta.get("example_value") for node in graph.graph.nodes]
        seen.update(value.dtype for value in values if isinstance(value, torch.Tensor))
        return graph.forward

    def function(M):
        return fastlip.ops.cayley(M, backend="reference")

    M = torch.randn(4, 4)
    expected = function(M)
    torch.compiler.reset()
    compiled = torch.compile(function, backend=backend, fullgraph=True)
    torch.testing.assert_close(compiled(M), expected)
    assert torch.float64 not in seen
    torch.set_float32_matmul_precision("high")
    torch.compiler.reset()
    found = compiled(M)
    assert torch.float64 in seen
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)
