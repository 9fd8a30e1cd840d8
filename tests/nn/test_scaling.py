"""Scales, residual mixtures, position biases, shifts, partial absolute values, adaptive norms: formulas, bounds."""

import copy
import math
import subprocess
import sys

import pytest
import torch
from layer_catalog import perturb, singular_values
from torch import fx, nn

import fastlip
from fastlip import nn as lip
from fastlip.certification.certificates.prepared import Prepared
from fastlip.models import lip_conv_net

# A module, the shape of its input, and its Lipschitz constant.
MODULES = {
    "batch centering": (lambda: lip.BatchCentering(3), (3, 2, 3), 1),
    "batch centering, dense": (lambda: lip.BatchCentering(5), (5,), 1),
    "layer centering": (lambda: lip.LayerCentering(3), (3, 2, 3), 1),
    "layer centering, all": (lambda: lip.LayerCentering(3, (-3, -2, -1)), (3, 2, 3), 1),
    "layer centering, dense": (lambda: lip.LayerCentering(5, -1), (5,), 1),
    "position": (lambda: lip.PositionBias((2, 3)), (4, 2, 3), 1),
    "position of each channel": (lambda: lip.PositionBias((2, 3), 4), (4, 2, 3), 1),
    "shift": (lambda: lip.SpatialShift(1), (5, 3, 4), 1),
    "shift by more than the image": (lambda: lip.SpatialShift(1, 5), (4, 2, 3), 1),
    "partial abs": (lambda: lip.PartialAbs(2), (5, 2, 2), 1),
    "partial abs, all": (lambda: lip.PartialAbs(5, -1), (5,), 1),
    "global norm": (lambda: lip.AdaptiveL2NormPool2d(1), (3, 3, 4), 1),
    "norms": (lambda: lip.AdaptiveL2NormPool2d((2, 3)), (2, 5, 7), 1),
    "norms of pixels": (lambda: lip.AdaptiveL2NormPool2d((3, 4)), (2, 3, 4), 1),
    "scale": (lambda: lip.Scale(5), (4,), 5),
    "contraction": (lambda: lip.Scale(0.9), (4,), 0.9),
    "learnt scale": (lambda: lip.Scale(5.0, learnable=True), (4,), None),
    "residual": (lambda: lip.LipschitzResidual(lip.Scale(3), 0.25), (4,), None),
    "clamped residual": (lambda: lip.LipschitzResidual(lip.Scale(3), 0.25, "clamp"), (4,), None),
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", MODULES)
def test_the_bound_is_the_norm(name, training):
    make, shape, constant = MODULES[name]
    module = copy.deepcopy(perturb(make().double(), 0.3)).train(training and "batch" not in name)
    largest, smallest = singular_values(module, shape)
    bound = fastlip.audit(module, shape)
    assert largest == pytest.approx(bound.bound, rel=1e-12)
    assert bound.layers[0].exact or "residual" in name
    if constant is not None:
        assert bound.bound == pytest.approx(constant, rel=1e-14)
    if any(word in name for word in ("position", "shift", "partial", "batch")):
        assert smallest == pytest.approx(1, rel=1e-12)


def test_scales_are_their_formulas():
    x = torch.randn(3, 4)
    assert torch.equal(lip.Scale(5)(x), 5 * x)
    layer = lip.Scale(0.9, learnable=True)
    torch.testing.assert_close(layer(x), 0.9 * x)
    layer(x).square().sum().backward()
    torch.testing.assert_close(layer.log_scale.grad[0], 2 * (0.9 * x).square().sum())
    with torch.no_grad():
        layer.log_scale.fill_(-200.0)  # stays positive in float64
    assert layer.constant() > 0
    assert lip.Scale(5)(x.bfloat16()).dtype == torch.bfloat16
    for value, error in ((0, ValueError), (-1.0, ValueError), (math.inf, ValueError), ("5", TypeError)):
        with pytest.raises(error, match="lipschitz="):
            lip.Scale(value)


@pytest.mark.parametrize("gate", ["sigmoid", "clamp"])
def test_residual_mixtures_are_their_formula(gate):
    block = lip.LipschitzResidual(lip.CayleyLinear(4, 4), 0.3, gate)
    x = torch.randn(3, 4)
    torch.testing.assert_close(block(x), 0.7 * x + 0.3 * block.module(x))
    block(x).square().sum().backward()
    assert block.gate_value.grad.abs() > 0
    with torch.no_grad():
        block.gate_value.fill_(9.0)
    if gate == "clamp":
        torch.testing.assert_close(block(x), block.module(x))
    traced = fx.symbolic_trace(block)
    torch.testing.assert_close(traced(x), block(x))
    for dtype in (torch.bfloat16, torch.float64):
        assert copy.deepcopy(block).to(dtype)(x.to(dtype)).dtype == dtype
    compiled = torch.compile(block, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), block(x))


