"""Layers of sequences: the theorem over their configurations, and that they are the layers of images on one row."""

import copy
import inspect
import itertools
import pickle

import pytest
import torch
from layer_catalog import perturb, singular_values
from torch import func, nn

import fastlip
from fastlip import nn as lip
from fastlip.nn.sequences import one_dimensional

CONVOLUTIONS = [getattr(lip, name) for name in lip.__all__ if name.endswith("Conv1d")]
ORTHOGONAL = (lip.AOCConv1d, lip.BCOPConv1d, lip.BROConv1d, lip.CayleyConv1d, lip.LOTConv1d)
KERNELS = (lip.AOCConv1d, lip.AOLConv1d, lip.BCOPConv1d)
double = {"dtype": torch.float64}
every_convolution = pytest.mark.parametrize("cls", CONVOLUTIONS)

CHANNELS, LENGTHS = ((4, 4), (2, 6), (6, 2), (1, 1)), (6, 7, 3, 1)
GEOMETRIES = [
    {"kernel_size": 1},
    {"kernel_size": 2},
    {"kernel_size": 3},
    {"kernel_size": (5,), "dilation": (2,)},
    {"kernel_size": 3, "stride": 2},
    {"kernel_size": 4, "stride": (3,)},
    {"kernel_size": 3, "groups": 2},
    {"kernel_size": 3, "padding": 0},
    {"kernel_size": 3, "padding": (1,)},
    {"kernel_size": 3, "padding": "valid", "bias": False},
    {"kernel_size": 3, "stride": 2, "dilation": 2},
    {"kernel_size": 3, "padding": 4},
]


def make(cls, **options):
    return perturb(cls(4, 4, 3, **options)), torch.randn(3, 4, 9, dtype=options.get("dtype"))


def test_there_is_one_for_every_method():
    methods = {name.removesuffix("Conv2d") for name in lip.__all__ if name.endswith("Conv2d")}
    assert {cls.__name__.removesuffix("Conv1d") for cls in CONVOLUTIONS} == methods
    for cls in CONVOLUTIONS:
        of_images = getattr(lip, cls.__name__.replace("1d", "2d"))
        assert one_dimensional(of_images) is cls
        # The same arguments and defaults, options included.
        one, two = (inspect.signature(kind).parameters for kind in (cls, of_images))
        assert {n: p.default for n, p in one.items()} == {n: p.default for n, p in two.items()}
        assert list(one)[:9] == list(inspect.signature(nn.Conv1d).parameters)[:9]
    assert one_dimensional(lip.AOCConvTranspose2d) is None


@every_convolution
@pytest.mark.parametrize("padding_mode", ["circular", "zeros", "reflect"])
def test_the_theorem(cls, padding_mode):
    """A configuration is bounded by 1, or refused with ValueError; orthogonal where the method promises that."""
    accepted = 0
    for index, geometry in enumerate(GEOMETRIES):
        channels, length = CHANNELS[index % 3 if "groups" in geometry else index % 4], LENGTHS[index // 3 % 4]
        options = {"padding_mode": padding_mode, **geometry, **double}
        try:
            layer = cls(*channels, **options).eval()
            layer(torch.zeros(1, channels[0], length, **double))
        except ValueError:
            continue
        except RuntimeError as error:  # without padding, a sequence shorter than the kernel
            assert "Kernel size can't be greater" in str(error)  # noqa: PT017
            continue
        accepted += 1
        isometry = channels[0] == channels[1] and padding_mode == "circular" and set(geometry) <= {"kernel_size"}
        for state in ("fresh", "perturbed"):
            if state == "perturbed":
                perturb(layer)
            largest, smallest = singular_values(layer, (channels[0], length))
            bound = layer.lipschitz_bound((channels[0], length))
            assert largest <= bound * (1 + 1e-9) <= 1 + 1e-6, (channels, length, geometry, state)
            if isometry and cls in ORTHOGONAL:
                assert smallest >= 1 - 1e-6, (channels, length, geometry, state)
    assert bool(accepted) == (padding_mode != "reflect")


@pytest.mark.slow
@every_convolution
@pytest.mark.parametrize("padding_mode", ["circular", "zeros"])
def test_the_theorem_everywhere(cls, padding_mode):
    for channels, length, geometry in itertools.product(CHANNELS, LENGTHS, GEOMETRIES):
        try:
            layer = perturb(cls(*channels, padding_mode=padding_mode, **geometry, **double)).eval()
            layer(torch.zeros(1, channels[0], length, **double))
        except (ValueError, RuntimeError):
            continue
        largest, _ = singular_values(layer, (channels[0], length))
        assert largest <= layer.lipschitz_bound((channels[0], length)) * (1 + 1e-9) <= 1 + 1e-6


@every_convolution
@pytest.mark.parametrize(
    "geometry", [{"kernel_size": 3}, {"kernel_size": 3, "stride": 2}, {"kernel_size": 1}], ids=str
)
def test_it_is_the_layer_of_images_on_one_row(cls, geometry):
    layer = perturb(cls(4, 6, **geometry))
    sizes = {name: (1 if name != "padding" else 0, value) for name, value in geometry.items()}
    image = getattr(lip, cls.__name__.replace("1d", "2d"))(4, 6, **sizes)
    image.load_state_dict(layer.state_dict())
    x = torch.randn(3, 4, 10)
    for training in (True, False):
        assert torch.equal(layer.train(training)(x), image.train(training)(x[:, :, None])[:, :, 0])
    torch.testing.assert_close(layer(x[0]), layer(x)[0])
    assert layer.lipschitz_bound((4, 10)) == image.lipschitz_bound((4, 1, 10))


@every_convolution
def test_attributes_are_those_of_conv1d(cls):
    layer, like = cls(4, 4, 3, dilation=2), nn.Conv1d(4, 4, 3, dilation=2)
    for name in ("in_channels", "out_channels", "kernel_size", "stride", "dilation", "groups"):
        assert getattr(layer, name) == getattr(like, name)
    assert "kernel_size=(3,), stride=(1,)" in repr(layer)
    if cls in KERNELS:
        assert layer.weight.shape == like.weight.shape
        assert cls(4, 4, 3, padding=1).padding == (1,)
        x = torch.randn(2, 4, 9)
        expected = nn.functional.conv1d(
            nn.functional.pad(x, (2, 2), mode="circular"), layer.weight, layer.bias, 1, 0, 2
        )
        torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)
        with torch.no_grad():
            layer.eval().weight.zero_()  # a copy
        assert layer.weight.any()


