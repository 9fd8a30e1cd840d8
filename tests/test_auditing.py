"""Bounds against exact Jacobian norms; planted faults; what the audit refuses, and what it leaves alone."""

import copy
import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastlip
from fastlip import nn as lip
from fastlip.certification import auditing
from fastlip.nn.applications import kernel
from fastlip.nn.base import LipschitzLayer


def bound_of(module, input_shape):
    return fastlip.audit(module.eval(), input_shape).bound


def jacobian_norm(module, input_shape, seed=0):
    """The exact norm of a module at a random point, in float64."""
    x = torch.randn(1, *input_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    jacobian = torch.autograd.functional.jacobian(module.double().eval(), x)
    return torch.linalg.matrix_norm(jacobian.reshape(-1, x.numel()), 2).item()


def random_weights(module, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return module


LINEAR = {
    "linear": (nn.Linear(7, 5), (7,)),
    "same": (nn.Conv2d(3, 4, 3, padding="same"), (3, 5, 6)),
    "valid": (nn.Conv2d(3, 4, 2, padding="valid"), (3, 5, 6)),
    "strided": (nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2), (2, 6, 6)),
    "dilated": (nn.Conv2d(2, 3, (3, 2), padding=(2, 1), dilation=(2, 1)), (2, 5, 4)),
    "circular": (nn.Conv2d(3, 3, 3, padding=1, padding_mode="circular"), (3, 4, 4)),
    "reflect": (nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect"), (3, 4, 4)),
    "replicate": (nn.Conv2d(3, 3, 3, padding=2, padding_mode="replicate"), (3, 4, 4)),
    "one-dimensional": (nn.Conv1d(3, 4, 3, padding=1, stride=2), (3, 9)),
    "transposed": (nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1, output_padding=1), (3, 4, 4)),
    "batch norm": (nn.BatchNorm2d(3), (3, 4, 4)),
    "average": (nn.AvgPool2d(3, 2, 1), (2, 7, 6)),
    "average, ceil": (nn.AvgPool2d(3, 2, 1, ceil_mode=True), (2, 6, 6)),
    "average, no padding counted": (nn.AvgPool2d(3, 1, 1, count_include_pad=False), (2, 5, 5)),
    "average, divisor": (nn.AvgPool2d(2, divisor_override=3), (2, 4, 4)),
    "average, 1d": (nn.AvgPool1d(3, 2), (2, 8)),
    "adaptive average": (nn.AdaptiveAvgPool2d((3, 2)), (2, 5, 4)),
    "shuffle": (nn.PixelUnshuffle(2), (2, 4, 4)),
    "pad": (nn.ZeroPad2d(1), (2, 4, 4)),
    "AOL": (lip.AOLConv2d(3, 4, 3), (3, 4, 4)),
    "AOL, zeros": (lip.AOLConv2d(4, 4, 3, stride=2, padding_mode="zeros", groups=2), (4, 5, 5)),
    "AOL, dense": (lip.AOLLinear(6, 4), (6,)),
}
EXACT = {"linear", "circular", "shuffle", "pad", "batch norm", "AOL", "AOL, dense"}


@pytest.mark.parametrize("name", LINEAR)
def test_linear_layers_against_their_exact_norm(name):
    module, shape = LINEAR[name]
    module = random_weights(copy.deepcopy(module))
    if isinstance(module, nn.BatchNorm2d):
        module.running_var.copy_(torch.tensor([0.5, 2.0, 1.0]))
        module.running_mean.fill_(3.0)
    bound = bound_of(module, shape)
    exact = jacobian_norm(copy.deepcopy(module), shape)
    # Our parametrizations are evaluated again in float64 for the exact norm.
    slack = 1e-5 if isinstance(module, LipschitzLayer) else 1e-13
    assert bound >= exact * (1 - slack)
    assert bound <= exact * (1 + 1e-5 if name in EXACT or "average" in name else 2.5)


def test_average_pools_are_exact():
    for name, (module, shape) in LINEAR.items():
        if "average" in name:
            assert math.isclose(bound_of(module, shape), jacobian_norm(module, shape), rel_tol=1e-9)


POOLS = [
    (nn.MaxPool2d(2), (1, 4, 4), 1.0),
    (nn.MaxPool2d(3, 2, 1), (1, 8, 8), 2.0),
    (nn.MaxPool2d(3, 1), (1, 5, 5), 3.0),
    (nn.MaxPool2d((1, 3), (1, 1), dilation=(1, 2)), (1, 4, 9), math.sqrt(3)),
    (nn.MaxPool1d(2, 1), (1, 5), math.sqrt(2)),
    (nn.AdaptiveMaxPool2d(1), (3, 4, 4), 1.0),
    (nn.AdaptiveMaxPool2d(2), (3, 4, 4), 1.0),
    (nn.AdaptiveMaxPool2d(2), (3, 5, 4), math.sqrt(2)),
]


@pytest.mark.parametrize(("pool", "shape", "expected"), POOLS)
def test_max_pools_count_overlapping_windows(pool, shape, expected):
    assert math.isclose(bound_of(pool, shape), expected, rel_tol=1e-12)
    for seed in range(3):
        assert jacobian_norm(pool, shape, seed) <= expected + 1e-12


def test_an_overlapping_pool_reaches_its_bound():
    spike = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    spike[..., 3, 3] = 1
    pool = nn.MaxPool2d(3, 2, 1)
    assert math.isclose((pool(spike) - pool(0 * spike)).norm(), bound_of(pool, (1, 8, 8)))


ACTIVATIONS = [
    *(nn.ReLU(), nn.ReLU6(), nn.LeakyReLU(0.2), nn.LeakyReLU(3.0), nn.PReLU(init=-2.0), nn.ELU(2.0), nn.CELU(0.3)),
    *(nn.SELU(), nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.Mish(), nn.Softplus(2.0), nn.Sigmoid(), nn.Tanh()),
    *(nn.Hardtanh(), nn.Hardswish(), nn.Hardsigmoid(), nn.LogSigmoid(), nn.Softsign(), nn.Tanhshrink()),
    *(nn.Softshrink(), nn.Identity(), lip.Abs()),
]


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_activations_against_their_largest_slope(activation):
    x = torch.linspace(-9, 9, 400_003, dtype=torch.float64)
    y = activation.double()(x)
    slope = ((y[1:] - y[:-1]) / (x[1:] - x[:-1])).abs().amax().item()
    bound = bound_of(activation, (1,))
    assert slope * (1 - 1e-8) <= bound <= slope * 1.001


@pytest.mark.parametrize("module", [nn.Softmax(1), nn.LayerNorm(6), lip.MaxMin(), lip.GroupSort(3)], ids=str)
def test_joint_activations_exceed_no_jacobian(module):
    bound = bound_of(module, (6,))
    for scale in (0.001, 0.1, 1.0, 10.0):
        for seed in range(5):
            x = scale * torch.randn(1, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
            jacobian = torch.autograd.functional.jacobian(module.double(), x).view(6, 6)
            assert torch.linalg.matrix_norm(jacobian, 2) <= bound * (1 + 1e-12)


def convnet(**options):
    torch.manual_seed(0)
    return fastlip.models.lip_conv_net("aol", width=4, image_size=8, in_channels=1, **options).eval()


def test_a_network_is_the_product_of_its_layers():
    model = nn.Sequential(nn.Linear(4, 3), nn.Sequential(nn.ReLU(), nn.LeakyReLU(2.0)), nn.Linear(3, 2))
    found = fastlip.audit(model, (4,))
    assert [row.name for row in found.layers] == ["0", "1.0", "1.1", "2"]
    assert [row.kind for row in found.layers] == ["Linear", "ReLU", "LeakyReLU", "Linear"]
    norms = [torch.linalg.matrix_norm(model[i].weight.double(), 2).item() for i in (0, 2)]
    assert math.isclose(found.bound, 2 * norms[0] * norms[1], rel_tol=1e-9)
    assert found.bound >= 2 * norms[0] * norms[1]
    assert found.layers[-1].input_shape == (3,)
    assert json.loads(json.dumps(found.to_dict()))["bound"] == found.bound
    lines = str(found).splitlines()
    assert len(lines) == 6
    assert lines[0].index("bound") == lines[1].index(f"{norms[0]:.9g}"[:4])


@pytest.mark.parametrize("method", fastlip.models.METHODS)
def test_every_methods_network_is_understood_and_at_most_one(method):
    torch.manual_seed(0)
    model = fastlip.models.lip_conv_net(method, width=4, image_size=8, in_channels=1).eval()
    found = fastlip.audit(model, (1, 8, 8))
    assert 0.9 < found.bound <= 1 + 1e-5
    loader = [(torch.rand(4, 1, 8, 8), torch.arange(4))]
    certificate = fastlip.certify(model, loader, rounding="probabilistic")
    assert certificate.lipschitz == found.bound
    assert certificate.rounding < 1e-3
    assert certificate.rounding < fastlip.certify(model, loader).rounding < 5e-3


def test_every_module_of_the_package_is_understood():
    modules = [module for module in vars(lip).values() if isinstance(module, type) and issubclass(module, nn.Module)]
    assert len(modules) >= 20
    for module in modules:
        sizes = (4, 4, 3) if "Conv" in module.__name__ else (4, 4) if "Linear" in module.__name__ else ()
        sizes = (4,) if module in (lip.ZeroChannelPad, lip.FirstChannels) else sizes
        sizes = (2,) if "Pool" in module.__name__ else sizes
        sizes = (4,) if module in (lip.HouseHolder, lip.BatchCentering, lip.LayerCentering) else sizes
        sizes = {lip.SpatialShift: (1,), lip.PartialAbs: (2,), lip.PositionBias: (6,)}.get(module, sizes)
        sizes = (2.0,) if module is lip.InputWeights else sizes
        sizes = (lip.AOLConv2d(4, 4, 3),) if module is lip.LipschitzResidual else sizes
        sizes = (lip.CayleyLinear(4, 4),) if module is lip.PerPixel else sizes
        layer = module(*sizes).eval()
        images = (4, 6) if module.__name__.endswith("1d") else (4, 6, 6)
        images = (8, 6, 6, 6) if module is lip.PixelShuffle3d else (4, 6, 6, 6) if "3d" in module.__name__ else images
        shape = (4,) if "Linear" in module.__name__ else images
        assert 0 <= fastlip.audit(layer, shape).bound <= (2 if module is lip.NormalizedLinear else 1 + 1e-5)


def test_an_untouched_convnet_is_at_most_one():
    assert 0.999 < fastlip.audit(convnet(), (1, 8, 8)).bound <= 1 + 1e-6


class Scaled(lip.AOLConv2d):
    def _parametrize(self):
        return (1.01 * super()._parametrize()[0],)


def test_planted_faults_raise_the_bound():
    honest = fastlip.audit(convnet(), (1, 8, 8)).bound
    scaled = convnet()
    scaled.block1[2] = Scaled(4, 4, 3).eval()
    assert fastlip.audit(scaled, (1, 8, 8)).bound > 1.0099 * honest
    reflecting = convnet()
    kernel = torch.zeros(4, 4, 3, 3)
    kernel[range(4), range(4), 0, 0] = 1
    reflecting.block1[2] = nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect").eval()
    reflecting.block1[2].weight.data = kernel
    assert fastlip.audit(reflecting, (1, 8, 8)).bound > 1.9 * honest


def test_a_tampered_cache_is_dropped():
    model = convnet()
    with torch.no_grad():
        model(torch.zeros(1, 1, 8, 8))
        stem = model.stem[0]
        honest = stem.weight
        stem._effective()[0].mul_(1.5)
        assert fastlip.audit(model, (1, 8, 8)).bound <= 1 + 1e-6
        assert torch.equal(stem.weight, honest)


def test_rounded_weights_are_measured_as_they_run():
    torch.manual_seed(0)
    layer = nn.Linear(64, 64).eval()
    layer.weight.data = torch.linalg.qr(torch.randn(64, 64))[0]
    exact = fastlip.audit(layer, (64,)).bound
    assert abs(exact - 1) < 1e-6
    with torch.autocast("cpu", torch.bfloat16):
        rounded = fastlip.audit(layer, (64,)).bound
    expected = torch.linalg.matrix_norm(layer.weight.data.bfloat16().double(), 2).item()
    assert math.isclose(rounded, expected, rel_tol=1e-9)
    assert rounded > 1 + 1e-4
    assert math.isclose(fastlip.audit(layer.bfloat16(), (64,)).bound, expected, rel_tol=1e-9)


def test_aol_takes_the_smaller_of_two_bounds(monkeypatch):
    layer = random_weights(lip.AOLConv2d(4, 4, 3)).eval()
    exact = bound_of(layer, (4, 6, 6))
    monkeypatch.setattr(kernel, "convolution_norm", lambda *_: torch.tensor(2.0, dtype=torch.float64))
    certificate = bound_of(layer, (4, 6, 6))
    assert exact < certificate <= 1 + 1e-6


@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"padding": 1}, {"groups": 2, "stride": 3}], ids=str)
def test_a_kernel_of_one_tap_has_the_norm_of_its_matrix_at_any_size(options):
    torch.manual_seed(0)
    layer = nn.Conv2d(192, 192, 1, **options).eval()
    (row,) = fastlip.audit(nn.Sequential(layer), (192, 96, 96)).layers
    matrices = layer.weight.detach().double().flatten(1).unflatten(0, (layer.groups, -1))
    assert math.isclose(row.bound, torch.linalg.matrix_norm(matrices, 2).amax().item(), rel_tol=1e-9)
    assert row.exact == ("padding" not in options)


