"""Certificates against the formula, an attack, planted faults and rounding; what certify refuses."""

import copy
import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastlip
from fastlip import nn as lip

SHAPE = (1, 8, 8)


def batches(data, size=128):
    return list(zip(*(part.split(size) for part in data), strict=True))


def outputs(model, images):
    with torch.no_grad():
        return model(images).double()


def test_radii_follow_the_formula(trained, digits):
    images, labels = digits
    model = nn.Sequential(trained, lip.Abs()).eval()
    found = fastlip.certify(model, batches(digits))
    logits = outputs(model, images)
    true = F.one_hot(labels, 10).bool()
    margins = logits[true] - logits.masked_fill(true, -math.inf).amax(1)
    torch.testing.assert_close(found.margins, margins, rtol=0, atol=1e-6)
    bound = fastlip.audit(model, SHAPE).bound
    assert found.lipschitz == bound
    expected = found.margins.clamp_min(0) / (math.sqrt(2) * bound)
    assert (found.radii <= expected + 1e-9).all()
    assert (found.radii >= expected - 2 * found.rounding / bound - 1e-9).all()
    assert found.accuracy == (logits.argmax(1) == labels).double().mean().item() > 0.7
    assert found.n == 500
    for eps, share in found.cra.items():
        assert share == (found.radii > eps).double().mean().item()
    assert set(found.cra) == {36 / 255, 72 / 255, 108 / 255, 1.0}


def test_a_linear_head_uses_the_distances_of_its_rows(digits):
    torch.manual_seed(0)
    images, labels = digits
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 20), lip.FirstChannels(10)).eval()
    found = fastlip.certify(model, batches(digits), dtype=torch.float64)
    rows = model[1].weight.double()[:10].detach()
    logits = outputs(copy.deepcopy(model).double(), images.double())
    gaps = logits.gather(1, labels[:, None]) - logits
    distances = (rows[labels][:, None] - rows[None]).norm(dim=2)
    exact = (gaps / distances).masked_fill(F.one_hot(labels, 10).bool(), math.inf).amin(1).clamp_min(0)
    torch.testing.assert_close(found.radii, exact, rtol=1e-9, atol=1e-9)


def test_unit_rows_are_no_reason_for_margin_over_root_two(digits):
    # Ten nearly equal unit rows: |w_y - w_j| is small, but two opposite rows are 2 > sqrt(2) apart.
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2, bias=False)).eval()
    row = F.normalize(torch.ones(64), dim=0)
    model[1].weight.data = torch.stack((row, -row))
    images, _ = digits
    found = fastlip.certify(model, [(images, torch.zeros(500, dtype=torch.long))], dtype=torch.float64)
    torch.testing.assert_close(found.radii, found.margins / 2, rtol=1e-9, atol=0)


def test_the_head_of_a_convnet_is_one_pixel_wide(trained, digits):
    better = fastlip.certify(trained, batches(digits), dtype=torch.float64)
    plain = better.margins.clamp_min(0) / (math.sqrt(2) * better.lipschitz)
    assert (better.radii >= plain - 1e-9).all()
    assert (better.radii > 1.01 * plain)[plain > 0].any()


def test_a_fault_shrinks_every_certificate(trained, digits):
    faulty = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect", bias=False), trained).eval()
    faulty[0].weight.data = torch.tensor([[[[0.0, 0, 0], [0, 1, 0], [0, 0, 0]]]])
    honest = fastlip.certify(trained, batches(digits), dtype=torch.float64)
    found = fastlip.certify(faulty, batches(digits), dtype=torch.float64)
    torch.testing.assert_close(found.margins, honest.margins)
    assert found.lipschitz > 1.9 * honest.lipschitz
    assert (found.radii <= honest.radii / 1.9).all()


@pytest.mark.parametrize("scale", [0.5, 4.0])
def test_radii_do_not_depend_on_the_scale_of_the_outputs(trained, digits, scale):
    class Scale(nn.Module):
        def forward(self, x):
            return scale * x

        def lipschitz_bound(self, input_shape):
            return scale

    honest = fastlip.certify(nn.Sequential(trained, nn.ReLU()).eval(), batches(digits), dtype=torch.float64)
    found = fastlip.certify(nn.Sequential(trained, nn.ReLU(), Scale()).eval(), batches(digits), dtype=torch.float64)
    torch.testing.assert_close(found.radii, honest.radii, rtol=1e-6, atol=1e-9)


