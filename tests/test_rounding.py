"""Bounds of rounding errors against float64, on inputs and weights made to round badly; the names of the bounds."""

import copy
import math

import pytest
import torch
from rounding_layers import LAYERS
from torch import nn

import fastlip
from fastlip import nn as lip
from fastlip.certification.bounds import Bound, bound_module
from fastlip.certification.rounding import Unit, exact_twin, torch_layers, worst_case
from fastlip.certification.rounding.rules import rule_of
from fastlip.nn.base import LipschitzLayer

U = 2.0**-24
ABSORBED = math.sqrt(0.99 * U)  # its square is lost beside 1


WEIGHTS = ("initial", "random", "biased", "subnormal")
# Layers of ours make normal numbers of whatever parameters.
COMBINED = [(name, weights) for name in LAYERS for weights in WEIGHTS if weights != "subnormal" or "-" not in name]


def make(name, weights):
    layer, shape = LAYERS[name][0]().eval(), LAYERS[name][1]
    for name, tensor in [*layer.named_parameters(), *layer.named_buffers()]:
        if not tensor.is_floating_point():
            continue
        with torch.no_grad():
            if name == "weights":  # those of inputs are positive normal numbers
                found = {"random": torch.randn_like(tensor).exp(), "subnormal": tensor.clamp_max(1.2e-38)}
                tensor.copy_(found.get(weights, tensor))
                continue
            if weights == "random" and tensor.dim() > 1:
                tensor.normal_()
            if weights == "subnormal" and tensor.dim() > 1 and not isinstance(layer, LipschitzLayer):
                tensor.mul_(1e-38)
            if weights == "biased" and name in ("bias", "running_mean"):
                tensor.normal_(std=1e4)
    return layer, shape


def twin_of(layer):
    """The layer's exact function: float64, the reference's operations, the same effective weights."""
    twin = copy.deepcopy(layer).double()
    if isinstance(layer, LipschitzLayer):
        kinds = {torch.float32: torch.float64, torch.complex64: torch.complex128}
        twin.backend = "reference"
        twin._supplied = lambda _, context: tuple(w.detach().to(kinds[w.dtype]) for w in layer._effective(*context))
    return twin


@pytest.mark.parametrize("name", [name for name in LAYERS if isinstance(LAYERS[name][0](), LipschitzLayer)])
def test_the_copy_in_float64_has_the_effective_weights_of_the_layer(name):
    layer, shape = make(name, "random")
    x = torch.randn(4, *shape, dtype=torch.float64)
    with torch.no_grad():
        found, expected = exact_twin(layer, [layer])(x), twin_of(layer)(x)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


def inputs(shape):
    normal = torch.randn(8, *shape)
    yield from (normal, torch.randn(64, *shape), normal[:1], normal * 1e-20, normal * 1e-38)
    yield torch.full((2, *shape), 0.7)
    absorbed = torch.full((2, math.prod(shape)), ABSORBED)
    absorbed[:, 0] = 1
    yield absorbed.view(2, *shape)
    if len(shape) == 3:
        yield normal.to(memory_format=torch.channels_last)


def own_error(layer, x, y):
    shapes = tuple(x.shape[1:]), tuple(y.shape[1:])
    bound = worst_case(layer, bound_module(layer, *shapes), *shapes, Unit.of(x.dtype))
    size, result = (torch.linalg.vector_norm(v.flatten(1), dim=1, dtype=torch.float64) for v in (x, y))
    return bound.relative * size + bound.constant + bound.output * result + bound.quadratic * size * size


def check(layer, x):
    """The largest share of its bound that a layer's error reaches; it must hold."""
    with torch.no_grad():
        y = layer(x)
    exact = twin_of(layer)(x.double()).detach()
    error = (y.double() - exact).flatten(1).norm(dim=1)
    allowed = own_error(layer, x, y)
    assert (error <= allowed).all(), (error / allowed).amax().item()
    return (error / allowed).amax().item()


@pytest.mark.parametrize(("name", "weights"), COMBINED)
def test_no_error_exceeds_its_bound(name, weights):
    layer, shape = make(name, weights)
    for x in inputs(shape):
        check(layer, x)
    if hasattr(layer, "backend"):
        layer.backend = "reference"
        check(layer, torch.randn(4, *shape))


