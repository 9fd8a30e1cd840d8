"""Top-k and targeted certificates against the exact distances of linear networks, attacks and ``certify``."""

import math

import pytest
import torch
from ball_ascent import ascended
from torch import nn

import fastlip
from fastlip import nn as lip
from fastlip.certification.norms import nearest_meeting

C = 6


@pytest.fixture
def identity():
    """The scores are the inputs themselves: radii are distances of scores."""
    return nn.Sequential(nn.Linear(C, C, bias=False), nn.ReLU()).double().eval()


def as_identity(model):
    model[0].weight.data = torch.eye(C, dtype=torch.float64)
    return model


def deep():
    return nn.Sequential(
        lip.CayleyLinear(C, 16), lip.MaxMin(), lip.CayleyLinear(16, 16), lip.MaxMin(), nn.Linear(16, C)
    )


def in_top(scores, labels, k):
    """Whether fewer than k other scores reach that of the label."""
    own = scores.gather(1, labels[:, None])
    return (scores >= own).sum(1) - 1 < k


def test_the_distance_to_a_meeting_is_the_least():
    gaps = 2 * torch.rand(30, 4, dtype=torch.float64) - 0.4
    grid = torch.linspace(0, 2, 20001, dtype=torch.float64)
    positive = gaps.clamp_min(0)
    values = (grid.square() + (positive[..., None] - grid).clamp_min(0).square().sum(1)).sqrt().amin(1)
    torch.testing.assert_close(nearest_meeting(gaps), values, rtol=0, atol=1e-8)
    for k in (1, 3, 5):
        equal = nearest_meeting(torch.full((1, k), 0.7, dtype=torch.float64)).item()
        assert equal == pytest.approx(0.7 * math.sqrt(k / (k + 1)), rel=1e-12)
    assert nearest_meeting(-torch.rand(2, 3, dtype=torch.float64)).tolist() == [0, 0]


@pytest.mark.parametrize("k", range(1, C))
def test_top_k_radii_of_the_identity_are_distances(identity, k):
    x = 1 + 5 * torch.rand(40, C, dtype=torch.float64)
    labels = torch.arange(40) % C
    found = fastlip.certify_top_k(fastlip.certify_outputs(as_identity(identity), [(x, labels)]), k)
    inside = in_top(x, labels, k)
    assert torch.equal(found.margins > 0, inside)
    assert torch.equal(found.radii > 0, inside)
    assert found.share == inside.double().mean()
    # The nearest point where the label and the k best others are equal, for those that have to move at all.
    for row in inside.nonzero()[:, 0]:
        others = x[row].index_fill(0, labels[row], -math.inf).topk(k)
        meet = torch.linspace(x[row].amin(), x[row].amax(), 40001, dtype=torch.float64)
        cost = (x[row, labels[row]] - meet).square() + (meet - others.values[:, None]).clamp_min(0).square().sum(0)
        assert found.radii[row].item() == pytest.approx(cost.amin().sqrt().item(), rel=1e-4)
        z = x[row].clone()
        best = meet[cost.argmin()]
        z[others.indices] = z[others.indices].maximum(best + 1e-3)
        z[labels[row]] = best - 1e-3
        assert not in_top(z[None], labels[row : row + 1], k).item()


def test_target_radii_of_the_identity_are_distances(identity):
    x = 1 + 5 * torch.rand(40, C, dtype=torch.float64)
    targets = torch.arange(40) % C
    outputs = fastlip.certify_outputs(as_identity(identity), [x])
    found = fastlip.certify_target(outputs, targets)
    for row, target in enumerate(targets):
        meet = torch.linspace(x[row].amin(), x[row].amax(), 40001, dtype=torch.float64)
        others = x[row].index_fill(0, target, -math.inf)
        cost = (meet - x[row, target]).square() + (others[:, None] - meet).clamp_min(0).square().sum(0)
        assert found.radii[row].item() == pytest.approx(cost.amin().sqrt().item(), rel=1e-4, abs=1e-9)
    assert torch.equal(found.radii > 0, x.argmax(1) != targets)
    assert torch.equal(fastlip.certify_target(outputs, 2).radii[2::C], found.radii[2::C])


@pytest.mark.parametrize("model", [deep(), nn.Sequential(deep(), nn.ReLU()), lip.CayleyLinear(C, 1)])
def test_top_1_is_the_certificate(model):
    model = model.eval()
    x, labels = torch.randn(60, C), torch.arange(60) % 2
    plain = fastlip.certify(model, [(x, labels)], eps=(), per_class=True)
    outputs = fastlip.certify_outputs(model, [(x, labels)])
    found = fastlip.certify_top_k(outputs, 1)
    torch.testing.assert_close(found.radii, plain.radii, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.margins, plain.margins)
    assert found.share == plain.accuracy
    assert found.curve([0.1, 0.5]).tolist() == plain.curve([0.1, 0.5]).tolist()
    torch.testing.assert_close(found.lp_radii(math.inf), plain.lp_radii(math.inf), rtol=1e-9, atol=1e-12)
    if plain.class_radii.shape[1] == 2:
        right = plain.margins > 0
        other = fastlip.certify_target(outputs, 1 - labels)
        torch.testing.assert_close(other.radii[right], plain.radii[right], rtol=1e-9, atol=1e-12)


