"""EMMA and logit annealing: formulas, limits, slopes of heads, and the ramp of the radius."""

import copy
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from loss_inputs import CLASSES8, LOGITS8, gradient
from torch import nn

import fastlip
from fastlip import losses
from fastlip import nn as lip

CLASSES, T = 5, 0.3


@pytest.fixture
def samples():
    generator = torch.Generator().manual_seed(7)
    logits = torch.randn(64, CLASSES, generator=generator, dtype=torch.float64)
    return logits, torch.randint(CLASSES, (64,), generator=generator)


def rows(count=CLASSES, features=6, dtype=torch.float64):
    w = torch.randn(count, features, generator=torch.Generator().manual_seed(8), dtype=dtype)
    return F.normalize(w, dim=1).requires_grad_()


def published_emma(logits, labels, w, lipschitz, radius, temperature=1.0):
    """Sample by sample and class by class."""
    values = []
    for f, y in zip(logits, labels.tolist(), strict=True):
        moved = []
        for j in range(len(f)):
            m = lipschitz * ((w[y] - w[j]).norm() if j != y else 0 * f[j])
            share = min(max(float((f[y] - f[j]).detach() / (m.detach() * radius)), 0.01), 1.0) if j != y else 0.0
            moved.append(f[j] - f[y] + share * radius * m)
        values.append(temperature * torch.logsumexp(torch.stack(moved) / temperature, 0))
    return torch.stack(values)


@pytest.mark.parametrize("radius", [0.05, 0.4, 2.0])
@pytest.mark.parametrize("lipschitz", [1.0, 1.7])
def test_emma_is_the_published_formula_with_its_gradients(samples, radius, lipschitz):
    logits, labels = samples
    logits, w = logits.requires_grad_(), rows()
    loss = losses.EMMA(radius, T, lipschitz, reduction="none").double()
    loss.radius.fill_(radius)  # in float64
    found = loss(logits, labels, torch.cdist(w, w))
    expected = published_emma(logits, labels, w, lipschitz, radius, T)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    for mine, other in zip(*(torch.autograd.grad(x.sum(), (logits, w)) for x in (found, expected)), strict=True):
        assert other.abs().max() > 0
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("slopes", [None, 0.7, torch.full((3, 3), 1.2)])
def test_emma_at_radius_0_is_cross_entropy(slopes):
    torch.testing.assert_close(losses.EMMA(0.0)(LOGITS8, CLASSES8, slopes), F.cross_entropy(LOGITS8, CLASSES8))
    cold, expected = losses.EMMA(0.0, T), losses.TemperatureCrossEntropy(1 / T)
    torch.testing.assert_close(cold(LOGITS8, CLASSES8, slopes), expected(LOGITS8, CLASSES8))
    torch.testing.assert_close(gradient(cold, LOGITS8, CLASSES8), gradient(expected, LOGITS8, CLASSES8))


def test_emma_with_all_of_the_radius_is_offset_cross_entropy(samples):
    """The share 1, and any share for samples whose margins are above the offset."""
    logits, labels = samples
    offset = losses.OffsetCrossEntropy(0.4 * math.sqrt(2), T)
    pairs = [(losses.EMMA(0.4, T, least_share=1.0), logits)]
    pairs.append((losses.EMMA(0.4, T), logits + 9 * F.one_hot(labels, CLASSES)))
    for emma, scores in pairs:
        torch.testing.assert_close(emma(scores, labels), offset(scores, labels), rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(
            gradient(emma, scores, labels), gradient(offset, scores, labels), rtol=1e-5, atol=1e-8
        )


def test_classes_within_reach_are_put_level():
    """All margins are below the radius: t log c, whatever they are."""
    found = losses.EMMA(10.0, T, reduction="none")(torch.tensor([[2.0, 1.0, 1.5]]), torch.tensor([0]))
    torch.testing.assert_close(found, torch.tensor([T * math.log(3)]))


def test_equal_rows_gain_nothing():
    logits = LOGITS8.clone().requires_grad_()
    w = torch.ones(3, 4, requires_grad=True)
    loss = losses.EMMA(0.5)(logits, CLASSES8, torch.cdist(w, w))
    torch.testing.assert_close(loss, F.cross_entropy(LOGITS8, CLASSES8))
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(loss, (logits, w)))


def test_logit_annealing_is_the_published_formula(samples):
    logits, labels = samples
    p = F.softmax((logits - 2 * F.one_hot(labels, CLASSES)) / 0.75, 1).gather(1, labels[:, None])[:, 0]
    found = losses.LogitAnnealing(reduction="none")(logits, labels)
    torch.testing.assert_close(found, -0.75 * (1 - p) ** 5 * p.log(), rtol=1e-12, atol=1e-12)


def test_logit_annealing_without_exponent_is_offset_cross_entropy():
    plain, offset = losses.LogitAnnealing(0.7, T, 0.0), losses.OffsetCrossEntropy(0.7, T)
    torch.testing.assert_close(plain(LOGITS8, CLASSES8), offset(LOGITS8, CLASSES8))
    torch.testing.assert_close(gradient(plain, LOGITS8, CLASSES8), gradient(offset, LOGITS8, CLASSES8))


