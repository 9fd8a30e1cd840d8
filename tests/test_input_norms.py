"""Certificates in a weighted norm of the inputs: radii, other norms, rounding, reports, and what is never mixed."""

import copy
import json
import math

import pytest
import torch
from torch import nn

import fastlip
from fastlip import nn as lip
from fastlip.certification import InputNorm, input_norms
from fastlip.certification.attacks import BrokenCertificateWarning
from fastlip.certification.certificates.prepared import Prepared

WIDE = torch.logspace(-3, 3, 6)


def tabular(weights=WIDE, classes=3, center=None, hidden=16):
    torch.manual_seed(1)
    body = lip.CayleyLinear(len(weights), hidden), lip.MaxMin(), lip.CayleyLinear(hidden, classes)
    model = nn.Sequential(lip.InputWeights(weights, center), *body).eval()
    for layer in model[1], model[3]:
        nn.init.normal_(layer.bias, std=0.3)
    return model


def test_norms():
    norm = InputNorm((2, 3), torch.tensor([[1.0], [10.0]]).double())
    delta = torch.tensor([[3.0, 0.0, 0.0], [0.0, 0.4, 0.0]])
    assert norm.length(delta).item() == pytest.approx(5)
    assert norm.length(torch.stack((delta, 2 * delta))).tolist() == pytest.approx([5, 10])
    assert InputNorm((2, 3)).length(delta).item() == pytest.approx(math.hypot(3, 0.4))
    assert (InputNorm((2, 3)).largest, norm.largest) == (1, 10)
    for wrong in (delta[0], delta[None, None], delta.T):
        with pytest.raises(ValueError, match=r"perturbation: got shape .*, expected \(2, 3\)"):
            norm.length(wrong)
    assert norm == InputNorm((2, 3), norm.weights.expand(2, 3))
    assert len({norm, InputNorm((2, 3), norm.weights.expand(2, 3))}) == 1
    assert InputNorm((2, 3)) == InputNorm((2, 3), torch.ones(1, 1).double())
    others = InputNorm((2, 3)), InputNorm((2, 3), 2 * norm.weights), InputNorm((2, 4), norm.weights), "l2"
    assert all(norm != other for other in others)
    assert norm.to_dict() == {"norm": "weighted l2", "input_weights": [[1.0], [10.0]]}
    assert InputNorm((3,)).to_dict() == {"norm": "l2"}


@pytest.mark.parametrize("p", [1, 1.5, 2, 2.5, 3, 10, math.inf])
def test_factors_of_other_norms_are_the_largest_ones(p):
    torch.manual_seed(0)
    weights = torch.tensor([0.5, 2.0, 2.0, 7.0]).double()
    norm = InputNorm((4,), weights)
    factor, weighted = norm.lp_factor(p, weighted=False), norm.lp_factor(p)
    delta = torch.randn(2000, 4).double()
    own, plain = delta.norm(p=p, dim=1), norm.length(delta)
    assert (plain <= own / factor * (1 + 1e-12)).all()
    assert (plain <= (weights * delta).norm(p=p, dim=1) / weighted * (1 + 1e-12)).all()
    # The direction in which Hoelder's inequality is an equation.
    worst = weights ** (2 / (p - 2)) if 2 < p < math.inf else torch.ones(4) if p > 2 else torch.eye(4)[3]
    worst = worst.double()
    assert norm.length(worst) == pytest.approx(worst.norm(p=p).item() / factor, rel=1e-9)
    assert weighted == fastlip.certification.lp_factor(p, 4)


def test_a_linear_classifier_has_its_exact_radius():
    torch.manual_seed(0)
    model = nn.Sequential(lip.InputWeights(WIDE, 0.5), nn.Linear(6, 4)).double().eval()
    x = torch.randn(100, 6).double() / WIDE
    scores = model(x)
    labels = scores.argmax(1)
    certificate = fastlip.certify(model, [(x, labels)])
    gaps = scores.gather(1, labels[:, None]) - scores
    rows = model[1].weight[labels][:, None] - model[1].weight[None]
    exact = (gaps / rows.norm(dim=2)).masked_fill(gaps == 0, math.inf)
    torch.testing.assert_close(certificate.radii, exact.amin(1), rtol=1e-9, atol=0)
    # The nearest point of the boundary is at that distance in the weighted norm, and beyond it the class changes.
    nearest = exact.argmin(1)
    normal = rows[torch.arange(100), nearest]
    step = exact.amin(1)[:, None] * normal / normal.norm(dim=1, keepdim=True) / model[0].weights
    torch.testing.assert_close(certificate.norm.length(step), certificate.radii, rtol=1e-9, atol=0)
    assert (model(x - step * (1 - 1e-9)).argmax(1) == labels).all()
    assert (model(x - step * (1 + 1e-9)).argmax(1) != labels).all()