def test_top_k_is_at_least_the_k_th_radius_of_single_classes():
    x, labels = torch.randn(60, C), torch.arange(60) % C
    model = nn.Sequential(lip.CayleyLinear(C, C), lip.MaxMin()).eval()  # no linear layer is the last
    plain = fastlip.certify(model, [(x, labels)], per_class=True, dtype=torch.float64)
    outputs = fastlip.certify_outputs(model, [(x, labels)], dtype=torch.float64)
    for k in (1, 2, 4):
        radii = fastlip.certify_top_k(outputs, k).radii
        single = plain.class_radii.kthvalue(k, dim=1).values
        assert (radii >= single - 1e-9).all()
    assert (radii > single + 1e-3).any(), "classes that have to meet at once are further away"
    assert (fastlip.certify_target(outputs, 3).radii >= plain.class_radii[:, 3].where(labels != 3, 0) - 1e-9).all()


@pytest.mark.parametrize("k", [1, 2, 4])
def test_no_attack_pushes_the_label_out_of_the_top_k(k):
    model, x = deep().eval(), torch.randn(40, C)
    labels = model(x).topk(2, dim=1).indices[:, 1] if k > 1 else model(x).argmax(1)
    found = fastlip.certify_top_k(fastlip.certify_outputs(model, [(x, labels)]), k)
    assert found.share == 1

    def others_ahead(z):
        scores = model(z)
        others = scores.scatter(1, labels[:, None], -math.inf).topk(k, dim=1).values
        return (others - scores.gather(1, labels[:, None])).sum()

    assert in_top(model(ascended(x, found.radii, others_ahead)), labels, k).all()
    assert not in_top(model(ascended(x, 6 * found.radii, others_ahead)), labels, k).all()


@pytest.mark.parametrize("target", [0, 4])
def test_no_attack_reaches_the_target(target):
    model, x = deep().eval(), torch.randn(40, C)
    found = fastlip.certify_target(fastlip.certify_outputs(model, [x]), target)

    def target_ahead(z):
        scores = model(z)
        return (scores[:, target] - scores.index_fill(1, torch.tensor(target), -math.inf).amax(1)).sum()

    def reached(factor):
        scores = model(ascended(x, factor * found.radii, target_ahead))
        return (scores.argmax(1) == target) & (found.radii > 0)

    assert not reached(1).any()
    assert reached(6).any()


def test_rounding_makes_radii_smaller_and_ties_are_no_success():
    model, x = deep().eval(), torch.randn(40, C)
    batch = [(x, model(x).argmax(1))]
    coarse, fine = (fastlip.certify_outputs(model, batch, dtype=dtype) for dtype in (None, torch.float64))
    for k in (1, 3):
        difference = fastlip.certify_top_k(fine, k).radii - fastlip.certify_top_k(coarse, k).radii
        assert -1e-5 < difference.amin() <= difference.amax() < 1e-3
    constant = nn.Linear(C, C).eval()
    constant.weight.data.zero_()
    constant.bias.data.zero_()
    tied = fastlip.certify_top_k(fastlip.certify_outputs(constant, batch), 1)
    assert tied.share == 0 == tied.radii.sum()


def test_what_is_refused():
    x, labels = torch.randn(4, C), torch.arange(4)
    outputs = fastlip.certify_outputs(deep().eval(), [(x, labels)])
    for k in (0, C, -1):
        with pytest.raises(ValueError, match=f"k={k}"):
            fastlip.certify_top_k(outputs, k)
    with pytest.raises(TypeError, match=r"k=1\.0: expected an int"):
        fastlip.certify_top_k(outputs, 1.0)
    with pytest.raises(ValueError, match="expected 0 to 5"):
        fastlip.certify_target(outputs, C)
    with pytest.raises(TypeError, match="target: got"):
        fastlip.certify_target(outputs, 1.5)
    with pytest.raises(ValueError, match=r"target: got shape \(3,\)"):
        fastlip.certify_target(outputs, labels[:3])
    with pytest.raises(ValueError, match="no labels"):
        fastlip.certify_top_k(fastlip.certify_outputs(deep().eval(), [x]), 1)
    with pytest.raises(ValueError, match="labels: got values"):
        fastlip.certify_top_k(fastlip.certify_outputs(deep().eval(), [(x, labels + 4)]), 1)
    images = fastlip.certify_outputs(lip.AOLConv2d(1, 2, 3).eval(), [torch.rand(2, 1, 4, 4)])
    with pytest.raises(ValueError, match=r"outputs: got shape \(2, 2, 4, 4\), expected scores"):
        fastlip.certify_target(images, 0)
