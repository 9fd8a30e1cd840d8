"""Kernels at the edges: NaN and Inf, singular matrices, the ends of the exponent range, gradients of gradients."""

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import fastlip
from fastlip import nn as lip
from fastlip import ops, testing


def small_cases():
    for op_name, case_name, case in testing.op_cases():
        size = sum(torch.Size(shape).numel() for shape in case.shapes.values())
        if 0 < size <= 700 and all(0 not in shape for shape in case.shapes.values()):
            for backend in ("reference", "native"):
                if backend in testing.backends_of(op_name) and not (
                    backend == "native" and testing.op(op_name).status("native")
                ):
                    yield pytest.param(op_name, backend, case, id=f"{op_name}-{backend}-{case_name}")


def call_or_skip(op_name, backend, case, tensors):
    try:
        return testing.call(op_name, backend, case, tensors)
    except ValueError as error:
        if "cannot run here" in str(error):
            pytest.skip(str(error))
        raise


@pytest.mark.parametrize(("op_name", "backend", "case"), list(small_cases()))
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_shows_in_the_result(op_name, backend, case, value):
    for name in case.shapes:
        tensors = case.make(testing.dtypes_of(op_name)[0])
        if (op_name, name, value) == ("sdp_residual", "bias", -math.inf):
            continue  # relu(-inf) is 0
        tensors[name][tuple(side // 2 for side in tensors[name].shape)] = value
        y = call_or_skip(op_name, backend, case, tensors)
        assert not y.abs().isfinite().all(), name


MATRICES = {
    "ones": lambda shape: torch.ones(shape),
    "zeros": lambda shape: torch.zeros(shape),
    "rank one": lambda shape: torch.randn(*shape[:-1], 1) @ torch.randn(*shape[:-2], 1, shape[-1]),
    "equal columns": lambda shape: torch.randn(*shape[:-1], 1).expand(shape),
    "subnormal": lambda shape: torch.randn(shape) * torch.finfo(torch.float32).tiny / 1024,
    "large": lambda shape: torch.randn(shape) * 1e37,
}


@pytest.mark.parametrize("backend", ["reference", "native"])
@pytest.mark.parametrize("kind", MATRICES)
@pytest.mark.parametrize("shape", [(2, 16, 8), (2, 8, 16), (2, 8, 8), (2, 1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
@pytest.mark.parametrize("op_name", ["polar", "cayley"])
def test_singular_and_extreme_matrices_have_factors(op_name, dtype, shape, kind, backend):
    if backend == "native" and testing.op(op_name).status("native"):
        pytest.skip("no native kernels")
    torch.manual_seed(0)
    M = MATRICES[kind](shape).to(dtype).requires_grad_()
    Q = getattr(ops, op_name)(M, backend=backend)
    gram = Q.mH @ Q if shape[-2] >= shape[-1] else Q @ Q.mH
    torch.testing.assert_close(gram, torch.eye(gram.shape[-1], dtype=dtype).expand_as(gram), rtol=0, atol=1e-4)
    if kind != "large":
        (gradient,) = torch.autograd.grad(Q.abs().sum(), M)
        assert gradient.abs().isfinite().all()


def test_equal_weights_of_lot_are_decomposed():
    layer = lip.LOTConv2d(8, 16, 3)
    torch.nn.init.ones_(layer.raw_weight)
    assert layer(torch.randn(1, 8, 6, 6)).isfinite().all()


def network(method):
    return fastlip.models.lip_conv_net(method, width=4, image_size=8, in_channels=1, layers_per_block=1)


@pytest.mark.parametrize("method", fastlip.models.METHODS)
def test_a_gradient_penalty_is_that_of_the_references(method):
    torch.manual_seed(0)
    net, x = network(method), torch.rand(64, 1, 8, 8, requires_grad=True)  # enough for kernels

    def penalty(model):
        (gradient,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
        model.zero_grad()
        (gradient.flatten(1).norm(dim=1) - 1).square().mean().backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    state = {name: value.clone() for name, value in net.state_dict().items()}
    found = penalty(net)
    net.load_state_dict(state)
    plain = fastlip.unfuse(net)
    for module in plain.modules():
        if hasattr(module, "backend"):
            module.backend = "reference"
    for ours, theirs in zip(found, penalty(plain), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", fastlip.models.METHODS)
@pytest.mark.filterwarnings("ignore")
def test_a_traced_network_computes_what_the_network_does(method, tmp_path):
    net = network(method).eval()
    with torch.no_grad():
        traced = torch.jit.trace(net, torch.rand(3, 1, 8, 8), check_trace=False)
        torch.jit.save(traced, tmp_path / "net.pt")
        for batch in (3, 64):  # 64 are enough for kernels
            x = torch.rand(batch, 1, 8, 8)
            torch.testing.assert_close(torch.jit.load(tmp_path / "net.pt")(x), net(x), rtol=1e-4, atol=1e-5)


def test_parameters_on_meta_are_named():
    with torch.device("meta"):
        layer = lip.AOLConv2d(2, 2, 3, bias=False)
    with pytest.raises(ValueError, match="raw_weight: is on meta"):
        layer(torch.rand(1, 2, 4, 4))
    with pytest.raises(ValueError, match="got tensors on cpu and meta, expected all on one device"):
        ops.conv_chain(torch.rand(1, 2, 4, 4), [torch.rand(2, 2, 3, 3, device="meta")])


@pytest.mark.parametrize("op_name", ["conv_chain", "sdp_residual", "gram_rowsum", "spectral_conv"])
def test_flop_counters_count_what_they_count_for_the_reference(op_name):
    if testing.op(op_name).status("native"):
        pytest.skip("no native kernels")
    counts = []
    names = {"sdp_residual": "3x3"}
    case = next(case for op, name, case in testing.op_cases() if op == op_name and name == names.get(op, name))
    for backend in ("native", "reference"):
        leaves = {name: tensor.requires_grad_() for name, tensor in case.make(torch.float32).items()}
        with FlopCounterMode(display=False) as counter:
            testing.call(op_name, backend, case, leaves).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == pytest.approx(counts[1], rel=0.25)
    assert counts[0] > 0
