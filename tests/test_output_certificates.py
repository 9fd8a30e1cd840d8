"""Intervals of outputs: their formula, perturbations that reach their ends, and what is refused."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import fastlip
from fastlip import nn as lip
from fastlip.certification.rounding import Rounded


def perturbed(x, eps, count=50):
    """Copies of x (n, d), each moved by eps in a random direction: (count, n, d)."""
    delta = torch.randn(count, *x.shape, dtype=torch.float64)
    delta *= eps * (1 - 1e-6) / delta.flatten(2).norm(dim=2).reshape(count, -1, *(1 for _ in x.shape[1:]))
    return (x + delta).to(x.dtype)


def test_intervals_of_a_linear_network_are_exact():
    layer = nn.Linear(6, 3).double().eval()
    x, eps = torch.randn(20, 6, dtype=torch.float64), 0.3
    outputs = fastlip.certify_outputs(layer, [x[:12], x[12:]])
    rows = layer.weight.detach().norm(dim=1)
    torch.testing.assert_close(outputs.slopes, rows)
    torch.testing.assert_close(outputs.change(eps), eps * rows.expand(20, 3))
    assert outputs.lipschitz == fastlip.audit(layer, (6,)).bound
    torch.testing.assert_close(outputs.norm_change(eps), torch.full((20,), eps * outputs.lipschitz).double())
    low, high = outputs.interval(eps)
    for i in range(3):
        direction = layer.weight[i].detach() / rows[i]
        for sign, end in ((-1, low), (1, high)):
            reached = layer(x + sign * eps * direction)[:, i].detach()
            assert (sign * (end[:, i] - reached) >= 0).all()
            torch.testing.assert_close(reached, end[:, i])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tail", [nn.Identity(), nn.Flatten(0)], ids=["(n, 1)", "(n,)"])
def test_no_perturbation_leaves_the_interval_of_a_network(dtype, tail):
    model = nn.Sequential(lip.CayleyLinear(8, 8), lip.MaxMin(), lip.CayleyLinear(8, 1), tail).to(dtype).eval()
    x, eps = 3 * torch.randn(20, 8, dtype=dtype), 0.1
    outputs = fastlip.certify_outputs(model, [(x, torch.zeros(20))])
    assert outputs.values.shape == outputs.interval(eps).low.shape == model(x).shape
    low, high = outputs.interval(eps)
    found = torch.stack([model(z).double().detach() for z in perturbed(x, eps)])
    assert ((low <= found) & (found <= high)).all()
    gradient = torch.autograd.grad(model(x.requires_grad_()).sum(), x)[0]
    # The network is linear near most samples, with a gradient of norm 1.
    z = (x + eps * (1 - 1e-6) * gradient / gradient.norm(dim=1, keepdim=True)).detach()
    assert (model(z).double() <= high).all()
    assert (model(z).double() >= high - 0.02 * eps).double().mean() > 0.5
    assert (outputs.norm_change(eps) - eps < 1e-3).all()


def test_a_linear_head_gives_each_output_its_own_slope():
    model = nn.Sequential(lip.CayleyLinear(6, 8), lip.MaxMin(), nn.Linear(8, 5), lip.Scale(0.5), lip.FirstChannels(3))
    outputs = fastlip.certify_outputs(model.eval(), [torch.randn(4, 6)], dtype=torch.float64)
    norms = model[2].weight.double().detach()[:3].norm(dim=1) / 2
    torch.testing.assert_close(outputs.slopes, norms, rtol=1e-5, atol=0)
    assert (outputs.slopes < outputs.lipschitz).all()


def test_images_as_outputs_and_the_norm_of_their_change():
    denoiser = nn.Sequential(lip.AOLConv2d(1, 4, 3), lip.MaxMin(), lip.AOLConv2d(4, 1, 3)).eval()
    x = torch.rand(3, 1, 6, 6)
    outputs = fastlip.certify_outputs(denoiser, [x])
    assert outputs.change(0.1).shape == (3, 1, 6, 6)
    for z in perturbed(x, 0.1, 20):
        assert ((denoiser(z).double() - outputs.values).flatten(1).norm(dim=1) <= outputs.norm_change(0.1)).all()
    assert (outputs.norm_change(0.1) < 0.1 * outputs.lipschitz + 1e-3).all()


def test_the_worst_error_bounds_that_of_every_perturbation():
    model = nn.Sequential(lip.CayleyLinear(4, 2)).eval()
    x, y = torch.randn(30, 4), torch.randn(30, 2)
    outputs = fastlip.certify_outputs(model, [{"x": x, "target": y}])
    worst = outputs.worst_error(0.3)
    torch.testing.assert_close(worst, (model(x) - y).abs().double().detach() + 0.3, rtol=0, atol=1e-4)
    for z in perturbed(x, 0.3, 20):
        assert ((model(z) - y).abs().double() <= worst).all()
    scalar = fastlip.certify_outputs(nn.Sequential(lip.CayleyLinear(4, 1)).eval(), [(x, y[:, 0])])
    assert scalar.worst_error(0.0).shape == (30, 1)


@pytest.mark.parametrize(
    "batch", [torch.ones(3, 4), (torch.ones(3, 4),), np.ones((3, 4)), {"x": torch.ones(3, 4)}, [np.ones((3, 4))]]
)
def test_inputs_need_no_targets(batch):
    outputs = fastlip.certify_outputs(nn.Sequential(lip.CayleyLinear(4, 2)).eval(), [batch])
    assert len(outputs) == 3
    assert outputs.targets is None
    with pytest.raises(ValueError, match="the loader had no labels or targets"):
        outputs.worst_error(0.1)


def test_some_samples_of_the_outputs():
    x, y = torch.randn(10, 4), torch.arange(10)
    outputs = fastlip.certify_outputs(nn.Sequential(lip.CayleyLinear(4, 2)).eval(), [(x, y)])
    for rows in (slice(2, 5), torch.tensor([2, 3, 4]), (y > 1) & (y < 5), [2, 3, 4]):
        part = outputs[rows]
        assert part.targets.tolist() == [2, 3, 4]
        assert torch.equal(part.change(0.1), outputs.change(0.1)[2:5])
        assert part.audit is outputs.audit
    assert "outputs (2) of 10 samples" in str(outputs)
    with pytest.raises(TypeError, match="got an index of 0 dimensions"):
        outputs[3]


def test_the_options_are_those_of_certify():
    model, x = nn.Sequential(lip.CayleyLinear(4, 2)).eval(), torch.rand(6, 4)
    worst, likely, double = (
        fastlip.certify_outputs(model, [x], **options)
        for options in ({"input_shape": (4,)}, {"rounding": "probabilistic"}, {"dtype": torch.float64})
    )
    assert (worst.rounding_model, likely.rounding_model) == ("worst-case", "probabilistic")
    assert (likely.norm_change(0.1) < worst.norm_change(0.1)).all()
    assert (double.norm_change(0.1) < likely.norm_change(0.1)).all()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    with pytest.raises(ValueError, match="outside of the bounds"):
        fastlip.certify_outputs(model, [2 + x], bounds=(0.0, 1.0))
    with pytest.raises(ValueError, match="rounding='none'"):
        fastlip.certify_outputs(model, [x], rounding="none")
    with pytest.raises(ValueError, match=r"input_shape=\(5,\): batch 0 has images of \(4,\)"):
        fastlip.certify_outputs(model, [x], input_shape=(5,))


def test_there_is_no_bound_beyond_the_reach_of_the_analysis_or_without_one():
    outputs = fastlip.certify_outputs(nn.Sequential(lip.CayleyLinear(4, 2)).eval(), [torch.randn(3, 4)])
    errors = outputs.errors._replace(
        reach=torch.tensor([0.1, 9.0, 9.0]).double(), growth=torch.tensor([0.0, math.inf, 0.0]).double()
    )
    limited = type(outputs)(**{**vars(outputs), "errors": Rounded(*errors)})
    assert limited.norm_change(0.2).isinf().tolist() == [True, True, False]
    assert limited.norm_change(0.0).isinf().tolist() == [False, True, False]
    assert limited.interval(0.2).low[0].tolist() == [-math.inf, -math.inf]


def test_what_is_refused():
    model = nn.Sequential(lip.CayleyLinear(4, 2)).eval()
    x = torch.randn(3, 4)
    outputs = fastlip.certify_outputs(model, [(x, torch.zeros(3, 5))])
    with pytest.raises(ValueError, match=r"eps=-0\.1"):
        outputs.change(-0.1)
    with pytest.raises(ValueError, match="eps=nan"):
        outputs.norm_change(math.nan)
    with pytest.raises(ValueError, match=r"targets: got shape \(3, 5\), expected \(3, 2\)"):
        outputs.worst_error(0.1)
    with pytest.raises(ValueError, match="targets: they contain NaN"):
        fastlip.certify_outputs(model, [(x, torch.full((3, 2), math.nan))]).worst_error(0.1)
    with pytest.raises(ValueError, match="images of batch 1 contain NaN"):
        fastlip.certify_outputs(model, [x, x * math.nan])
    with pytest.raises(ValueError, match="batch 1 has no labels, unlike those before"):
        fastlip.certify_outputs(model, [(x, x), x])
    with pytest.raises(ValueError, match="batch 1 has labels, unlike those before"):
        fastlip.certify_outputs(model, [x, (x, x)])
    with pytest.raises(ValueError, match=r"batch 1 has labels of shape \(3, 4\), those of batch 0 have \(3,\)"):
        fastlip.certify_outputs(model, [(x, x[:, 0]), (x, x)])
    with pytest.raises(ValueError, match="no batches"):
        fastlip.certify_outputs(model, [])
    with pytest.raises(ValueError, match="training mode"):
        fastlip.certify_outputs(nn.Sequential(lip.CayleyLinear(4, 2)), [x])
    with pytest.raises(TypeError, match=r"images of batch 0 are torch\.int64"):
        fastlip.certify_outputs(model, [x.long()])
    with pytest.raises(ValueError, match="single number"):
        fastlip.certify_outputs(model, [torch.tensor(1.0)])


def test_radii_in_other_norms_are_attained():
    d = 16
    ones = nn.Sequential(nn.Linear(d, 1, bias=False)).double().eval()
    ones[0].weight.data.fill_(1.0)
    x = torch.full((1, d), 0.5, dtype=torch.float64)
    found = fastlip.certify(ones, [(x, torch.ones(1, dtype=torch.long))], eps=[0.1])
    for p in (2, 4, math.inf):
        # Of all directions the one of equal entries is the fastest, in L_p for p >= 2.
        torch.testing.assert_close(
            found.lp_radii(p).item(), torch.full((d,), 0.5).norm(p=p).item(), rtol=1e-6, atol=0
        )
    one = nn.Sequential(nn.Linear(d, 1, bias=False)).double().eval()
    one[0].weight.data = torch.eye(d, dtype=torch.float64)[:1]
    found = fastlip.certify(one, [(x, torch.ones(1, dtype=torch.long))], eps=[0.1])
    for p in (1, 1.5, 2):
        torch.testing.assert_close(found.lp_radii(p).item(), 0.5, rtol=1e-6, atol=0)
    assert torch.equal(found.lp_radii(2), found.radii)
    for p in (0.5, math.nan, "inf"):
        with pytest.raises(ValueError, match="p="):
            found.lp_radii(p)


def test_a_threshold_moves_the_boundary():
    layer = nn.Linear(6, 1).eval()
    x, threshold = torch.randn(40, 6), 0.2
    scores = layer(x)[:, 0].detach().double()
    labels = (scores > threshold).long()
    labels[::4] = 1 - labels[::4]
    distance = (scores - threshold).abs() / layer.weight.double().norm().detach()
    expected = torch.where((scores > threshold) == (labels > 0), distance, 0)
    for dtype in (None, torch.float64):
        found = fastlip.certify(layer, [(x, labels)], eps=[0.1], threshold=threshold, dtype=dtype)
        assert (found.radii <= expected + (0 if dtype is None else 1e-6)).all()
        torch.testing.assert_close(found.radii, expected, rtol=0, atol=1e-4)
        assert found.accuracy == pytest.approx(0.75)
        assert found.threshold == found.to_dict()["threshold"] == threshold
    with pytest.raises(ValueError, match=r"certificate: its threshold is 0\.2, expected 0"):
        fastlip.attack(layer, [(x, labels)], certificate=found, bounds=None)
    with pytest.raises(ValueError, match=r"threshold=0\.2: expected a number, for one score"):
        fastlip.certify(nn.Linear(6, 3).eval(), [(x, labels)], threshold=0.2)
    with pytest.raises(ValueError, match="threshold=inf"):
        fastlip.certify(layer, [(x, labels)], threshold=math.inf)