def test_logit_annealing_far_from_the_offset():
    """Far below, it is offset cross-entropy; far above, it vanishes as the power beta + 1 of 1 - p."""
    annealing, offset = (
        make(0.5, T, reduction="none") for make in (losses.LogitAnnealing, losses.OffsetCrossEntropy)
    )
    margins = torch.tensor([-6.0, -5.0, 3.0, 3.5], dtype=torch.float64)
    logits, labels = torch.stack((margins, torch.zeros_like(margins)), 1), torch.zeros(4, dtype=torch.long)
    ours, theirs = annealing(logits, labels), offset(logits, labels)
    torch.testing.assert_close(ours[:2], theirs[:2], rtol=1e-6, atol=0)
    torch.testing.assert_close(ours[2:] / T, (theirs[2:] / T) ** 6, rtol=1e-2, atol=0)


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 5.0])
def test_logit_annealing_of_a_certain_sample_has_no_gradient(exponent):
    found = gradient(losses.LogitAnnealing(0.5, T, exponent), torch.tensor([[900.0, -900.0]]), torch.tensor([0]))
    assert torch.equal(found, torch.zeros(1, 2))


@pytest.mark.parametrize("head", ["unit rows", "first outputs", "linear", "scaled", "scaled before"])
def test_the_slopes_are_those_of_the_certificate(head):
    torch.manual_seed(0)
    ends = {
        "unit rows": (lip.NormalizedLinear(8, 4),),
        "first outputs": (nn.Sequential(lip.NormalizedLinear(8, 6), nn.Identity()), lip.FirstChannels(4)),
        "linear": (nn.Linear(8, 4),),
        "scaled": (lip.NormalizedLinear(8, 4), lip.Scale(5.0), lip.Scale(0.5, learnable=True)),
        "scaled before": (lip.Scale(3.0), lip.NormalizedLinear(8, 4)),
    }[head]
    model = nn.Sequential(nn.Flatten(), lip.CayleyLinear(8, 8), lip.MaxMin(), *ends).double().eval()
    slopes = losses.class_slopes(model)
    assert slopes.shape == (4, 4)
    x = torch.randn(32, 8, dtype=torch.float64)
    outputs = model(x).detach()
    labels = outputs.argmax(1)
    found = fastlip.certify(model, [(x, labels)], per_class=True).class_radii
    margins = outputs.gather(1, labels[:, None]) - outputs
    others = F.one_hot(labels, 4) == 0
    expected = (margins / slopes[labels])[others]
    torch.testing.assert_close(found[others], expected, rtol=1e-6, atol=1e-9)


def test_slopes_without_rows_are_those_of_joint_outputs():
    for model in (lip.CayleyLinear(8, 4), nn.Sequential(lip.NormalizedLinear(8, 4), lip.MaxMin()), nn.Sequential()):
        assert losses.class_slopes(model) == math.sqrt(2)
    for L in (1.0, 7.0):
        model = fastlip.models.lip_conv_net("aol", width=4, image_size=16, layers_per_block=1, lipschitz=L)
        assert losses.class_slopes(model) == pytest.approx(math.sqrt(2) * L)


def test_gradients_reach_the_rows():
    head = lip.NormalizedLinear(6, 3)
    losses.EMMA(1.0)(LOGITS8, CLASSES8, losses.class_slopes(head)).backward()
    assert head.raw_weight.grad.abs().max() > 0


def test_the_ramp_is_linear_and_ends_at_the_radius():
    loss = losses.EMMA()
    ramp = losses.RadiusRamp(loss, 10, 0.1, 0.6, 0.5)
    radii = []
    for _ in range(10):
        radii.append(float(loss.radius))
        ramp.step()
    assert radii == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5] + [0.6] * 5)
    assert radii[-1] == float(torch.tensor(0.6))
    assert losses.RadiusRamp(loss, 10, 0.1, 0.6, 0.0).radius == 0.6


def test_the_published_ramp():
    ramp = losses.RadiusRamp(losses.EMMA(), 800)
    for step in range(801):
        factor = 0.1 + (3 - 0.1) * min(1, 2 * step / 800)
        assert ramp.radius == pytest.approx(36 / 255 * factor, rel=1e-12)
        ramp.step()


def test_a_continued_ramp_has_the_same_radii():
    straight = losses.RadiusRamp(losses.EMMA(), 7, 0.013, 0.71, 0.9)
    for step in itertools.count():
        again = losses.RadiusRamp(losses.EMMA(), 7, 0.013, 0.71, 0.9)
        again.load_state_dict(copy.deepcopy(straight.state_dict()))
        assert torch.equal(again.loss.radius, straight.loss.radius)
        straight.step(), again.step()
        assert torch.equal(again.loss.radius, straight.loss.radius)
        if step == 9:
            break


def test_the_radius_is_kept_by_state_dict_copies_and_devices():
    loss = losses.EMMA(0.3)
    assert set(loss.state_dict()) == {"radius"}
    other = losses.EMMA(0.1)
    other.load_state_dict(loss.state_dict())
    assert torch.equal(other.radius, loss.radius)
    assert torch.equal(copy.deepcopy(loss).radius, loss.radius)
    assert loss.to("meta").radius.is_meta


def test_only_a_loss_with_a_radius_is_ramped():
    with pytest.raises(TypeError, match="loss: got LogitAnnealing, expected a loss with a buffer radius"):
        losses.RadiusRamp(losses.LogitAnnealing(), 5)


def test_emma_compiles_once_for_all_radii(samples):
    logits, labels = samples
    torch.compiler.reset()
    head, count = lip.NormalizedLinear(6, CLASSES), 0

    def backend(graph, _):
        nonlocal count
        count += 1
        return graph

    loss = losses.EMMA(0.1, T)
    compiled = torch.compile(loss, backend=backend, fullgraph=True)
    ramp, slopes = losses.RadiusRamp(loss, 4), losses.class_slopes(head).detach()
    for _ in range(4):
        torch.testing.assert_close(compiled(logits, labels, slopes), loss(logits, labels, slopes))
        ramp.step()
    assert count == 1


def test_logit_annealing_compiles(samples):
    loss = losses.LogitAnnealing()
    torch.testing.assert_close(torch.compile(loss, backend="eager", fullgraph=True)(*samples), loss(*samples))
