"""Steps of attacks: losses, schedules, projections, starts, and one score."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastlip
from fastlip.certification.attacks.ball import Ball
from fastlip.certification.attacks.objective import dlr, margins, rivals
from fastlip.certification.attacks.search import apgd, checkpoints, pgd

QUICK = {"steps": 10, "restarts": 2}


def batches(data, size=128):
    return list(zip(*(part.split(size) for part in data), strict=True))


class Plateau(nn.Module):
    """Two classes; the gradient vanishes at images of 1/2 and wherever their mean is not 0.05 above that."""

    def forward(self, x):
        climb = F.relu(x.flatten(1).mean(1) - 0.55)
        return torch.stack((0 * climb + 0.01, climb), 1)


@pytest.mark.parametrize("kind", ["pgd", "apgd"])
def test_random_starts_leave_a_plateau_and_the_seed_decides_which(kind):
    data = [(torch.full((60, 1, 4, 4), 0.5), torch.zeros(60, dtype=torch.long))]

    def run(seed, restarts):
        return fastlip.attack(Plateau().eval(), data, [1.0], kind, seed=seed, steps=5, restarts=restarts)

    assert run(3, 1).success_rate == [0.0], "the first start is the image itself"
    one, same, other = run(3, 2), run(torch.Generator().manual_seed(3), 2), run(4, 2)
    assert 0 < one.success_rate[0] < 1
    assert torch.equal(one.distances, same.distances)
    assert torch.equal(one.images, same.images)
    assert not torch.equal(one.distances, other.distances)
    assert run(3, 8).success_rate[0] > 0.7


def test_dlr_is_the_papers_and_has_no_scale():
    logits = torch.tensor([[3.0, 1.0, 2.0, -1.0, 0.5]], dtype=torch.float64)
    true, target = F.one_hot(torch.tensor([0]), 5).bool(), torch.tensor([2])
    value = dlr(logits, true, target)
    assert math.isclose(value.item(), -(3 - 2) / (3 - (1 + 0.5) / 2))
    torch.testing.assert_close(dlr(7 * logits + 3, true, target), value)
    assert dlr(logits[:, :3], true[:, :3], target).item() == -1.0
    assert [rivals(logits, true, rank).item() for rank in range(5)] == [2, 1, 4, 3, 2]
    assert margins(logits, true).item() == 1.0


def test_checkpoints_are_the_papers():
    assert sorted(checkpoints(100)) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert sorted(checkpoints(10)) == [3, 5, 6, 7, 8, 9, 10]


def test_apgd_halves_its_step_until_it_meets_an_inner_maximum():
    torch.manual_seed(0)
    peak = F.normalize(torch.randn(20, 50, dtype=torch.float64), dim=1) * torch.linspace(0.1, 0.9, 20)[:, None]

    def objective(x):
        distances = (x - peak).norm(dim=1)
        return -distances, (peak - x), 1 + distances

    zeros = torch.zeros_like(peak)
    ball = Ball.around(zeros, torch.ones(20).double(), zeros - 9, zeros + 9)
    errors = (apgd(objective, ball, zeros, 100) - peak).norm(dim=1)
    assert errors.amax() < 0.03
    fixed = (pgd(objective, ball, zeros, 100, 0.5) - peak).norm(dim=1)
    assert errors.amax() < fixed.amax() / 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_projections_and_starts_stay_inside_a_ball_in_float64(dtype):
    torch.manual_seed(0)
    x = torch.rand(50, 3, 32, 32, dtype=dtype)
    radius = torch.logspace(-4, 1, 50, dtype=torch.float64)
    ball = Ball.around(x, radius, torch.zeros_like(x), torch.ones_like(x))
    generator = torch.Generator().manual_seed(0)
    wide = Ball.around(x, radius, x - 99, x + 99)
    for points in (
        ball.random(generator),
        ball.project(torch.randn_like(x)),
        wide.project(100 * torch.randn_like(x)),
    ):
        distances = (points.double() - x.double()).flatten(1).norm(dim=1)
        assert (distances < radius).all()
    assert (distances > radius * (1 - 1e-4) - 1e-5).all(), "the allowance for rounding is not the ball"


class Poisoned(nn.Module):
    """Correct logits for the images as they are, NaN for any others."""

    def __init__(self, images):
        super().__init__()
        self.images = images

    def forward(self, x):
        logits = 9 * F.one_hot(torch.zeros(len(x), dtype=torch.long), 3) + x.flatten(1).sum(1, keepdim=True)
        return logits if torch.equal(x, self.images) else logits * math.nan


@pytest.mark.parametrize("kind", ["pgd", "apgd"])
def test_nan_logits_raise(kind):
    images = torch.rand(4, 1, 2, 2)
    model = nn.Sequential(Poisoned(images)).eval()
    with pytest.raises(ValueError, match="NaN or Inf in the outputs of batch 0"):
        fastlip.attack(model, [(images, torch.zeros(4, dtype=torch.long))], [0.5], kind)


@pytest.mark.parametrize("kind", ["pgd", "apgd"])
@pytest.mark.parametrize("tail", [nn.Identity(), nn.Flatten(0)], ids=["(n, 1)", "(n,)"])
def test_one_score_is_attacked_at_its_distance_from_zero(kind, tail):
    # The nearest image of the other label of a linear score w x + b is at |w x + b| / |w|.
    layer = nn.Linear(4, 1)
    x = torch.randn(12, 4)
    distance = ((layer(x)[:, 0]) / layer.weight.norm()).detach().double()
    labels = (distance > 0).long()
    labels[0] = 1 - labels[0]
    for encoded in (labels, 2 * labels - 1, labels.float()[:, None]):
        found = fastlip.attack(
            nn.Sequential(layer, tail).eval(), [(x, encoded)], eps=[5.0], kind=kind, steps=20, restarts=1, bounds=None
        )
        assert found.accuracy == pytest.approx(11 / 12)
        assert found.distances[0] == 0
        assert (found.distances[1:] >= distance[1:].abs() * (1 - 1e-4)).all()
        step = 5.0 / 2**10  # of the bisection
        assert (found.distances[1:] <= distance[1:].abs() + 1.01 * step).all()


def test_a_score_of_zero_is_an_error():
    layer = nn.Linear(2, 1)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    found = fastlip.attack(layer.eval(), [(torch.rand(4, 2), torch.arange(4) % 2)], eps=[0.1], steps=1, restarts=1)
    assert found.accuracy == 0
