"""MaxMin beyond agreement: ties, NaN, layouts, gradients of gradients, the size of what is saved."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastlip import ops, testing
from fastlip.kernels.maxmin.api import OP
from fastlip.kernels.maxmin.cases import by_extrema
from fastlip.nn import GroupSort, MaxMin


def backends():
    return ["reference", *(name for name in OP.backends if not OP.why_not(name, torch.zeros(2, 2), "adjacent", 1))]


@pytest.fixture(params=backends())
def backend(request):
    return request.param


def test_each_output_has_exactly_one_gradient_on_ties(backend):
    x = torch.zeros(3, 8, 5, 5, requires_grad=True)
    gradient = torch.randn(3, 8, 5, 5)
    ops.maxmin(x, backend=backend).backward(gradient)
    assert torch.equal(x.grad, gradient)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_signed_zeros_are_a_tie_and_nan_and_infinity_are_not_swapped_wrongly(backend, dtype):
    inf, nan = float("inf"), float("nan")
    a = torch.tensor([0.0, -0.0, nan, 1.0, -inf, inf, nan, -1.0, 2.0], dtype=dtype)
    b = torch.tensor([-0.0, 0.0, 1.0, nan, inf, -inf, nan, -2.0, 3.0], dtype=dtype)
    y = ops.maxmin(torch.stack((a, b)).unsqueeze(0), backend=backend)[0]
    swap = b > a
    expected = torch.stack((torch.where(swap, b, a), torch.where(swap, a, b)))
    torch.testing.assert_close(y, expected, equal_nan=True, rtol=0, atol=0)
    assert torch.equal(torch.signbit(y), torch.signbit(expected))


@settings(max_examples=60, deadline=None)
@given(
    shape=st.lists(st.integers(0, 9), min_size=2, max_size=5),
    pairing=st.sampled_from(["adjacent", "halves"]),
    dim=st.integers(-2, 1),
    seed=st.integers(0, 999),
)
def test_a_permutation_of_sorted_pairs(shape, pairing, dim, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-2, 3, shape, generator=generator).float()
    results = [ops.maxmin(x, pairing, dim, backend=name) for name in backends()]
    for y in results:
        assert torch.equal(y, results[0])
        assert torch.equal(y.sort(dim).values, x.sort(dim).values)
    if shape[dim] % 2 == 0 and shape[dim] > 0:
        assert torch.equal(results[0], by_extrema(x, pairing, dim % len(shape)))


def test_channels_last_stays_channels_last(backend):
    x = torch.randn(2, 6, 4, 5).to(memory_format=torch.channels_last).requires_grad_()
    y = ops.maxmin(x, backend=backend)
    if backend != "reference":
        assert y.is_contiguous(memory_format=torch.channels_last)
    gradient = torch.randn(2, 6, 4, 5)
    y.backward(gradient)
    contiguous = x.detach().contiguous().requires_grad_()
    ops.maxmin(contiguous, backend="reference").backward(gradient)
    assert torch.equal(x.grad, contiguous.grad)


def test_gradients_of_gradients(backend):
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: ops.maxmin(x, backend=backend).sin(), x)


def test_results_do_not_depend_on_the_number_of_threads(backend):
    x = torch.randn(64, 32, 33, 3)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = ops.maxmin(x, backend=backend)
        torch.set_num_threads(2)
        assert torch.equal(one, ops.maxmin(x, backend=backend))
    finally:
        torch.set_num_threads(threads)


def test_one_bit_per_pair_is_saved():
    if OP.status("native"):
        pytest.skip(OP.status("native"))
    x = torch.randn(16, 64, 32, 32)
    saved = testing.saved_bytes(lambda x: ops.maxmin(x, backend="native"), {"x": x})
    assert saved == x.numel() // 2 // 8
    assert 60 * saved < testing.saved_bytes(by_extrema, {"x": x})


def test_functorch_transforms_run_on_the_reference():
    x = torch.randn(4, 6)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda v: ops.maxmin(v[None])[0]))(x)
    assert torch.equal(jacobian.abs().sum(-1), torch.ones(4, 6))
    with pytest.raises(ValueError, match=re.escape(OP.status("native") or "torch.func")):
        torch.func.vmap(lambda v: ops.maxmin(v[None], backend="native"))(x)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((torch.zeros(3),), ValueError, "at least two dimensions"),
        ((torch.zeros(3, 2, dtype=torch.int32),), TypeError, "floating-point"),
        (([[1.0, 2.0]],), TypeError, "x: got list"),
        ((torch.zeros(3, 2), "pairs"), ValueError, "pairing='pairs': allowed are 'adjacent', 'halves'"),
        ((torch.zeros(3, 2), "halves", 2), ValueError, "dim=2"),
    ],
)
def test_wrong_arguments_are_named(arguments, error, text):
    with pytest.raises(error, match=text):
        ops.maxmin(*arguments)


def test_the_layer_and_group_sort():
    x = torch.randn(2, 6, 3, 3)
    assert torch.equal(MaxMin()(x), GroupSort(2)(x))
    assert torch.equal(MaxMin(dim=-3)(x[0]), MaxMin()(x)[0])
    assert torch.equal(GroupSort(None)(x), x.sort(1, descending=True).values)
    with pytest.raises(ValueError, match="group_size=4"):
        GroupSort(4)(x)
    with pytest.raises(ValueError, match="pairing='x'"):
        MaxMin("x")


def test_compiled_programs_take_the_kernel_where_it_is_faster():
    if reason := OP.status("native"):
        pytest.skip(reason)

    def runs_natively(x):
        return x * 0 + (OP.choose("auto", x, "adjacent", 1) == "native")

    for size, natively in ((2**13, False), (2**14, True)):
        torch._dynamo.reset()
        x = torch.randn(size // 4, 4)
        assert torch.compile(runs_natively, backend="eager", fullgraph=True)(x).all() == natively
        assert runs_natively(x).all()
