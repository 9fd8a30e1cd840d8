"""Attacks against analytic distances and certificates; what is verified, reported, refused and left alone."""

import copy
import dataclasses
import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastlip
from fastlip.certification.attacks import AttackResult, BrokenCertificateWarning, attack_certified

QUICK = {"steps": 10, "restarts": 2}


@pytest.fixture(scope="module")
def some(digits):
    """Two batches, 80 and 40 images."""
    return batches([part[:120] for part in digits], 80)


@pytest.fixture(scope="module")
def certificate(trained, some):
    return fastlip.certify(trained, some)


@pytest.fixture(scope="module")
def attacked(trained, some, certificate):
    return fastlip.attack(trained, some, [0.1, 0.5, 1.5], certificate=certificate, **QUICK)


def batches(data, size=128):
    return list(zip(*(part.split(size) for part in data), strict=True))


def linear(classes=10):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes)).double().eval()


def exact_distances(model, images):
    """The labels that a linear model gives, and how far each image is from the nearest boundary."""
    rows = model[1].weight.detach()
    logits = model(images).detach()
    labels = logits.argmax(1)
    gaps = logits.gather(1, labels[:, None]) - logits
    distances = gaps / (rows[labels][:, None] - rows[None]).norm(dim=2)
    return labels, distances.masked_fill(F.one_hot(labels, logits.shape[1]).bool(), math.inf).amin(1)


@pytest.mark.parametrize("kind", ["pgd", "apgd"])
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_a_linear_model_breaks_at_its_exact_distance(digits, kind, classes):
    images = digits[0][:100].double()
    model = linear(classes)
    labels, exact = exact_distances(model, images)
    options = {"kind": kind, "bounds": None, "restarts": classes, "dtype": torch.float64}
    below = fastlip.attack(model, [(images, labels)], 0.999 * exact, **options)
    assert below.success_rate == [0.0]
    above = fastlip.attack(model, [(images, labels)], 1.03 * exact, **options)
    assert above.success_rate == [1.0]
    assert (above.distances >= exact * (1 - 1e-9)).all()
    assert (above.distances < 1.03 * exact).all()


@pytest.mark.parametrize("kind", ["pgd", "apgd"])
def test_nothing_breaks_within_a_certified_radius_and_most_within_three(trained, some, certificate, kind):
    found = attack_certified(trained, some, certificate, kind=kind, **QUICK)
    assert len(found.broken) == 0
    assert not found.success[:, 0].any()
    assert found.success_rate[1] > 0.9
    assert torch.equal(found.attacked[:, 0], certificate.radii > 0)
    torch.testing.assert_close(found.radii, certificate.radii[:, None] * torch.tensor([1.0, 3.0]).double())


def test_what_counts_was_verified(trained, digits, some, attacked):
    images, labels = (part[attacked.found] for part in digits)
    with torch.no_grad():
        logits = trained(attacked.images)
    assert torch.equal(logits.argmax(1), attacked.predictions)
    assert (attacked.predictions != labels).all()
    distances = (attacked.images.double() - images.double()).flatten(1).norm(dim=1)
    torch.testing.assert_close(attacked.distances[attacked.found], distances, rtol=1e-12, atol=0)
    assert torch.equal(
        attacked.success, (attacked.distances > 0)[:, None] & (attacked.distances[:, None] < attacked.radii)
    )
    assert attacked.images.amin() >= 0
    assert attacked.images.amax() <= 1
    assert len(attacked.found) > 80


def test_robust_accuracy_lies_between_certificate_and_accuracy(attacked, certificate):
    assert attacked.accuracy == certificate.accuracy
    for eps, share in attacked.robust_accuracy.items():
        assert certificate.curve([eps]).item() <= share <= attacked.accuracy
        assert attacked.curve([eps]).item() == share
    shares = list(attacked.robust_accuracy.values())
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] < 0.1
    assert attacked.curve([0.0]).item() == attacked.accuracy
    wrong = certificate.margins <= 0
    assert wrong.any()
    assert (attacked.distances[wrong] == 0).all()
    assert (attacked.distances[~wrong] > 0).all()


def test_results_print_and_serialise(attacked):
    plain = json.loads(json.dumps(attacked.to_dict(), allow_nan=False))
    assert plain["robust_accuracy"] == {str(eps): share for eps, share in attacked.robust_accuracy.items()}
    assert len(plain["distances"]) == plain["n"] == 120
    assert "under attack at 0.5: at most" in str(attacked)


@pytest.mark.parametrize("kind", ["pgd", "apgd"])
def test_bounds_hold_per_channel(kind):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(32, 4)).eval()
    images, labels = torch.rand(30, 2, 4, 4) * torch.tensor([1.0, 0.5])[:, None, None], torch.arange(30) % 4
    high = torch.tensor([1.0, 0.5]).view(2, 1, 1)
    found = fastlip.attack(model, [(images, labels)], [3.0], kind, bounds=(0.0, high), restarts=4)
    assert len(found.found) > 3
    assert (found.images >= 0).all()
    assert (found.images <= high).all()
    free = fastlip.attack(model, [(images, labels)], [3.0], kind, bounds=None, restarts=4)
    assert free.robust_accuracy[3.0] <= found.robust_accuracy[3.0]
    assert free.images.amin() < 0


