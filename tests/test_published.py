"""Published LiResNets and BRONets: outputs of the formulas, sound audits, constants of power steps, clear errors."""

import copy
import json
import math
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from published_networks import DEPTH, IMAGENET, WIDTH, bronet, imagenet_bronet, liresnet, published_outputs

import fastlip
from fastlip.cli import main


def without(part, state):
    return {name: value for name, value in state.items() if part not in name}


# The entries, the configuration, and the options of the formulas.
NETWORKS = {
    "LiResNet": (liresnet, {}, {}),
    "BRONet": (bronet, {}, {}),
    "BRONet of reflectors": (lambda: bronet("bro", "bro", "bro", rank=1), {}, {}),
    "circular": (bronet, {"backbone_zero_padding": False}, {"zeros": False}),
    "second version": (
        lambda: bronet("l2"),
        {"backbone_type": "brov2", "neck_conv_patch_size": 5},
        {"version": 2, "patch": 5},
    ),
    "circular second version": (
        bronet,
        {"backbone_type": "brov2", "backbone_zero_padding": False},
        {"version": 2, "zeros": False},
    ),
    "no identity": (bronet, {"backbone_quasi_residual": False}, {"quasi_residual": False}),
    "any rows": (bronet, {"use_lln": False, "dense_quasi_residual": False}, {"unit_rows": False}),
    "no centering": (lambda: without("running_mean", liresnet()), {}, {}),
    "BRONet without centering": (lambda: without("running_mean", bronet()), {}, {}),
    "no dense layers": (lambda: without("linear.", liresnet()), {}, {}),
    "ImageNet": (imagenet_bronet, IMAGENET, {"version": 2}),
}


def make(name):
    torch.manual_seed(0)
    entries, config, options = NETWORKS[name]
    return entries(), config, options


def images(state, count=2):
    return torch.rand(count, *state["stem.0.init_x"].shape[1:], dtype=torch.float64)


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_are_those_of_the_formulas(name):
    state, config, options = make(name)
    x = images(state)
    model = fastlip.load_published({"backbone": state, "configs": {"model": config}})
    assert not model.training
    expected = published_outputs(state, x, **options)
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("change", ["float32", "caches"])
def test_variants_of_the_entries(change):
    torch.manual_seed(0)
    state = bronet()
    written, tolerance = state, 1e-10
    if change == "float32":
        written, tolerance = {name: value.float() for name, value in state.items()}, 1e-4
    else:
        written = {**state, "conv.eval_weights": torch.full((2, 2), torch.nan)}
    x = images(state)
    model = fastlip.load_published(written)
    y = model(x.to(model.head.bias.dtype)).double()
    torch.testing.assert_close(y, published_outputs(state, x), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ["LiResNet", "BRONet of reflectors", "no centering", "no dense layers", "ImageNet"])
def test_the_audit_bounds_exact_jacobians(name):
    """Of the network before its head, and of each layer by what it attains."""
    state, config, _ = make(name)
    report = fastlip.audit_published(state, config, steps=2)
    body = fastlip.load_published(state, config)[:-1]
    for x in 2 * images(state):
        jacobian = torch.autograd.functional.jacobian(lambda x: body(x[None])[0], x).flatten(1)
        assert torch.linalg.matrix_norm(jacobian, 2) <= report.audited
    for layer in report.layers:
        assert layer.at_least <= layer.at_most
        # How far a bound with zero padding is above the norm of these small layers.
        assert layer.at_most <= 1.03 * layer.at_least
    product = math.prod(layer.at_most for layer in report.layers)
    assert report.audited == pytest.approx(product, rel=1e-12)
    assert report.published == pytest.approx(math.prod(layer.published for layer in report.layers))


def published_power_steps(state, steps):
    """The constants of the stem and the convolutions, all of them in one grouped convolution, as the authors do."""
    W, x = state["stem.0.weight"], state["stem.0.init_x"]
    for _ in range(steps):
        x = F.conv_transpose2d(F.conv2d(x, W, stride=2, padding=2), W, stride=2, padding=2, output_padding=1)
        x = F.normalize(x, dim=(1, 2, 3))
    constants = {"stem.0.weight": F.conv2d(x, W, stride=2, padding=2).norm()}
    V = (state["conv.identity"] + state["conv.weights"] * state["conv.gamma"] * DEPTH**-0.5).flatten(0, 1)
    x = state["conv.init_x"]
    for _ in range(steps):
        x = F.conv_transpose2d(F.conv2d(x, V, padding=1, groups=DEPTH), V, padding=1, groups=DEPTH)
        x = F.normalize(x.view(DEPTH, -1)).view(1, DEPTH * WIDTH, 16, 16)
    norms = F.conv2d(x, V, padding=1, groups=DEPTH).view(DEPTH, -1).norm(dim=1)
    return constants | {f"conv.weights[{i}]": norm for i, norm in enumerate(norms)}


