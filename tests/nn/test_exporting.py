"""Exported models: the same function and bound, without fastlip; torch.export and ONNX of them."""

import copy
import math
import subprocess
import sys

import pytest
import torch
from layer_catalog import automatic, layers, name_of, perturb
from torch import fx, nn

import fastlip
from fastlip import nn as lip
from fastlip.exporting import exported
from fastlip.nn.applications import KernelConvolution

SHAPE = (1, 8, 8)
# (channels, geometry, image)
GEOMETRIES = [
    ((4, 4, 3), {}, (5, 6)),
    ((4, 6, 3), {"padding_mode": "zeros", "bias": False}, (5, 5)),
    ((6, 4, 3), {"padding_mode": "circular", "groups": 2}, (4, 7)),
    ((4, 4, 3), {"padding_mode": "circular", "dilation": 4}, (3, 2)),  # wraps more than once
    ((4, 4, 2), {"padding_mode": "circular"}, (4, 5)),
    ((4, 4, (2, 3)), {"padding_mode": "zeros"}, (4, 5)),
    ((2, 8, 3), {"stride": 2, "groups": 2}, (5, 6)),
    ((2, 3, 4), {"stride": (2, 1)}, (6, 5)),
    ((3, 8, 1), {"stride": 2}, (4, 5)),
]


def without_fastlip(model):
    return not any(base.__module__.startswith("fastlip") for m in model.modules() for base in type(m).__mro__)


def assert_same(original, plain, x, tolerance=1e-6):
    expected = original(x)
    assert (plain(x) - expected).abs().amax() <= tolerance * max(1.0, expected.abs().amax().item())


def convolutions():
    for item in layers("Conv2d"):
        for arguments, geometry, image in GEOMETRIES:
            yield pytest.param(*item, arguments, geometry, image, id=f"{name_of(item)}-{arguments}-{geometry}")


@pytest.mark.parametrize(("cls", "options", "arguments", "geometry", "image"), list(convolutions()))
def test_convolutions(cls, options, arguments, geometry, image):
    try:
        layer = perturb(cls(*arguments, **geometry, **options), 0.3).eval()
        layer(torch.zeros(1, arguments[0], *image))
    except ValueError:
        pytest.skip("this layer refuses this geometry")
    shape = (arguments[0], *image)
    spectral = layer._application.orthogonal and not isinstance(layer._application, KernelConvolution)
    original = fastlip.audit(layer, shape).bound
    for fourier in ("fft", "matrices", "matrices64") if spectral else ("fft",):
        plain = fastlip.export(layer, shape, fourier=fourier)
        assert without_fastlip(plain)
        assert_same(layer, plain, torch.randn(2, *shape))
        if automatic([(cls, options)]):  # no kernel takes images without a batch
            assert_same(layer, plain, torch.randn(shape))
        assert math.isclose(fastlip.audit(plain, shape).bound, original, rel_tol=1e-6)
    double = torch.randn(2, *shape, dtype=torch.float64)
    wide = copy.deepcopy(plain).double()
    assert (wide(double) - plain(double.float())).abs().amax() < 1e-5
    assert math.isclose(fastlip.audit(wide, shape).bound, original, rel_tol=1e-6)
    if (
        not cls.__name__.startswith(("BRO", "Cayley", "LOT", "CPL", "Sandwich"))
        and "spectral" not in options.values()
    ):
        assert_same(layer, fastlip.export(layer), torch.randn(2, arguments[0], 10, 11))


@pytest.mark.parametrize("item", [*layers("Linear"), (lip.NormalizedLinear, {})], ids=name_of)
@pytest.mark.parametrize("sizes", [(5, 5), (3, 6), (6, 3)])
def test_dense_layers(item, sizes):
    cls, options = item
    layer = perturb(cls(*sizes, **options)).eval()
    plain = fastlip.export(layer)
    assert without_fastlip(plain)
    assert_same(layer, plain, torch.randn(4, sizes[0]))
    assert math.isclose(fastlip.audit(plain, sizes[:1]).bound, fastlip.audit(layer, sizes[:1]).bound, rel_tol=1e-6)