def test_a_broken_certificate_is_reported_and_saved(trained, digits, some, certificate, tmp_path):
    planted = dataclasses.replace(certificate, radii=3 * certificate.radii)
    with pytest.warns(BrokenCertificateWarning, match="within the certified radius"):
        found = fastlip.attack(trained, some, [0.1], certificate=planted, **QUICK)
    assert len(found.broken) > 0.9 * (certificate.radii > 0).sum()
    assert "certificates broken" in str(found)
    found.save_broken(tmp_path / "broken.pt")
    assert [file.name for file in tmp_path.iterdir()] == ["broken.pt"]
    saved = torch.load(tmp_path / "broken.pt", weights_only=True)
    assert torch.equal(saved["index"], found.broken)
    assert torch.equal(saved["image"], digits[0][found.broken])
    assert torch.equal(saved["label"], digits[1][found.broken])
    assert torch.equal(saved["radius"], planted.radii[found.broken])
    distances = (saved["adversarial"].double() - saved["image"].double()).flatten(1).norm(dim=1)
    torch.testing.assert_close(saved["distance"], distances)
    assert (distances <= saved["radius"]).all()
    with torch.no_grad():
        assert torch.equal(trained(saved["adversarial"]).argmax(1), saved["prediction"])
    assert (saved["prediction"] != saved["label"]).all()


def test_an_honest_certificate_leaves_nothing_to_save(attacked, tmp_path):
    with pytest.raises(ValueError, match="no certificate was broken"):
        attacked.save_broken(tmp_path / "broken.pt")


def test_a_certificate_of_something_else_is_refused(trained, digits, some, certificate):
    images, labels = (part[:120] for part in digits)
    with pytest.raises(ValueError, match="certificate: its labels or margins"):
        fastlip.attack(trained, [(images.flip(0), labels.flip(0))], certificate=certificate)
    double = fastlip.certify(trained, some, dtype=torch.float64)
    with pytest.raises(ValueError, match="certificate: its labels or margins"):
        fastlip.attack(trained, some, certificate=double)
    with pytest.raises(ValueError, match="certificate: got 120 radii, the loader has 80 samples"):
        fastlip.attack(trained, some[:1], [0.01], certificate=certificate, steps=1, restarts=1)
    with pytest.raises(ValueError, match="certificate: got 120 radii, the loader has at least 200 samples"):
        fastlip.attack(trained, [*some, some[0]], [0.01], certificate=certificate, steps=1, restarts=1)
    with pytest.raises(TypeError, match="certificate: got dict"):
        attack_certified(trained, some, certificate.to_dict())


def test_a_constant_network_is_certified_everywhere_and_never_broken(digits):
    constant = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    constant[1].weight.data.zero_()
    constant[1].bias.data = torch.arange(10.0)
    data = [(digits[0][:40], digits[1][:40])]
    found = attack_certified(constant, data, fastlip.certify(constant, data), bounds=None, **QUICK)
    assert not found.success.any()


def state_of(model):
    return {
        "tensors": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "grads": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "flags": [p.requires_grad for p in model.parameters()],
        "modes": [module.training for module in model.modules()],
        "random": torch.get_rng_state(),
    }


def assert_same_state(one, other):
    for name in ("flags", "modes"):
        assert one[name] == other[name]
    assert all(torch.equal(one["tensors"][name], other["tensors"][name]) for name in one["tensors"])
    for before, after in zip(one["grads"], other["grads"], strict=True):
        assert (before is None and after is None) or torch.equal(before, after)
    assert torch.equal(one["random"], other["random"])


@pytest.mark.parametrize("kind", ["pgd", "apgd"])
def test_the_model_is_left_as_it_was(trained, some, kind):
    model = copy.deepcopy(trained)
    parameters = list(model.parameters())
    parameters[0].grad = torch.ones_like(parameters[0])
    parameters[1].requires_grad_(False)
    before = state_of(model)
    fastlip.attack(model, some[:1], [0.3], kind, steps=3, restarts=2)
    assert_same_state(before, state_of(model))
    images, labels = some[0]
    with pytest.raises(ValueError, match="images of batch 1 contain NaN"):
        fastlip.attack(model, [some[0], (images * math.nan, labels)], [0.3], kind, steps=2)
    assert_same_state(before, state_of(model))


def test_where_gradients_are_off_they_are_on_inside(trained, some):
    plain = fastlip.attack(trained, some, [0.5], **QUICK)
    with torch.no_grad():
        assert torch.equal(fastlip.attack(trained, some, [0.5], **QUICK).distances, plain.distances)
    with torch.inference_mode():
        inside = [(images.clone(), labels.clone()) for images, labels in some]
        assert torch.equal(fastlip.attack(trained, inside, [0.5], **QUICK).distances, plain.distances)


