"""The audit and the certificate describe what runs: repeats, batches, views, state, wrappers and replaced methods."""

import math
import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastlip
from fastlip import nn as lip
from fastlip.inspection.sameness import _difference


def tripling():
    layer = nn.Linear(2, 2, bias=False)
    layer.weight.data = 3 * torch.eye(2)
    return layer


@pytest.mark.parametrize("places", [2, 3])
def test_a_module_counts_at_every_place(places):
    layer = tripling()
    assert math.isclose(fastlip.audit(nn.Sequential(*[layer] * places), (2,)).bound, 3**places, rel_tol=1e-9)
    block = nn.Sequential(layer, nn.ReLU(), layer)
    assert math.isclose(fastlip.audit(nn.Sequential(block, lip.Chain(block)), (2,)).bound, 81, rel_tol=1e-9)
    copied, tied = tripling(), tripling()
    tied.weight = copied.weight
    assert math.isclose(fastlip.audit(nn.Sequential(copied, tied), (2,)).bound, 9, rel_tol=1e-9)


def test_a_shared_activation_is_certified_at_every_place():
    first, second, act = nn.Linear(2, 2), nn.Linear(2, 2), lip.MaxMin()
    first.weight.data, second.weight.data = torch.eye(2), -torch.eye(2)
    model = nn.Sequential(first, act, second, act).eval()
    images = torch.randn(64, 2)
    with torch.no_grad():
        expected = model(images).argmax(1)
    found = fastlip.certify(model, [(images, expected)])
    assert torch.equal(found.predictions, expected)
    assert len(found.audit.layers) == 4


class Shared(nn.Module):
    """Calls one child twice, and the same child by another name."""

    def __init__(self):
        super().__init__()
        self.one = tripling()
        self.two = self.one

    def forward(self, x):
        return self.two(self.one(x)) + self.one(x)


def test_a_child_called_twice_counts_twice():
    assert math.isclose(fastlip.audit(Shared(), (2,)).bound, 12, rel_tol=1e-9)


class Net(nn.Module):
    """A forward given as a function, with what such forwards use."""

    def __init__(self, compute):
        super().__init__()
        self.fc, self.act = nn.Linear(4, 4), nn.ReLU(inplace=True)
        self.register_buffer("steps", torch.zeros(1))
        self.calls, self.flag, self.seen = 0, True, []
        self.compute = compute

    def forward(self, x):
        return self.compute(self, x)


def counting(net, x):
    net.calls += 1
    return net.fc(x) * net.calls


def toggling(net, x):
    net.flag = not net.flag
    return net.fc(x) if net.flag else 2 * net.fc(x)


def stepping(net, x):
    net.steps.add_(1)
    return net.fc(x) + net.steps


def lower_precision(net, x):
    with torch.autocast("cpu", torch.bfloat16):
        return net.fc(x) * 1.0


def unused_in_place(net, x):
    h = net.fc(x)
    net.act(h)
    return h


def added_in_place(net, x):
    h = net.fc(x)
    view = h.view(-1, 4)
    view += x
    return h + view


def on_a_part(net, x):
    h = net.fc(x)
    first, _ = h.chunk(2, 1)
    return torch.cat((h, net.act(first)), 1)


def by_position(net, x):
    h = net.fc(x)
    return F.leaky_relu(h, -3.0, True) + h


def through_data(net, x):
    h = net.fc(x)
    h.data.relu_()
    return h


def per_place(net, x):
    return net.fc(x) * torch.arange(1, x.shape[0] + 1)[:, None]


def above_fifty(net, x):
    return net.fc(x) * (3 if x.shape[0] > 50 else 1)


