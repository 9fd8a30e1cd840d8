"""Conformal sets: their quantile, coverage over 100 splits of digits, and coverage under attack."""

import copy
import math
from itertools import product

import pytest
import torch
from ball_ascent import ascended
from sklearn.datasets import load_digits
from torch import nn

import fastlip
from fastlip import conformal
from fastlip import nn as lip

SCORES = ["margin", "logit", "softmax"]
CALIBRATION, EPS, ALPHA = 400, 0.3, 0.1


@pytest.fixture(scope="module")
def pool(trained):
    """The digits that the network was not trained on: their labels, and outputs before and after an attack."""
    data = load_digits()
    images = torch.tensor(data.images)[500:, None] / 16
    labels = torch.tensor(data.target)[500:]
    clean = fastlip.certify_outputs(trained, [(images, labels)], dtype=torch.float64)
    network = copy.deepcopy(trained).double()

    def wrong(x):
        scores = network(x)
        others = scores.scatter(1, labels[:, None], -math.inf).logsumexp(1)
        return (others - scores.gather(1, labels[:, None])[:, 0]).sum()

    moved = ascended(images, EPS, wrong, steps=8, step=0.3)
    return clean, fastlip.certify_outputs(trained, [(moved, labels)], dtype=torch.float64)


def identity(count):
    """A network whose outputs are its inputs."""
    model = nn.Linear(count, count, bias=False).double().eval()
    model.weight.data = torch.eye(count, dtype=torch.float64)
    return model


def half_width(level, calibration, tests, splits):
    """Four standard errors of the mean coverage of independent splits: each is beta-binomial (Vovk 2012)."""
    a, b = level * (calibration + 1), (1 - level) * (calibration + 1)
    variance = a * b / (a + b) ** 2 * (a + b + tests) / (tests * (a + b + 1))
    return 4 * math.sqrt(variance / splits)


@pytest.mark.parametrize("score", SCORES)
def test_coverage_over_100_splits_of_digits(pool, score):
    clean, moved = pool
    generator = torch.Generator().manual_seed(0)
    plain, robust, broken, kept = [], [], [], []
    for _ in range(100):
        order = torch.randperm(len(clean), generator=generator)
        first, rest = order[:CALIBRATION], order[CALIBRATION:]
        predictor = conformal.calibrate(clean[first], ALPHA, score, temperature=0.1)
        plain.append(predictor.sets(clean[rest]).coverage)
        robust.append(predictor.sets(moved[rest], EPS).coverage)
        broken.append(predictor.sets(moved[rest]).coverage)
        kept.append(predictor.certified_coverage(clean[rest], EPS))
        assert predictor.level == 361 / 401
        assert plain[-1] == predictor.certified_coverage(clean[rest], EPS, EPS)
        assert kept[-1] <= broken[-1] < plain[-1] <= robust[-1]
    width = half_width(361 / 401, CALIBRATION, len(clean) - CALIBRATION, 100)
    assert width < 0.01
    assert abs(sum(plain) / 100 - 361 / 401) <= width
    assert sum(robust) / 100 >= 1 - ALPHA - width
    assert sum(broken) / 100 < 1 - ALPHA - 0.05, "the attack breaks plain sets"


@pytest.mark.parametrize("score", SCORES)
def test_a_label_that_was_covered_stays_in_the_set_under_attack(pool, score):
    clean, moved = pool
    predictor = conformal.calibrate(clean[:CALIBRATION], ALPHA, score, temperature=0.1)
    before = predictor.sets(clean)
    covered = before.members.gather(1, before.labels[:, None])
    for eps in (EPS, 2 * EPS):
        after = predictor.sets(moved, eps)
        assert after.members.gather(1, after.labels[:, None])[covered].all()
        assert (after.sizes >= predictor.sets(moved).sizes).all()
        assert after.sizes.double().mean() < 9.5, "sets are not of all classes"
    assert predictor.certified_coverage(clean, 0.0) <= before.coverage <= predictor.sets(clean, 0.1).coverage