def test_residual_mixtures_are_audited_through_their_branch():
    block = lip.LipschitzResidual(nn.Sequential(lip.Scale(3.0), nn.ReLU()), 0.25).eval()
    found = fastlip.audit(nn.Sequential(lip.Scale(2.0), block, block), (4,))
    assert found.bound == pytest.approx(2 * 1.5**2, rel=1e-6)
    assert [part.kind for part in found.layers[1].parts] == ["Scale", "ReLU"]
    contraction = lip.LipschitzResidual(nn.Sequential(lip.CayleyLinear(4, 4), lip.Scale(0.5)), 0.5)
    assert fastlip.audit(contraction, (4,)).bound == pytest.approx(0.75, rel=1e-5)


@pytest.mark.parametrize("rounding", ["worst-case", "probabilistic"])
def test_residual_mixtures_are_certified(rounding):
    torch.manual_seed(0)
    blocks = [lip.LipschitzResidual(nn.Sequential(lip.CayleyLinear(4, 4), lip.MaxMin())) for _ in range(3)]
    model = perturb(nn.Sequential(*blocks, lip.Scale(0.9, learnable=True)), 0.3).eval()
    x = torch.randn(50, 4)
    labels = model(x).argmax(1)
    certificates = [fastlip.certify(each, [(x, labels)], rounding=rounding) for each in (model, model.double())]
    assert certificates[0].radii.min() >= 0
    exact = certificates[1].radii
    torch.testing.assert_close(certificates[0].radii.double(), exact.double(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("form", ["module", "exported"])
@torch.no_grad()
def test_the_rounding_of_residual_mixtures_is_bounded(form):
    torch.manual_seed(0)
    blocks = [lip.LipschitzResidual(nn.Sequential(lip.CayleyLinear(64, 64), lip.MaxMin())) for _ in range(8)]
    model = perturb(nn.Sequential(*blocks), 0.3).eval()
    model = fastlip.export(model, (64,)) if form == "exported" else model
    prepared = Prepared(model, (64,), "worst-case", torch.device("cpu"))
    for size in (1e-3, 1.0, 1e3):
        x = size * torch.randn(200, 64)
        exact = prepared.exact(x, torch.arange(200))
        y, rounded = prepared.forward(0, x.clone())
        error = (y.double() - exact).norm(dim=1)
        assert (error <= rounded.error).all()
        assert (rounded.error <= 2e-3 * size * 8).all()


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: lip.LipschitzResidual(3), TypeError, "module: got int"),
        (lambda: lip.LipschitzResidual(nn.ReLU(), 1), ValueError, "initial=1"),
        (lambda: lip.LipschitzResidual(nn.ReLU(), gate="tanh"), ValueError, "gate='tanh': allowed are 'sigmoid'"),
        (lambda: lip.LipschitzResidual(nn.Linear(4, 1))(torch.zeros(2, 4)), ValueError, "module: its output"),
        (
            lambda: lip.SpatialShift(2)(torch.zeros(1, 7, 2, 2)),
            ValueError,
            "channels=2: expected images of at least 8",
        ),
        (lambda: lip.SpatialShift(1, 0), ValueError, "step=0"),
        (lambda: lip.PartialAbs(3)(torch.zeros(1, 2)), ValueError, "channels=3: expected at most the 2"),
        (lambda: lip.PositionBias(4)(torch.zeros(1, 2, 4, 5)), ValueError, "x: got shape"),
        (lambda: lip.PositionBias(4, 3)(torch.zeros(1, 2, 4, 4)), ValueError, "x: got shape"),
        (lambda: lip.AdaptiveL2NormPool2d(3)(torch.zeros(1, 2, 2, 4)), ValueError, "x: got shape"),
        (lambda: lip.AdaptiveL2NormPool2d(0), ValueError, "output_size=0"),
    ],
)
def test_what_is_refused(make, error, text):
    with pytest.raises(error, match=text):
        make()


