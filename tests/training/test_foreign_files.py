"""Checkpoints and recipes from anyone: one clear error that names the file, before memory is taken."""

import os
import pickle
import zipfile

import pytest
import torch

from fastlip import hub
from fastlip.training import checkpoint
from fastlip.training.card import card_text, make_card
from fastlip.training.checkpoint import CheckpointError
from fastlip.training.markdown import markdown
from fastlip.training.recipe import Recipe
from fastlip.training.recipe_files import default_recipe, read
from fastlip.training.run_folder import RunFolder
from fastlip.training.setup import batches_of, device_of, network_of

RECIPE = Recipe(layers_per_block=1, width=2)
DATA = {"name": "digits", "shape": [1, 8, 8], "divisor": 16.0, "mean": [0.3], "class_count": 10}


@pytest.fixture(scope="module")
def good():
    weights = network_of(RECIPE, (1, 8, 8), 10).state_dict()
    empty = {"optimizer": {}, "scheduler": {}, "progress": {}}
    return {"recipe": RECIPE.to_dict(), "data": DATA, "model": weights, **empty}


def weights(change):
    def changed(good):
        return {"model": {name: change(value) for name, value in good["model"].items()}}

    return changed


def recipe(**values):
    return lambda good: {"recipe": {**good["recipe"], **values}}


def data(**values):
    return lambda good: {"data": {**good["data"], **values}}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (recipe(width=2**16), "weights do not fit its recipe: got"),
        (recipe(width=10**7), "width=10000000: must be at most"),
        (recipe(layers_per_block=1000), "weights do not fit its recipe: got"),
        (recipe(width="2"), "its recipe is damaged: width: got '2', expected int"),
        (recipe(lr=True), "its recipe is damaged: lr: got True"),
        (recipe(surprise=1), "its recipe is damaged: recipe: unknown fields: surprise"),
        (lambda good: {"recipe": {1: 2}}, "its recipe is damaged: recipe: unknown fields: 1"),
        (lambda good: {"recipe": [1]}, "recipe is no dict"),
        (lambda good: {"data": {}}, "its data is damaged: name=None"),
        (data(shape=[1, 8, 4]), r"shape=\[1, 8, 4\]: expected"),
        (data(shape=[1, 10**9, 10**9]), "shape="),
        (data(shape=[1, 8.0, 8.0]), "shape="),
        (data(divisor=0), "divisor=0"),
        (data(divisor=float("nan")), "divisor=nan"),
        (data(mean=["a"]), "mean="),
        (data(class_count=10**9), "its recipe gives no network: num_classes=1000000000"),
        (data(class_count=True), "class_count=True"),
        (weights(lambda value: value.to(torch.complex64)), "is of torch.complex64, expected torch.float32"),
        (weights(lambda value: value.half()), "is of torch.float16, expected torch.float32"),
        (weights(lambda value: value.double()), "is of torch.float64, expected torch.float32"),
        (weights(lambda value: value.int()), "is of torch.int32, expected torch.float32"),
        (weights(lambda value: value * float("nan")), "is not finite"),
        (weights(lambda value: value[:1]), "weights do not fit"),
        (weights(lambda value: value.to_sparse()), "a tensor without dense values"),
        (weights(lambda value: value.new_zeros(1).expand(10**12)), "on 4 bytes"),
        (weights(lambda value: 1), "is no tensor"),
        (lambda good: {"model": {}}, "weights do not fit"),
        (lambda good: {"model": {**good["model"], "more": torch.zeros(1)}}, "weights do not fit"),
        (lambda good: {"model": dict(list(good["model"].items())[1:])}, "weights do not fit"),
    ],
)
def test_a_foreign_checkpoint_is_one_error(tmp_path, good, change, text):
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, {**good, **change(good)})
    with pytest.raises(CheckpointError, match=rf"checkpoint\.pt: .*{text}"):
        hub.load(path)


def test_the_unchanged_checkpoint_loads(tmp_path, good):
    checkpoint.save(tmp_path / "checkpoint.pt", good)
    assert hub.load(tmp_path / "checkpoint.pt")(torch.zeros(1, 1, 8, 8)).shape == (1, 10)


def rewritten(source, target, compression=zipfile.ZIP_STORED, replace=lambda name, content: content):
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, replace(name, old.read(name)))


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_compressed_archive_is_not_inflated(tmp_path, good, compression):
    checkpoint.save(tmp_path / "good.pt", good)
    rewritten(tmp_path / "good.pt", tmp_path / "bomb.pt", compression)
    with pytest.raises(CheckpointError, match=r"bomb\.pt: corrupt checkpoint \(.* is compressed\)"):
        hub.load(tmp_path / "bomb.pt")