def against(logits, label):
    """How far the other classes are ahead of one."""
    logits = torch.cat((-logits / 2, logits / 2), 1) if logits.shape[1] == 1 else logits
    return (logits.index_fill(1, torch.tensor(label), -math.inf).logsumexp(1) - logits[:, label]).sum()


@pytest.mark.parametrize(("score", "binary"), [*product(SCORES, [False, True])])
def test_bounds_of_scores_hold_for_random_and_worst_perturbations(score, binary):
    outputs = 1 if binary else 4
    model = nn.Sequential(lip.CayleyLinear(6, 8), lip.MaxMin(), nn.Linear(8, outputs)).double().eval()
    x = torch.randn(20, 6, dtype=torch.float64)
    scores = fastlip.certification.certificates.scores.scores_of
    found = scores(fastlip.certify_outputs(model, [x]))
    for eps in (0.1, 1.0):
        low, plain, high = (conformal._bounds(found, score, 0.3, sign, eps) for sign in (-1, 0, 1))
        assert (low < plain).all()
        assert (plain < high).all()
        reached = []
        for target in range(plain.shape[1]):
            z = ascended(x, eps, lambda z, y=target: against(model(z), y), step=1.0)
            now = conformal._bounds(scores(fastlip.certify_outputs(model, [z])), score, 0.3, 0, 0.0)
            assert ((low <= now) & (now <= high)).all()
            reached.append(((now - plain) / (high - plain))[:, target])
        assert torch.stack(reached).amax() > 0.3, "the bound is not far from what is reached"


def test_the_softmax_score_is_the_logarithm_of_the_probability(pool):
    clean, _ = pool
    scores = fastlip.certification.certificates.scores.scores_of(clean)
    found = conformal._bounds(scores, "softmax", 0.1, 0, 0.0)
    torch.testing.assert_close(found, -(clean.values / 0.1).log_softmax(1))
    gaps = conformal._bounds(scores, "margin", 1.0, 0, 0.0)
    own = clean.values.argmax(1, keepdim=True)
    best = clean.values.topk(2, dim=1).values
    torch.testing.assert_close(gaps.gather(1, own)[:, 0], best[:, 1] - best[:, 0])


QUANTILES = [(9, 0.1, 9), (19, 0.1, 18), (20, 0.1, 19), (99, 0.05, 95), (8, 0.1, 9)]


@pytest.mark.parametrize(("count", "alpha", "k"), QUANTILES)
def test_the_threshold_is_the_k_th_smallest_score(count, alpha, k):
    x = torch.randn(count, 3, dtype=torch.float64)
    outputs = fastlip.certify_outputs(identity(3), [(x, torch.zeros(count, dtype=torch.long))])
    predictor = conformal.calibrate(outputs, alpha, "logit")
    if k > count:
        assert (predictor.threshold, predictor.level) == (math.inf, 1.0)
        assert predictor.sets(outputs).members.all()
    else:
        assert predictor.threshold == (-x[:, 0]).sort().values[k - 1]
        assert predictor.level == k / (count + 1) >= 1 - alpha


