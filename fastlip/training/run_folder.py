"""The folder of a run: the names of its files, and how each is read and written.

``fastlip train`` and ``fastlip import`` make such folders, a study makes one for each of its runs and trials, and
``fastlip certify`` adds a folder with a report.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fastlip._files import read_json, write_json, write_text
from fastlip.training import checkpoint, logs
from fastlip.training.recipe import Recipe

CHECKPOINT = "checkpoint.pt"
RECIPE, LOG, CERTIFICATE = "recipe.json", "log.csv", "certificate.json"
CARD, CARD_TEXT = "card.json", "README.md"
# Of the runs of a study, and of the trials of its search.
RESULT, FAILURE, TRIAL = "result.json", "failure.txt", "trial.json"
RADII, CURVE, BROKEN = "radii.csv", "curve.png", "broken.pt"
_EVENTS = "events.out.tfevents.*"
_REPORTS = "certify-{}"
# In the order in which they go when a run is replaced: without its checkpoint it cannot be continued by mistake.
_OF_A_RUN = (CHECKPOINT, CERTIFICATE, CARD, CARD_TEXT, LOG)
_OF_A_STUDY = (RECIPE, CERTIFICATE, RESULT, FAILURE, CHECKPOINT, LOG)

Split = Literal["test", "train"]


@dataclass(frozen=True)
class Report:
    """A folder with the files of ``fastlip certify``."""

    path: Path

    @property
    def certificate(self) -> Path:
        """The certificate, and the attack if there was one."""
        return self.path / CERTIFICATE

    @property
    def radii(self) -> Path:
        """A table with a line for each image."""
        return self.path / RADII

    @property
    def curve(self) -> Path:
        """The picture of accuracy against radius."""
        return self.path / CURVE

    @property
    def broken(self) -> Path:
        """The images whose certificates an attack broke."""
        return self.path / BROKEN

    def clear(self) -> None:
        """Removes its files."""
        for file in (self.certificate, self.radii, self.curve, self.broken):
            file.unlink(missing_ok=True)


@dataclass(frozen=True)
class RunFolder:
    """A run's folder, which need not exist yet.

    Args:
        path: the folder.
        checkpoint_name: name of the checkpoint in it; a checkpoint that was copied elsewhere may have another name.
    """

    path: Path
    checkpoint_name: str = CHECKPOINT

    @classmethod
    def at(cls, place: Path) -> RunFolder:
        """The run in this folder, or of this checkpoint file."""
        return cls(place) if place.is_dir() else cls(place.parent, place.name)

    @property
    def checkpoint(self) -> Path:
        """The file of the run's state."""
        return self.path / self.checkpoint_name

    @property
    def log(self) -> Path:
        """The table with a line for each epoch."""
        return self.path / LOG

    @property
    def certificate(self) -> Path:
        """The certificate of the trained network; a run of ``fastlip train`` that has one is finished."""
        return self.path / CERTIFICATE

    @property
    def recipe(self) -> Path:
        """The file of the recipe; a folder that has one is a run folder."""
        return self.path / RECIPE

    @property
    def result(self) -> Path:
        """The file with which a study marks a run as finished."""
        return self.path / RESULT

    @property
    def trial(self) -> Path:
        """The file with which a search marks a trial as finished."""
        return self.path / TRIAL

    def report(self, split: Split) -> Report:
        """The report on a split of the run's data."""
        return Report(self.path / _REPORTS.format(split))

    def claim(self, recipe: Recipe) -> None:
        """Makes the folder with this recipe, and removes the files of the run that it replaces and of its reports."""
        self.path.mkdir(parents=True, exist_ok=True)
        for old in (*(self.path / name for name in _OF_A_RUN), *self.path.glob(_EVENTS)):
            old.unlink(missing_ok=True)
        for report in self.path.glob(_REPORTS.format("*")):
            Report(report).clear()
        self.write_recipe(recipe)

    def clear(self) -> None:
        """Removes what a run of a study has written."""
        for name in _OF_A_STUDY:
            (self.path / name).unlink(missing_ok=True)

    def read_recipe(self) -> Recipe:
        """The recipe in the folder; ValueError names a file that is damaged."""
        values = read_json(self.recipe)
        try:
            return Recipe.from_dict(values)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self.recipe}: {error}") from None

    def write_recipe(self, recipe: Recipe) -> None:
        """Writes the recipe."""
        write_json(self.recipe, recipe.to_dict())

    def load_state(self) -> dict[str, Any]:
        """The checkpoint as :func:`fastlip.training.checkpoint.load` reads it."""
        return checkpoint.load(self.checkpoint)

    def load_run(self) -> tuple[Recipe, dict[str, Any], dict[str, Any]]:
        """Recipe, data and state of the checkpoint, as :func:`fastlip.training.checkpoint.load_run` reads them."""
        return checkpoint.load_run(self.checkpoint)

    def save_state(self, state: dict[str, Any], history: Sequence[Mapping[str, float]] | None = None) -> None:
        """Writes the checkpoint, then the log that belongs to it, if there is a history."""
        checkpoint.save(self.checkpoint, state)
        if history is not None:
            logs.write_csv(self.log, history)

    def history(self) -> list[dict[str, float]]:
        """The rows of the log, one for each epoch; none where there is no log."""
        return logs.read_csv(self.log) if self.log.is_file() else []

    def write_certificate(self, figures: Mapping[str, Any]) -> None:
        """Writes the certificate of the trained network."""
        write_json(self.certificate, figures)

    def write_card(self, card: dict[str, Any], text: str) -> None:
        """Writes the model card into the checkpoint, and next to it as JSON and as Markdown text."""
        checkpoint.save(self.checkpoint, {**self.load_state(), "card": card})
        write_json(self.path / CARD, card)
        write_text(self.path / CARD_TEXT, text)

    def write_failure(self, text: str) -> None:
        """Writes the traceback of a run that failed."""
        write_text(self.path / FAILURE, text)
