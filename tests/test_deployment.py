"""Exported files: the same function, certified radii, and what they say about themselves."""

import copy
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import fastlip
from fastlip import nn as lip
from fastlip.models import METHODS

SHAPE = (1, 8, 8)


def network(method, **options):
    torch.manual_seed(0)
    options = {"width": 4, "image_size": 8, "in_channels": 1, "layers_per_block": 1, **options}
    model = fastlip.models.lip_conv_net(method, **options).eval()
    with torch.no_grad():  # away from symmetric initialisations
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def certified(model, x):
    with torch.no_grad():
        labels = fastlip.losses.labels.as_logits(model(x)).argmax(1)
    return fastlip.certify(model, [(x, labels)], eps=[])


def run_onnx(path, x):
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(path)
    assert [value.name for value in session.get_inputs()] == ["images"]
    names = [value.name for value in session.get_outputs()]
    outputs = [torch.from_numpy(value) for value in session.run(None, {"images": x.numpy()})]
    return dict(zip(names, outputs, strict=True)), session


def check_onnx(method, path, **options):
    pytest.importorskip("onnxscript")
    model, x = network(method, **options), torch.rand(33, *SHAPE)
    found = fastlip.export(model, path, radius=True)
    certificate = certified(model, x)
    for rows in (x[:1], x[:2], x):
        outputs, _ = run_onnx(path, rows)
        with torch.no_grad():
            torch.testing.assert_close(outputs["logits"], model(rows), rtol=0, atol=3e-6)
        # Scores differ by their rounding, which the radius deducts.
        radii = certificate.radii[: len(rows)]
        torch.testing.assert_close(outputs["radius"].double(), radii, rtol=0, atol=1e-5)
        assert (outputs["radius"] > 0).any()
    assert found.checked == "onnxruntime"
    assert found.difference <= 3e-6
    assert math.isclose(found.lipschitz, certificate.lipschitz)