def test_radii_of_zero_are_not_attacked(trained, some):
    class Counting(nn.Module):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return trained(x)

    model = Counting().eval()
    found = fastlip.attack(model, some, torch.zeros(120))
    assert model.calls == 2  # each batch as it is
    assert not found.attacked.any()
    assert found.success_rate == [0.0]


def test_radii_may_be_given_per_sample_and_unsorted(trained, some, certificate):
    radii = torch.stack((torch.full((120,), 1.5), torch.full((120,), 0.2)), 1)
    found = fastlip.attack(trained, some, radii, **QUICK)
    assert found.robust_accuracy == {}
    assert torch.equal(found.radii, radii.double())
    assert found.success_rate[0] > 0.9 > found.success_rate[1]
    assert (found.success[:, 0] | ~found.success[:, 1]).all()


def test_sixteen_bit_models_are_attacked_in_float32(trained, some):
    low = copy.deepcopy(trained).bfloat16()
    found = fastlip.attack(low, some, [0.5], **QUICK)
    assert found.images.dtype == torch.float32
    assert {parameter.dtype for parameter in low.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"kind": "fgsm"}, ValueError, "kind='fgsm': allowed are 'pgd', 'apgd'"),
        ({"losses": ["hinge"]}, ValueError, r"losses=\['hinge'\]: expected some of 'margin', 'ce', 'dlr'"),
        ({"losses": "ce"}, ValueError, "losses='ce'"),
        ({"losses": []}, ValueError, r"losses=\[\]"),
        ({"steps": 0}, ValueError, "steps=0"),
        ({"steps": 1.5}, TypeError, "steps=1.5"),
        ({"restarts": 0}, ValueError, "restarts=0"),
        ({"step_size": -1.0}, ValueError, r"step_size=-1\.0"),
        ({"step_size": 0.1, "kind": "apgd"}, ValueError, r"step_size=0\.1: kind='apgd'"),
        ({"eps": [-0.1]}, ValueError, r"eps=-0\.1"),
        ({"eps": [math.nan]}, ValueError, "eps=nan"),
        ({"eps": []}, ValueError, r"eps: got shape \(0,\)"),
        ({"eps": torch.ones(7)}, ValueError, "eps: got 7 radii, the loader has at least 80 samples"),
        ({"eps": 1e-4 * torch.ones(200)}, ValueError, "eps: got 200 radii, the loader has 120 samples"),
        ({"eps": torch.ones(2, 2, 2)}, ValueError, r"eps: got shape \(2, 2, 2\)"),
        ({"bounds": 1.0}, ValueError, r"bounds=1\.0: expected \(low, high\) or None"),
        ({"bounds": (1.0, 0.0)}, ValueError, r"bounds=\(1\.0, 0\.0\): expected low <= high"),
        ({"bounds": (0.0, 0.5)}, ValueError, "bounds: the images of batch 0 have values from 0 to 1"),
        ({"bounds": (torch.zeros(7), 1.0)}, ValueError, "tensors that broadcast to an image"),
        ({"seed": 1.5}, TypeError, "seed=1.5"),
        ({"seed": -1}, ValueError, "seed=-1"),
        ({"dtype": torch.float16}, ValueError, r"dtype=torch\.float16"),
        ({"certificate": 0.5}, TypeError, "certificate: got float"),
    ],
)
def test_a_wrong_option_is_named(trained, some, options, error, text):
    with pytest.raises(error, match=text):
        fastlip.attack(trained, some, **{"steps": 1, "restarts": 1, **options})


class Detached(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    @torch.no_grad()
    def forward(self, x):
        return self.model(x)


def test_a_wrong_model_or_loader_is_named(trained, some):
    training = copy.deepcopy(trained)
    training.block1.train()
    with pytest.raises(ValueError, match="'block1' is in training mode"):
        fastlip.attack(training, some)
    with pytest.raises(TypeError, match="model: got function"):
        fastlip.attack(lambda x: x, some)
    with pytest.raises(ValueError, match="no batches"):
        fastlip.attack(trained, [])
    with pytest.raises(TypeError, match="batch 0 is no pair"):
        fastlip.attack(trained, [some[0][0]])
    with pytest.raises(ValueError, match="labels: got values"):
        fastlip.attack(trained, [(some[0][0], some[0][1] + 1)])
    with pytest.raises(ValueError, match=r"logits: got shape \(80, 1, 8, 8\)"):
        fastlip.attack(nn.Identity().eval(), some)
    with pytest.raises(ValueError, match="model: autograd cannot follow"):
        fastlip.attack(Detached(trained).eval(), some)
    broken = copy.deepcopy(trained)
    broken.head.raw_weight.data[0] = math.inf
    with pytest.raises(ValueError, match="raw_weight contains NaN or Inf"):
        fastlip.attack(broken, some)


def test_the_progress_bar_goes_to_stderr(trained, some, capsys):
    assert isinstance(fastlip.attack(trained, some, [0.1], steps=1, restarts=1, progress=True), AttackResult)
    assert "pgd" in capsys.readouterr().err