class Runs:
    def __reduce__(self):
        return (os.system, ("touch ran",))


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps(Runs()),
        pickle.dumps(bytearray(8)),
        b"",
        b"(lp0\n",
        b"\x80\x02\x8a\xff",
        b"cos\nsystem\n(S'x'\ntR.",
    ],
)
def test_a_damaged_or_hostile_pickle_runs_nothing(tmp_path, good, content, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint.save(tmp_path / "good.pt", good)
    rewritten("good.pt", "bad.pt", replace=lambda name, old: content if name.endswith("data.pkl") else old)
    with pytest.raises(CheckpointError, match=r"bad\.pt: (corrupt|not a) checkpoint"):
        hub.load("bad.pt")
    assert sorted(os.listdir()) == ["bad.pt", "good.pt"]


def test_a_run_whose_progress_is_damaged_is_not_continued(make_training, tiny_recipe, tmp_path):
    training = make_training(tiny_recipe())
    training.save()
    state = checkpoint.load(tmp_path / "run" / "checkpoint.pt")
    for name, value in (("progress", {"surprise": 1}), ("optimizer", {"state": {}}), ("random", {"torch": 1})):
        with pytest.raises(CheckpointError, match="the run in it cannot be continued"):
            make_training(tiny_recipe(), state={**state, name: value})


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("[optimizer]\nlr = 1e300", r"optimizer\.lr=1e\+300: must be 0 or"),
        ("[optimizer]\nlr = 1" + "0" * 400, "got an integer of"),
        ("[optimizer]\nlr = 1" + "0" * 5000, "is not TOML"),
        ("[optimizer]\nlr = inf", "must be finite"),
        ("[optimizer]\nlr = nan", "must be finite"),
        ("[optimizer]\nlr = true", "expected float"),
        ("[optimizer]\nweight_decay = 1e308", r"weight_decay=1e\+308: must be 0 or"),
        ("[loss]\ntemperature = 1e-300", "temperature=1e-300: must be 0 or"),
        ("[run]\nthreads = 1000000", "threads=1000000: must be at most 1024"),
        ("[run]\nthreads = true", "expected int"),
        ("[run]\nworkers = 1000000", "workers=1000000: must be at most 256"),
        ("[run]\naccumulate = 100000000", "must be at most"),
        ("[model]\nwidth = 10000000", "must be at most"),
        ("[model]\nlayers_per_block = 1000000", "must be at most"),
        ("[data]\nimage_size = 1000000", "must be at most"),
        ("[schedule]\nepochs = 1e30", "must be at most"),
        ("[schedule]\nbatch_size = 1000000000000", "must be at most"),
        ("a = " + "[" * 5000 + "]" * 5000, "is not TOML"),
    ],
)
def test_wild_recipes_are_one_error(tmp_path, text, error):
    (tmp_path / "wild.toml").write_text(text)
    with pytest.raises(ValueError, match=rf"wild\.toml: .*{error}"):
        read(tmp_path / "wild.toml")


@pytest.mark.parametrize("text", ["[1]", "1", '{"lr": "1"}', '{"lr": 1e999}', '{"lr": true}', "{"])
def test_a_damaged_recipe_of_a_run_is_named(tmp_path, text):
    (tmp_path / "recipe.json").write_text(text)
    with pytest.raises(ValueError, match=r"recipe\.json: "):
        RunFolder(tmp_path).read_recipe()


def test_what_does_not_fit_the_data_or_the_machine_is_named(tiny_data, monkeypatch):
    with pytest.raises(ValueError, match="shift=8: must be below the 8 pixels"):
        batches_of(Recipe(shift=8), tiny_data, tiny_data.train, augment=True)
    with pytest.raises(ValueError, match="device='meta': cannot be used here"):
        device_of(Recipe(device="meta"))
    # 2**62 bytes are more than any machine has.
    monkeypatch.setattr("fastlip.training.setup.create_model", lambda *_, **__: torch.empty(2**60))
    with pytest.raises(ValueError, match="width=64, layers_per_block=5: the network does not fit into memory"):
        network_of(Recipe(width=64), (3, 32, 32), 10)


NAMES = ["a|b", "<script>alert(1)</script>", "$x_1$", "*a* _b_ `c`", "[a](b)", "![](x.png)", "a\n# b", "\udcff"]


@pytest.mark.parametrize("name", NAMES)
def test_names_are_literal_text_in_a_card(good, name):
    model = network_of(RECIPE, (1, 8, 8), 10).eval()
    text = card_text(make_card(model, default_recipe({}), {**DATA, "name": name}, imported=name))
    heading = text.splitlines()[0]
    assert heading.endswith(f" on {markdown(name)}")
    assert "<script>" not in text
    assert len(text.splitlines()) == len(card_text(make_card(model, RECIPE, DATA, imported="x")).splitlines())
    text.encode()
