"""Compares methods under one budget: measures, searches, trains and certifies; each step can be interrupted."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

import fastlip
from fastlip._files import read_json, write_json, write_text
from fastlip.data import Data
from fastlip.study import running
from fastlip.study.measuring import Measured, measure
from fastlip.study.searching import BUDGET_FRACTION, search
from fastlip.study.settings import Contender, Settings
from fastlip.study.table import Row, to_csv
from fastlip.training.recipe import Recipe
from fastlip.training.recipe_files import default_recipe
from fastlip.training.run_folder import RunFolder

TABLE, TABLE_CSV = "table.json", "table.csv"
NOT_RUN = "not run yet"
# Timing takes this fraction of the budget, and at least this number of seconds.
_MEASURING_FRACTION, _MEASURING_LEAST = 0.02, 2.0


class Comparison:
    """A study in its folder.

    Args:
        folder: folder of ``study.json``; a folder for each run, ``measured/`` and ``search/`` are created in it.
        settings: budget, search and recipe.
        contenders: the requested runs.
        data: the images of all runs.
        say: is called with lines that report progress.
    """

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        contenders: Sequence[Contender],
        data: Data,
        say: Callable[[str], None],
    ):
        self.folder = folder
        self.settings = settings
        self.contenders = contenders
        self.data = data
        self.say = say

    def run(self) -> None:
        """Does the steps that are not done yet, and writes the table after each run.

        Raises:
            Interrupted: a signal arrived during training; the run is saved.
        """
        for _, group in groupby(enumerate(self.contenders, 1), key=lambda numbered: numbered[1][:2]):
            numbered = list(group)
            self._measure([contender for _, contender in numbered])
            for index, contender in numbered:
                if running.result_of(self.folder / contender.name) is None:
                    self._train(contender, f"[{index}/{len(self.contenders)}] {' '.join(contender)}")
                    self.write_table()
        self.write_table()

    def retry(self) -> None:
        """Deletes the failed runs of the contenders, so that :meth:`run` repeats them from the start."""
        for contender in self.contenders:
            if (running.result_of(self.folder / contender.name) or {}).get("reason"):
                RunFolder(self.folder / contender.name).clear()
            if self._kept(contender) and not isinstance(self._measured(contender), Measured):
                self._measured_file(contender).unlink()

    def rows(self) -> list[Row]:
        """A row for each contender, and for each run of the folder that was requested before."""
        return [self._row(contender) for contender in (*self.contenders, *self._earlier())]

    def write_table(self) -> None:
        """Replaces table.json and table.csv."""
        rows = self.rows()
        about = {**self.settings.to_dict(), "machine": machine(self.settings), "rows": [row.values() for row in rows]}
        write_json(self.folder / TABLE, about)
        write_text(self.folder / TABLE_CSV, to_csv(rows))

    def _row(self, contender: Contender) -> Row:
        found = self._measured(contender)
        result = running.result_of(self.folder / contender.name) or {}
        reason = result.get("reason", "")
        if not result:
            reason = NOT_RUN if isinstance(found, Measured) or not found else found
        if isinstance(found, Measured) and not result and not self._steps(found):
            reason = f"a step takes {found.seconds_per_step:.3g} s, the budget is {self.settings.budget:g} s"
        measured = found if isinstance(found, Measured) else None
        return Row(contender, self.settings.budget, measured, result, reason)

    def _earlier(self) -> Iterable[Contender]:
        for file in sorted(self.folder.glob("measured/*.json")):
            contender = Contender.named(file.stem)
            if contender not in self.contenders and running.result_of(self.folder / contender.name):
                yield contender

    def _measure(self, group: list[Contender]) -> None:
        missing = [contender for contender in group if not self._kept(contender)]
        if not missing:
            return
        self.say(f"measuring {' '.join(group[0][:2])}: {', '.join(c.backend for c in missing)}")
        recipes = {contender.name: self.settings.recipe(contender) for contender in missing}
        seconds = max(_MEASURING_LEAST, _MEASURING_FRACTION * self.settings.budget)
        found, failed = measure(recipes, self.data, seconds)
        for contender in missing:
            name = contender.name
            kept = found[name].to_dict() if name in found else {"reason": failed[name]}
            self._measured_file(contender).parent.mkdir(exist_ok=True)
            write_json(self._measured_file(contender), kept)

    def _train(self, contender: Contender, title: str) -> None:
        found = self._measured(contender)
        if not isinstance(found, Measured) or not self._steps(found):
            self.say(f"{title}: {self._row(contender).reason}")
            return
        recipe = self._recipe(contender, found)
        if self.settings.search:
            recipe = self._searched(contender, recipe)
        seconds = found.seconds_per_epoch
        self.say(f"{title}: {recipe.epochs:.1f} epochs of {seconds:.3g} s, {found.images / seconds:.0f} images/s")
        result = running.run(recipe, self.data, self.folder / contender.name)
        if reason := result.get("reason"):
            self.say(f"{title}: failed: {reason}")
            return
        self.say(
            f"{title}: accuracy {result['accuracy']:.1%}, CRA at 36/255 {result['cra'][0]:.1%},"
            f" audited L {result['lipschitz']:.7f}"
        )

    def _searched(self, contender: Contender, recipe: Recipe) -> Recipe:
        """The recipe with the best pair of the search, which is the same for all backends of a method and size."""
        alike = (c for c in (*self.contenders, contender) if c[:2] == contender[:2])
        first, measured = next((c, m) for c in alike if isinstance(m := self._measured(c), Measured))
        trial = self._recipe(first, measured, BUDGET_FRACTION)
        self.say(f"{' '.join(contender[:2])}: {self.settings.search + 1} trials of {trial.epochs:.1f} epochs")
        folder = self.folder / "search" / "-".join(contender[:2])
        best = search(trial, self.data, folder, self.settings.search)[0]
        return dataclasses.replace(recipe, lr=best["lr"], weight_decay=best["weight_decay"])

    def _recipe(self, contender: Contender, measured: Measured, fraction: float = 1.0) -> Recipe:
        """The contender's recipe with the number of steps, at least one, for this fraction of the budget."""
        steps = max(1, self._steps(measured, fraction))
        return self.settings.recipe(contender, epochs=steps / measured.steps_per_epoch)

    def _steps(self, measured: Measured, fraction: float = 1.0) -> int:
        return int(fraction * self.settings.budget / measured.seconds_per_step)

    def _measured_file(self, contender: Contender) -> Path:
        return self.folder / "measured" / f"{contender.name}.json"

    def _kept(self, contender: Contender) -> bool:
        return self._measured_file(contender).is_file()

    def _measured(self, contender: Contender) -> Measured | str:
        """The measured costs, or the reason why there are none; "" where nothing was tried."""
        if not self._kept(contender):
            return ""
        kept = read_json(self._measured_file(contender))
        return kept["reason"] if "reason" in kept else Measured(**kept)


def machine(settings: Settings) -> dict[str, Any]:
    """The device and the versions with which the study ran."""
    wanted = settings.options.get("device", "auto")
    on_gpu = torch.cuda.is_available() and not wanted.startswith("cpu")
    return {
        "device": torch.cuda.get_device_name() if on_gpu else platform.processor() or platform.machine(),
        "threads": default_recipe(settings.options).threads or torch.get_num_threads(),
        "torch": torch.__version__,
        "fastlip": fastlip.__version__,
    }