def test_intervals_cover_targets_under_attack_over_100_splits():
    model = nn.Sequential(lip.CayleyLinear(6, 6), lip.MaxMin(), lip.CayleyLinear(6, 1)).double().eval()
    x = torch.randn(900, 6, dtype=torch.float64)
    x.requires_grad_()
    f = model(x)
    (gradient,) = torch.autograd.grad(f.sum(), x)
    x, f = x.detach(), f.detach()
    y = f + 0.3 * torch.randn_like(f)
    away = torch.where(y > f, -1.0, 1.0) * gradient / gradient.norm(dim=1, keepdim=True)
    clean = fastlip.certify_outputs(model, [(x, y)])
    moved = fastlip.certify_outputs(model, [(x + EPS * (1 - 1e-9) * away, y)])
    generator = torch.Generator().manual_seed(0)
    plain, robust, broken = [], [], []
    for _ in range(100):
        order = torch.randperm(900, generator=generator)
        predictor = conformal.calibrate_intervals(clean[order[:300]], ALPHA)
        plain.append(covered(predictor.intervals(clean[order[300:]]), y[order[300:]]))
        robust.append(covered(predictor.intervals(moved[order[300:]], EPS), y[order[300:]]))
        broken.append(covered(predictor.intervals(moved[order[300:]]), y[order[300:]]))
        assert robust[-1] >= plain[-1] > broken[-1]
    assert abs(sum(plain) / 100 - 271 / 301) <= half_width(271 / 301, 300, 600, 100)
    assert sum(broken) / 100 < 0.8


def covered(interval, targets):
    return ((interval.low <= targets) & (targets <= interval.high)).double().mean().item()


def test_all_outputs_are_covered_at_once():
    x = torch.randn(200, 3, dtype=torch.float64)
    outputs = fastlip.certify_outputs(identity(3), [(x, x + 0.1 * torch.randn_like(x))])
    predictor = conformal.calibrate_intervals(outputs, 0.2)
    low, high = predictor.intervals(outputs)
    inside = ((low <= outputs.targets) & (outputs.targets <= high)).all(1)
    assert inside.double().mean().item() == pytest.approx(161 / 200)
    assert conformal.calibrate_intervals(outputs[:3], 0.2).intervals(outputs).high.isinf().all()


def test_nothing_is_excluded_without_a_bound(pool):
    clean, _ = pool
    few = clean[:CALIBRATION]
    nothing = torch.zeros(CALIBRATION, dtype=torch.float64)
    errors = few.errors._replace(reach=nothing)
    unbounded = type(few)(**{**vars(few), "errors": errors})
    for score in SCORES:
        predictor = conformal.calibrate(few, ALPHA, score)
        assert predictor.sets(unbounded, 0.1).members.all()
        assert predictor.certified_coverage(unbounded, 0.1) == 0


def test_what_is_refused(pool):
    clean, _ = pool
    for alpha in (0, 1, -0.1, math.nan):
        with pytest.raises(ValueError, match=f"alpha={alpha}"):
            conformal.calibrate(clean, alpha)
    with pytest.raises(ValueError, match="score='aps': allowed are 'margin', 'logit', 'softmax'"):
        conformal.calibrate(clean, 0.1, "aps")
    with pytest.raises(ValueError, match="temperature=0"):
        conformal.calibrate(clean, 0.1, "softmax", temperature=0)
    with pytest.raises(TypeError, match="temperature='1': expected a positive number"):
        conformal.calibrate(clean, 0.1, "softmax", temperature="1")
    predictor = conformal.calibrate(clean, 0.1)
    other = fastlip.certify_outputs(identity(4), [(clean.values[:, :4], torch.zeros(len(clean), dtype=torch.long))])
    for use in (predictor.sets, lambda outputs: predictor.certified_coverage(outputs, 0.1)):
        with pytest.raises(ValueError, match="outputs: they have 4 classes, expected the 10 of the calibration"):
            use(other)
    with pytest.raises(ValueError, match="eps=-1"):
        predictor.sets(clean, -1)
    with pytest.raises(ValueError, match="eps=nan"):
        predictor.certified_coverage(clean, math.nan)
    unlabelled = fastlip.certify_outputs(identity(10), [clean.values])
    assert predictor.sets(unlabelled).labels is None
    with pytest.raises(ValueError, match="the samples have none"):
        _ = predictor.sets(unlabelled).coverage
    with pytest.raises(ValueError, match="no labels"):
        conformal.calibrate(unlabelled)
    with pytest.raises(ValueError, match="no labels"):
        conformal.calibrate_intervals(unlabelled)
