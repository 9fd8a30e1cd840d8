"""Certificates of pixels: exact where pixels are free, never beaten by an attack, and what is refused."""

import math

import pytest
import torch
from ball_ascent import ascended
from torch import nn

import fastlip
from fastlip import nn as lip
from fastlip.certification.auditing import examine
from fastlip.certification.certificates.slopes import pixel_slopes

C, SIDE = 3, 5


def free_pixels(rows):
    """A 1x1 convolution with these rows: every pixel's scores move by themselves."""
    model = nn.Sequential(nn.Conv2d(rows.shape[1], len(rows), 1)).double().eval()
    model[0].weight.data = rows[:, :, None, None].double()
    return model


def nearest_flips(model, x, eps):
    """How many pixels the best perturbation of norm eps flips: the cheapest ones first, each to its nearest class."""
    rows, scores = model[0].weight[:, :, 0, 0].detach(), model(x).detach()
    best, predicted = scores.max(1)
    distances = (rows[predicted] - rows[:, None, None, None]).norm(dim=4).movedim(0, 1)
    costs = ((best[:, None] - scores) / distances).nan_to_num(nan=math.inf).amin(1).flatten(1)
    spent = costs.square().sort(1).values.cumsum(1)
    return (spent <= eps**2).sum(1), costs


@pytest.mark.parametrize("rows", [torch.eye(C), torch.randn(4, C), torch.randn(C, 6)], ids=["identity", "4x3", "3x6"])
def test_flips_of_free_pixels_are_exact(rows):
    model = free_pixels(rows)
    x = torch.randn(6, rows.shape[1], SIDE, SIDE, dtype=torch.float64)
    labels = model(x).argmax(1)
    eps = [0.0, 0.1, 0.3, 1.0, 30.0]
    found = fastlip.certify_segmentation(model, [(x[:4], labels[:4]), (x[4:], labels[4:])], eps, per_pixel=True)
    for value in eps:
        exact, costs = nearest_flips(model, x, value)
        assert torch.equal(found.flips[value], exact)
        assert found.joint_cra[value] == pytest.approx(1 - exact.sum().item() / labels.numel())
        assert found.cra[value] == (costs > value).double().mean()
        assert found.cra[value] <= found.joint_cra[value]
    torch.testing.assert_close(found.radii.flatten(1), costs, rtol=1e-9, atol=1e-9)
    assert found.flips[30.0].tolist() == [25] * 6
    assert (found.accuracy, found.n, found.pixels.tolist()) == (1.0, 6, [25] * 6)
    assert "at 0.1: " in str(found)


def network(classes, head=1):
    torch.manual_seed(1)
    layers = [lip.AOLConv2d(1, 8, 3), lip.MaxMin(), lip.AOLConv2d(8, 8, 3), lip.MaxMin(), nn.Conv2d(8, classes, head)]
    return nn.Sequential(*layers).eval()


def nearly_flipped(model, own):
    """A gain that grows with the pixels nearest to a flip; those that are flipped need no more of the norm."""

    def gain(x):
        scores = model(x)
        if scores.shape[1] > 1:
            margins = scores.gather(1, own) - scores.scatter(1, own, -math.inf).amax(1, keepdim=True)
        else:
            margins = torch.where(own > 0, scores, -scores)
        return torch.where(margins > -1e-3, (-20 * margins).exp(), 0).sum()

    return gain


@pytest.mark.parametrize("classes", [1, 2, 4])
def test_no_attack_flips_more_pixels(classes):
    model, x, eps = network(classes), torch.rand(4, 1, 8, 8), 0.2
    model[-1].weight.data *= 3  # rows of other norms than 1
    with torch.no_grad():
        model[-1].bias -= model(x).mean((0, 2, 3))
    scores = model(x).detach()
    predicted = scores.argmax(1) if classes > 1 else (scores[:, 0] > 0).long()
    found = fastlip.certify_segmentation(model, [(x, predicted)], [eps], per_pixel=True)
    now = model(ascended(x, eps, nearly_flipped(model, predicted[:, None]), steps=40)).detach()
    flipped = (now.argmax(1) if classes > 1 else (now[:, 0] > 0).long()) != predicted
    counts = flipped.flatten(1).sum(1)
    assert (counts <= found.flips[eps]).all()
    assert 1 - flipped.double().mean() >= found.joint_cra[eps] - 1e-12
    assert counts.sum() > 0.1 * found.flips[eps].sum() > 0, "the bound is not far from what an attack finds"
    assert not flipped[found.radii > eps].any()