def test_onnx_has_the_radii_of_certify(tmp_path):
    check_onnx("cayley", tmp_path / "net.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_onnx_has_the_radii_of_certify_for_every_method(method, tmp_path):
    check_onnx(method, tmp_path / "net.onnx")


@pytest.mark.parametrize("method", METHODS)
def test_the_radii_of_the_module_are_those_of_certify(method, tmp_path):
    model, x = network(method), torch.rand(9, *SHAPE)
    fastlip.export(model, tmp_path / "net.pt", radius=True)
    net = torch.load(tmp_path / "net.pt", weights_only=False)
    logits, radius = net(x)
    torch.testing.assert_close(radius.double(), certified(model, x).radii, rtol=0, atol=1e-6)
    # No smaller change changes the largest score, not even the sharpest one.
    x = x.clone().requires_grad_()
    top = net(x)[0].topk(2).values
    (direction,) = torch.autograd.grad((top[:, 0] - top[:, 1]).sum(), x)
    step = radius.detach().view(-1, 1, 1, 1) * direction / direction.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    assert torch.equal(net(x - 0.999 * step)[0].argmax(1), logits.argmax(1))


@pytest.mark.parametrize("method", METHODS)
def test_the_rounding_of_a_copy_is_within_that_of_its_model(method):
    model, x = network(method), torch.rand(9, *SHAPE)
    for fourier in ("fft", "matrices64"):
        plain = fastlip.export(model, fourier=fourier)
        labels = model(x).argmax(1)
        ours, theirs = (fastlip.certify(one, [(x, labels)], eps=[]) for one in (model, plain))
        assert (theirs.radii >= ours.radii - 1e-6).all()


def test_a_file_tells_what_is_known_of_its_network(tmp_path):
    model, x = network("aol"), torch.rand(4, *SHAPE)
    certificate = certified(model, x)
    about = {"bounds": (0, 1), "certificate": certificate, "facts": {"classes": ["a", "b"]}}
    found = fastlip.export(model, tmp_path / "net.pt2", **about)
    program_facts = {"fastlip.json": ""}
    program = torch.export.load(tmp_path / "net.pt2", extra_files=program_facts)
    facts = json.loads(program_facts["fastlip.json"])
    assert facts == found.facts
    assert facts["bounds"] == [0, 1]
    assert facts["certificate"]["n"] == 4
    assert facts["classes"] == ["a", "b"]
    assert facts["outputs"] == ["logits"]
    assert facts["lipschitz"] == found.lipschitz <= 1 + 1e-5
    torch.testing.assert_close(program.module()(x), model(x), rtol=0, atol=1e-6)
    fastlip.export(model, tmp_path / "radius.pt2", radius=True)
    logits, radius = torch.export.load(tmp_path / "radius.pt2").module()(x[:3])
    torch.testing.assert_close(logits, model(x[:3]), rtol=0, atol=1e-6)
    torch.testing.assert_close(radius.double(), certificate.radii[:3], rtol=0, atol=1e-6)
    found = fastlip.export(model, tmp_path / "net.pt", radius=True, **about)
    assert json.loads((tmp_path / "net.pt.json").read_text()) == found.facts
    assert found.outputs == ("logits", "radius")
    assert found.size == (tmp_path / "net.pt").stat().st_size


def test_onnx_tells_what_is_known_of_its_network(tmp_path):
    pytest.importorskip("onnxscript")
    model = nn.Sequential(nn.Flatten(), lip.AOLLinear(64, 3)).eval()
    fastlip.export(model, tmp_path / "net.onnx", example=torch.rand(1, *SHAPE), bounds=(0, 1))
    outputs, session = run_onnx(tmp_path / "net.onnx", torch.rand(5, *SHAPE))
    assert list(outputs) == ["logits"]
    facts = session.get_modelmeta().custom_metadata_map
    assert float(facts["fastlip.lipschitz"]) <= 1 + 1e-5
    assert json.loads(facts["fastlip.bounds"]) == [0, 1]
    assert json.loads(facts["fastlip.input_shape"]) == list(SHAPE)
    assert session.get_inputs()[0].shape == ["n", *SHAPE]


@pytest.mark.parametrize("method", ["aol", "cayley"])
def test_a_batch_has_at_least_one_image(method, tmp_path):
    """The page on deployment says so. Should torch accept empty batches one day, the page and this test change."""
    model = network(method)
    fastlip.export(model, tmp_path / "net.pt")
    net = torch.load(tmp_path / "net.pt", weights_only=False)
    assert net(torch.rand(1, *SHAPE)).shape == (1, 10)
    with pytest.raises(RuntimeError):
        net(torch.rand(0, *SHAPE))


def test_nothing_is_certain_of_values_that_are_not_finite(tmp_path):
    fastlip.export(network("aol"), tmp_path / "net.pt", radius=True)
    net = torch.load(tmp_path / "net.pt", weights_only=False)
    x = torch.rand(4, *SHAPE)
    x[0, 0, 3, 3], x[1, 0, 0, 0], x[2] = math.nan, math.inf, 1e30 * x[2]
    radius = net(x)[1]
    assert radius[:2].tolist() == [0, 0]
    torch.testing.assert_close(radius[3:], net(x[3:])[1], rtol=1e-5, atol=1e-7)
    assert radius.isfinite().all()


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_radii_of_one_score_and_of_a_linear_head(outputs, dtype, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), lip.CayleyLinear(64, 8), lip.MaxMin(), nn.Linear(8, outputs)).to(dtype).eval()
    x = torch.rand(16, *SHAPE, dtype=dtype)
    fastlip.export(model, tmp_path / "net.pt", SHAPE, radius=True)
    radius = torch.load(tmp_path / "net.pt", weights_only=False)(x)[1]
    assert radius.dtype == dtype
    torch.testing.assert_close(radius.double(), certified(model, x).radii, rtol=1e-6, atol=1e-7)


