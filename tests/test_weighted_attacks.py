"""Attacks in a weighted norm: against exact distances, inside the ball, within bounds in the units of the inputs."""

import math

import pytest
import torch
from torch import nn

import fastlip
from fastlip import nn as lip
from fastlip.certification.attacks.ball import Ball

WIDE = torch.logspace(-3, 3, 6)
QUICK = {"bounds": None, "steps": 20, "restarts": 2}


def network(last, dtype=torch.float64):
    torch.manual_seed(0)
    body = [last(6)] if isinstance(last, type(lambda: 0)) else last
    model = nn.Sequential(lip.InputWeights(WIDE), *body).to(dtype).eval()
    x = torch.randn(60, 6, dtype=dtype) / WIDE
    return model, x, model(x).argmax(1)


def lengths(x, images):
    """The weighted norm, by its formula."""
    return ((WIDE.double() * (images.double() - x.double())) ** 2).sum(1).sqrt()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["pgd", "apgd"])
def test_a_linear_classifier_breaks_at_its_certified_radius_and_not_before(kind, dtype):
    """The certificate of a linear classifier is its distance to the boundary: just above it attacks succeed."""
    model, x, labels = network([nn.Linear(6, 2)], dtype)
    certificate = fastlip.certify(model, [(x, labels)])
    for factor, breaks in ((1 - 1e-3, False), (1 + 1e-2, True)):
        found = fastlip.attack(model, [(x, labels)], factor * certificate.radii, kind=kind, **QUICK)
        assert found.success.all() if breaks else not found.success.any()
    own = lengths(x[found.found], found.images)
    torch.testing.assert_close(found.distances[found.found], own, rtol=1e-12, atol=0)
    assert (found.distances < found.radii[:, 0]).all()
    assert (found.distances >= certificate.radii).all()
    assert (model(found.images).argmax(1) != labels[found.found]).all()


def test_attacks_stay_outside_of_certified_radii():
    body = lip.CayleyLinear(6, 16), lip.MaxMin(), lip.CayleyLinear(16, 16), lip.MaxMin(), lip.CayleyLinear(16, 3)
    for dtype in (torch.float32, torch.float64):
        model, x, labels = network(body, dtype)
        certificate = fastlip.certify(model, [(x, labels)])
        assert (certificate.radii > 0.01).double().mean() > 0.5
        found = fastlip.certification.attack_certified(
            model, [(x, labels)], certificate, (1 - 1e-6, 1.0, 3.0), **QUICK
        )
        rates = found.success_rate
        assert rates[:2] == [0.0, 0.0]
        assert rates[2] > 0.5
        assert not len(found.broken)
        # The same radii in L2 norm would be far from certified.
        plain = fastlip.attack(model, [(x, labels)], certificate.radii, norm="l2", **QUICK)
        assert plain.success_rate[0] > 0.5
        assert (plain.norm.name, found.norm.name) == ("l2", "weighted l2")


def test_bounds_hold_in_the_units_of_the_inputs():
    """A step of steepest ascent in the weighted norm moves features of small weights most; bounds stop them."""
    model, _, _ = network([nn.Linear(6, 2)])
    low, high = -1 / WIDE.double(), 1 / WIDE.double()
    x = torch.rand(60, 6).double() * (high - low) + low
    labels = model(x).argmax(1)
    options = {**QUICK, "bounds": (low, high)}
    found = fastlip.attack(model, [(x, labels)], [1.0], **options)
    free = fastlip.attack(model, [(x, labels)], [1.0], **QUICK)
    assert 0 < found.success.sum() <= free.success.sum()
    assert (found.images >= low - 1e-12 * high).all()
    assert (found.images <= high * (1 + 1e-12)).all()
    assert (lengths(x[found.found], found.images) < 1).all()
    with pytest.raises(ValueError, match="bounds"):
        fastlip.attack(model, [(x, labels)], [1.0], bounds=(0.0, 1.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weighted_balls_hold_projections_and_starts(dtype):
    torch.manual_seed(0)
    x = (torch.randn(50, 6) / WIDE).to(dtype)
    radius = torch.logspace(-3, 3, 50, dtype=torch.float64)
    ball = Ball.around(x, radius, torch.full_like(x, -math.inf), torch.full_like(x, math.inf), WIDE.double())
    generator = torch.Generator().manual_seed(0)
    for points in (
        ball.random(generator),
        ball.project(x + 1e3 * torch.randn_like(x)),
        ball.step(x, torch.randn_like(x), 9 * ball.radius),
    ):
        assert (lengths(x, points) <= radius).all()
        assert (lengths(x, points) >= 0.98 * radius - 1e-3 * (dtype == torch.float32)).all()


def test_the_step_is_the_steepest_one_in_the_norm():
    """<g, delta> is largest, for |w delta| = r, at delta = r (g / w^2) / |g / w|."""
    torch.manual_seed(0)
    x, g = torch.zeros(1, 6).double(), torch.randn(1, 6).double()
    limits = torch.full_like(x, math.inf)
    ball = Ball.around(x, torch.full((1,), 9.0).double(), -limits, limits, WIDE.double())
    delta = ball.step(x, g, torch.ones(1).double())
    weights = WIDE.double()
    assert (g * delta).sum().item() == pytest.approx((g / weights).norm().item(), rel=1e-12)
    others = torch.randn(1000, 6).double()
    others = others / (weights * others).norm(dim=1, keepdim=True)
    assert (others @ g[0]).amax() <= (g * delta).sum()


class Odd(nn.Module):
    """A forward that no trace can follow."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(lip.InputWeights(WIDE), nn.Linear(6, 2))

    def forward(self, x):
        return self.net(x) if float(x.sum()) < 1e9 else self.net(2 * x)


def test_weights_that_cannot_be_found_are_not_guessed():
    torch.manual_seed(0)
    model = Odd().eval()
    batch = torch.zeros(4, 6), torch.zeros(4, dtype=torch.long)
    with pytest.raises(ValueError, match=r"norm='auto': the model has InputWeights, and model \(Odd\) hides"):
        fastlip.attack(model, [batch], **QUICK)
    assert fastlip.attack(model, [batch], norm="l2", **QUICK).norm.name == "l2"
    with pytest.raises(ValueError, match="norm='w': allowed are 'auto', 'l2'"):
        fastlip.attack(model, [batch], norm="w", **QUICK)


def test_what_was_broken_is_kept_with_its_weights(tmp_path):
    """A certificate is broken by hand, so that the file of the evidence can be read."""
    model, x, labels = network([nn.Linear(6, 2)])
    certificate = fastlip.certify(model, [(x, labels)])
    certificate.radii.mul_(3)
    with pytest.warns(fastlip.certification.BrokenCertificateWarning):
        found = fastlip.attack(model, [(x, labels)], certificate=certificate, **QUICK)
    found.save_broken(tmp_path / "broken.pt")
    kept = torch.load(tmp_path / "broken.pt", weights_only=True)
    assert torch.equal(kept["input_weights"], WIDE.double())
    torch.testing.assert_close(kept["distance"], lengths(kept["image"], kept["adversarial"]), rtol=1e-12, atol=0)
