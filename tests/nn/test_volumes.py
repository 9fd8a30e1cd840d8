"""Layers of volumes: the theorem over their configurations, and that they are the layers of images on one plane."""

import copy
import inspect
import io
import itertools

import pytest
import torch
from layer_catalog import perturb, singular_values
from torch import func, nn

import fastlip
from fastlip import nn as lip
from fastlip.kernels.common.dispatch import registered
from fastlip.nn.volumes import three_dimensional

CONVOLUTIONS = [getattr(lip, name) for name in lip.__all__ if name.endswith("Conv3d")]
ORTHOGONAL = (lip.BROConv3d, lip.CayleyConv3d, lip.LOTConv3d)
double = {"dtype": torch.float64}
every_convolution = pytest.mark.parametrize("cls", CONVOLUTIONS)

CHANNELS, SIZES = ((3, 3), (2, 4), (4, 2), (1, 1)), ((2, 3, 4), (3, 2, 1), (1, 1, 1), (2, 2, 3))
GEOMETRIES = [
    {"kernel_size": 1},
    {"kernel_size": 2},
    {"kernel_size": 3},
    {"kernel_size": (5, 1, 2), "dilation": (1, 2, 2)},
    {"kernel_size": 3, "stride": (1, 2, 2)},
    {"kernel_size": (4, 2, 1), "stride": (3, 1, 1)},
    {"kernel_size": (3, 2, 3), "groups": 2},
    {"kernel_size": 2, "padding": 0},
    {"kernel_size": 3, "padding": (1, 0, 1)},
    {"kernel_size": (2, 1, 1), "padding": "valid", "bias": False},
    {"kernel_size": (3, 1, 3), "stride": 2, "dilation": 2},
    {"kernel_size": 3, "padding": 2},
]


def make(cls, **options):
    return perturb(cls(4, 4, 3, **options)), torch.randn(2, 4, 3, 4, 5, dtype=options.get("dtype"))


def test_arguments_are_those_of_images_and_of_conv3d():
    methods = {"AOL", "BRO", "CPL", "Cayley", "LOT", "SLL"}
    assert {cls.__name__.removesuffix("Conv3d") for cls in CONVOLUTIONS} == methods
    for cls in CONVOLUTIONS:
        of_images = getattr(lip, cls.__name__.replace("3d", "2d"))
        assert three_dimensional(of_images) is cls
        three, two = (inspect.signature(kind).parameters for kind in (cls, of_images))
        assert {n: p.default for n, p in three.items()} == {n: p.default for n, p in two.items()}
        assert list(three)[:9] == list(inspect.signature(nn.Conv3d).parameters)[:9]
        layer, like = cls(4, 4, 3, dilation=(1, 2, 1)), nn.Conv3d(4, 4, 3, dilation=(1, 2, 1))
        for name in ("in_channels", "out_channels", "kernel_size", "stride", "dilation", "groups"):
            assert getattr(layer, name) == getattr(like, name)
    assert three_dimensional(lip.SOCConv2d) is None