REFUSED = {
    "counts its calls": (counting, "something else"),
    "toggles": (toggling, "something else"),
    "changes a buffer": (stepping, "something else"),
    "Python's random numbers": (lambda net, x: net.fc(x) * random.random(), "something else"),
    "random numbers": (lambda net, x: net.fc(x) + torch.rand(4), "something else"),
    "dropout": (lambda net, x: F.dropout(net.fc(x)), "random"),
    "autocast": (lower_precision, "something else"),
    "in place, unused": (unused_in_place, "something else"),
    "in place, added": (added_in_place, "something else"),
    "in place, on a part": (on_a_part, "in place what others use"),
    "in place, by position": (by_position, "in place what others use"),
    "in place, through data": (through_data, "something else"),
    "size as a factor": (lambda net, x: net.fc(x) * x.shape[0], "number of samples"),
    "size as a divisor": (lambda net, x: net.fc(x) / x.size(0), "number of samples"),
    "length": (lambda net, x: net.fc(x) * len(x), "number of samples"),
    "size as a condition": (above_fifty, "number of samples"),
    "place in the batch": (per_place, "number of samples"),
    "size as a constant": (lambda net, x: net.fc(x) * x.new_full((1, 4), x.shape[0]), "number of samples"),
    "mean of the batch": (lambda net, x: net.fc(x) - x.mean(0, keepdim=True), "mixes samples"),
    "mean of all": (lambda net, x: net.fc(x) - torch.mean(x), "mixes samples"),
    "rolled batch": (lambda net, x: net.fc(x) + x.roll(1, 0), "between samples"),
    "rolled by two": (lambda net, x: net.fc(x) + x.roll(2, 0), "number of samples"),
    "sorted batch": (lambda net, x: net.fc(x.sort(0).values), "no rule for sort"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_fixed_function_of_a_sample_is_refused_and_left_as_it_was(name):
    compute, text = REFUSED[name]
    net = Net(compute).eval()
    batches = [(torch.randn(8, 4), torch.arange(8) % 4)]
    before, states = dict(vars(net)), (torch.get_rng_state(), random.getstate())
    with pytest.raises((TypeError, ValueError), match=text):
        fastlip.audit(net, (4,))
    with pytest.raises((TypeError, ValueError), match=text):
        fastlip.certify(net, batches)
    assert vars(net) == before
    assert net.steps.item() == net.calls == 0
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]


def noting(net, x):
    net.calls += 1
    net.seen.append(x.shape)
    net.steps.add_(1)
    random.random()
    return net.fc(x) - torch.tensor([0.5, 0.5, 0.25, 0.0])


def test_an_audit_leaves_no_trace():
    net = Net(noting).eval()
    before, states = dict(vars(net)), (torch.get_rng_state(), random.getstate())
    for _ in range(2):
        bound = fastlip.audit(net, (4,)).bound
    assert math.isclose(bound, torch.linalg.matrix_norm(net.fc.weight.detach().double(), 2).item(), rel_tol=1e-6)
    assert vars(net) == before
    assert (net.calls, net.seen, net.steps.item()) == (0, [], 0)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]


class OnFaith(nn.Module):
    """Says that it is 1-Lipschitz."""

    def __init__(self, compute):
        super().__init__()
        self.compute = compute

    def forward(self, x):
        return self.compute(x)

    def lipschitz_bound(self, input_shape):
        return 1.0


@pytest.mark.parametrize(
    "compute",
    [
        lambda x: F.batch_norm(x, None, None, training=True),
        lambda x: x.sort(0).values,
        lambda x: x + torch.rand_like(x),
        lambda x: x / len(x),
        lambda x: x[torch.randperm(len(x))],
    ],
)
def test_a_bound_on_faith_is_for_a_fixed_function_of_each_sample(compute):
    with pytest.raises(ValueError, match=r"depends on the|no fixed function"):
        fastlip.audit(nn.Sequential(nn.Identity(), OnFaith(compute)), (4,))


def test_a_certificate_sees_what_happens_in_large_batches_only():
    model = nn.Sequential(OnFaith(lambda x: x * (0.5 if len(x) > 50 else 1.0))).eval()
    small, large = ([(torch.randn(n, 4), torch.zeros(n, dtype=torch.long))] for n in (10, 60))
    fastlip.certify(model, small)
    with pytest.raises(ValueError, match="batch 0: the outputs depend on the number of samples"):
        fastlip.certify(model, large)