def test_every_layer_of_ours_is_tried():
    kinds = {type(build()) for build, _ in LAYERS.values()}
    moves = {lip.Abs, lip.FirstChannels, lip.GroupSort, lip.MaxMin, lip.PixelUnshuffle, lip.ZeroChannelPad}
    moves |= {lip.PartialAbs, lip.SpatialShift, lip.PixelUnshuffle1d, lip.PixelShuffle1d}
    moves |= {lip.PixelUnshuffle3d, lip.PixelShuffle3d}
    containers = {lip.Chain, lip.PerPixel, lip.LipschitzResidual}  # the latter: tests/nn/test_scaling.py
    assert {getattr(lip, name) for name in lip.__all__} <= kinds | moves | containers
    assert all(rule_of(build()) for build, _ in LAYERS.values())


def one_way(kind):
    """A layer whose additions all round down, and an input."""
    layer = {
        "linear": lambda: nn.Linear(384, 2, bias=False),
        "conv": lambda: nn.Conv2d(384, 2, 1, bias=False),
        "residual": lambda: lip.SLLLinear(384, 384, bias=False),
        "pool": lambda: nn.AdaptiveAvgPool1d(1),
    }[kind]()
    x = torch.full((256, 384), ABSORBED)
    x[:, 0] = 1
    if kind == "pool":
        return layer.eval(), (x * ABSORBED).index_fill_(1, torch.tensor([0]), 1.0)[:, None]
    weight = layer.kernel if kind == "residual" else layer.weight
    with torch.no_grad():
        weight.zero_()
        weight[:2] = ABSORBED
        weight[:2, :1] = 1.0
    return layer.eval(), x[:, :, None, None] if kind == "conv" else x


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_a_twentieth_of_the_roundings_is_caught(kind):
    layer, x = one_way(kind)
    assert check(layer, x) > 1 / 20


def test_a_layer_whose_roundings_are_a_twentieth_is_caught(monkeypatch):
    """Planted: the count of a dense layer's roundings."""
    layer, x = one_way("linear")
    real = torch_layers.dense
    monkeypatch.setattr(torch_layers, "dense", lambda *arguments: real(*arguments).times(1 / 20))
    with pytest.raises(AssertionError):
        check(layer, x)


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_roundings_that_all_go_one_way_break_no_radius(kind):
    layer, x = one_way(kind)
    weight = layer.weight.data.view(2, 384)
    weight[0] = 0
    weight[:, 0] = torch.tensor([1 + 240 * U, 1.0])
    model = nn.Sequential(layer, nn.Flatten()).eval()
    near = x.clone()
    near[:, 1:] *= 1.0102
    with torch.no_grad():
        before, after = model(x)[0], model(near)[0]
    label = before.argmax().item()
    found = fastlip.certify(model, [(x, torch.full((len(x),), label))])
    distance = (near[0].double() - x[0].double()).norm().item()
    assert after[label] > after[1 - label] or found.radii[0].item() <= distance


@pytest.mark.parametrize("size", [1.0, 1e2, 1e4, 1e6])
@pytest.mark.parametrize("kind", [lip.SLLLinear, lip.CPLLinear])
def test_hidden_activations_break_no_radius(kind, size):
    """Rows of W that cancel, and a bias far larger than x."""
    layer = kind(2, 2, inner_features=4).eval()
    with torch.no_grad():
        layer.kernel.copy_(torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]]))
        layer.bias.copy_(1.37 * size * torch.tensor([1.0, 1, 3, 3]))
    model = nn.Sequential(layer).eval()
    x = torch.rand(5000, 2)
    x[:, 1] = x[:, 0] + 4e-6 * size * (torch.rand(5000) - 0.5)
    with torch.no_grad():
        labels = model(x).argmax(1)
    found = fastlip.certify(model, [(x, labels)])
    along = torch.tensor([-1.0, 1.0], dtype=torch.float64) * (1 - 2 * labels.double())[:, None] / math.sqrt(2)
    for share in (0.5, 0.99):
        near = (x.double() + along * (share * found.radii)[:, None]).float()
        inside = (near.double() - x.double()).norm(dim=1) < found.radii
        with torch.no_grad():
            y = model(near)
        assert (y.gather(1, labels[:, None]) > y.gather(1, 1 - labels[:, None]))[:, 0][inside].all()


def test_numbers_below_the_normal_range_break_no_radius():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(2) * 1e-30)
        model[1].weight.copy_(torch.eye(2) * 1e30)
    step = 2.0**-149 / 1e-30
    x, near = torch.tensor([[100.501 * step, 100.499 * step]]), torch.tensor([[100.499 * step, 100.501 * step]])
    found = fastlip.certify(model, [(x, torch.tensor([0]))])
    y = model(near)[0]
    assert y[0] > y[1] or found.radii.item() <= (near.double() - x.double()).norm().item()
    assert found.rounding > 1e-9


