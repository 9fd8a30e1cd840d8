"""Dense layers whose products a kernel takes: layouts, compilers, lower precision, traces and mistakes."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

import fastlip
from fastlip import nn as lip
from fastlip.kernels.common import products

native = pytest.importorskip("fastlip.kernels.linear.native")
residual = pytest.importorskip("fastlip.kernels.sdp_residual.dense")
LAYERS = ["AOLLinear", "BROLinear", "SandwichLinear", "SLLLinear", "SOCLinear"]
# Of the gradient of 40 vectors of 200 numbers.
GRADIENTS = {
    "transposed": lambda: torch.randn(200, 40).T,
    "the same vector": lambda: torch.randn(200).expand(40, 200),
    "one number": lambda: torch.ones(()).expand(40, 200),
    "parts": lambda: torch.randn(80, 400)[::2, ::2],
}


@pytest.fixture(autouse=True)
def faster(monkeypatch):
    torch.manual_seed(0)
    torch._dynamo.reset()
    monkeypatch.setattr(products, "is_faster", lambda: True)


def close(found, right, roundings=16):
    assert (found.double() - right.double()).norm() <= roundings * torch.finfo(found.dtype).eps * right.norm()


@pytest.mark.parametrize("layout", GRADIENTS)
@pytest.mark.parametrize("op_name", ["linear", "skew_exp_linear", "sdp_residual", "polar_linear"])
def test_gradients_in_any_layout(op_name, layout):
    x, W = torch.randn(40, 200), torch.randn(200, 200) / 40
    rest = (torch.randn(200), torch.ones(200) / 2) if op_name == "sdp_residual" else ()
    gradient, results = GRADIENTS[layout](), {}
    for backend, dtype in (("native", torch.float32), ("reference", torch.float64)):
        tensors = [tensor.to(dtype, copy=True).requires_grad_() for tensor in (x, W, *rest)]
        y = getattr(fastlip.ops, op_name)(*tensors, backend=backend)
        results[backend] = torch.autograd.grad(y, tensors, gradient.to(dtype))
    for ours, right in zip(results["native"], results["reference"], strict=True):
        close(ours, right, 64)


@pytest.mark.parametrize("op_name", ["linear", "skew_exp_linear", "sdp_residual"])
def test_strides_of_results_are_those_that_compilers_expect(op_name):
    x, W = torch.randn(200, 40).T, torch.randn(200, 200) / 40
    rest = (None, torch.ones(200) / 2) if op_name == "sdp_residual" else ()
    op = getattr(fastlip.ops, op_name)
    for inputs in (x, x.T.contiguous().T.view(4, 10, 200), x.reshape(4, 10, 200).permute(1, 0, 2)):
        y = op(inputs, W, *rest, backend="native")
        step = torch.compile(lambda x: op(x, W, *rest, backend="native"), backend="aot_eager", fullgraph=True)
        compiled = step(inputs)
        assert torch.equal(compiled, y)
        assert y.stride() == compiled.stride() == torch.empty(inputs.shape).stride()


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("training", [True, False])
def test_layers_compile_as_one_graph_for_any_batch(layer, training):
    module = getattr(lip, layer)(160, 160).train(training)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compiled = torch.compile(module, backend="aot_eager", fullgraph=True, dynamic=True)
        for count in (100, 2, 120):
            x = torch.randn(count, 160)
            torch.testing.assert_close(compiled(x), module(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("layer", LAYERS)
def test_layers_are_exported_with_a_batch_of_any_size(layer):
    module, x = getattr(lip, layer)(160, 160).eval(), torch.randn(100, 160)
    program = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("n", min=2)},))
    for inputs in (x, x[:3]):
        torch.testing.assert_close(program.module()(inputs), module(inputs), rtol=0, atol=1e-5)


@pytest.mark.parametrize("backend", ["auto", "native"])
def test_the_op_compiles(backend):
    x, W, b = (torch.randn(*shape, requires_grad=True) for shape in ((100, 160), (160, 160), (160,)))
    step = torch.compile(lambda *t: fastlip.ops.linear(*t, backend=backend), backend="aot_eager", fullgraph=True)
    y, expected = step(x, W, b), F.linear(x, W, b)
    close(y, expected)
    for ours, right in zip(
        torch.autograd.grad(y.square().sum(), (x, W, b)),
        torch.autograd.grad(expected.square().sum(), (x, W, b)),
        strict=True,
    ):
        close(ours, right)


@pytest.mark.parametrize("layer", [*LAYERS, "CPLLinear"])
def test_layers_multiply_in_the_precision_of_autocast(layer, monkeypatch):
    for module in (native, residual):
        monkeypatch.setattr(module, "product", lambda *_, **__: pytest.fail("kernel"))
    module, x = getattr(lip, layer)(160, 160).eval(), torch.randn(100, 160)
    with torch.autocast("cpu", torch.bfloat16):
        y = module(x)
        monkeypatch.setattr(products, "is_faster", lambda: False)
        assert torch.equal(y, module(x))


@pytest.mark.parametrize("layer", [*LAYERS, "CPLLinear"])
def test_layers_multiply_in_the_precision_that_is_set(layer, monkeypatch):
    for module in (native, residual):
        monkeypatch.setattr(module, "product", lambda *_, **__: pytest.fail("kernel"))
    before = torch.backends.mkldnn.matmul.fp32_precision
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    try:
        getattr(lip, layer)(160, 160).eval()(torch.randn(100, 160))
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("layer", LAYERS)
def test_traces_are_made_of_the_operators_of_torch(layer):
    module, x = getattr(lip, layer)(160, 160).eval(), torch.randn(100, 160)
    traced = torch.jit.trace(module, x)
    assert "fastlip::" not in str(traced.inlined_graph)
    torch.testing.assert_close(traced(x[:3]), module(x[:3]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("layer", ["AOLLinear", "SLLLinear", "SOCLinear"])
def test_higher_derivatives_are_those_of_double_precision(layer):
    module = getattr(lip, layer)(160, 160)
    x, v = torch.randn(80, 160), torch.randn(80, 160)
    found = []
    for twin in (module, copy.deepcopy(module).double()):
        dtype = twin.raw_weight.dtype if layer != "SLLLinear" else twin.kernel.dtype
        inputs = x.to(dtype).requires_grad_()
        (first,) = torch.autograd.grad(twin(inputs).pow(3).sum(), inputs, create_graph=True)
        found.append(torch.autograd.grad((first * v).sum(), [inputs, *twin.parameters()], allow_unused=True))
    for ours, right in zip(*found, strict=True):
        if right is not None and right.norm() > 1e-6:
            close(ours, right, 200)


@pytest.mark.parametrize("changed", ["x", "W"])
@pytest.mark.parametrize("op_name", ["linear", "skew_exp_linear", "sdp_residual"])
def test_what_is_changed_before_the_backward_is_an_error(op_name, changed):
    x, W = torch.randn(40, 200).requires_grad_(), (torch.randn(200, 200) / 40).requires_grad_()
    rest = (None, torch.ones(200) / 2) if op_name == "sdp_residual" else ()
    y = getattr(fastlip.ops, op_name)(x, W, *rest, backend="native")
    with torch.no_grad():
        {"x": x, "W": W}[changed].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_graphs_are_kept_and_hooks_called():
    x, W = torch.randn(100, 160).requires_grad_(), torch.randn(160, 160).requires_grad_()
    y, seen = fastlip.ops.linear(x, W, backend="native"), []
    y.register_hook(seen.append)
    W.register_hook(lambda gradient: 2 * gradient)
    with torch.autograd.detect_anomaly(check_nan=True):
        y.sum().backward(retain_graph=True)
    once = W.grad.clone()
    y.sum().backward()
    assert len(seen) == 2
    torch.testing.assert_close(W.grad, 2 * once)
    torch.testing.assert_close(once, 2 * x.detach().sum(0).expand(160, 160), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layer", LAYERS)
def test_parameters_that_do_not_fit_are_errors(layer):
    module, x = getattr(lip, layer)(160, 160), torch.randn(100, 160)
    for bias in (torch.zeros(3), torch.zeros(160, dtype=torch.float64)):
        with pytest.raises((RuntimeError, ValueError, TypeError)):
            torch.func.functional_call(module, {"bias": bias}, (x,))


@pytest.mark.parametrize("layer", LAYERS)
def test_inputs_of_every_shape(layer):
    module = getattr(lip, layer)(160, 160).eval()
    x = torch.randn(4, 30, 160)
    whole = module(x)
    assert module(x[:0]).shape == (0, 30, 160)
    torch.testing.assert_close(module(x[0, 0]), whole[0, 0], rtol=0, atol=1e-5)
    torch.testing.assert_close(module(x.transpose(0, 1)).transpose(0, 1), whole, rtol=0, atol=1e-5)
    torch.testing.assert_close(module(x[:1].expand(4, 30, 160))[3], whole[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(160,), (100, 160), (4, 25, 160)])
@pytest.mark.parametrize("op_name", ["linear", "sdp_residual"])
def test_flop_counters_count_the_products_of_the_reference(op_name, shape):
    counts = []
    for backend in ("native", "reference"):
        x, W = torch.randn(shape, requires_grad=True), torch.randn(120, 160, requires_grad=True)
        rest = (None, torch.ones(120)) if op_name == "sdp_residual" else ()
        with FlopCounterMode(display=False) as counter:
            getattr(fastlip.ops, op_name)(x, W, *rest, backend=backend).sum().backward()
        counts.append(counter.get_total_flops())
    vectors, products = x.numel() // 160, 6 if op_name == "sdp_residual" else 3
    assert counts[0] == products * 2 * vectors * W.numel()
    assert len(shape) == 1 or counts[0] == counts[1]  # torch's counter leaves products of matrices with vectors out