def test_standardising_inside_the_model_is_standardising_the_data():
    torch.manual_seed(0)
    raw = torch.randn(200, 6).double() * torch.logspace(-3, 3, 6) + 5 * torch.logspace(3, -3, 6)
    mean, scale = raw.mean(0), raw.std(0)
    z, model = (raw - mean) / scale, tabular().double()
    labels = model[1:](z).argmax(1)
    inside = nn.Sequential(lip.InputWeights(1 / scale, mean, dtype=torch.float64), *model[1:]).eval()
    one, other = fastlip.certify(inside, [(raw, labels)]), fastlip.certify(model[1:].eval(), [(z, labels)])
    torch.testing.assert_close(one.radii, other.radii, rtol=1e-9, atol=1e-12)
    assert one.lipschitz == pytest.approx(other.lipschitz, rel=1e-12)
    # Each feature alone may move by radius standard deviations.
    torch.testing.assert_close(one.feature_radii(), one.radii[:, None] * scale, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(other.feature_radii(), other.radii[:, None].expand(200, 6))
    torch.testing.assert_close(one.lp_radii(2, weighted=False), one.radii * scale.min(), rtol=1e-9, atol=0)
    torch.testing.assert_close(one.lp_radii(2), one.radii)
    box = 0.01 * scale
    assert one.norm.length(box).item() == pytest.approx(0.01 * 6**0.5)
    assert one.curve([one.norm.length(box).item()]) == pytest.approx(
        ((one.radii > 0.01 * 6**0.5).double().mean()).item()
    )


@pytest.mark.parametrize("center", [None, 2.0])
@torch.no_grad()
def test_rounding_does_not_grow_with_the_units(center):
    """Features of sizes 1e-6 to 1e6, weighted to the same size: the bound covers the error, and stays a rounding."""
    torch.manual_seed(0)
    scale = torch.logspace(-6, 6, 32)
    model = tabular(1 / scale, hidden=32, center=None if center is None else center * scale).eval()
    plain = model[1:].eval()
    x = torch.randn(500, 32) * scale
    found, other = (Prepared(each, (32,), "worst-case", torch.device("cpu")) for each in (model, plain))
    y, rounded = found.forward(0, x.clone())
    error = (y.double() - found.exact(x, torch.arange(500))).norm(dim=1)
    assert error.amax() > 0
    assert (error <= rounded.error).all()
    usual = other.forward(0, model[0](x))[1]
    assert (rounded.error <= 1.2 * usual.error).all()
    assert (rounded.reach >= 1e6).all()
    # Near x as well: the errors of points at a distance r in the weighted norm.
    for r in (0.1, 10.0):
        noise = nn.functional.normalize(torch.randn(500, 32), dim=1)
        z = x + r * noise * scale
        near = (model(z).double() - found.exact(z, torch.arange(500))).norm(dim=1)
        distance = found.audit.norm.length(z.double() - x.double())
        assert (near <= rounded.near + rounded.growth * distance).all()


@pytest.mark.parametrize("rounding", ["worst-case", "probabilistic"])
def test_float32_certificates_are_close_to_those_in_float64(rounding):
    torch.manual_seed(0)
    model = tabular()
    x = torch.randn(100, 6) / WIDE
    labels = model(x).argmax(1)
    found, exact = (fastlip.certify(model, [(x, labels)], dtype=d, rounding=rounding) for d in (None, torch.float64))
    assert (found.radii <= exact.radii + 1e-6).all()
    torch.testing.assert_close(found.radii, exact.radii, rtol=1e-3, atol=1e-4)


def test_reports_name_the_norm():
    model = tabular()
    x = torch.randn(40, 6) / WIDE
    batch = x, model(x).argmax(1)
    text = "weighted L2 norm |w * x|, weights from 0.001 to 1000"
    audit, certificate = fastlip.audit(model, (6,)), fastlip.certify(model, [batch])
    outputs = fastlip.certify_outputs(model, [batch])
    attacked = fastlip.attack(model, [batch], [0.1], bounds=None, steps=2)
    pixels = nn.Sequential(lip.InputWeights(2.0), lip.AOLConv2d(1, 3, 1)).eval()
    images = torch.rand(2, 1, 4, 4)
    segmented = fastlip.certify_segmentation(pixels, [(images, pixels(images).argmax(1))], [0.1])
    assert "weighted L2 norm |w * x|, weights from 2 to 2" in str(segmented)
    for report in (audit, certificate, outputs, attacked):
        assert text in str(report)
        assert report.norm.name == "weighted l2"
    assert f"in the L2 norm of the inputs at most {audit.l2_bound:.9g}" in str(audit)
    for report in (audit, certificate, attacked):
        values = json.loads(json.dumps(report.to_dict()))
        assert values["norm"] == "weighted l2"
        assert values["input_weights"] == pytest.approx(WIDE.tolist())
    assert audit.to_dict()["l2_bound"] == audit.l2_bound
    assert fastlip.certify_top_k(outputs, 1).norm == fastlip.certify_target(outputs, 0).norm == audit.norm
    plain = fastlip.certify(model[1:].eval(), [batch])
    assert plain.to_dict()["norm"] == plain.to_dict()["audit"]["norm"] == "l2"
    assert "weighted" not in str(plain) + str(plain.audit)


def test_certificates_of_other_tasks_are_in_the_norm():
    """Bounds of outputs hold for perturbations whose weighted norm is eps, and are met by some of them."""
    torch.manual_seed(0)
    model = tabular(classes=1).double()
    x = torch.randn(50, 6).double() / WIDE
    outputs = fastlip.certify_outputs(model, [(x, (model(x)[:, 0] > 0).long())])
    low, high = outputs.interval(0.5)
    for _ in range(100):
        z = x + 0.5 * nn.functional.normalize(torch.randn(50, 6).double(), dim=1) / model[0].weights
        assert (low <= model(z)).all()
        assert (model(z) <= high).all()
    assert fastlip.certify_detector(outputs).certified_auroc(0.1) <= fastlip.certify_detector(outputs).auroc == 1


def test_norms_are_never_mixed(tmp_path):
    model, other = tabular(), tabular(2 * WIDE)
    x = torch.zeros(40, 6)  # where weights make no difference for scores
    batch = x, model(x).argmax(1)
    found, changed = (fastlip.certify(each, [batch]) for each in (model, other))
    assert torch.equal(found.margins, changed.margins)
    with pytest.raises(ValueError, match=r"certificate: it is in the weighted L2 norm .* the attack is in the w"):
        fastlip.attack(model, [batch], certificate=changed, bounds=None)
    with pytest.raises(ValueError, match=r"certificate: .* the attack is in the L2 norm; results in different norms"):
        fastlip.attack(model, [batch], certificate=found, norm="l2", bounds=None)
    with torch.no_grad():
        model[0].weights *= 1.5  # after the certificate
    with pytest.raises(ValueError, match="different norms cannot be compared"):
        fastlip.certification.attack_certified(model, [batch], found, bounds=None)
    with pytest.raises(ValueError, match="certificate: it is in the weighted"):
        fastlip.export(model, tmp_path / "net.pt", (6,), certificate=found)
    assert list(tmp_path.iterdir()) == []
    swapped = copy.deepcopy(model)
    swapped[0].weights = model[0].weights.flip(0)
    with pytest.raises(ValueError, match="with other values; results"):
        fastlip.attack(swapped, [batch], certificate=fastlip.certify(model, [batch]), bounds=None)
    outputs = [fastlip.certify_outputs(each, [batch]) for each in (model, other)]
    predictor, intervals = fastlip.conformal.calibrate(outputs[0]), fastlip.conformal.IntervalPredictor(1.0, 0.1, 0.9)
    for call in (
        lambda: predictor.sets(outputs[1], 0.1),
        lambda: predictor.certified_coverage(outputs[1], 0.1),
        lambda: intervals.intervals(outputs[1], 0.1),
    ):
        with pytest.raises(ValueError, match=r"outputs: it is in the weighted L2 norm .* the calibration is in the"):
            call()
    assert predictor.sets(outputs[0], 0.1).members.shape == (40, 3)


def test_curves_of_different_norms_are_not_drawn_together(tmp_path):
    from fastlip.plotting import plot_curves

    pytest.importorskip("matplotlib")
    model = tabular()
    x = torch.randn(40, 6) / WIDE
    batch = x, model(x).argmax(1)
    certificate = fastlip.certify(model, [batch])
    options = {"bounds": None, "steps": 2, "restarts": 1}
    plain, weighted = (fastlip.attack(model, [batch], [0.1], norm=norm, **options) for norm in ("l2", "auto"))
    with pytest.raises(ValueError, match="attack: it is in the L2 norm, the certificate is in the weighted"):
        plot_curves(tmp_path / "curve.png", certificate, plain)
    plot_curves(tmp_path / "curve.png", certificate, weighted)
    assert [path.name for path in tmp_path.iterdir()] == ["curve.png"]


@pytest.mark.parametrize("fault", ["weights that are not first", "another norm in the attack"])
def test_a_planted_fault_is_seen(fault, monkeypatch):
    """If the wrong layer set the norm, or weights were taken for others, an attack would break certificates."""
    torch.manual_seed(0)
    weights = torch.tensor([0.1, 10.0])
    turn = nn.Linear(2, 2, bias=False)
    turn.weight = nn.Parameter(torch.tensor([[0.6, 0.8], [-0.8, 0.6]]))
    model = nn.Sequential(turn, lip.InputWeights(weights), nn.Linear(2, 2)).double().eval()
    x = torch.randn(200, 2).double() * 5
    batch = x, model(x).argmax(1)
    options = {"bounds": None, "steps": 20, "restarts": 2}
    assert not len(fastlip.attack(model, [batch], certificate=fastlip.certify(model, [batch]), **options).broken)
    if fault == "weights that are not first":
        monkeypatch.setattr(input_norms, "_keeps_order", lambda link: True)
        certificate = fastlip.certify(model, [batch])
    else:
        model = nn.Sequential(lip.InputWeights(weights), nn.Linear(2, 2)).double().eval()
        batch = x, model(x).argmax(1)
        certificate = fastlip.certify(model, [batch])
        monkeypatch.setattr(InputNorm, "__eq__", lambda self, other: True)
        options["norm"] = "l2"
    with pytest.warns(BrokenCertificateWarning):
        found = fastlip.attack(model, [batch], certificate=certificate, **options)
    assert len(found.broken) > 20
