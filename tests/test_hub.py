"""Pretrained use: cards, loading without the data, torch.hub, and runs of published checkpoints."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import fastlip
from fastlip import hub
from fastlip.cli import main
from fastlip.training.checkpoint import CheckpointError

ROOT = Path(__file__).parents[1]
SMALL = ("--width=2", "--layers-per-block=1", "--batch-size=512", "--epochs=1", "--threads=1", "--no-tensorboard")


@pytest.fixture(autouse=True)
def _threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def run(*arguments):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "run"
    code, _, errors = run("train", *SMALL, "--out", folder)
    assert code == 0, errors
    return folder


@pytest.fixture
def published(tmp_path):
    with np.load(ROOT / "tests" / "data" / "official" / "aol.npz") as file:
        arrays = dict(file)
    state = {name[6:]: torch.from_numpy(arrays[name]) for name in arrays if name.startswith("state/")}
    torch.save(
        {"epoch": 3, "state_dict": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "a.pth"
    )
    return tmp_path / "a.pth", arrays


def test_the_card_says_what_is_certified(trained):
    card = hub.card(trained)
    certificate = json.loads((trained / "certificate.json").read_text())
    assert card == json.loads((trained / "card.json").read_text())
    assert card["certificate"]["accuracy"] == certificate["accuracy"]
    assert card["certificate"]["cra"] == certificate["cra"]
    assert card["audit"] == certificate["audit"]
    assert card["recipe"] == json.loads((trained / "recipe.json").read_text())
    assert card["versions"]["torch"] == torch.__version__
    assert card["input"] == {"data": "digits", "shape": [1, 8, 8], "divisor": 16.0, "mean": [0.3053], "classes": 10}
    text = (trained / "README.md").read_text()
    assert text.startswith("# AOL XS on digits\n")
    for part in (f"{certificate['accuracy']:.2%}", "stored value / 16 - [0.3053]", "| block1.0 | AOLConv2d |"):
        assert part in text
    assert len(text.splitlines()) > len(card["audit"]["layers"])


def test_a_run_loads_without_its_data(trained):
    model = hub.load(trained, backend="reference")
    assert not model.training
    images = fastlip.data.load("digits")
    batches = fastlip.data.Batches(images.test, 16.0, 360, mean=images.mean)
    certificate = fastlip.certify(model, batches)
    assert certificate.accuracy == hub.card(trained)["certificate"]["accuracy"]
    assert torch.load(trained / "checkpoint.pt", weights_only=True)["card"]["model"]["method"] == "aol"


def test_hub_and_data_need_no_import_of_their_own():
    assert fastlip.__getattr__("hub") is hub
    assert fastlip.__getattr__("data") is fastlip.data
    with pytest.raises(AttributeError, match="module 'fastlip' has no attribute 'dat'"):
        _ = fastlip.dat


def test_torch_hub_loads_it(trained):
    x = torch.rand(3, 1, 8, 8)
    model = torch.hub.load(str(ROOT), "fastlip_model", trained / "checkpoint.pt", source="local")
    assert torch.equal(model(x), hub.load(trained)(x))


def test_what_cannot_be_loaded_is_named(trained, tmp_path):
    with pytest.raises(CheckpointError, match=r"none/checkpoint\.pt|none: no such checkpoint"):
        hub.load(tmp_path / "none")
    with pytest.raises(ValueError, match="backend='fast': allowed are"):
        hub.load(trained, backend="fast")
    with pytest.raises(ValueError, match="device='gpu': cannot be used here"):
        hub.load(trained, device="gpu")


def test_a_published_checkpoint_becomes_a_run(published, tmp_path):
    file, arrays = published
    code, output, errors = run("import", file, "--method=aol", "--out", tmp_path / "run")
    assert code == 0, errors
    assert "Lipschitz bound" in output
    error = np.abs(hub.load(tmp_path / "run")(torch.from_numpy(arrays["input"])).detach().numpy() - arrays["output"])
    assert error.max() <= 1e-5 * np.abs(arrays["output"]).max()
    card = hub.card(tmp_path / "run")
    assert card["model"]["imported"] == "a.pth"
    assert (card["certificate"], card["recipe"]) == ({}, {})
    code, output, errors = run("audit", tmp_path / "run", "--json")
    assert json.loads(output)["bound"] == pytest.approx(card["audit"]["bound"], rel=1e-6)
    code, output, errors = run("export", tmp_path / "run", "--out", tmp_path / "net.pt", "--json")
    assert code == 0, errors
    assert json.loads(output)["mean"] == [0.4914, 0.4822, 0.4465]


def test_an_import_refuses_in_one_line(published, trained, tmp_path):
    file, _ = published
    (tmp_path / "text.pth").write_text("no weights")
    torch.save([1, 2], tmp_path / "list.pth")
    out = ("--out", tmp_path / "run")
    cases = [
        (("import", tmp_path / "none.pth", "--method=aol", *out), "none.pth: no such file"),
        (("import", tmp_path / "text.pth", "--method=aol", *out), "text.pth: corrupt checkpoint"),
        (("import", tmp_path / "list.pth", "--method=aol", *out), "list.pth: has no state dict"),
        (("import", file, "--method=sll", *out), "has no entry 'q'"),
        (("import", file, "--method=aol", "--out", trained), "exists; --resume continues it"),
    ]
    for arguments, text in cases:
        code, _, errors = run(*arguments)
        assert code != 0
        assert errors.startswith("Error: ")
        assert text in errors
        assert errors.count("\n") == 1
    assert not (tmp_path / "run").exists()
    run("import", file, "--method=aol", *out)
    code, _, errors = run("train", "--resume", *out)
    assert (code, errors.count("\n")) == (1, 1)
    assert "no run to continue" in errors or "path=''" in errors


def test_a_flipped_bit_of_a_published_file_is_found(published, tmp_path):
    file, _ = published
    with zipfile.ZipFile(file) as archive:
        position = max(archive.infolist(), key=lambda item: item.file_size).header_offset + 500
    content = bytearray(file.read_bytes())
    content[position] ^= 1
    file.write_bytes(content)
    code, _, errors = run("import", file, "--method=aol", "--out", tmp_path / "run")
    assert code == 1
    assert "corrupt checkpoint" in errors
