"""Second derivatives of every op, by every backend, and inside the transforms of torch.func."""

import pytest
import torch
from torch import func

from fastlip import ops, testing
from fastlip.kernels.common.gram import norm_bound

LARGEST = 150  # numbers: finite differences of more take long
WIDE = (torch.float64, torch.complex128)


def small_cases(backends):
    for op_name, case_name, case in testing.op_cases():
        size = sum(torch.Size(shape).numel() for shape in case.shapes.values())
        if not 0 < size <= LARGEST or any(0 in shape for shape in case.shapes.values()):
            continue
        for backend in backends:
            if backend in testing.backends_of(op_name) and not (
                backend == "native" and testing.op(op_name).status("native")
            ):
                for dtype in (dtype for dtype in testing.dtypes_of(op_name) if dtype in WIDE):
                    name = f"{op_name}-{backend}-{case_name}-{str(dtype)[6:]}"
                    yield pytest.param(op_name, backend, case, dtype, id=name)


def function_of(op_name, backend, case, dtype):
    """The op of its tensors, and these."""
    tensors = case.make(dtype)
    try:
        testing.call(op_name, backend, case, tensors)
    except ValueError as error:
        if "cannot run here" in str(error):
            pytest.skip(str(error))
        raise
    names = list(tensors)
    return (
        lambda *values: testing.call(op_name, backend, case, dict(zip(names, values, strict=True))),
        tuple(tensors.values()),
    )


@pytest.mark.parametrize(("op_name", "backend", "case", "dtype"), list(small_cases(("reference", "native"))))
def test_gradgradcheck(op_name, backend, case, dtype):
    function, tensors = function_of(op_name, backend, case, dtype)
    leaves = tuple(tensor.requires_grad_() for tensor in tensors)
    assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)


@pytest.mark.parametrize(("op_name", "backend", "case", "dtype"), list(small_cases(("auto", "reference", "native"))))
def test_batched_gradients_with_a_graph_are_those_one_by_one(op_name, backend, case, dtype):
    function, tensors = function_of(op_name, backend, case, dtype)
    leaves = tuple(tensor.requires_grad_() for tensor in tensors)
    y = function(*leaves)
    rows = torch.randn(2, *y.shape, dtype=y.dtype)

    def seconds(gradients):
        if not gradients[0].requires_grad:
            return None
        return torch.autograd.grad(
            gradients[0].abs().square().sum(), leaves[0], retain_graph=True, allow_unused=True
        )[0]

    options = {"create_graph": True, "retain_graph": True}
    batched = torch.autograd.grad(y, leaves, rows, is_grads_batched=True, **options)
    one = torch.autograd.grad(y, leaves, rows[1], **options)
    torch.testing.assert_close([gradient[1] for gradient in batched], list(one))
    found, expected = seconds([gradient[1] for gradient in batched]), seconds(one)
    assert (found is None) == (expected is None)
    if found is not None and expected is not None:
        torch.testing.assert_close(found, expected)


def _real(function):
    """A number of the op's result that has second derivatives."""

    def number(*values):
        y = function(*values)
        weights = torch.linspace(0.5, 1.5, y.numel(), dtype=torch.float64).view(y.shape)
        y = y.real + 0.5 * y.imag if y.is_complex() else y
        return (weights * y + 0.3 * y * y).sum()

    return number


def _inner(a, b):
    return (a.conj() * b).real.sum()


TRANSFORMED = [
    pytest.param(op_name, case, id=f"{op_name}-{name}")
    for op_name, name, case in testing.op_cases()
    if 0 < sum(torch.Size(shape).numel() for shape in case.shapes.values()) <= 80
    and torch.float64 in testing.dtypes_of(op_name)
    and all(0 not in shape for shape in case.shapes.values())
]


