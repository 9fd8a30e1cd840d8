"""Modules that branch: bounds that follow the graph, what it may contain, and rounding in certificates."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from test_auditing import jacobian_norm
from torch import nn

import fastlip
from fastlip import nn as lip


def norm(weight):
    return torch.linalg.matrix_norm(weight.detach().double(), 2).item()


class Block(nn.Module):
    """A residual block as third-party networks write it."""

    def __init__(self, channels=3):
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, padding_mode="circular")
        self.act = nn.ReLU(inplace=True)
        self.share = nn.Parameter(torch.tensor(0.3))

    def forward(self, x):
        y = self.second(self.act(self.norm(self.first(x))))
        share = torch.sigmoid(self.share)
        return F.relu(share * x + (1 - share) * y)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh())
        self.blocks = nn.Sequential(Block(), Block())
        self.head = nn.Linear(12, 4)

    def forward(self, x):
        x = self.blocks(self.stem(x))
        x = F.avg_pool2d(x, 2)
        return self.head(x.view(x.size(0), -1))


def by_hand(net, shape):
    share = torch.sigmoid(torch.tensor(0.3)).item()
    bound, size = fastlip.audit(net.stem, shape).bound, (3, 4, 4)
    for block in net.blocks:
        parts = (fastlip.audit(part, size).bound for part in (block.first, block.norm, block.second))
        bound *= share + (1 - share) * math.prod(parts)
    return bound * 0.5 * norm(net.head.weight)


def test_a_residual_network_adds_bounds_and_stays_a_chain():
    net, shape = Net().eval(), (2, 6, 6)
    found = fastlip.audit(net, shape)
    assert math.isclose(found.bound, by_hand(net, shape), rel_tol=1e-6)
    assert found.bound >= jacobian_norm(copy.deepcopy(net), shape)
    names = [row.name for row in found.layers]
    assert names[:2] == ["stem.0", "stem.1"]
    assert names[-1] == "head"
    branch = next(row for row in found.layers if row.name.startswith("blocks.0"))
    assert [part.name for part in branch.parts] == [f"blocks.0.{name}" for name in ("first", "norm", "act", "second")]
    assert "    blocks.0.first" in str(found).replace("\n  ", "\n    ")
    assert found.to_dict()["layers"][2]["parts"][1]["kind"] == "BatchNorm2d"


class Forked(nn.Module):
    def __init__(self, combine):
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
        self.combine = combine

    def forward(self, x):
        return self.combine(self.one(x), self.two(x))


COMBINATIONS = {
    "sum": (lambda a, b: a + b, lambda a, b: a + b),
    "difference": (lambda a, b: torch.sub(a, b), lambda a, b: a + b),
    "cat": (lambda a, b: torch.cat([a, b], dim=1), math.hypot),
    "stack": (lambda a, b: torch.stack((a, b), -1).flatten(1), math.hypot),
    "scaled": (lambda a, b: -2.5 * a + b / 4 + 1, lambda a, b: 2.5 * a + b / 4),
    "twice": (lambda a, b: a + a + b, lambda a, b: 2 * a + b),
    "vector": (lambda a, b: a * torch.tensor([1.0, -3.0, 2.0, 0.0]) + b, lambda a, b: 3 * a + b),
    "copied": (lambda a, b: a.repeat(1, 3) + b[:, [0, 0, 0, 1]].repeat(1, 3), lambda a, b: 3**0.5 * a + 3 * b),
    "wide": (lambda a, b: a.unsqueeze(1) + b.unsqueeze(2), lambda a, b: 2 * (a + b)),
    "parts": (lambda a, b: a.chunk(2, 1)[0] + b.split(2, 1)[1], lambda a, b: a + b),
    "padded": (lambda a, b: F.pad(a, (1, 1), value=5.0) + F.pad(b[:, :2], (0, 4)), lambda a, b: a + b),
}


@pytest.mark.parametrize("name", COMBINATIONS)
def test_how_bounds_combine(name):
    combine, expected = COMBINATIONS[name]
    module = Forked(combine).eval()
    found = fastlip.audit(module, (4,))
    assert math.isclose(found.bound, expected(norm(module.one.weight), norm(module.two.weight)), rel_tol=1e-6)
    assert [part.name for part in found.layers[0].parts] == ["one", "two"]
    if name not in ("vector",):
        assert jacobian_norm(copy.deepcopy(module), (4,)) <= found.bound


REFUSED = {
    "product": (lambda a, b: a * b, TypeError, "no rule for mul of 2 tensors"),
    "quotient": (lambda a, b: 1 / (a + b), TypeError, "no rule for truediv"),
    "norm": (lambda a, b: a.norm(dim=1, keepdim=True) + b, TypeError, "no rule for norm"),
    "in place": (lambda a, b: a.add_(b), TypeError, "no rule for add_"),
    "samples moved": (lambda a, b: a.flip(0) + b, TypeError, "between samples"),
    "samples swapped": (lambda a, b: a.transpose(0, 1).reshape(2, -1) + b, TypeError, "between samples"),
    "samples joined": (lambda a, b: torch.cat((a, b)), TypeError, "joins samples"),
    "samples stacked": (lambda a, b: torch.stack((a, b)).flatten(1), TypeError, "joins samples"),
    "one sample": (lambda a, b: a.unsqueeze(1) + b.unsqueeze(1)[0], TypeError, "between samples"),
    "samples broadcast": (lambda a, b: a.unsqueeze(1) + b, TypeError, "broadcasts samples"),
    "as a slope": (lambda a, b: F.leaky_relu(torch.ones(2, 4), b) + a, TypeError, "no rule for leaky_relu"),
    "batch norm": (lambda a, b: F.layer_norm(a, (4,)) + b, TypeError, "no rule for layer_norm"),
    "two outputs": (lambda a, b: (a, b), TypeError, "returns no single tensor"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_bound_is_named(name):
    combine, error, text = REFUSED[name]
    with pytest.raises(error, match=text):
        fastlip.audit(nn.Sequential(nn.Identity(), Forked(combine)), (4,))


def test_an_unknown_child_is_named_and_not_its_parent():
    module = Forked(operator_add := lambda a, b: a + b)
    module.two = nn.Sequential(nn.Linear(4, 4), nn.Hardshrink())
    with pytest.raises(TypeError, match=r"does not understand two\.1 \(Hardshrink\)"):
        fastlip.audit(module, (4,))
    module.two = nn.Linear(4, 4)
    module.register_forward_hook(lambda module, args, y: 2 * y)
    with pytest.raises(TypeError, match=r"model \(Forked\)"):
        fastlip.audit(module, (4,))
    assert operator_add(1, 1) == 2


def test_an_activation_in_place_must_not_change_what_others_use():
    class Shared(nn.Module):
        def __init__(self, act):
            super().__init__()
            self.act = act

        def forward(self, x):
            x = x * 2
            return self.act(x) + x

    assert math.isclose(fastlip.audit(Shared(nn.SELU()), (3,)).bound, 2 * (1 + 1.7580994), rel_tol=1e-6)
    with pytest.raises(TypeError, match="changes in place what others use"):
        fastlip.audit(Shared(nn.SELU(inplace=True)), (3,))


def test_certificates_of_a_branching_network_count_its_rounding():
    torch.manual_seed(1)
    net = Net().eval()
    images, labels = torch.rand(16, 2, 6, 6), torch.arange(16) % 4
    found = fastlip.certify(net, [(images, labels)])
    exact = fastlip.certify(net, [(images, labels)], dtype=torch.float64)
    error = (net(images).double() - copy.deepcopy(net).double()(images.double())).norm(dim=1).amax().item()
    assert 0 < error <= found.rounding < 1e-3
    assert exact.rounding < 1e-11
    assert (found.radii <= exact.radii + 1e-9).all()
    # The last layer is seen through the graph: radii by its rows are the better ones.
    plain = exact.margins.clamp_min(0) / (math.sqrt(2) * exact.lipschitz)
    assert (exact.radii > 1.01 * plain)[plain > 0].any()


def test_cost_and_tightness_are_reported():
    model = nn.Sequential(
        lip.AOLConv2d(2, 2, 3), lip.MaxMin(), nn.Conv2d(2, 2, 3, padding=1), nn.Flatten(), nn.Linear(32, 3)
    )
    found = fastlip.audit(model, (2, 4, 4))
    assert [row.exact for row in found.layers] == [True, True, False, True, True]
    assert all(row.seconds > 0 for row in found.layers)
    assert math.isclose(found.seconds, sum(row.seconds for row in found.layers))
    assert found.to_dict()["layers"][0]["seconds"] == found.layers[0].seconds
    assert "seconds" not in found.to_dict(cost=False)["layers"][0]
    header, first, _, third, *_ = str(found).splitlines()
    assert first[header.index("tight") :].startswith("exact")
    assert third[header.index("tight") :].startswith("bound")


class Recovering(nn.Module):
    """Any parametrization: what runs is what is audited."""

    def forward(self, weight):
        return 3 * weight / torch.linalg.matrix_norm(weight.flatten(1), 2)


@pytest.mark.parametrize("layer", [nn.Linear(4, 4), nn.Conv2d(4, 4, 1), nn.ConvTranspose2d(4, 4, 1)], ids=repr)
def test_parametrized_layers_and_subclasses_that_inherit_forward(layer):
    shape = (4,) if isinstance(layer, nn.Linear) else (4, 3, 3)
    parametrized = copy.deepcopy(layer)
    nn.utils.parametrize.register_parametrization(parametrized, "weight", Recovering())
    assert math.isclose(fastlip.audit(parametrized, shape).bound, 3, rel_tol=1e-6)

    class Inherits(type(layer)):
        pass

    class Overrides(type(layer)):
        def forward(self, x):
            return 2 * super().forward(x)

    arguments = (4, 4) if isinstance(layer, nn.Linear) else (4, 4, 1)
    overriding = Overrides(*arguments)
    inheriting = Inherits(*arguments)
    inheriting.load_state_dict(overriding.state_dict())
    bounds = [fastlip.audit(one, shape).bound for one in (inheriting, overriding)]
    assert math.isclose(2 * bounds[0], bounds[1], rel_tol=1e-6)


def test_layers_of_deel_torchlip():
    torchlip = pytest.importorskip("deel.torchlip")
    model = nn.Sequential(
        torchlip.SpectralConv2d(1, 4, 3, padding=1),
        torchlip.ScaledAvgPool2d(2),
        nn.Flatten(),
        torchlip.SpectralLinear(64, 6),
        torchlip.FrobeniusLinear(6, 2),
    ).eval()
    with torch.no_grad():
        model(torch.rand(2, 1, 8, 8))
    found = fastlip.audit(model, (1, 8, 8))
    assert 0 < found.bound < 2
    assert found.bound >= jacobian_norm(copy.deepcopy(model), (1, 8, 8)) * (1 - 1e-4)


@pytest.mark.filterwarnings("ignore")
def test_layers_of_orthogonium():
    theirs = pytest.importorskip("orthogonium.layers")
    geometry = {"padding": 1, "padding_mode": "circular"}
    model = nn.Sequential(
        theirs.AdaptiveOrthoConv2d(3, 8, 3, **geometry),
        nn.ReLU(),
        theirs.AdaptiveOrthoConv2d(8, 16, 3, stride=2, **geometry),
        nn.Flatten(),
        theirs.OrthoLinear(16 * 16, 10),
    ).eval()
    audit = fastlip.audit(model, (3, 8, 8))
    assert all(layer.bound == pytest.approx(1, abs=1e-4) for layer in audit.layers)
    scaled = nn.Sequential(model[0], nn.Conv2d(8, 8, 1, bias=False))
    scaled[1].weight.data.copy_(1.5 * torch.eye(8)[:, :, None, None])
    assert fastlip.audit(scaled.eval(), (3, 8, 8)).bound == pytest.approx(1.5, abs=1e-3)