@pytest.mark.parametrize("method", fastlip.models.METHODS)
def test_networks_round_less_than_certified(method):
    model = fastlip.models.lip_conv_net(method, width=8, image_size=16).eval()
    x = torch.rand(16, 3, 16, 16)
    with torch.no_grad():
        labels = model(x).argmax(1)
    found = fastlip.certify(model, [(x, labels)])
    likely = fastlip.certify(model, [(x, labels)], rounding="probabilistic")
    assert likely.rounding < found.rounding < 0.05
    for layer in model.modules():
        if isinstance(layer, LipschitzLayer):
            layer.backend = "reference"
    with torch.no_grad():
        other = model(x).gather(1, labels[:, None])[:, 0]  # the same function, in another order
    runner_up = found.margins - likely.margins
    assert (runner_up.abs() <= 2 * math.sqrt(2) * found.rounding).all()
    assert other.isfinite().all()


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x):
        x = torch.nn.functional.linear(x, self.first.weight, self.first.bias)
        return torch.cat((torch.relu(self.second(x)) + 3 * x, x / 7), 1)


@pytest.mark.parametrize("bias", [0.0, 1e4])
def test_branches_and_functions_round_less_than_certified(bias):
    model = nn.Sequential(Branching(), nn.Linear(128, 10)).eval()
    with torch.no_grad():
        model[0].first.bias.fill_(bias)
    x = torch.randn(32, 64)
    with torch.no_grad():
        y = model(x)
    found = fastlip.certify(model, [(x, y.argmax(1))])
    error = (copy.deepcopy(model).double()(x.double()) - y).norm(dim=1).amax().item()
    assert 0 < error <= found.rounding < 1e-3 * max(1.0, bias)


class Stated(nn.Module):
    """Its author says how it rounds, or not."""

    weight = torch.full((2, 2), 1e-9)  # that forward does not read

    def __init__(self, roundings):
        super().__init__()
        if roundings is not None:
            self.worst_roundings = lambda input_shape: roundings

    def lipschitz_bound(self, input_shape):
        return 2.0

    def forward(self, x):
        return x + x.flip(1)


def test_modules_of_others_state_their_roundings_or_are_taken_for_sums_over_everything():
    x, labels = torch.rand(4, 10), torch.zeros(4, dtype=torch.long)
    sizes = x.double().norm(dim=1).amax().item()
    errors = {
        roundings: fastlip.certify(nn.Sequential(Stated(roundings)).eval(), [(x, labels)]).rounding
        for roundings in (0, 3.0, (3.0, 1e4), None)
    }
    assert errors[0] < 1e-30
    assert 3 * U * sizes < errors[3.0] < 10 * U * sizes
    assert errors[3.0, 1e4] > 1e4 * U
    assert errors[None] > 4 * 10 * U * sizes
    shapes = (10,), (10,)
    rooted = worst_case(Stated(None), Bound(2.0, "by hand", 2 * 5.0), *shapes, Unit.of(torch.float32))
    assert math.isclose(rooted.relative, 2 * 25 * U, rel_tol=1e-3)


def test_the_bound_is_named():
    model = nn.Sequential(nn.Linear(4, 3)).eval()
    batch = torch.rand(2, 4), torch.tensor([0, 1])
    assert fastlip.certify(model, [batch]).to_dict()["rounding_model"] == "worst-case"
    found = fastlip.certify(model, [batch], rounding="probabilistic")
    assert found.rounding_model == "probabilistic" in str(found)
    with pytest.raises(ValueError, match="rounding='likely': allowed are 'worst-case', 'probabilistic'"):
        fastlip.certify(model, [batch], rounding="likely")


def test_images_on_which_an_answer_hangs_are_evaluated_in_float64(digits, trained):
    images, labels = digits
    loader = [(images, labels)]
    once = fastlip.certify(trained, loader, eps=[])
    at = once.radii[once.radii > 0].median().item()
    again = fastlip.certify(trained, loader, eps=[at])
    double = fastlip.certify(trained, loader, eps=[at], dtype=torch.float64)
    assert (again.radii >= once.radii).all()
    assert again.cra[at] > once.curve([at]).item()
    assert again.cra[at] <= double.cra[at]