def test_a_file_with_radii_needs_no_fastlip(tmp_path):
    fastlip.export(network("soc"), tmp_path / "net.pt", radius=True)
    script = (
        "import sys, torch; net = torch.load('net.pt', weights_only=False); net(torch.rand(3, 1, 8, 8));"
        "sys.exit(any(name.startswith('fastlip') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=False).returncode == 0


class Product(nn.Module):
    def forward(self, x):
        return x * x.tanh()


def refusals():
    flat = nn.Sequential(nn.Flatten(), lip.AOLLinear(64, 3)).eval()
    yield flat, "net.tflite", {}, ValueError, "path='net.tflite': the suffix '.tflite' names no format"
    yield flat, "net", {}, ValueError, "allowed are .onnx, .pt2, .pt, .pth"
    yield flat, "net.pt", {}, ValueError, "input_shape=None: expected the shape of one sample"
    yield flat, "net.pt", {"format": "tflite"}, ValueError, "format='tflite': allowed are 'torch', 'onnx', 'pt2'"
    yield flat, 3, {}, TypeError, "path: got int, expected the name of a file"
    yield flat, "no/net.pt", {"input_shape": SHAPE}, FileNotFoundError, "No such file"
    yield flat, ".", {"format": "pt2"}, ValueError, "is a folder"
    yield flat, "net.pt", {"input_shape": "1x8x8"}, TypeError, "input_shape='1x8x8': expected a tuple of ints"
    yield flat, "net.pt", {"example": SHAPE}, TypeError, "example: got tuple, expected a tensor"
    clash = {"example": torch.rand(1, 1, 8, 8), "input_shape": (8, 8)}
    yield flat, "net.pt", clash, ValueError, r"input_shape=\(8, 8\): the example is a batch of \(1, 8, 8\)"
    yield flat, None, {"radius": True}, ValueError, "radius=True: is for a file"
    yield flat, "net.pt", {"input_shape": SHAPE, "bounds": 1}, ValueError, r"bounds=1: expected \(low, high\)"
    yield flat, "net.pt", {"input_shape": SHAPE, "certificate": 1}, TypeError, "certificate: got int"
    yield flat, "net.pt", {"input_shape": SHAPE, "facts": {"x": nn.ReLU()}}, TypeError, "facts: expected a dict"
    yield flat, "net.pt", {"input_shape": SHAPE, "fourier": "dct"}, ValueError, "fourier='dct': allowed are"
    product = nn.Sequential(Product(), nn.Linear(4, 3)).eval()
    yield product, "net.pt", {"input_shape": (4,), "radius": True}, TypeError, "the audit does not understand 0"
    image = nn.Sequential(lip.AOLConv2d(1, 2, 3)).eval()
    yield image, "net.pt", {"input_shape": SHAPE, "radius": True}, ValueError, "expected scores of classes"
    half = nn.Sequential(nn.Flatten(), nn.Linear(64, 2)).eval().bfloat16()
    yield half, "net.pt", {"input_shape": SHAPE, "radius": True}, ValueError, "torch.bfloat16; use model.float"


@pytest.mark.parametrize(("model", "path", "options", "kind", "text"), list(refusals()))
def test_what_cannot_be_written_is_refused_in_one_line(model, path, options, kind, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kind, match=text) as raised:
        fastlip.export(model, path, **options)
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_a_file_that_fails_leaves_the_old_one(tmp_path, monkeypatch):
    from fastlip.deployment import exported

    path = tmp_path / "net.pt2"
    path.write_text("old")

    def fail(*arguments):
        raise ValueError("onnxruntime's outputs differ")

    monkeypatch.setattr(exported, "check_file", fail)
    with pytest.raises(ValueError, match="differ"):
        fastlip.export(nn.Sequential(nn.Linear(4, 2)).eval(), path, (4,))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", [".pt", ".pt2", ".onnx"])
@pytest.mark.parametrize(("radius", "tensor"), [(False, "0.bias"), (True, "layers.0.bias"), (True, "slopes")])
def test_a_file_of_another_function_is_refused(suffix, radius, tensor, tmp_path, monkeypatch):
    from fastlip.deployment import formats

    if suffix == ".onnx":
        pytest.importorskip("onnxruntime")
    kind = formats.SUFFIXES[suffix]
    write = formats._WRITERS[kind]

    def wrong(network, file):
        module = copy.deepcopy(network.module)
        module.state_dict()[tensor].mul_(1.01)
        write(network._replace(module=module), file)

    monkeypatch.setitem(formats._WRITERS, kind, wrong)
    model = nn.Sequential(nn.Linear(4, 3), lip.MaxMin(), lip.CayleyLinear(3, 3)).eval()
    what = "radius" if tensor == "slopes" else "logits"
    with pytest.raises(ValueError, match=f"{what} of the file differ"):
        fastlip.export(model, tmp_path / f"net{suffix}", (4,), radius=radius)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("method", ["aol", "cayley"])
def test_torch_export_takes_the_model_itself_and_onnx_names_fastlip_export(method):
    model, x = network(method), torch.rand(2, *SHAPE)
    program = torch.export.export(model, (x,))
    torch.testing.assert_close(program.module()(x), model(x), rtol=0, atol=1e-6)
    pytest.importorskip("onnxscript")
    with pytest.raises(Exception, match=r"fastlip\.export"):
        torch.onnx.export(model, (x,), dynamo=True, verbose=False)


def test_the_javascript_of_the_page_is_well_formed(tmp_path):
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    text = (Path(__file__).parents[1] / "docs/guide/deploy.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```js title=.*?\n(.*?)^```", text, re.M | re.S)
    (tmp_path / "classify.mjs").write_text(code)
    checked = subprocess.run(
        [node, "--check", "classify.mjs"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr
    assert "run({ images })" in code
    assert "{ logits, radius }" in code


def test_bfloat16_is_no_type_of_onnxruntime(tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    with pytest.raises(ValueError, match=r"torch.bfloat16; use model.float"):
        fastlip.export(torch.nn.Linear(4, 2).bfloat16(), tmp_path / "net.onnx", (4,))
    assert not list(tmp_path.iterdir())