@every_convolution
def test_wrong_arguments_are_named(cls):
    for name, value, error in (
        *(("kernel_size", (3, 3), TypeError), ("kernel_size", 0, ValueError), ("kernel_size", 2.0, TypeError)),
        *(("stride", "2", TypeError), ("stride", (0,), ValueError), ("dilation", True, TypeError)),
        *(("padding", -1, ValueError), ("padding", "full", ValueError), ("groups", 3, ValueError)),
    ):
        with pytest.raises(error, match=f"^{name}="):
            cls(4, 4, **{"kernel_size": 3, name: value})
    layer = cls(4, 4, 3)
    for shape in ((4,), (3, 5, 9), (2, 3, 4, 9)):
        with pytest.raises(ValueError, match=r"^x: got shape .* expected \(n, 4, l\) or \(4, l\)"):
            layer(torch.zeros(shape))
    with pytest.raises(ValueError, match="kernel_size="):
        layer.kernel_size = (5,)
    with pytest.raises(ValueError, match="expected 2 dimensions"):
        fastlip.audit(layer.eval(), (4, 9, 9))


@every_convolution
@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"kernel_size": 1}, {"padding_mode": "zeros"}], ids=str)
def test_audit_certificate_and_export(cls, options):
    layer = perturb(cls(4, 6, **{"kernel_size": 3, **options}), 0.3).eval()
    model = nn.Sequential(layer, lip.MaxMin(), nn.Flatten()).eval()
    x = torch.randn(3, 4, 10)
    for fourier in ("fft", "matrices"):
        plain = fastlip.export(model, (4, 10), fourier=fourier)
        assert not any(base.__module__.startswith("fastlip") for m in plain.modules() for base in type(m).__mro__)
        torch.testing.assert_close(plain(x), model(x), rtol=1e-4, atol=1e-5)
        assert fastlip.audit(plain, (4, 10)).bound == pytest.approx(fastlip.audit(model, (4, 10)).bound, rel=1e-6)
    single = cls in KERNELS or (options.get("kernel_size") == 1 and "Conv1d" in repr(plain[0]))
    assert (type(plain[0]) is nn.Conv1d) == single
    labels = model(x).argmax(1)
    found = fastlip.certify(model, [(x, labels)])
    assert 0 < found.rounding < 1e-2
    assert (found.radii >= 0).all()


@every_convolution
def test_evaluation_is_kept_and_refreshed(cls):
    layer, x = make(cls)
    with torch.no_grad():
        trained = layer(x)
        first = layer.eval()(x)
        torch.testing.assert_close(first, trained, rtol=1e-3, atol=1e-4)
        for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), layer):
            assert torch.equal(other(x), first)
        fresh = cls(4, 4, 3).eval()
        fresh.load_state_dict(layer.state_dict())
        assert torch.equal(fresh(x), first)
        perturb(layer)
        assert not torch.equal(layer(x), first)
        with fastlip.freeze(layer):
            assert torch.equal(layer(x), layer(x))


@every_convolution
def test_second_derivatives_and_torch_func(cls):
    layer, x = make(cls, **double)
    names, values = zip(*layer.named_parameters(), strict=True)
    x = x[:1].requires_grad_()
    (gradient,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    found = torch.autograd.grad(gradient.square().sum(), values, allow_unused=True)
    assert all(value is None or value.isfinite().all() for value in found)
    jacobian = func.jacrev(lambda one: layer(one))(x.detach()[0])
    expected = torch.autograd.functional.jacobian(layer, x.detach()[0])
    torch.testing.assert_close(jacobian, expected)
    y = func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))
    torch.testing.assert_close(y, layer(x))