def attack(model, images, labels, radii, steps=20):
    """Gradient ascent on the margin inside the ball; the smallest margin seen for each sample."""
    generator = torch.Generator().manual_seed(0)
    delta = torch.randn(images.shape, generator=generator, dtype=images.dtype)
    worst = torch.full((len(images),), math.inf, dtype=images.dtype)
    true = F.one_hot(labels, 10).bool()
    for _ in range(steps):
        norms = delta.flatten(1).norm(dim=1).clamp_min(1e-12)
        delta = (delta * (radii / norms)[:, None, None, None]).requires_grad_()
        logits = model(images + delta)
        margins = logits[true] - logits.masked_fill(true, -math.inf).amax(1)
        worst = torch.minimum(worst, margins.detach())
        (gradient,) = torch.autograd.grad(margins.sum(), delta)
        scale = gradient.flatten(1).norm(dim=1).clamp_min(1e-12)
        delta = delta.detach() - (radii / 4 / scale)[:, None, None, None] * gradient
    return worst


def test_no_attack_succeeds_inside_a_radius_and_some_do_outside(trained, digits):
    images, labels = digits
    found = fastlip.certify(trained, batches(digits))
    safe = found.radii > 0
    model = copy.deepcopy(trained).double()
    images, labels, radii = images[safe].double(), labels[safe], found.radii[safe]
    assert (attack(model, images, labels, radii) > 0).all()
    assert (attack(model, images, labels, 3 * radii) < 0).double().mean() > 0.5


def test_the_stated_rounding_bounds_the_difference_to_float64(trained, digits):
    images, _ = digits
    single = fastlip.certify(trained, batches(digits))
    twin = copy.deepcopy(trained).double()
    for layer, original in zip(twin.modules(), trained.modules(), strict=True):
        if isinstance(layer, lip.AOLConv2d):
            with torch.no_grad():
                layer._effective()
                layer._cache.entries[()][1][0].copy_(original.weight)  # the same rounded weights, in float64
    error = (outputs(twin, images.double()) - outputs(trained, images)).norm(dim=1)
    assert 0 < error.amax() <= single.rounding < 0.01
    assert fastlip.certify(trained, batches(digits), dtype=torch.float64).rounding < 1e-10


def test_sixteen_bit_models_are_certified_in_float32(trained, digits):
    low = copy.deepcopy(trained).bfloat16()
    found = fastlip.certify(low, batches(digits))
    assert torch.equal(found.margins, fastlip.certify(copy.deepcopy(low).float(), batches(digits)).margins)
    assert {parameter.dtype for parameter in low.parameters()} == {torch.bfloat16}


def test_autocast_and_tf32_are_off_meanwhile_and_come_back(trained, digits):
    class Probe(nn.Identity):
        seen = None

        def lipschitz_bound(self, input_shape):
            return 1.0

        def forward(self, x):
            self.seen = torch.is_autocast_enabled("cpu"), torch.backends.cuda.matmul.fp32_precision
            return x

    probe = Probe()
    model = nn.Sequential(probe, trained).eval()
    plain = fastlip.certify(model, batches(digits))
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            found = fastlip.certify(model, batches(digits))
            assert torch.is_autocast_enabled("cpu")
        assert probe.seen == (False, "ieee")
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    finally:
        torch.set_float32_matmul_precision(precision)
    assert torch.equal(found.radii, plain.radii)


def test_curves_and_class_radii_agree_with_the_radii(trained, digits):
    images, labels = digits
    found = fastlip.certify(trained, batches(digits), per_class=True)
    eps = list(found.cra)
    assert found.curve(eps).tolist() == list(found.cra.values())
    assert found.curve(found.radii[:3]).tolist() == [(found.radii > r).double().mean() for r in found.radii[:3]]
    with pytest.raises(ValueError, match="eps=-1"):
        found.curve([0.1, -1.0])
    assert torch.equal(found.labels, labels)
    assert torch.equal(found.predictions, outputs(trained, images).argmax(1))
    assert found.class_radii.shape == (500, 10)
    assert (found.class_radii.gather(1, labels[:, None]) == math.inf).all()
    correct = found.margins > 0
    assert torch.equal(found.class_radii.amin(1)[correct], found.radii[correct])
    # A misclassified image is 0 away from the class that it is taken for, and further from most others.
    assert (found.class_radii.gather(1, found.predictions[:, None])[~correct] == 0).all()
    assert (found.class_radii[~correct] > 0).any()
    assert fastlip.certify(trained, batches(digits)).class_radii is None


def test_results_print_and_serialise(trained, digits):
    found = fastlip.certify(trained, batches(digits), eps=[0.1], progress=True, input_shape=SHAPE)
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert plain["cra"] == {"0.1": found.cra[0.1]}
    assert plain["n"] == len(plain["radii"]) == 500
    text = str(found)
    assert f"{found.accuracy:.2%}" in text
    assert f"certified at 0.1: {found.cra[0.1]:.2%}" in text