def test_a_last_layer_of_single_pixels_gives_tighter_counts():
    # Three nearly equal rows of norm 10: the joint bound L is 10 times what their differences need.
    model, x = network(3), torch.rand(2, 1, 8, 8)
    model[-1].weight.data = (10 * torch.ones(1, 8) / 8**0.5 + 0.1 * torch.randn(3, 8))[:, :, None, None]
    labels = model(x).argmax(1)
    with_head = fastlip.certify_segmentation(model, [(x, labels)], [0.1], dtype=torch.float64)
    hidden = nn.Sequential(model, lip.GroupSort(1)).eval()  # sorts nothing, and is no linear layer
    without = fastlip.certify_segmentation(hidden, [(x, labels)], [0.1], dtype=torch.float64)
    assert with_head.lipschitz == pytest.approx(without.lipschitz)
    assert (with_head.flips[0.1] <= without.flips[0.1]).all()
    assert with_head.flips[0.1].sum() < 0.7 * without.flips[0.1].sum()
    assert with_head.cra[0.1] > without.cra[0.1]


HEADS = {
    "a pixel each": (lambda: nn.Conv2d(8, 3, 1), True),
    "own layer": (lambda: lip.BCOPConv2d(8, 3, 1), True),
    "a factor": (lambda: nn.Sequential(nn.Conv2d(8, 3, 1), lip.Scale(2.0)), True),
    "a selection": (lambda: nn.Sequential(nn.Conv2d(8, 6, 1), lip.FirstChannels(3)), True),
    "3x3": (lambda: nn.Conv2d(8, 3, 3, padding=1), False),
    "groups": (lambda: nn.Conv2d(8, 4, 1, groups=2), False),
    "padding": (lambda: nn.Conv2d(8, 3, 1, padding=1), False),
    "repeated pixels": (lambda: nn.Conv2d(8, 3, 1, stride=3, padding=8, padding_mode="circular"), False),
    "flattened": (lambda: nn.Sequential(nn.Conv2d(8, 3, 1), nn.Flatten(2)), False),
    "one class": (lambda: nn.Conv2d(8, 1, 1), False),
}


@pytest.mark.parametrize("name", HEADS)
def test_which_last_layers_act_on_single_pixels(name):
    make, expected = HEADS[name]
    model = nn.Sequential(lip.AOLConv2d(1, 8, 3), lip.MaxMin(), make()).eval()
    audit, links = examine(model, (1, 8, 8))
    slopes = pixel_slopes(links, audit)
    assert (slopes is not None) == expected
    if slopes is not None:
        assert (slopes <= math.sqrt(2) * audit.bound * (1 + 1e-9)).all()


def test_large_batches_are_measured_in_parts(monkeypatch):
    model, x = network(3), torch.rand(5, 1, 8, 8)
    batch = [(x, model(x).argmax(1))]
    whole = fastlip.certify_segmentation(model, batch, [0.1], per_pixel=True)
    monkeypatch.setattr("fastlip.certification.certificates.pixels._ENTRIES", 2 * 3 * 64)
    parts = fastlip.certify_segmentation(model, batch, [0.1], per_pixel=True)
    assert torch.equal(parts.radii, whole.radii)
    assert torch.equal(parts.flips[0.1], whole.flips[0.1])
    assert (parts.cra, parts.joint_cra, parts.n) == (whole.cra, whole.joint_cra, 5)


def test_an_exported_network_has_the_same_certificate():
    model = nn.Sequential(lip.AOLConv2d(1, 8, 3), lip.MaxMin(), lip.AOLConv2d(8, 6, 1), lip.FirstChannels(3)).eval()
    x = torch.rand(2, 1, 8, 8)
    batch = [(x, model(x).argmax(1))]
    own, plain = (
        fastlip.certify_segmentation(network, batch, [0.02], dtype=torch.float64, per_pixel=True)
        for network in (model, fastlip.export(model).eval())
    )
    torch.testing.assert_close(plain.radii, own.radii, rtol=1e-3, atol=1e-5)