def test_published_constants_are_those_of_the_authors_steps():
    state, _, _ = make("LiResNet")
    found = {layer.name: layer for layer in fastlip.audit_published(state, steps=3).layers}
    for name, value in published_power_steps(state, 3).items():
        assert found[name].published == pytest.approx(value.item(), rel=1e-12)
        assert found[name].how == "3 power steps"
        assert found[name].too_low  # three steps have not converged
    norm = torch.linalg.matrix_norm(fastlip.load_published(state).dense[0].weight, 2).item()
    assert found["linear.weights[0]"].published == pytest.approx(norm, rel=1e-12)
    state, _, _ = make("BRONet of reflectors")
    hows = [layer.how for layer in fastlip.audit_published(state, steps=3).layers]
    assert hows == ["3 power steps", *["taken as 1"] * 2, *["singular values"] * 2, *["taken as 1"] * 2]


def stuck_stem(state):
    """A stem that triples the first channel, and a stored vector that power steps keep in the second."""
    weight, start = torch.zeros_like(state["stem.0.weight"]), torch.zeros_like(state["stem.0.init_x"])
    weight[0, 0, 2, 2], weight[1, 1, 2, 2], start[:, 1] = 3.0, 1.0, 1.0
    return {**state, "stem.0.weight": weight, "stem.0.init_x": start}


def test_a_constant_that_power_steps_miss_is_reported():
    state = stuck_stem(make("LiResNet")[0])
    report = fastlip.audit_published(state)
    stem = report.layers[0]
    assert stem.published == pytest.approx(1.0, abs=1e-12)
    assert stem.at_least == pytest.approx(3.0, rel=1e-9)
    assert stem.at_most >= stem.at_least
    assert stem in report.too_low
    assert report.ratio >= 3.0
    text = str(report)
    assert "500 power steps: too low" in text
    assert "so that published radii are not proven" in text
    # The network's own Jacobian agrees: the stem moves features by three times the perturbation.
    stem = fastlip.load_published(state).stem[0]
    x, move = torch.rand(1, 3, 32, 32, dtype=torch.float64), torch.zeros(1, 3, 32, 32, dtype=torch.float64)
    move[0, 0, 8, 8] = 1.0
    assert (stem(x + move) - stem(x)).norm().item() == pytest.approx(3.0)


def test_a_converged_constant_is_not_reported():
    """An identity, whose norm every vector attains."""
    state, config, _ = make("ImageNet")
    state["conv_1.weights"].zero_()
    report = fastlip.audit_published(state, config, steps=1)
    layer = report.layers[1]
    assert layer.name == "conv_1.weights[0]"
    assert layer.published == pytest.approx(1.0, rel=1e-12)
    assert layer.at_least == pytest.approx(1.0, rel=1e-8)
    assert not layer.too_low
    assert "no published constant is below" in str(fastlip.PublishedAudit("LiResNet", 1.0, 1.0, (layer,)))


def test_a_loaded_network_certifies_exports_trains_and_reloads():
    state, _, _ = make("BRONet")
    model, x = fastlip.load_published(state), images(state)
    labels = model(x).argmax(1)
    certificate = fastlip.certify(model, [(x, labels)], bounds=(0, 1))
    W, report = model.head.weight, fastlip.audit_published(state, steps=1)
    top, second = model(x).topk(2).indices.T
    margins = model(x).gather(1, torch.stack((top, second), 1))
    radii = (margins[:, 0] - margins[:, 1]) / (report.audited * (W[top] - W[second]).norm(dim=1))
    # The nearest class need not be the second, and rounding is taken off.
    assert (certificate.radii <= radii).all()
    assert (certificate.radii >= 0.5 * radii).all()
    exported = fastlip.export(model, model.input_shape)
    torch.testing.assert_close(exported(x), model(x), rtol=1e-10, atol=1e-10)
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.train().parameters(), lr=0.1)
    F.cross_entropy(model(x), labels).backward()
    optimizer.step()
    assert fastlip.audit(model.eval()[1:].blocks, (WIDTH, 16, 16)).bound <= 1 + 1e-12
    model.load_state_dict(before)
    torch.testing.assert_close(model(x), published_outputs(state, x), rtol=1e-10, atol=1e-10)


def broken(**changes):
    """The entries of a BRONet with some replaced; None takes one out."""
    torch.manual_seed(0)
    state = {**bronet(), **{name.replace("__", "."): value for name, value in changes.items()}}
    return {name: value for name, value in state.items() if value is not None}