def test_shifts_move_what_they_say():
    x = torch.randn(2, 9, 4, 5)
    y = lip.SpatialShift(2)(x)
    for group, (step, dim) in enumerate(((-1, -2), (1, -2), (-1, -1), (1, -1))):
        part = slice(2 * group, 2 * group + 2)
        assert torch.equal(y[:, part], x[:, part].roll(step, dim))
    assert torch.equal(y[:, 8:], x[:, 8:])
    torch.testing.assert_close(lip.SpatialShift(2)(x[0]), y[0])
    assert torch.equal(lip.PartialAbs(3)(x)[:, :3], x[:, :3].abs())
    assert torch.equal(lip.PartialAbs(3, -3)(x)[:, 3:], x[:, 3:])


@pytest.mark.parametrize(("size", "output"), [((5, 7), (2, 3)), ((6, 4), (3, 2)), ((4, 4), (1, 1)), ((3, 1), (3, 1))])
def test_adaptive_norms_tile_the_image(size, output):
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    y = lip.AdaptiveL2NormPool2d(output)(x)
    assert y.shape == (2, 3, *output)
    torch.testing.assert_close(y.norm(), x.norm())
    if size[0] % output[0] == size[1] % output[1] == 0:
        torch.testing.assert_close(y, lip.L2NormPool2d([a // b for a, b in zip(size, output, strict=True)])(x))
    rows, columns = ([i * s // o for i in range(o + 1)] for s, o in zip(size, output, strict=True))
    torch.testing.assert_close(y[0, 0, -1, 0], x[0, 0, rows[-2] :, : columns[1]].norm())
    assert torch.autograd.gradcheck(lip.AdaptiveL2NormPool2d(output), (x,))
    zero = torch.zeros(1, 1, *size, requires_grad=True)
    lip.AdaptiveL2NormPool2d(output)(zero).sum().backward()
    assert not zero.grad.any()


@pytest.mark.parametrize("lipschitz", [5, 0.9])
@pytest.mark.parametrize("method", ["aol", "cayley"])
def test_a_network_of_another_constant(method, lipschitz):
    options = {"width": 4, "image_size": 8, "in_channels": 1, "layers_per_block": 1}
    torch.manual_seed(0)
    one = lip_conv_net(method, **options).eval()
    model = lip_conv_net(method, **options, lipschitz=lipschitz).eval()
    model.load_state_dict(one.state_dict())
    x = torch.rand(20, 1, 8, 8)
    labels = model(x).argmax(1)
    assert torch.equal(model(x), one(x) * lipschitz)
    audits = [fastlip.audit(each, (1, 8, 8)) for each in (one, model)]
    assert audits[1].bound == pytest.approx(audits[0].bound * lipschitz, rel=1e-13)
    assert audits[1].layers[-1].kind == "Scale"
    assert model.margin_slope == pytest.approx(2**0.5 * lipschitz)
    plain = fastlip.export(model)
    found, expected, exported = (fastlip.certify(each, [(x, labels)]) for each in (model, one, plain))
    # The certificate of a linear head holds behind a factor as well.
    torch.testing.assert_close(found.radii, expected.radii, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(exported.radii, expected.radii, rtol=1e-4, atol=1e-4)
    assert fastlip.audit(plain, (1, 8, 8)).bound == pytest.approx(audits[1].bound, rel=1e-5)
    for value in (0, -2.0):
        with pytest.raises(ValueError, match="lipschitz="):
            lip_conv_net(method, **options, lipschitz=value)


def test_an_inverse_by_fixed_point():
    """z = y - g(z) contracts by L of g: after k steps the error is at most L^k / (1 - L) times the first step."""
    torch.manual_seed(0)
    g = nn.Sequential(lip.CayleyLinear(4, 4), lip.MaxMin(), lip.CayleyLinear(4, 4), lip.Scale(0.9)).double().eval()
    bound, x = fastlip.audit(g, (4,)).bound, torch.randn(5, 4, dtype=torch.float64)
    assert bound == pytest.approx(0.9, rel=1e-6)
    z = y = x + g(x)
    first = (y - g(z) - z).norm(dim=1)
    for _ in range(60):
        z = y - g(z)
    assert ((z - x).norm(dim=1) <= bound**60 / (1 - bound) * first).all()


def every_module():
    torch.manual_seed(0)
    mixture = lip.LipschitzResidual(lip.Chain(lip.SLLConv2d(4, 4, 3), lip.BatchCentering(4), lip.MaxMin()))
    middle = lip.PositionBias(6), lip.SpatialShift(1), lip.CayleyConv2d(4, 4, 1), lip.PartialAbs(2)
    end = lip.LayerCentering(4), lip.AdaptiveL2NormPool2d((2, 4)), lip.Scale(5), lip.Scale(0.9, learnable=True)
    return perturb(nn.Sequential(lip.AOLConv2d(4, 4, 3), lip.BatchCentering(4), mixture, *middle, *end), 0.3).eval()


def test_what_is_exported_runs_without_fastlip(tmp_path):
    model, x = every_module(), torch.randn(3, 4, 6, 6)
    plain = fastlip.export(model, (4, 6, 6))
    assert not any(base.__module__.startswith("fastlip") for m in plain.modules() for base in type(m).__mro__)
    with torch.no_grad():
        torch.save((x, plain, model(x)), tmp_path / "model.pt")
    script = """
import sys, torch
sys.modules["fastlip"] = None
x, model, expected = torch.load("model.pt", weights_only=False)
torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)
"""
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    program = torch.export.export(plain, (x,), dynamic_shapes=({0: torch.export.Dim("n")},))
    torch.testing.assert_close(program.module()(x[:2]), model(x[:2]), rtol=1e-5, atol=1e-5)
    bounds = [
        fastlip.audit(each, (4, 6, 6)).bound
        for each in (model, plain, torch.load(tmp_path / "model.pt", weights_only=False)[1])
    ]
    assert bounds == pytest.approx([bounds[0]] * 3, rel=1e-5)
    found, exported = (fastlip.certify(each, [(x, torch.arange(3))]) for each in map(flattened, (model, plain)))
    torch.testing.assert_close(exported.radii, found.radii, rtol=1e-3, atol=1e-3)


def flattened(model):
    return nn.Sequential(model, nn.Flatten()).eval()


def test_copies_compiled_programs_and_the_meta_device():
    model, x = every_module(), torch.randn(2, 4, 6, 6)
    expected = model(x)
    assert torch.equal(copy.deepcopy(model)(x), expected)
    again = every_module()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(x), expected)
    torch.testing.assert_close(torch.compile(model, backend="aot_eager", fullgraph=True)(x), expected)
    for part in every_module()[1], every_module()[2].module[1]:
        part.train()
        torch.testing.assert_close(
            torch.compile(part, backend="aot_eager", fullgraph=True)(x).mean((0, 2, 3)), part.bias
        )
    assert model.to("meta")(x.to("meta")).shape == expected.shape
    torch.testing.assert_close(fastlip.unfuse(fastlip.fuse(every_module()))(x), expected)