def test_one_hot_labels_and_constant_networks(trained, digits):
    images, labels = digits
    one_hot = fastlip.certify(trained, [(images, F.one_hot(labels, 10))])
    assert torch.equal(one_hot.radii, fastlip.certify(trained, [(images, labels)]).radii)
    constant = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    constant[1].weight.data.zero_()
    constant[1].bias.data = torch.arange(10.0)
    found = fastlip.certify(constant, [(images, labels)])
    assert math.isclose(found.accuracy, (labels == 9).double().mean())
    assert found.cra[1.0] == found.accuracy
    assert (found.radii[labels != 9] == 0).all()


def test_a_network_without_parameters_runs_in_the_dtype_that_is_asked_for():
    scores, labels = torch.rand(8, 3, 1, 1), torch.arange(8) % 3
    model = nn.Sequential(nn.Flatten(), nn.Sigmoid()).eval()
    single, double = (
        fastlip.certify(model, [(scores, labels)], dtype=dtype).rounding for dtype in (None, torch.float64)
    )
    assert 0 < double < 1e-12 < single


def test_what_certify_refuses(trained, digits):
    images, labels = digits
    training = copy.deepcopy(trained)
    training.block1.train()
    with pytest.raises(ValueError, match="'block1' is in training mode"):
        fastlip.certify(training, batches(digits))
    with pytest.raises(ValueError, match="no batches"):
        fastlip.certify(trained, [])
    with pytest.raises(ValueError, match="labels: got values"):
        fastlip.certify(trained, [(images, labels + 1)])
    with pytest.raises(ValueError, match=r"eps=-0\.1"):
        fastlip.certify(trained, batches(digits), eps=[-0.1])
    with pytest.raises(ValueError, match=r"dtype=torch\.float16"):
        fastlip.certify(trained, batches(digits), dtype=torch.float16)
    with pytest.raises(ValueError, match=r"input_shape=\(1, 9, 9\)"):
        fastlip.certify(trained, batches(digits), input_shape=(1, 9, 9))
    with pytest.raises(TypeError, match="batch 0 is no pair"):
        fastlip.certify(trained, [images])
    spoilt = images.clone()
    spoilt[300, 0, 0, 0] = math.nan
    with pytest.raises(ValueError, match="images of batch 2 contain NaN"):
        fastlip.certify(trained, batches((spoilt, labels)))
    with pytest.raises(ValueError, match=r"NaN or Inf in the outputs of batch 0, first in layer 'block"):
        fastlip.certify(trained, [(torch.full_like(images, 3e38), labels)])
    broken = copy.deepcopy(trained)
    broken.head.raw_weight.data[0] = math.inf
    with pytest.raises(ValueError, match=r"layer 'head' \(AOLConv2d\): raw_weight contains NaN or Inf"):
        fastlip.certify(broken, batches(digits))


SCORES = [nn.Identity(), nn.Flatten(0)]


@pytest.mark.parametrize("tail", SCORES, ids=["(n, 1)", "(n,)"])
@pytest.mark.parametrize("encode", [lambda y: y, lambda y: 2 * y - 1, lambda y: y.float()[:, None]])
def test_one_score_is_certified_by_its_distance_from_zero(tail, encode):
    # Of a linear score w x + b the nearest image of the other label is at |w x + b| / |w|.
    layer = nn.Linear(6, 1)
    x = torch.randn(40, 6)
    distance = (layer(x)[:, 0].double() / layer.weight.double().norm()).detach()
    labels = (distance > 0).long()
    labels[::5] = 1 - labels[::5]
    found = fastlip.certify(nn.Sequential(layer, tail).eval(), [(x, encode(labels))], eps=[0.1])
    expected = torch.where((distance > 0) == (labels > 0), distance.abs(), 0)
    assert (found.radii <= expected).all(), "never beyond the true distance"
    torch.testing.assert_close(found.radii, expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.margins, (2 * labels - 1) * layer(x)[:, 0].double().detach())
    assert torch.equal(found.predictions, (distance > 0).long())
    assert found.accuracy == pytest.approx(0.8)
    assert found.cra[0.1] == (expected > 0.1).double().mean()


def test_a_certificate_of_one_score_holds_against_attacks():
    model = nn.Sequential(lip.AOLLinear(8, 16), lip.MaxMin(), lip.AOLLinear(16, 1), nn.Flatten(0)).eval()
    x = 3 * torch.randn(60, 8)
    labels = (model(x) > 0).long()
    certificate = fastlip.certify(model, [(x, labels)])
    found = fastlip.attack(
        model, [(x, labels)], eps=[3.0], certificate=certificate, bounds=None, steps=20, restarts=1
    )
    assert len(found.broken) == 0
    assert (found.distances < 5 * certificate.radii).double().mean() > 0.5, "the radii are not far from what breaks"