@every_convolution
def test_a_subclass_of_others_that_computes_more_is_not_understood(cls):
    class Louder(cls):
        def forward(self, x):
            return 2 * super().forward(x)

    with pytest.raises(TypeError, match="does not understand"):
        fastlip.audit(Louder(4, 4, 3).eval(), (4, 9))


def test_fuse_and_fx_leave_the_function():
    model = nn.Sequential(lip.AOLConv1d(4, 4, 3), lip.MaxMin(), lip.SLLConv1d(4, 4, 3)).eval()
    x = torch.randn(2, 4, 9)
    y = model(x)
    torch.testing.assert_close(fastlip.fuse(copy.deepcopy(model))(x), y)
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(x), y)
    assert isinstance(model[0], lip.AOLConv1d)


POOLS = {
    "average": lip.ScaledAvgPool1d(3),
    "norm": lip.L2NormPool1d((2,)),
    "adaptive": lip.AdaptiveL2NormPool1d(3),
    "global": lip.AdaptiveL2NormPool1d(),
    "unshuffle": lip.PixelUnshuffle1d(5),
    "shuffle": lip.PixelShuffle1d(2),
}


@pytest.mark.parametrize("name", POOLS)
def test_pools_and_shuffles_have_norm_1(name):
    module, x = POOLS[name], torch.randn(3, 4, 12)
    largest, _ = singular_values(module, (4, 12))
    assert largest <= 1 + 1e-9
    assert torch.equal(module(x[0]), module(x)[0])
    assert fastlip.audit(module, (4, 12)).bound == pytest.approx(1)
    exact = fastlip.audit(module, (4, 12)).layers[0].exact
    assert exact
    for shape in ((4, 12), None):
        plain = fastlip.export(module, shape)
        assert torch.equal(plain(x), module(x))
        assert fastlip.audit(plain, (4, 12)).bound == pytest.approx(1)
    with pytest.raises(ValueError, match="expected 2 dimensions"):
        fastlip.audit(module, (4, 12, 12))


def test_pools_and_shuffles_compute_what_they_say():
    x = torch.randn(2, 4, 12)
    image = x[:, :, None]
    for one, two in (
        (lip.ScaledAvgPool1d(4), lip.ScaledAvgPool2d((1, 4))),
        (lip.L2NormPool1d(5), lip.L2NormPool2d((1, 5))),
        (lip.AdaptiveL2NormPool1d(5), lip.AdaptiveL2NormPool2d((1, 5))),
    ):
        torch.testing.assert_close(one(x), two(image)[:, :, 0])
    for pool in (lip.AdaptiveL2NormPool1d(5), lip.L2NormPool1d(4), lip.PixelUnshuffle1d(5)):
        assert pool(x).norm().item() == pytest.approx(x.norm().item(), rel=1e-6)
    assert torch.equal(lip.PixelShuffle1d(3)(lip.PixelUnshuffle1d(3)(x)), x)
    assert torch.equal(lip.MaxMin()(x), lip.MaxMin(dim=-2)(x))
    assert torch.equal(lip.MaxMin(dim=-2)(x[0]), lip.MaxMin()(x)[0])
    zero = torch.zeros(1, 1, 4, requires_grad=True)
    lip.L2NormPool1d(2)(zero).sum().backward()
    assert torch.equal(zero.grad, torch.zeros(1, 1, 4))


@pytest.mark.parametrize(
    ("make", "shape", "message"),
    [
        (lambda: lip.ScaledAvgPool1d(2, stride=1), None, "stride=1"),
        (lambda: lip.L2NormPool1d(2, 3), None, "stride=3"),
        (lambda: lip.AdaptiveL2NormPool1d(0), None, "output_size=0"),
        (lambda: lip.PixelUnshuffle1d(0), None, "downscale_factor=0"),
        (lambda: lip.ScaledAvgPool1d(5), (2, 3, 4), "x: got shape"),
        (lambda: lip.L2NormPool1d(5), (2, 3, 4), "x: got shape"),
        (lambda: lip.L2NormPool1d(2), (2, 3, 4, 4), "x: got shape"),
        (lambda: lip.PixelShuffle1d(2), (2, 3, 4), "upscale_factor=2"),
    ],
)
def test_wrong_pools_are_refused(make, shape, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        make()(torch.zeros(shape or (1, 2, 8)))


@pytest.mark.slow
@pytest.mark.parametrize("cls", [*CONVOLUTIONS, lip.SandwichConv2d])
def test_onnx_runs_them(cls, tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    shape = (4, 16) if cls._axes == 1 else (4, 6, 8)
    parts = (lip.PixelUnshuffle1d(2), lip.ScaledAvgPool1d(2), lip.PixelShuffle1d(2)) if cls._axes == 1 else ()
    model = nn.Sequential(perturb(cls(4, 6, 3, stride=2)), lip.MaxMin(), *parts).eval()
    fastlip.export(model, tmp_path / "model.onnx", input_shape=shape)
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    x = torch.rand(5, *shape)
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(y), model(x).detach(), rtol=1e-4, atol=1e-5)
