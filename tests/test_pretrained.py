"""The trained networks of the package: they load offline, are certified as their cards say, and damage is found."""

import dataclasses
import json
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import torch
from test_mnist import write

import fastlip
from fastlip import models
from fastlip.models import literals, pretrained

ROOT = Path(__file__).parents[1]
NAMES = models.list_models(pretrained=True)
ALLOWED = 1 + 1e-5


def test_names_say_method_size_and_data():
    assert list(get_args(literals.PretrainedName)) == NAMES == sorted(NAMES)
    assert {name.partition("_xs.")[0] for name in NAMES} <= {*models.METHODS}
    assert {name.partition("_xs.")[2] for name in NAMES} == {"digits", "mnist"}
    assert models.list_models("cayley*", pretrained=True) == ["cayley_xs.digits", "cayley_xs.mnist"]
    assert models.list_models("lip*", pretrained=True) == []


def test_the_files_are_small_and_have_their_card():
    files = sorted(pretrained.FOLDER.iterdir())
    assert [path.name for path in files] == sorted(f"{name}{end}" for name in NAMES for end in (".json", ".pt"))
    assert sum(path.stat().st_size for path in files) < 4e6


@pytest.mark.parametrize("name", NAMES)
def test_a_network_loads_offline_and_has_the_bound_of_its_card(name, monkeypatch):
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a connection"))
    model, card = models.create_model(name, pretrained=True), models.model_card(name)
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert sum(parameter.numel() for parameter in model.parameters()) == card.parameters
    assert model(torch.rand(2, *card.input_shape)).shape == (2, 10)
    bound = fastlip.audit(model, card.input_shape).bound
    assert bound <= ALLOWED
    assert bound == pytest.approx(card.lipschitz, rel=1e-6)
    assert len(card.cra) == 4
    assert sorted(card.cra.values(), reverse=True) == list(card.cra.values())
    assert card.accuracy >= card.cra[36 / 255] > 0.8


@pytest.mark.parametrize("name", models.list_models("*.digits", pretrained=True))
def test_the_digits_have_the_figures_of_the_card(name):
    data, card = fastlip.data.digits(), models.model_card(name)
    test = [(data.test.all_pixels / data.divisor, data.test.labels)]
    found = fastlip.certify(models.create_model(name, pretrained=True), test, list(card.cra), bounds=card.bounds)
    one = 1.5 / found.n  # an image whose margin rounding decides
    assert found.n == card.n
    assert found.accuracy == pytest.approx(card.accuracy, abs=one)
    for eps, share in card.cra.items():
        assert found.cra[eps] == pytest.approx(share, abs=one)


def test_the_card_says_what_a_user_needs():
    card = models.model_card("cayley_xs.mnist")
    text = str(card)
    for part in ("cayley_xs.mnist", "values in [0, 1]", "held out", "CRA(0.1412)", "(audited)", card.command):
        assert part in text
    assert json.loads(json.dumps(card.to_dict()))["cra"][str(36 / 255)] == card.cra[36 / 255]
    assert "test images were not used" in card.certified_on


def test_without_weights_the_same_network_is_new():
    trained, new = (models.create_model("cayley_xs.digits", pretrained=given) for given in (True, False))
    assert new.training
    assert {name: value.shape for name, value in new.state_dict().items()} == {
        name: value.shape for name, value in trained.state_dict().items()
    }
    assert not torch.equal(new.head.bias, trained.head.bias)
    assert models.create_model("cayley_xs.digits", num_classes=5)(torch.rand(1, 1, 8, 8)).shape == (1, 5)


def test_kernels_may_be_chosen():
    x = torch.rand(4, 1, 8, 8)
    fast, slow = (models.create_model("cayley_xs.digits", pretrained=True, backend=b) for b in ("auto", "reference"))
    torch.testing.assert_close(fast(x), slow(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("lip_conv_net", {}, r"name='lip_conv_net': closest are .* of the 18 in list_models\(pretrained=True\)"),
        ("resnet", {}, "name='resnet': closest are '"),
        ("aol_xs.mnist", {"image_size": 32}, r"image_size=32: 'aol_xs\.mnist' is trained for image_size=28"),
        ("aol_xs.mnist", {"backend": "cuda"}, "backend='cuda': allowed are"),
    ],
)
def test_what_is_not_trained_is_named(name, options, text):
    with pytest.raises(ValueError, match=text):
        models.create_model(name, pretrained=True, **options)


def test_unknown_names_lead_to_the_trained_networks():
    with pytest.raises(ValueError, match=r"list_models\(pretrained=True\)"):
        models.create_model("cayley_xs.cifar10")
    with pytest.raises(ValueError, match=r"name='cayley': closest are 'cayley_xs\."):
        models.model_card("cayley")


def test_a_flipped_bit_and_a_missing_file_are_found(tmp_path):
    card = models.model_card("cayley_xs.digits")
    content = bytearray((pretrained.FOLDER / "cayley_xs.digits.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "cayley_xs.digits.pt").write_bytes(content)
    model = models.create_model("cayley_xs.digits")
    with pytest.raises(ValueError, match="not the file of its card"):
        pretrained.load_weights(model, card, tmp_path)
    with pytest.raises(ValueError, match=r"cayley_xs\.mnist\.pt: no such file"):
        pretrained.load_weights(model, dataclasses.replace(card, name="cayley_xs.mnist"), tmp_path)


@pytest.fixture
def blocks(tmp_path, monkeypatch):
    """The blocks of the guide that need MNIST, and a folder with a few random images in its place."""
    write(tmp_path / "path" / "to" / "mnist", side=28, count=240)
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "guide" / "pretrained.md").read_text(encoding="utf-8")
    return re.findall(r"^<!-- run by tests/test_pretrained.py -->\n```\w+\n(.*?)^```", text, re.M | re.S)


def test_the_guide_certifies_on_the_test_images_of_mnist(blocks, capsys):
    exec(blocks[0], {"fastlip": fastlip})
    assert "of 10 samples" in capsys.readouterr().out


def test_the_guide_makes_networks_and_their_cards(blocks, tmp_path):
    for line in blocks[1].splitlines():
        command = [sys.executable, *line.split()[1:], "--steps=3", "--methods", "cayley", "--out", str(tmp_path)]
        command[1] = str(ROOT / command[1])
        subprocess.run(command, capture_output=True, check=True)
    for name in ("cayley_xs.digits", "cayley_xs.mnist"):
        values = json.loads((tmp_path / f"{name}.json").read_text())
        card = dataclasses.replace(models.model_card(name), sha256=values["sha256"])
        model = pretrained.load_weights(models.create_model(name), card, tmp_path)
        assert fastlip.audit(model, card.input_shape).bound == pytest.approx(values["lipschitz"], rel=1e-6)
        stored = torch.load(tmp_path / f"{name}.pt", weights_only=True)
        assert {value.dtype for value in stored.values()} == {torch.float16}
    assert (values["n"], values["trained_on"]) == (20, 220)
