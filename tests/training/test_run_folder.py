"""The run folder: which files it has, and what a second run of the same name leaves of the first."""

from pathlib import Path

import pytest

from fastlip.training import checkpoint
from fastlip.training.recipe import Recipe
from fastlip.training.run_folder import RunFolder

RUN = [
    "card.json",
    "certificate.json",
    "checkpoint.pt",
    "log.csv",
    "README.md",
    "events.out.tfevents.1",
    "recipe.json",
]
REPORT = ["certificate.json", "radii.csv", "curve.png", "broken.pt"]


def fill(folder):
    for name in [*RUN, "notes.txt", *(f"certify-test/{name}" for name in [*REPORT, "mine.txt"])]:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("old")


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_run_replaces_the_files_of_another_and_nothing_else(tmp_path):
    fill(tmp_path)
    RunFolder(tmp_path).claim(Recipe(seed=7))
    assert names(tmp_path) == ["certify-test/mine.txt", "notes.txt", "recipe.json"]
    assert RunFolder(tmp_path).read_recipe() == Recipe(seed=7)


def test_a_run_of_a_study_is_cleared(tmp_path):
    fill(tmp_path)
    for name in ("result.json", "failure.txt"):
        (tmp_path / name).write_text("old")
    RunFolder(tmp_path).clear()
    left = {"README.md", "card.json", "events.out.tfevents.1", "notes.txt"}
    assert set(names(tmp_path)) == left | {f"certify-test/{name}" for name in [*REPORT, "mine.txt"]}


def test_a_checkpoint_elsewhere_is_a_run_with_its_own_name(tmp_path):
    assert RunFolder.at(tmp_path) == RunFolder(tmp_path)
    assert RunFolder.at(tmp_path / "copy.pt").checkpoint == tmp_path / "copy.pt"
    assert RunFolder.at(tmp_path / "copy.pt").report("train").path == tmp_path / "certify-train"
    with pytest.raises(checkpoint.CheckpointError, match=r"^copy\.pt: no such checkpoint"):
        RunFolder.at(Path("copy.pt")).load_state()


def test_the_log_is_read_as_it_was_written(tmp_path, make_training, tiny_recipe):
    folder = RunFolder(tmp_path / "run")
    assert folder.history() == []
    training = make_training(tiny_recipe(epochs=2))
    training.fit(tensorboard=False)
    assert folder.history() == training.progress.history
    assert folder.load_state()["progress"]["history"] == training.progress.history