def test_a_certificate_compares_every_batch_with_the_model():
    seen = []

    def later(x):
        seen.extend([len(x)] * (len(x) == 8))
        return x * (2.0 if len(seen) == 4 else 1.0)  # the model's own turn in the second batch

    model = nn.Sequential(OnFaith(later)).eval()
    batches = [(torch.randn(8, 4), torch.zeros(8, dtype=torch.long))] * 4
    with pytest.raises(ValueError, match="batch 1: the model's outputs are not those of the layers"):
        fastlip.certify(model, batches)


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.MaxPool2d(2), (8, 8)),
        (nn.AvgPool1d(2), (8,)),
        (nn.AdaptiveAvgPool2d(1), (8, 8)),
        (nn.ConvTranspose2d(2, 2, 3, padding=1), (8, 8)),
        (nn.Conv1d(2, 2, 1), (8,)),
        (lip.AOLConv2d(2, 2, 3), (8, 8)),
        (lip.CayleyConv2d(2, 2, 3), (8, 8)),
        (lip.ScaledAvgPool2d(2), (8, 8)),
    ],
    ids=repr,
)
def test_samples_without_channels_are_refused(module, shape):
    with pytest.raises(ValueError, match=r"layer '1' .* channels\s+first"):
        fastlip.audit(nn.Sequential(nn.Identity(), module), shape)


def test_a_normalisation_over_the_batch_is_refused():
    with pytest.raises(ValueError, match=r"layer '' .*LayerNorm"):
        fastlip.audit(nn.LayerNorm((2, 4)), (4,))


def test_an_attack_refuses_what_is_no_fixed_function_of_an_image():
    batches = [(torch.rand(8, 4), torch.zeros(8, dtype=torch.long))]
    for compute in (lambda x: x + torch.rand_like(x), lambda x: x * len(x), lambda x: x - x.mean(0)):
        with pytest.raises(ValueError, match="batch 0: the outputs for an image differ"):
            fastlip.attack(OnFaith(compute).eval(), batches, [0.1], steps=2, restarts=1)


@pytest.mark.parametrize("compute", [lambda x: x * (2.0 if len(x) == 1 else 1.0), torch.squeeze])
def test_a_layer_that_depends_on_a_batch_of_one_is_named(compute):
    """Layers are followed in batches of 2 and 5; the model is evaluated on one sample alone as well."""
    model = nn.Sequential(nn.Identity(), OnFaith(compute), nn.Linear(4, 4)).eval()
    named = r"layer '1' \(OnFaith\): the output of a sample depends on the number of samples"
    with pytest.raises(ValueError, match=named):
        fastlip.audit(model, (4,))
    with pytest.raises(ValueError, match=named):
        fastlip.certify(model, [(torch.randn(8, 4), torch.zeros(8, dtype=torch.long))])


def test_every_batch_is_compared_with_one_of_another_size():
    """The first batch with the audit's, each later one with its first image alone."""
    sizes = []

    def noted(x):
        sizes.append(len(x))
        return x

    model = nn.Sequential(OnFaith(noted)).eval()
    fastlip.certify(model, [(torch.randn(8, 4), torch.zeros(8, dtype=torch.long))] * 3)
    assert sizes == [2, 5, 1, 8, 8, 8, 8, 1, 8, 8, 1]


def test_infinities_of_one_sign_are_the_same():
    allowed = torch.tensor([1e-6], dtype=torch.float64)
    found, expected = torch.tensor([[math.inf, 1.0]]), torch.tensor([[math.inf, 1.0 + 2**-23]])
    assert _difference(found, expected, allowed) == 0
    for other in ([-math.inf, 1.0], [1.0, 1.0], [math.inf, 2.0]):
        assert _difference(found, torch.tensor([other]), allowed) != 0
