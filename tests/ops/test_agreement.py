"""Every op x backend x case x dtype against the float64 reference; and what torch asks of an operator."""

import contextlib
import functools

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastlip import testing

# Under autocast these run in its dtype, as torch's convolutions do.
ON_ACTIVATIONS = ("conv_chain", "conv_exp", "maxmin", "pixel_unshuffle", "sdp_residual", "spectral_conv")
SMALL = 4000  # elements: gradcheck and opcheck cost grows with the square


def _names(items):
    return [pytest.param(*item, id="-".join(str(part) for part in item[:-1])) for item in items]


def agreement_cases():
    for op_name, case_name, case in testing.op_cases():
        for backend in testing.backends_of(op_name):
            for dtype in testing.dtypes_of(op_name):
                yield op_name, backend, case_name, dtype, case


def small_cases(backends=("reference", "native")):
    for op_name, case_name, case in testing.op_cases():
        size = sum(torch.Size(shape).numel() for shape in case.shapes.values())
        for backend in backends:
            if 0 < size <= SMALL and backend in testing.backends_of(op_name):
                yield op_name, backend, case_name, case


def require(op_name, backend, case, tensors):
    reason = _refusal(op_name, backend, case, tensors)
    if reason:
        pytest.skip(reason)


def _refusal(op_name, backend, case, tensors):
    if backend == "reference":
        return ""
    if reason := testing.op(op_name).status(backend):
        return reason
    try:
        testing.call(op_name, backend, case, tensors)
    except ValueError as error:
        if "cannot run here" not in str(error):
            raise
        return str(error)
    return ""


@pytest.mark.parametrize(("op_name", "backend", "case_name", "dtype", "case"), _names(agreement_cases()))
def test_agreement(op_name, backend, case_name, dtype, case, device):
    require(op_name, backend, case, case.make(dtype, device))
    testing.check_agreement(op_name, backend, case, dtype, device)


@pytest.mark.parametrize(
    ("op_name", "backend", "case_name", "case"),
    _names(item for item in small_cases() if item[0] not in ON_ACTIVATIONS),
)
def test_parametrizations_keep_their_precision_under_autocast(op_name, backend, case_name, case):
    dtype = testing.dtypes_of(op_name)[-1] if torch.float32 not in testing.dtypes_of(op_name) else torch.float32
    tensors = case.make(dtype)
    require(op_name, backend, case, tensors)

    def results(autocast):
        leaves = {name: tensor.clone().requires_grad_() for name, tensor in tensors.items()}
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = testing.call(op_name, backend, case, leaves)
        gradients = torch.autograd.grad(y.abs().square().sum(), list(leaves.values()), allow_unused=True)
        return y, *(gradient for gradient in gradients if gradient is not None)

    for found, expected in zip(results(True), results(False), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize(("op_name", "backend", "case_name", "case"), _names(small_cases()))
def test_gradcheck(op_name, backend, case_name, case):
    tensors = case.make(torch.float64)
    require(op_name, backend, case, tensors)
    if sum(tensor.numel() for tensor in tensors.values()) > 700:
        pytest.skip("too large for finite differences")
    leaves = {name: tensor.requires_grad_() for name, tensor in tensors.items()}

    def function(*values):
        return testing.call(op_name, backend, case, dict(zip(leaves, values, strict=True)))

    assert torch.autograd.gradcheck(function, tuple(leaves.values()), fast_mode=True)


class Recorder(TorchDispatchMode):
    """Collects the calls of fastlip's registered operators."""

    def __init__(self):
        super().__init__()
        self.calls = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "fastlip":
            self.calls.setdefault(func, args)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("op_name", "backend", "case_name", "case"), _names(small_cases(("native",))))
def test_opcheck(op_name, backend, case_name, case):
    tensors = case.make(torch.float32)
    require(op_name, backend, case, tensors)
    recorder = Recorder()
    with recorder:
        testing.outputs_and_gradients(lambda **t: testing.call(op_name, backend, case, t), tensors)
    assert recorder.calls, "the call reached no registered operator"
    for packet, arguments in recorder.calls.items():
        inputs = [
            a.detach().requires_grad_(a.is_floating_point()) if isinstance(a, torch.Tensor) else a for a in arguments
        ]
        tests = ["test_schema", "test_faketensor", "test_autograd_registration"]
        torch.library.opcheck(packet, tuple(inputs), test_utils=tests)


def call(op_name, backend, case, **tensors):
    return testing.call(op_name, backend, case, tensors)


class Onlooker(TorchDispatchMode):
    """Sees to it that what fastlip's registered operators return is in memory as it is."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        results = func(*args, **(kwargs or {}))
        if func.namespace == "fastlip":
            assert not any(result.is_conj() or result.is_neg() for result in tree_leaves(results)), func
        return results


@pytest.mark.parametrize(("op_name", "backend", "case_name", "case"), _names(small_cases(("native",))))
def test_who_looks_on_changes_nothing(op_name, backend, case_name, case):
    for dtype in testing.dtypes_of(op_name):
        tensors = case.make(dtype)
        require(op_name, backend, case, tensors)
        function = functools.partial(call, op_name, backend, case)
        expected, seen = {}, {}
        for results, context in ((expected, contextlib.nullcontext()), (seen, Onlooker())):
            with context:
                results |= testing.outputs_and_gradients(function, tensors)
        for name, value in expected.items():
            torch.testing.assert_close(seen[name], value, equal_nan=True)


@pytest.mark.parametrize("op_name", testing.ops_with_cases())
@pytest.mark.parametrize("backend", ["auto", "native", "reference"])
def test_compiles_without_graph_break(op_name, backend):
    if backend == "native" and (reason := testing.op(op_name).status(backend)):
        pytest.skip(reason)
    cases = (case for name, _, case in testing.op_cases() if name == op_name)
    named = backend if backend == "native" else "reference"
    case = next(case for case in cases if not _refusal(op_name, named, case, case.make(torch.float32)))
    tensors = case.make(torch.float32)

    def function(**t):
        return testing.call(op_name, backend, case, t)

    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    expected = testing.outputs_and_gradients(function, tensors)
    for name, value in testing.outputs_and_gradients(compiled, tensors).items():
        torch.testing.assert_close(value, expected[name], msg=lambda text, name=name: f"{name}: {text}")