def test_weight_hooks_and_parametrizations_are_read():
    torch.manual_seed(0)
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(5, 5)).eval()
    exact = torch.linalg.matrix_norm(layer.weight.detach().double(), 2).item()
    assert math.isclose(bound_of(layer, (5,)), exact, rel_tol=1e-9)


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(), lip.AOLConv2d(2, 2, 3))
    model[0].eval()
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    random_state = torch.get_rng_state()
    fastlip.audit(model, (1, 6, 6))
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model[3]._cache.entries == {}
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(parameter.grad is None for parameter in model.parameters())


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x):
        return x + self.inner(x)


class Normalising(nn.Linear):
    def forward(self, x):
        return F.normalize(super().forward(x))


class Certified(Residual):
    def lipschitz_bound(self, input_shape):
        return 1 + torch.linalg.matrix_norm(self.inner.weight.double(), 2).item()


class Gated(Residual):
    def forward(self, x):
        return x * self.inner(x)


class Deciding(Residual):
    def forward(self, x):
        return self.inner(x) if x.sum() > 0 else x


def test_unknown_modules_are_all_named():
    hooked = nn.ReLU()
    hooked.register_forward_hook(lambda module, args, y: 2 * y)
    patched = nn.ReLU()
    patched.forward = lambda x: 3 * x
    model = nn.Sequential(
        nn.Linear(4, 4), Gated(), nn.Sequential(Normalising(4, 4)), hooked, patched, nn.Hardshrink()
    )
    with pytest.raises(
        TypeError, match=r"1 \(Gated\), 2\.0 \(Normalising\), 3 \(ReLU\), 4 \(ReLU\), 5 \(Hardshrink\)"
    ):
        fastlip.audit(model, (4,))
    with pytest.raises(TypeError, match=r"model \(Deciding\)"):
        fastlip.audit(Deciding(), (4,))


def test_own_bounds_and_registered_rules_are_used():
    module = Certified()
    expected = 1 + torch.linalg.matrix_norm(module.inner.weight.double(), 2).item()
    assert math.isclose(fastlip.audit(nn.Sequential(module), (4,)).bound, expected, rel_tol=1e-12)

    class Triple(nn.Module):
        def forward(self, x):
            return 3 * x.sin()

    with pytest.raises(TypeError, match="Triple"):
        fastlip.audit(Triple(), (4,))
    auditing.lipschitz_bound.register(Triple)(lambda module, *shapes: auditing.Bound(3.0, "by hand", 1.0))
    found = fastlip.audit(Triple(), (4,))
    assert math.isclose(found.bound, 3.0)
    assert found.layers[0].how == "by hand"