REFUSED = {
    "nothing": (lambda: {}, {}, r"checkpoint: has no entry 'stem.0.weight', which LiResNet and BRONet have"),
    "a missing entry": (lambda: broken(conv__gamma=None), {}, r"missing \['conv.gamma'\], left over \[\]"),
    "an entry too many": (lambda: broken(conv__u=torch.zeros(1)), {}, r"missing \[\], left over \['conv.u'\]"),
    "another shape": (lambda: broken(neck__bias=torch.zeros(9).double()), {}, r"neck.weight: got shape \(10, 96\)"),
    "another shape of a head": (
        lambda: broken(head__bias=torch.zeros(3).double()),
        {},
        r"head.bias: got shape \(3,\), expected \(4,\)",
    ),
    "another dtype": (lambda: broken(head__bias=torch.zeros(4)), {}, "head.bias: got torch.float32, expected"),
    "integers": (
        lambda: {name: value.int() for name, value in bronet().items()},
        {},
        "stem.0.weight: got torch.int32, expected a floating-point type",
    ),
    "a sparse tensor": (
        lambda: broken(**{"head.weight": bronet()["head.weight"].to_sparse()}),
        {},
        "head.weight: got a tensor of layout torch.sparse_coo, expected a dense one",
    ),
    "no number": (lambda: broken(head__bias=torch.full((4,), torch.nan).double()), {}, "head.bias: has NaN or Inf"),
    "another identity": (
        lambda: broken(linear__identity=2 * torch.eye(10).double()),
        {},
        "linear.identity: expected an identity",
    ),
    "images of another size": (
        lambda: broken(**{"stem.0.init_x": torch.zeros(1, 3, 48, 48).double()}),
        {},
        "stem.0: got images of 48 pixels",
    ),
    "another convolution": (lambda: bronet(rank=WIDTH), {}, "conv.weights: got 6 columns for 6 channels"),
    "patches that do not fit": (
        lambda: bronet("l2"),
        {"neck_conv_patch_size": 5},
        "neck: got patches of 5 pixels for images of 16",
    ),
    "SOC": (bronet, {"backbone_type": "soc"}, "config: backbone_type='soc': allowed are 'bro'"),
    "ReLU": (bronet, {"act_name": "relu"}, "config: act_name='relu': allowed is 'minmax'"),
    "no dense identity": (
        lambda: bronet(dense="bro"),
        {"dense_quasi_residual": False},
        "linear: dense_quasi_residual=False is not read",
    ),
    "a second patch": (bronet, {"neck_conv_patch_size_2": 2}, "neck_conv_patch_size_2=2: allowed is 0"),
    "a patch of text": (bronet, {"neck_conv_patch_size": "4"}, "neck_conv_patch_size='4': expected a positive int"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_errors_name_what_is_wrong(case):
    state, config, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        fastlip.load_published(state(), config)


def test_what_is_no_checkpoint():
    with pytest.raises(TypeError, match="checkpoint: got list, expected a mapping"):
        fastlip.load_published([])
    with pytest.raises(
        TypeError, match="checkpoint: expected names and tensors, or a dict with them, got int under 'e"
    ):
        fastlip.load_published({"backbone": {"epoch": 3}})
    with pytest.raises(TypeError, match="or a dict with them, got list"):
        fastlip.load_published({"backbone": []})
    with pytest.raises(
        ValueError, match=r"has weights under 'model', 'ema'; expected one of them, checkpoint\['model'"
    ):
        fastlip.load_published({"model": bronet(), "ema": bronet()})
    with pytest.raises(ValueError, match=r"has both 'head\.bias' and 'module\.head\.bias', which are one entry"):
        fastlip.load_published({**bronet(), "module.head.bias": torch.zeros(4)})
    with pytest.raises(TypeError, match="config: got str"):
        fastlip.load_published(bronet(), "config.yaml")
    with pytest.raises(ValueError, match="steps=0: expected at least 1"):
        fastlip.audit_published(bronet(), steps=0)


def test_fastlip_audit_reads_the_authors_file(tmp_path):
    state, config, _ = make("BRONet")
    file = tmp_path / "cifar10-2x6_799.pth"
    torch.save({"backbone": state, "start_epoch": 800, "configs": {"model": config}, "optimizer": {}}, file)
    result = CliRunner().invoke(main, ["audit", str(file)])
    assert result.exit_code == 0
    assert "BRONet before its head: published constant" in result.stdout
    result = CliRunner().invoke(main, ["audit", str(file), "--json"])
    values = json.loads(result.stdout)
    assert values["audited"] == pytest.approx(values["ratio"] * values["published"])
    assert [layer["name"] for layer in values["layers"]][:2] == ["stem.0.weight", "conv.weights[0]"]
    result = CliRunner().invoke(main, ["audit", str(file), "--device=cpu"])
    assert result.exit_code == 2
    assert "is no run of fastlip" in result.stderr


def test_the_example_of_the_documentation(tmp_path, monkeypatch, capsys):
    page = (Path(__file__).parents[1] / "docs/guide/export.md").read_text(encoding="utf-8")
    block = re.search(
        r"<!-- run by tests/test_published.py -->\n```python\n(.*?)^```\n.*?^```text\n(.*?)^```", page, re.M | re.S
    )
    state, _, _ = make("LiResNet")
    monkeypatch.chdir(tmp_path)
    file = re.search(r'torch.load\("([^"]+)"', block[1])[1]
    torch.save({"backbone": {name: value.float() for name, value in state.items()}}, file)
    exec(block[1], {"torch": torch, "fastlip": fastlip})
    printed, written = capsys.readouterr().out, block[2]
    # A constant that has converged is too low or not by its last rounding.
    texts = [re.sub(" +", " ", text).replace(": too low", "") for text in (printed, written)]
    words = [re.sub(r"[\d.]+(e-\d+)?", "#", text) for text in texts]
    assert words[0] == words[1]
