"""Every op with tensors that have no numbers of their own, or that something follows: right, or one clear error.

A call may be refused by name; it may not give other numbers than the reference on plain tensors, or crash.
"""

import random

import pytest
import torch
import torch.autograd.forward_ad as forward
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from fastlip import testing

CALLS = 5000  # of the slow test
REFUSALS = (ValueError, TypeError, NotImplementedError, RuntimeError)


class Plain(torch.Tensor):
    """A subclass that changes nothing."""


class Wrapper(torch.Tensor):
    """A subclass that holds another tensor, and has no memory of its own."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, inner.stride(), dtype=inner.dtype)

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        def unwrap(value):
            return value.inner if isinstance(value, Wrapper) else value

        def wrap(value):
            return Wrapper(value) if isinstance(value, torch.Tensor) else value

        return tree_map(wrap, func(*tree_map(unwrap, args), **tree_map(unwrap, kwargs or {})))


class Onlooker(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def expanded(tensor):
    """The first entry of the first dimension for all of them: their memory overlaps."""
    return tensor[:1].expand(tensor.shape)


def overlapping(tensor):
    """Windows of a line that share their entries."""
    line = tensor.flatten()
    strides = [1] * tensor.dim()
    return line.as_strided(tensor.shape, strides)


def spread(tensor):
    """Every second entry of a larger tensor."""
    wide = tensor.new_full((*tensor.shape[:-1], 2 * tensor.shape[-1]), 7)
    wide[..., ::2] = tensor
    return wide[..., ::2]


def freed(tensor):
    tensor = tensor.clone()
    tensor.untyped_storage().resize_(0)
    return tensor


def inference(tensor):
    with torch.inference_mode():
        return tensor.clone()


# What stands for the tensor in the call, and what the reference is given instead.
VIEWS = {
    "negated": (lambda t: torch._neg_view(-t), None),
    "conjugated": (lambda t: t.conj().resolve_conj().conj(), None),
    "expanded": (expanded, lambda t: expanded(t).clone()),
    "overlapping": (overlapping, lambda t: overlapping(t).clone()),
    "spread": (spread, None),
    "transposed": (lambda t: t.mT.contiguous().mT if t.dim() > 1 else t, None),
    "channels last": (lambda t: t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t, None),
    "zero tensor": (
        lambda t: torch._efficientzerotensor(t.shape, dtype=t.dtype),
        lambda t: torch.zeros(t.shape, dtype=t.dtype),
    ),
    "parameter": (torch.nn.Parameter, None),
    "inference": (inference, None),
    "subclass": (lambda t: t.as_subclass(Plain), None),
    "wrapper": (Wrapper, None),
}
# What must not give numbers.
EMPTY = {
    "meta": lambda t: t.to("meta"),
    "sparse": lambda t: t.to_sparse(),
    "freed": freed,
}
CONTEXTS = ("onlooker", "traced", "dual", "vmap", "grad", "jvp", "batched gradients", "twice", "fake")
KINDS = (*VIEWS, *EMPTY, *CONTEXTS)


def cases():
    for op_name, case_name, case in testing.op_cases():
        size = sum(torch.Size(shape).numel() for shape in case.shapes.values())
        if 0 < size <= 800 and all(0 not in shape for shape in case.shapes.values()):
            yield op_name, case_name, case


def attempt(op_name, case, backend, kind, seed):
    """Makes one call; whether it gave numbers. AssertionError where they are wrong."""
    dtypes = [dtype for dtype in testing.dtypes_of(op_name) if dtype in (torch.float64, torch.complex128)]
    dtype = dtypes[seed % len(dtypes)]
    tensors = {name: tensor.contiguous() for name, tensor in case.make(dtype, seed=seed).items()}
    names = list(tensors)
    name = names[seed % len(names)]
    # It does not hand on that a tensor is conjugated, as the complex matrices of a real kernel are.
    if kind == "wrapper" and (tensors[name].is_complex() or op_name == "spectral_cayley"):
        return False

    def call(backend, **changed):
        return testing.call(op_name, backend, case, {**tensors, **changed})

    try:
        if kind in VIEWS:
            change, plain = VIEWS[kind]
            # By the same backend: of singular matrices there is more than one factor.
            expected = call(backend, **{name: tensors[name] if plain is None else plain(tensors[name])})
            found = call(backend, **{name: change(tensors[name])})
            found = found.inner if isinstance(found, Wrapper) else found
        elif kind in EMPTY:
            found = call(backend, **{name: EMPTY[kind](tensors[name])})
            assert found.device.type == "meta" or kind == "sparse", f"numbers from {kind}"
            return False
        else:
            found, expected = in_context(kind, call, backend, name, tensors[name])
    except REFUSALS:
        return False
    if found is not None:
        found, expected = found.detach().as_subclass(torch.Tensor), expected.detach()
        if kind in ("expanded", "overlapping") and "polar" in op_name:  # singular: another rounding, another factor
            assert found.abs().isfinite().all()
            return True
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    return True


def in_context(kind, call, backend, name, value):
    """What the op gives there, and what it should."""

    def function(tensor, backend=backend):
        return call(backend, **{name: tensor})

    plain = function(value, "reference")
    leaf = value.clone().requires_grad_()
    if kind == "onlooker":
        with Onlooker():
            return function(value), plain
    if kind == "traced":
        with torch.no_grad():
            traced = torch.jit.trace(function, value / 2, check_trace=False)
            return traced(value), plain
    if kind == "dual":
        with forward.dual_level():
            tangent = forward.unpack_dual(function(forward.make_dual(value, torch.ones_like(value)))).tangent
            expected = torch.func.jvp(lambda t: function(t, "reference"), (value,), (torch.ones_like(value),))[1]
            return tangent, expected
    if kind == "vmap":
        return torch.vmap(function)(torch.stack([value / 2, value]))[1], plain
    if kind in ("grad", "jvp"):
        if kind == "jvp":
            return torch.func.jvp(function, (value,), (torch.ones_like(value),))[0], plain
        norm = [lambda t, b=b: function(t, b).abs().square().sum() for b in (backend, "reference")]
        return torch.func.grad(norm[0])(value), torch.autograd.grad(norm[1](leaf), leaf)[0]
    if kind == "batched gradients":
        gradients = torch.stack([torch.ones_like(plain), 2 * torch.ones_like(plain)])
        found = torch.autograd.grad(function(leaf), leaf, gradients, is_grads_batched=True)[0][1]
        return found, torch.autograd.grad(function(leaf, "reference"), leaf, 2 * torch.ones_like(plain))[0]
    if kind == "twice":
        return [second(function, leaf, b) for b in (backend, "reference")]
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert function(mode.from_tensor(value)).shape == plain.shape
    return None, None


def second(function, leaf, backend):
    y = function(leaf, backend)
    (first,) = torch.autograd.grad(y.abs().square().sum(), leaf, create_graph=True)
    return torch.autograd.grad(first.abs().square().sum(), leaf)[0]


def backends(op_name):
    return [b for b in ("auto", "native", "reference") if b != "native" or not testing.op(op_name).status("native")]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("op_name", testing.ops_with_cases())
@pytest.mark.filterwarnings("ignore")
def test_a_wrapper_is_read_rightly_or_refused(op_name, kind):
    found = [case for name, _, case in cases() if name == op_name][:3]
    for seed, case in enumerate(found):
        for backend in backends(op_name):
            attempt(op_name, case, backend, kind, seed)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_thousands_of_calls_through_wrappers():
    draw, known = random.Random(0), list(cases())
    numbers = 0
    for _ in range(CALLS):
        op_name, _, case = draw.choice(known)
        numbers += attempt(op_name, case, draw.choice(backends(op_name)), draw.choice(KINDS), draw.randrange(1000))
    assert numbers > CALLS // 3