def test_pixels_that_do_not_count():
    model, x = free_pixels(torch.eye(C)), torch.randn(2, C, SIDE, SIDE, dtype=torch.float64)
    labels = model(x).argmax(1)
    labels[:, :2] = 255
    found = fastlip.certify_segmentation(model, [(x, labels)], [0.2, 50.0], ignore_index=255, per_pixel=True)
    same = fastlip.certify_segmentation(model, [(x[:, :, 2:], labels[:, 2:])], [0.2, 50.0])
    assert (found.accuracy, found.cra, found.joint_cra) == (same.accuracy, same.cra, same.joint_cra)
    assert torch.equal(found.flips[0.2], same.flips[0.2])
    assert found.flips[50.0].tolist() == found.pixels.tolist() == [15, 15]
    assert (found.radii[:, :2] == 0).all()
    small = fastlip.certify_segmentation(model, [(x, labels.to(torch.uint8)[:, None])], [0.2], ignore_index=255)
    assert small.cra[0.2] == found.cra[0.2]
    assert fastlip.certify_segmentation(model, [(x, labels % 3)], []).cra == {}


def test_wrong_pixels_are_not_certified_but_may_flip():
    model, x = free_pixels(torch.eye(2)), torch.randn(2, 2, SIDE, SIDE, dtype=torch.float64)
    wrong = 1 - model(x).argmax(1)
    found = fastlip.certify_segmentation(model, [(x, wrong)], [0.0, 1.0], per_pixel=True)
    right = fastlip.certify_segmentation(model, [(x, 1 - wrong)], [0.0, 1.0])
    assert found.accuracy == found.cra[1.0] == found.joint_cra[1.0] == found.radii.sum() == 0
    assert torch.equal(found.flips[1.0], right.flips[1.0])
    constant = free_pixels(torch.zeros(2, 2))
    constant[0].bias.data.zero_()
    tied = fastlip.certify_segmentation(constant, [(x, wrong)], [0.0])
    assert tied.accuracy == 0
    assert tied.flips[0.0].tolist() == [25, 25]


def test_masks_of_one_class_and_lines_of_pixels():
    model = nn.Sequential(nn.Conv2d(2, 1, 1), nn.Identity()).double().eval()
    x = torch.randn(3, 2, SIDE, SIDE, dtype=torch.float64)
    mask = (model(x) > 0).double()
    found = fastlip.certify_segmentation(model, [(x, mask)], [0.1], per_pixel=True)
    norm = model[0].weight.detach().norm()
    torch.testing.assert_close(found.radii, model(x)[:, 0].abs().detach() / norm)
    line = nn.Sequential(nn.Conv1d(2, 3, 1)).double().eval()
    z = x.flatten(2)
    found = fastlip.certify_segmentation(line, [(z, line(z).argmax(1))], [0.1])
    assert found.accuracy == 1
    assert found.pixels.tolist() == [25] * 3


def test_nothing_is_certain_without_a_bound_of_rounding():
    model, x = free_pixels(torch.eye(C)).float(), torch.full((1, C, SIDE, SIDE), 1e30)
    x[:, 0] *= 2
    labels = torch.zeros(1, SIDE, SIDE, dtype=torch.long)
    found = fastlip.certify_segmentation(model, [(x, labels)], [1e36])
    assert found.cra[1e36] == found.joint_cra[1e36] == 0
    assert found.flips[1e36].tolist() == [25]


def test_what_is_refused():
    model, x = free_pixels(torch.eye(C)), torch.randn(2, C, SIDE, SIDE, dtype=torch.float64)
    labels = model(x).argmax(1)
    with pytest.raises(ValueError, match=r"labels: got shape \(2, 4, 5\), expected \(2, 5, 5\)"):
        fastlip.certify_segmentation(model, [(x, labels[:, :4])])
    with pytest.raises(ValueError, match="labels: got values from 0 to 255, expected 0 to 2"):
        fastlip.certify_segmentation(model, [(x, labels.where(labels != 1, 255))])
    with pytest.raises(TypeError, match=r"labels: got torch\.float64, expected integers"):
        fastlip.certify_segmentation(model, [(x, labels.double())])
    with pytest.raises(ValueError, match="ignore_index=7: no pixel"):
        fastlip.certify_segmentation(model, [(x, 0 * labels + 7)], ignore_index=7)
    with pytest.raises(ValueError, match=r"outputs: got shape \(4, 3\), expected scores \(n, c, h, w\)"):
        fastlip.certify_segmentation(nn.Linear(2, 3).eval(), [(torch.rand(4, 2), torch.zeros(4))])
    with pytest.raises(ValueError, match="no batches"):
        fastlip.certify_segmentation(model, [])
    with pytest.raises(ValueError, match="eps=-1"):
        fastlip.certify_segmentation(model, [(x, labels)], [-1])
    with pytest.raises(TypeError, match="has no labels"):
        fastlip.certify_segmentation(model, [x])
