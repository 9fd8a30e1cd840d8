"""The dispatch code: order, forced backends, missing modules, overhead."""

import subprocess
import sys

import pytest
import torch

from fastlip import ops, testing
from fastlip.kernels.common import dispatch
from fastlip.kernels.common.geometry import ConvGeometry
from fastlip.kernels.maxmin.api import OP

X = torch.zeros(2, 4)


def test_an_unknown_backend_is_named_with_those_allowed():
    with pytest.raises(ValueError, match="backend='cuda': allowed are 'auto', 'reference', 'native', 'triton'"):
        ops.maxmin(X, backend="cuda")


def test_a_backend_asked_for_by_name_never_falls_back():
    if not OP.why_not("triton", X, "adjacent", 1):
        pytest.skip("triton runs here")
    with pytest.raises(ValueError, match="backend='triton' cannot run here: "):
        ops.maxmin(X, backend="triton")


def test_auto_takes_the_first_backend_that_supports_the_input():
    chosen = OP.choose("auto", X, "adjacent", 1)
    first = next((name for name in OP.backends if not OP.why_not(name, X, "adjacent", 1)), "reference")
    assert chosen == first
    assert OP.choose("auto", X.to("meta"), "adjacent", 1) == "reference"


@pytest.mark.parametrize(("channels", "size", "taps"), [(4, 4, 3), (16, 64, 3), (4, 4, 1)])
@pytest.mark.parametrize("mode", ["zeros", "circular"])
def test_auto_leaves_small_convolutions_to_the_reference(channels, size, taps, mode, monkeypatch):
    monkeypatch.undo()
    if reason := testing.op("conv_chain").status("native"):
        pytest.skip(reason)
    x, weight = torch.zeros(2, channels, size, size), torch.zeros(channels, channels, taps, taps)
    small = size == 4 and taps == 3
    geometry = ConvGeometry.like(weight, padding_mode=mode)
    chain = testing.op("conv_chain").choose("auto", x, [weight], [None], [], [geometry], "adjacent")
    assert chain == ("reference" if small else "native")
    residual = testing.op("sdp_residual").choose("auto", x, weight, None, weight[:, 0, 0, 0], geometry, "none")
    assert residual == ("reference" if small and mode == "zeros" else "native")


def test_a_second_derivative_that_no_kernel_has_is_refused():
    operator = OP.define(
        "test_without_derivative(Tensor x, str backend) -> Tensor", fake=lambda x, backend: torch.empty_like(x)
    )
    module = type(sys)("module_for_test")
    module.test_without_derivative = lambda x: x * 2
    OP.add_module("test", module)
    x = torch.ones(2, requires_grad=True)
    try:
        y = operator(x, "test")
        with pytest.raises(RuntimeError, match="has no derivative"):
            y.sum().backward()
    finally:
        del OP.modules["test"]


@pytest.mark.parametrize(
    "hidden", [*(pytest.param(one, marks=pytest.mark.slow) for one in ("native", "triton")), "native,triton"]
)
def test_missing_backends_leave_the_reference(hidden):
    code = f"""
import sys
for name in {hidden.split(",")!r}:
    if name == "native":
        for kind in ("default", "avx2", "avx512"):
            sys.modules["fastlip._native_" + kind] = None
    else:
        sys.modules["triton"] = None
import torch, fastlip
from fastlip.kernels.maxmin.api import OP
x = torch.randn(3, 4)
y = fastlip.ops.maxmin(x)
assert torch.equal(y, fastlip.ops.maxmin(x, backend="reference"))
for name in {hidden.split(",")!r}:
    assert OP.why_not(name, x, "adjacent", 1), name
    try:
        fastlip.ops.maxmin(x, backend=name)
    except ValueError as error:
        assert "cannot run here" in str(error)
    else:
        raise SystemExit("a hidden backend ran")
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("backend", ["auto", pytest.param("native", marks=pytest.mark.slow)])
def test_the_first_call_of_all_can_be_a_compiled_one(backend):
    """Backends are imported and kernels found while the call is traced: no part of the graph or of its guards."""
    if OP.status("native"):
        pytest.skip(OP.status("native"))
    code = f"""
import torch, fastlip
from fastlip.kernels.maxmin.api import OP
x = torch.randn(3, 4)
compiled = torch.compile(lambda x: fastlip.ops.maxmin(x, backend={backend!r}), fullgraph=True, backend="eager")
y = compiled(x)
assert "native" in OP.modules
assert torch.equal(y, fastlip.ops.maxmin(x, backend="reference"))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_an_op_call_enters_few_python_functions():
    # What benchmarks/bench_dispatch.py times: a count does not depend on how busy the machine is.
    if OP.status("native"):
        pytest.skip(OP.status("native"))
    x = torch.zeros(2, 4, requires_grad=True)
    ops.maxmin(x, backend="native")
    entered = []
    sys.setprofile(lambda frame, event, _: entered.append(frame.f_code.co_name) if event == "call" else None)
    try:
        ops.maxmin(x, backend="native")
    finally:
        sys.setprofile(None)
    assert len(entered) <= 24, entered


def test_dispatch_modes_see_the_registered_operator():
    if OP.status("native"):
        pytest.skip(OP.status("native"))
    seen = []

    class Mode(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    with Mode():
        ops.maxmin(X, backend="native")
    assert "fastlip.maxmin_forward.default" in seen
    assert dispatch.registered["maxmin"] is OP