@pytest.mark.parametrize(("op_name", "case"), TRANSFORMED)
def test_transforms_of_torch_func(op_name, case):
    function, tensors = function_of(op_name, "auto", case, torch.float64)
    number, every = _real(function), tuple(range(len(tensors)))
    leaves = tuple(tensor.clone().requires_grad_() for tensor in tensors)
    options = {"create_graph": True, "allow_unused": True, "materialize_grads": True}
    first = torch.autograd.grad(number(*leaves), leaves, **options)
    directions = tuple(torch.randn_like(tensor) for tensor in tensors)
    slope = sum(map(_inner, first, directions))
    assert isinstance(slope, torch.Tensor)
    if slope.requires_grad:
        curvature = torch.autograd.grad(slope, leaves, allow_unused=True, materialize_grads=True)
    else:
        curvature = tuple(torch.zeros_like(tensor) for tensor in tensors)
    gradient = func.grad(number, every)
    torch.testing.assert_close(gradient(*tensors), tuple(value.detach() for value in first))
    y, pullback = func.vjp(number, *tensors)
    torch.testing.assert_close(pullback(torch.ones_like(y)), tuple(value.detach() for value in first))
    torch.testing.assert_close(func.jvp(number, tensors, directions)[1], slope.detach())
    torch.testing.assert_close(func.jvp(gradient, tensors, directions)[1], curvature)

    def forward_slope(*values):
        return func.jvp(number, values, directions)[1]

    torch.testing.assert_close(func.grad(forward_slope, every)(*tensors), curvature)
    twice = func.grad(lambda *values: sum(map(_inner, gradient(*values), directions)), every)
    torch.testing.assert_close(twice(*tensors), curvature)
    torch.testing.assert_close(
        func.jvp(forward_slope, tensors, directions)[1],
        sum(map(_inner, curvature, directions)),
    )
    if not any(tensor.is_complex() for tensor in (*tensors, function(*tensors))):
        torch.testing.assert_close(func.jacrev(function)(*tensors), func.jacfwd(function)(*tensors))
    if tensors[0].numel() <= 40 and not any(tensor.is_complex() for tensor in tensors):
        hessian = func.hessian(number)(*tensors).flatten().view(tensors[0].numel(), -1)
        along = torch.cat([tensors[0].flatten()]) * 0
        along[0] = 1
        row = func.jvp(func.grad(number), tensors, (along.view_as(tensors[0]), *map(torch.zeros_like, tensors[1:])))[
            1
        ]
        torch.testing.assert_close(hessian[0], row.flatten())
    many = torch.vmap(gradient)(*(torch.stack([tensor, tensor / 2]) for tensor in tensors))
    torch.testing.assert_close(tuple(value[0] for value in many), tuple(value.detach() for value in first))


MATRICES = {
    "ones": lambda shape: torch.ones(shape),
    "zeros": lambda shape: torch.zeros(shape),
    "rank one": lambda shape: torch.randn(*shape[:-1], 1) @ torch.randn(*shape[:-2], 1, shape[-1]),
    "equal columns": lambda shape: torch.randn(*shape[:-1], 1).expand(shape),
    "subnormal": lambda shape: torch.randn(shape) * torch.finfo(torch.float32).tiny / 1024,
}


@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize("kind", MATRICES)
@pytest.mark.parametrize("shape", [(2, 6, 4), (2, 4, 6), (2, 4, 4), (2, 1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_second_derivatives_of_polar_are_finite_at_singular_matrices(dtype, shape, kind, backend):
    torch.manual_seed(0)
    V = MATRICES[kind](shape).to(dtype).requires_grad_()
    G = torch.randn(shape, dtype=dtype, requires_grad=True)
    (plain,) = torch.autograd.grad(ops.polar(V, backend=backend), V, G.detach())
    (gradient,) = torch.autograd.grad(ops.polar(V, backend=backend), V, G, create_graph=True)
    assert plain.isfinite().all()
    # Where singular values are nearly 0 the denominators are those of nearby matrices.
    assert gradient.norm() <= 4 * plain.norm() + 1e-6
    for second in torch.autograd.grad(gradient.abs().sum(), (V, G)):
        assert second.isfinite().all()


@pytest.mark.parametrize("dtype", WIDE)
def test_third_derivatives_of_polar_and_of_the_exponential(dtype):
    M, direction = torch.randn(2, 3, 3, dtype=dtype), torch.randn(2, 3, 3, dtype=dtype)
    for op in (ops.polar, ops.spectral_exp):

        def twice(M, op=op):
            y = op(M, backend="reference")
            return torch.autograd.grad(y, M, direction, create_graph=True)[0]

        assert torch.autograd.gradgradcheck(twice, (M.requires_grad_(),), fast_mode=True)


@pytest.mark.parametrize("dtype", WIDE)
@pytest.mark.parametrize("shape", [(2, 2, 3), (2, 1, 1), (2, 3, 2)])
def test_second_derivatives_of_the_norm_bound(shape, dtype):
    M, direction = torch.randn(shape, dtype=dtype), torch.randn(shape, dtype=dtype)
    assert torch.autograd.gradcheck(norm_bound, (M.requires_grad_(),), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(norm_bound, (M,), check_fwd_over_rev=True)
    slope = func.jvp(norm_bound, (M.detach(),), (direction,))[1]
    expected = torch.autograd.functional.jvp(norm_bound, M.detach(), direction)[1]
    torch.testing.assert_close(slope, expected)


def test_the_second_derivative_of_the_norm_bound_of_real_and_zero_matrices_is_finite():
    for M in (torch.complex(torch.randn(2, 3, 3), torch.zeros(2, 3, 3)), torch.zeros(2, 3, 3)):
        (gradient,) = torch.autograd.grad(norm_bound(M.requires_grad_()).sum(), M, create_graph=True)
        assert torch.autograd.grad(gradient.abs().square().sum(), M)[0].isfinite().all()