@every_convolution
@pytest.mark.parametrize("padding_mode", ["circular", "zeros", "reflect"])
def test_the_theorem(cls, padding_mode):
    """A configuration is bounded by 1, or refused with ValueError; orthogonal where the method promises that."""
    accepted = 0
    for index, geometry in enumerate(GEOMETRIES):
        channels = (4, 2) if "groups" in geometry else CHANNELS[index % 4]
        accepted += judge(cls, channels, SIZES[index // 3 % 4], padding_mode, geometry)
    assert bool(accepted) == (padding_mode != "reflect")


@pytest.mark.slow
@every_convolution
@pytest.mark.parametrize("padding_mode", ["circular", "zeros"])
def test_the_theorem_everywhere(cls, padding_mode):
    for channels, size, geometry in itertools.product(CHANNELS, SIZES, GEOMETRIES):
        judge(cls, channels, size, padding_mode, geometry)


@every_convolution
@pytest.mark.parametrize("padding_mode", ["circular", "zeros"])
def test_the_theorem_with_options(cls, padding_mode):
    residual = {"inner_channels": 6}
    for options in (residual, {"quasi_residual": 0.5}, {"rank": 2}, {"ridge": 1e-4, "steps": 10}, {"epsilon": 0.1}):
        if set(options) <= set(inspect.signature(cls).parameters):
            mode = "zeros" if "ridge" in options else padding_mode
            assert judge(cls, (3, 3), (2, 3, 4), mode, {"kernel_size": (3, 1, 3), **options})


def judge(cls, channels, size, padding_mode, geometry):
    """Whether a configuration is accepted; its singular values must keep the bound that the layer states."""
    shape = channels[0], *size
    try:
        layer = cls(*channels, padding_mode=padding_mode, **geometry, **double).eval()
        layer(torch.zeros(1, *shape, **double))
    except ValueError:
        return False
    except RuntimeError as error:  # without padding, a volume smaller than the kernel
        assert "Kernel size can't be greater" in str(error)  # noqa: PT017
        return False
    isometry = channels[0] == channels[1] and padding_mode == "circular" and set(geometry) <= {"kernel_size"}
    for state in ("fresh", "perturbed"):
        if state == "perturbed":
            perturb(layer)
        largest, smallest = singular_values(layer, shape)
        bound = layer.lipschitz_bound(shape)
        assert largest <= bound * (1 + 1e-9) <= 1 + 1e-6, (channels, size, geometry, state)
        if isometry and cls in ORTHOGONAL:
            assert smallest >= 1 - 1e-6, (channels, size, geometry, state)
    return True


@every_convolution
@pytest.mark.parametrize("plane", [0, 1, 2])
def test_on_one_plane_it_is_the_layer_of_images(cls, plane):
    """Kernels of one tap along an axis, on volumes of one plane along it."""
    layer = perturb(cls(4, 6, [1 if axis == plane else 3 for axis in range(3)]))
    image = getattr(lip, cls.__name__.replace("3d", "2d"))(4, 6, 3)
    image.load_state_dict({n: v.squeeze(2 + plane) if v.dim() == 5 else v for n, v in layer.state_dict().items()})
    x = torch.randn(3, 4, 5, 6)
    for training in (True, False):
        y = layer.train(training)(x.unsqueeze(2 + plane)).squeeze(2 + plane)
        torch.testing.assert_close(y, image.train(training)(x), rtol=1e-4, atol=1e-5)
    shape = [4, 5, 6]
    shape.insert(1 + plane, 1)
    assert layer.lipschitz_bound(tuple(shape)) == pytest.approx(image.lipschitz_bound((4, 5, 6)), rel=1e-5)


def test_the_weight_is_that_of_conv3d():
    for mode, options in (("zeros", {"stride": (1, 2, 1), "padding": (1, 0, 1)}), ("circular", {"padding": 1})):
        layer = perturb(lip.AOLConv3d(4, 6, (3, 2, 3) if mode == "zeros" else 3, padding_mode=mode, **options))
        like = nn.Conv3d(4, 6, layer.kernel_size, padding_mode=mode, **options)
        like.weight.data, like.bias.data = layer.weight.detach(), layer.bias.detach()
        x = torch.randn(2, 4, 5, 6, 4)
        torch.testing.assert_close(layer(x), like(x))
        torch.testing.assert_close(layer(x[0]), like(x)[0])
        audited = fastlip.audit(like.eval(), (4, 5, 6, 4)).bound
        assert audited == pytest.approx(layer._application.bound(layer, (4, 5, 6, 4)), rel=1e-9)


@every_convolution
def test_wrong_arguments_are_named(cls):
    for name, value, error in (
        *(("kernel_size", (3, 3), TypeError), ("kernel_size", 0, ValueError), ("kernel_size", 2.0, TypeError)),
        *(("stride", "2", TypeError), ("stride", (1, 0, 1), ValueError), ("dilation", True, TypeError)),
        *(("padding", -1, ValueError), ("padding", "full", ValueError), ("groups", 3, ValueError)),
        ("padding_mode", "reflect", ValueError),
    ):
        with pytest.raises(error, match=f"^{name}="):
            cls(4, 4, **{"kernel_size": 3, name: value})
    layer = cls(4, 4, 3)
    for shape in ((4, 4, 4), (3, 5, 4, 4, 4), (1, 2, 4, 3, 3, 3)):
        with pytest.raises(ValueError, match=r"^x: got shape .* expected \(n, 4, d, h, w\) or \(4, d, h, w\)"):
            layer(torch.zeros(shape))
    with pytest.raises(ValueError, match="kernel_size="):
        layer.kernel_size = (5, 5, 5)
    with pytest.raises(ValueError, match="expected 4 dimensions"):
        fastlip.audit(layer.eval(), (4, 9, 9))


@every_convolution
def test_a_backend_without_kernels_is_refused(cls):
    """AOL's weights have kernels for three axes, and torch convolves; the others have none in forward."""
    reference, x = make(cls, backend="reference")
    named = copy.deepcopy(reference)
    named.backend = "native"
    if cls is lip.AOLConv3d and not registered["gram_rowsum"].status("native"):
        torch.testing.assert_close(named(x), reference(x))
        return
    with pytest.raises(ValueError, match="backend='native' cannot run here"):
        named(x)
    named.backend = "auto"
    torch.testing.assert_close(named(x), reference(x), rtol=1e-4, atol=1e-5)


FORMS = [{}, {"stride": (1, 2, 2)}, {"kernel_size": 1, "stride": 2}, {"padding_mode": "zeros"}]
FORMS += [{"kernel_size": (2, 3, 1), "groups": 2}, {"dilation": (3, 1, 1), "padding_mode": "circular"}]


@every_convolution
@pytest.mark.parametrize("options", FORMS, ids=str)
def test_audit_certificate_and_export(cls, options):
    layer = perturb(cls(4, 6, **{"kernel_size": 3, **options}), 0.3).eval()
    model, shape = nn.Sequential(layer, lip.MaxMin(), nn.Flatten()).eval(), (4, 2, 5, 4)
    x = torch.randn(3, *shape)
    for fourier in ("fft", "matrices"):
        plain = fastlip.export(model, shape, fourier=fourier)
        assert not any(base.__module__.startswith("fastlip") for m in plain.modules() for base in type(m).__mro__)
        torch.testing.assert_close(plain(x), model(x), rtol=1e-4, atol=1e-5)
        assert fastlip.audit(plain, shape).bound == pytest.approx(fastlip.audit(model, shape).bound, rel=1e-6)
    found = fastlip.certify(model, [(x, model(x).argmax(1))])
    assert 0 < found.rounding < 1e-2
    assert (found.radii >= 0).all()


@pytest.mark.parametrize("size", [(2, 3, 4), (4, 4, 1)])
def test_the_audit_bounds_convolutions_of_torch(size):
    torch.manual_seed(0)
    for options in (
        {"padding": 1, "stride": (1, 2, 1), "groups": 2},
        {"padding": (0, 1, 1), "padding_mode": "circular"},
        {"padding": 1, "padding_mode": "replicate"},
        {"padding": "same", "dilation": (1, 2, 1)},
    ):
        kernel = (1, 3, 3) if options["padding"] == (0, 1, 1) else 3
        if options.get("padding_mode") == "circular" and min(size) < 2:
            continue
        layer = nn.Conv3d(2, 4, kernel, **options).double().eval()
        largest, _ = singular_values(layer, (2, *size))
        found = fastlip.audit(layer, (2, *size))
        assert largest <= found.bound * (1 + 1e-12)
        if found.layers[0].exact:
            assert largest == pytest.approx(found.bound, rel=1e-9)
        else:
            assert found.bound < 6 * largest
    assert fastlip.audit(nn.Conv3d(1, 1, 3, padding=1, padding_mode="circular"), (1, 3, 4, 5)).layers[0].exact


class Louder(lip.AOLConv3d):
    def _parametrize(self):
        return (1.01 * super()._parametrize()[0],)


def test_the_audit_finds_planted_faults():
    shape = 4, 3, 4, 4
    honest, louder = lip.AOLConv3d(4, 4, 3).eval(), Louder(4, 4, 3).eval()
    assert fastlip.audit(honest, shape).bound <= 1 + 1e-6 < 1.0099 <= fastlip.audit(louder, shape).bound
    frozen = lip.CPLConv3d(4, 4, 3).eval()
    frozen.freeze_scale(1000.0)
    assert fastlip.audit(frozen, shape).bound > 1.01
    plain = fastlip.export(nn.Sequential(perturb(lip.CayleyConv3d(4, 4, 3)).eval()), shape)
    assert fastlip.audit(plain, shape).bound <= 1 + 1e-5
    with torch.no_grad():
        next(plain.parameters()).mul_(1.1)
    assert fastlip.audit(plain, shape).bound > 1.09


@every_convolution
def test_evaluation_is_kept_and_refreshed(cls):
    layer, x = make(cls)
    with torch.no_grad():
        trained = layer(x)
        first = layer.eval()(x)
        torch.testing.assert_close(first, trained, rtol=1e-3, atol=1e-4)
        stored = io.BytesIO()
        torch.save(layer, stored)
        stored.seek(0)
        for other in (copy.deepcopy(layer), torch.load(stored, weights_only=False), layer):
            assert torch.equal(other(x), first)
        fresh = cls(4, 4, 3).eval()
        fresh.load_state_dict(layer.state_dict())
        assert torch.equal(fresh(x), first)
        torch.testing.assert_close(layer(x[..., :3])[0], layer(x[0, ..., :3]))  # another size
        last = x.contiguous(memory_format=torch.channels_last_3d)
        torch.testing.assert_close(layer(last), first, rtol=1e-4, atol=1e-5)
        perturb(layer)
        assert not torch.equal(layer(x), first)
    assert layer(x[:0]).shape == x[:0].shape


@every_convolution
def test_first_and_second_derivatives(cls):
    layer = perturb(cls(2, 2, (2, 2, 1), **double), 0.3)
    names, values = zip(*layer.named_parameters(), strict=True)
    x = torch.randn(1, 2, 2, 3, 2, **double, requires_grad=True)

    def function(x, *values):
        return func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(function, (x, *values))
    assert torch.autograd.gradgradcheck(function, (x, *values), fast_mode=True)
    forwards, backwards = (way(layer)(x.detach()) for way in (func.jacfwd, func.jacrev))
    torch.testing.assert_close(forwards, backwards)
    torch.testing.assert_close(func.vmap(lambda one: layer(one[None])[0])(x), layer(x))


@every_convolution
def test_a_fused_model_computes_the_same(cls):
    model = nn.Sequential(perturb(cls(4, 4, 3), 0.3), lip.MaxMin(), cls(4, 4, 3), lip.MaxMin(dim=-3))
    x = torch.randn(2, 4, 4, 4, 4)
    for training in (True, False):
        fused = fastlip.fuse(copy.deepcopy(model)).train(training)
        for images in (x, x[0]):  # MaxMin(dim=-3) is along another axis than that of channels
            torch.testing.assert_close(fused(images), model.train(training)(images), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(fastlip.unfuse(fused)(x), model(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(x), model(x))
    assert type(model[0]) is cls


@pytest.mark.parametrize(
    "cls", [pytest.param(c, marks=[pytest.mark.slow] * (c is not lip.SLLConv3d)) for c in CONVOLUTIONS]
)
def test_it_compiles_without_breaks(cls):
    layer, x = make(cls)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@every_convolution
def test_onnx_runs_them(cls, tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    parts = (
        lip.PixelUnshuffle3d((1, 2, 2)),
        lip.L2NormPool3d(2),
        lip.PixelShuffle3d((1, 2, 2)),
        lip.ScaledAvgPool3d(1),
    )
    model = nn.Sequential(perturb(cls(4, 6, 3, stride=(1, 2, 2))), lip.MaxMin(), *parts).eval()
    shape = 4, 4, 8, 8
    fastlip.export(model, tmp_path / "model.onnx", input_shape=shape)
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    x = torch.rand(5, *shape)
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(y), model(x).detach(), rtol=1e-4, atol=1e-5)
