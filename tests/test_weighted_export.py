"""Exported, converted and saved networks under a weighted norm: the norm goes with them."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import fastlip
from fastlip import nn as lip

WIDE = torch.logspace(-4, 4, 6)


def tabular(dtype=torch.float32):
    torch.manual_seed(0)
    body = lip.CayleyLinear(6, 16), lip.MaxMin(), lip.SLLLinear(16, 16), lip.CayleyLinear(16, 3)
    model = nn.Sequential(lip.InputWeights(WIDE, 1 / WIDE), *body).to(dtype).eval()
    x = (torch.randn(200, 6) / WIDE + 1 / WIDE).to(dtype)
    return model, x


def images():
    torch.manual_seed(0)
    weights = torch.tensor([0.1, 1.0, 20.0])[:, None, None]
    body = lip.AOLConv2d(3, 8, 3), lip.MaxMin(), nn.Flatten(), lip.AOLLinear(8 * 36, 4)
    return nn.Sequential(lip.InputWeights(weights), *body).eval(), torch.randn(50, 3, 6, 6) / weights


def run_file(path, x):
    if path.suffix == ".onnx":
        runtime = pytest.importorskip("onnxruntime")
        session = runtime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
        return [torch.as_tensor(value) for value in session.run(None, {"images": x.numpy()})]
    loaded = torch.load(path, weights_only=False) if path.suffix == ".pt" else torch.export.load(path).module()
    with torch.no_grad():
        return loaded(x)


def facts_of(path):
    if path.suffix == ".onnx":
        import onnx

        properties = onnx.load(path).metadata_props
        return {entry.key.removeprefix("fastlip."): entry.value for entry in properties}
    if path.suffix == ".pt":
        return json.loads(Path(f"{path}.json").read_text())
    extra = {"fastlip.json": ""}
    torch.export.load(path, extra_files=extra)
    return json.loads(extra["fastlip.json"])


@pytest.mark.parametrize("suffix", ["pt", *(pytest.param(s, marks=pytest.mark.slow) for s in ("pt2", "onnx"))])
@pytest.mark.parametrize("make", [tabular, images])
def test_files_have_radii_in_the_norm_of_the_network(make, suffix, tmp_path):
    if suffix == "onnx":
        pytest.importorskip("onnxscript")
    model, x = make()
    shape = tuple(x.shape[1:])
    certificate = fastlip.certify(model, [(x, model(x).argmax(1))], eps=[])
    path = tmp_path / f"net.{suffix}"
    found = fastlip.export(model, path, shape, radius=True, certificate=certificate)
    scores, radii = run_file(path, x)
    torch.testing.assert_close(scores, model(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(radii.double(), certificate.radii, rtol=1e-3, atol=1e-4)
    assert (radii <= certificate.radii * (1 + 1e-4) + 1e-5).all()
    assert found.norm == certificate.norm
    assert "weighted L2 norm |w * x|" in str(found)
    assert found.to_dict()["norm"] == "weighted l2"
    facts = facts_of(path)
    assert facts["norm"] == "weighted l2"
    weights = facts["input_weights"]
    weights = json.loads(weights) if isinstance(weights, str) else weights
    assert torch.equal(torch.tensor(weights), model[0].weights)


def test_radii_in_float64_are_those_of_certify(tmp_path):
    model, x = tabular(torch.float64)
    certificate = fastlip.certify(model, [(x, model(x).argmax(1))], eps=[])
    fastlip.export(model, tmp_path / "net.pt", (6,), radius=True)
    torch.testing.assert_close(run_file(tmp_path / "net.pt", x)[1], certificate.radii, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("make", [tabular, images])
def test_copies_have_the_norm_without_fastlip(make, tmp_path):
    model, x = make()
    shape = tuple(x.shape[1:])
    plain = fastlip.export(model, shape)
    assert not any(base.__module__.startswith("fastlip") for m in plain.modules() for base in type(m).__mro__)
    assert fastlip.audit(plain, shape).norm == fastlip.audit(model, shape).norm
    assert fastlip.audit(plain, shape).bound == pytest.approx(fastlip.audit(model, shape).bound, rel=1e-5)
    batch = x, model(x).argmax(1)
    found, expected = (fastlip.certify(each, [batch], dtype=torch.float64) for each in (plain, model))
    torch.testing.assert_close(found.radii, expected.radii, rtol=1e-5, atol=1e-5)
    options = {"bounds": None, "steps": 2, "restarts": 1, "dtype": torch.float64}
    assert fastlip.attack(plain, [batch], [0.1], certificate=found, **options).norm == expected.norm
    torch.save(plain, tmp_path / "model.pt")
    again = torch.load(tmp_path / "model.pt", weights_only=False)
    assert fastlip.audit(again, shape).norm == expected.norm
    with pytest.raises(AssertionError, match="expected samples that the input weights fit"):
        again(x[:, :1])  # one feature would have been repeated


def test_changed_weights_of_a_copy_are_audited_as_they_are():
    model, _ = tabular()
    plain = fastlip.export(model, (6,))
    with torch.no_grad():
        plain[0].weights *= 2
    assert torch.equal(fastlip.audit(plain, (6,)).norm.weights, 2 * model[0].weights.double())
    with torch.no_grad():
        plain[0].weights[0] = 0
    with pytest.raises(ValueError, match=r"layer '0' \(Weigh\): weights: got 0"):
        fastlip.audit(plain, (6,))


def test_networks_of_l2_norm_say_so(tmp_path):
    found = fastlip.export(nn.Sequential(lip.CayleyLinear(4, 2)).eval(), tmp_path / "net.pt", (4,))
    assert facts_of(tmp_path / "net.pt")["norm"] == "l2"
    assert "norm of the input" not in str(found)


def test_a_converted_network_keeps_its_input_weights():
    torch.manual_seed(0)
    model = nn.Sequential(lip.InputWeights(WIDE), nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    converted, report = fastlip.convert(model, example=torch.randn(4, 6), quiet=True)
    assert report.complete
    assert report.norm == report.to_dict()["norm"] == "weighted l2"
    assert "after (weighted l2 norm of the inputs)" in str(report)
    assert ("InputWeights", "InputWeights") in [(step.before, step.after) for step in report.steps]
    found = fastlip.audit(converted.eval(), (6,))
    assert found.norm.name == "weighted l2"
    assert found.bound <= 1 + 1e-5
    assert report.before == pytest.approx(fastlip.audit(model, (6,)).bound)
    inside = nn.Sequential(nn.Linear(6, 6), lip.InputWeights(WIDE), nn.Linear(6, 3))
    _, report = fastlip.convert(inside, example=torch.randn(4, 6), quiet=True)
    assert not report.complete
    assert (report.norm, "InputWeights) 1e+04" in report.reason) == ("l2", True)


def test_freezing_fusing_and_averaging_leave_the_norm():
    model, x = tabular()
    expected, norm = model(x), fastlip.audit(model, (6,)).norm
    with fastlip.freeze(model), torch.no_grad():
        torch.testing.assert_close(model(x), expected)
        assert fastlip.audit(model, (6,)).norm == norm
    assert fastlip.audit(fastlip.fuse(model), (6,)).norm == norm
    assert fastlip.audit(fastlip.unfuse(model), (6,)).norm == norm
    averaged = torch.optim.swa_utils.AveragedModel(model).eval()
    assert fastlip.audit(averaged.module, (6,)).norm == norm


def test_a_card_names_the_norm():
    """No recipe makes such a network; a card of one says what its figures mean all the same."""
    from fastlip.training.card import card_text, make_card
    from fastlip.training.recipe import Recipe

    model, _ = images()
    data = {"name": "d", "shape": (3, 6, 6), "divisor": 1, "mean": [], "class_count": 4}
    card = make_card(model, Recipe(), data)
    assert card["audit"]["norm"] == "weighted l2"
    assert "(audited, weighted L2 norm of the inputs)" in card_text(card)
    plain = make_card(model[1:].eval(), Recipe(), data)
    assert "(audited)." in card_text(plain)