OTHERS = {
    "maxmin": lip.MaxMin(),
    "halves": lip.MaxMin("halves", dim=-3),
    "groups": lip.GroupSort(5, dim=-3),
    "all": lip.GroupSort(None),
    "abs": lip.Abs(),
    "householder": lip.HouseHolder(5),
    "householder, halves": lip.HouseHolder(5, "halves", dim=-3),
    "pad": lip.ZeroChannelPad(7),
    "first": lip.FirstChannels(3),
    "unshuffle": lip.PixelUnshuffle(2),
    "average": lip.ScaledAvgPool2d((2, 3)),
    "norm": lip.L2NormPool2d(2),
    "adaptive norm": lip.AdaptiveL2NormPool2d((2, 3)),
    "global norm": lip.AdaptiveL2NormPool2d(1),
    "partial abs": lip.PartialAbs(2),
    "shift": lip.SpatialShift(1, 2),
    "batch centering": lip.BatchCentering(5),
    "layer centering": lip.LayerCentering(5),
    "layer centering, no bias": lip.LayerCentering(5, (-3, -2, -1), bias=False),
    "position": lip.PositionBias((6, 7), 5),
    "scale": lip.Scale(5.0),
    "input weights": lip.InputWeights([[[0.5]], [[2.0]], [[1.0]], [[0.1]], [[7.0]]], center=0.25),
    "learnt scale": lip.Scale(0.9, learnable=True),
    "residual": lip.LipschitzResidual(lip.Chain(lip.AOLConv2d(5, 5, 3), lip.MaxMin())),
    "clamped residual": lip.LipschitzResidual(lip.Abs(), gate="clamp"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_modules(name):
    module = perturb(copy.deepcopy(OTHERS[name])).eval()
    x = torch.randn(2, 5, 6, 7)
    x[0, :2] = 0  # ties
    for shape in (None, x.shape[1:]):
        if shape is None and "householder" in name:
            with pytest.raises(ValueError, match="HouseHolder"):
                fastlip.export(module)
            continue
        plain = fastlip.export(module, shape)
        assert without_fastlip(plain)
        assert_same(module, plain, x)
        # Where lines are rounded, so are their bounds.
        assert math.isclose(
            fastlip.audit(plain, (5, 6, 7)).bound, fastlip.audit(module, (5, 6, 7)).bound, rel_tol=1e-6
        )


def network(method, **options):
    torch.manual_seed(0)
    options = {"width": 4, "image_size": 8, "in_channels": 1, "layers_per_block": 1, **options}
    return perturb(fastlip.models.lip_conv_net(method, **options), 0.2).eval()


NETWORKS = [*((method, {}) for method in fastlip.models.METHODS), ("soc", {"exponential": "spectral"})]


def test_networks_load_and_run_where_fastlip_cannot_be_imported(tmp_path):
    x = torch.rand(64, *SHAPE)  # enough for kernels
    models = [network(method, **options) for method, options in NETWORKS]
    plains = [fastlip.export(model) for model in models]
    with torch.no_grad():
        torch.save((x, plains, [model(x) for model in models]), tmp_path / "models.pt")
    script = """
import sys, torch

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "fastlip":
            raise ImportError("fastlip is blocked")

sys.meta_path.insert(0, Blocked())
x, models, expected = torch.load("models.pt", weights_only=False)
for model, y in zip(models, expected, strict=True):
    assert (model(x) - y).abs().amax() <= 1e-6
    assert (model.double()(x.double()) - y).abs().amax() <= 1e-5
print(len(models))
"""
    command = [sys.executable, "-W", "error", "-c", script]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"{len(NETWORKS)}\n"


@pytest.mark.parametrize(("method", "options"), NETWORKS)
def test_networks(method, options):
    model = network(method, **options)
    state = copy.deepcopy(model.state_dict())
    plain = fastlip.export(model.train())
    assert model.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    model.eval()
    x, labels = torch.rand(4, *SHAPE), torch.arange(4)
    assert without_fastlip(plain)
    assert_same(model, plain, x)
    assert_same(model, plain, torch.rand(64, *SHAPE))  # enough for kernels
    program = torch.export.export(plain, (x,), dynamic_shapes=({0: torch.export.Dim("n")},))
    assert_same(model, program.module(), torch.rand(7, *SHAPE))
    ours, theirs = (fastlip.certify(one, [(x, labels)]) for one in (model, plain))
    # The errors that are taken off count the roundings of each form.
    lost = 2 * (ours.rounding + theirs.rounding) / ours.lipschitz
    torch.testing.assert_close(theirs.radii, ours.radii, rtol=1e-3, atol=1e-4 + lost)
    ours, theirs = (fastlip.certify(one, [(x, labels)], rounding="probabilistic") for one in (model, plain))
    assert math.isclose(ours.lipschitz, theirs.lipschitz, rel_tol=1e-6)
    torch.testing.assert_close(theirs.radii, ours.radii, rtol=1e-3, atol=1e-4)


def check_onnx(method, options, tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model = network(method, **options)
    fastlip.export(model, tmp_path / "model.onnx")
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    x = torch.rand(64, *SHAPE)  # enough for kernels
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert (torch.from_numpy(y) - model(x)).abs().amax() <= 2e-6


@pytest.mark.parametrize(("method", "options"), [("cayley", {}), ("cpl", {})])
def test_onnx_runs_them(method, options, tmp_path):
    check_onnx(method, options, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "options"), [*NETWORKS, ("soc", {"padding_mode": "circular"}), ("lot", {"padding_mode": "zeros"})]
)
def test_onnx_runs_every_method(method, options, tmp_path):
    check_onnx(method, options, tmp_path)


def test_other_packages_modules_are_kept_and_shared_layers_stay_shared():
    class Mine(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([lip.AOLConv2d(4, 4, 3), nn.ReLU()])
            self.again = self.layers[0]

        def forward(self, x):
            return self.again(self.layers[1](self.layers[0](x)))

    model = Mine().eval()
    plain = fastlip.export(model)
    assert type(plain) is Mine
    assert type(plain.again) is nn.Conv2d
    assert plain.again is plain.layers[0]
    assert_same(model, plain, torch.randn(2, 4, 5, 5))
    sizes = nn.Sequential(lip.CayleyConv2d(4, 4, 3), nn.AvgPool2d(2))
    sizes.append(sizes[0])
    with pytest.raises(ValueError, match="exported layers have one size"):
        fastlip.export(sizes, (4, 6, 6))


def test_layers_that_depend_on_the_image_size_ask_for_it_and_refuse_others():
    model = nn.Sequential(lip.MaxMin(), nn.Sequential(lip.LOTConv2d(4, 4, 3)))
    with pytest.raises(ValueError, match=r"input_shape=None: layer '1\.0' \(LOTConv2d\) depends on the image size"):
        fastlip.export(model)
    plain = fastlip.export(model, (4, 6, 6))
    with pytest.raises(AssertionError, match="exported for images"):
        plain(torch.randn(1, 4, 5, 6))
    with pytest.raises(ValueError, match="CPLConv2d"):
        fastlip.export(lip.CPLConv2d(4, 4, 3))
    with pytest.raises(ValueError, match="fourier='dct'"):
        fastlip.export(model, fourier="dct")
    with pytest.raises(TypeError, match="model: got int"):
        fastlip.export(3)


def test_what_no_rule_knows_is_named():
    class Odd(lip.AOLConv2d):
        def forward(self, x):
            return 2 * super().forward(x)

    with pytest.raises(TypeError, match=r"no rule exports 0 \(Odd\)"):
        fastlip.export(nn.Sequential(Odd(3, 3, 3)))
    hooked = lip.Abs()
    hooked.register_forward_hook(lambda module, inputs, y: 2 * y)
    with pytest.raises(TypeError, match=r"no rule exports model \(Abs\)"):
        fastlip.export(hooked)
    layer = lip.AOLLinear(3, 3)
    layer.raw_weight.data[0, 0] = math.nan
    with pytest.raises(ValueError, match="raw_weight contains NaN"):
        fastlip.export(layer)


def test_later_layers_register_themselves():
    class Later(lip.Abs):
        def forward(self, x):
            return x.square().sqrt()

    with pytest.raises(TypeError, match="Later"):
        fastlip.export(Later())
    exported.register(Later)(lambda module, target: nn.ReLU())
    assert type(fastlip.export(Later())) is nn.ReLU


def test_the_audit_measures_what_was_exported_and_recognises_only_that():
    plain = fastlip.export(perturb(lip.SLLConv2d(4, 4, 3)).eval())
    assert isinstance(plain, fx.GraphModule)
    assert fastlip.audit(plain, (4, 6, 6)).bound <= 1 + 1e-6
    plain.scale.data.mul_(10)
    assert fastlip.audit(plain, (4, 6, 6)).bound > 1.001
    series = fastlip.export(perturb(lip.SOCConv2d(4, 4, 3)).eval())
    assert fastlip.audit(series, (4, 6, 6)).bound <= 1 + 1e-6
    series.kernel.data[0, 0, 0, 0] += 0.5  # no longer skew
    assert fastlip.audit(series, (4, 6, 6)).bound > 1.5
    spectral = fastlip.export(perturb(lip.CayleyConv2d(4, 4, 3)).eval(), (4, 6, 6), fourier="matrices")
    spectral.across[0, 0] = 2
    with pytest.raises(TypeError, match="SpectralConvolution"):
        fastlip.audit(spectral, (4, 6, 6))
    maxmin = fastlip.export(lip.MaxMin())
    (output,) = (node for node in maxmin.graph.nodes if node.op == "output")
    with maxmin.graph.inserting_before(output):
        doubled = maxmin.graph.call_method("square", (output.args[0],))
    output.args = (doubled,)
    maxmin.recompile()
    with pytest.raises(TypeError, match="SortPairs"):
        fastlip.audit(maxmin, (4, 6, 6))


def test_exporting_leaves_the_random_state():
    model = network("bcop")
    before = torch.get_rng_state()
    fastlip.export(model)
    assert torch.equal(torch.get_rng_state(), before)
