"""Compares methods under one budget: measures, searches, trains and certifies; each step can be interrupted."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

import fastlip
from fastlip._files import read_json, write_json, write_text
from fastlip._machine import processor
from fastlip.data import Data
from fastlip.study import running
from fastlip.study.contenders import Contender
from fastlip.study.formats import to_csv, to_latex, to_markdown
from fastlip.study.means import Group, groups_of
from fastlip.study.measuring import Measured, measure
from fastlip.study.searching import BUDGET_FRACTION, search
from fastlip.study.settings import Settings
from fastlip.study.table import Row
from fastlip.training.recipe import Recipe
from fastlip.training.recipe_files import default_name
from fastlip.training.run_folder import RunFolder

TABLE, RUNS_CSV = "table.json", "runs.csv"
TABLE_CSV, TABLE_MARKDOWN, TABLE_LATEX = "table.csv", "table.md", "table.tex"
TABLES = (TABLE_CSV, TABLE_MARKDOWN, TABLE_LATEX, RUNS_CSV, TABLE)
NOT_RUN = "not run yet"
# Timing takes this fraction of the budget, and at least this number of seconds.
_MEASURING_FRACTION, _MEASURING_LEAST = 0.02, 2.0
# The order in which labels name what varies: by the section of its key.
_SECTIONS = ("model", "schedule", "optimizer", "loss", "data", "run")


class Comparison:
    """A study in its folder.

    Args:
        folder: folder of ``study.json``; a folder for each run, ``measured/`` and ``search/`` are created in it.
        settings: budget, search and recipe.
        contenders: the requested runs.
        earlier: the runs that were requested before.
        data: the images of all runs.
        say: is called with lines that report progress.
    """

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        contenders: Sequence[Contender],
        earlier: Sequence[Contender],
        data: Data,
        say: Callable[[str], None],
    ):
        self.folder = folder
        self.settings = settings
        self.contenders = contenders
        self.earlier = [contender for contender in earlier if contender not in contenders]
        self.data = data
        self.say = say

    def run(self) -> None:
        """Does the steps that are not done yet, and writes the table after each run.

        Raises:
            Interrupted: a signal arrived during training; the run is saved.
        """
        for _, group in groupby(enumerate(self.contenders, 1), key=lambda numbered: numbered[1].group):
            numbered = list(group)
            self._measure([contender.with_seed(None) for _, contender in numbered])
            for index, contender in numbered:
                if running.result_of(self.folder / contender.name) is None:
                    self._train(contender, f"[{index}/{len(self.contenders)}] {contender.name}")
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
        """A row for each contender, and for each finished run of the folder that was requested before."""
        earlier = [one for one in self.earlier if running.result_of(self.folder / one.name)]
        contenders = (*self.contenders, *earlier)
        changed = {name for contender in contenders for name, _ in contender.changes}
        found = [item for item in dataclasses.fields(Recipe) if item.name in changed]
        varied = [item.name for item in sorted(found, key=_section)]
        several = any(contender.recipe for contender in contenders)
        return [self._row(contender, self._about(contender, varied, several)) for contender in contenders]

    def groups(self) -> list[Group]:
        """A group for the runs of each contender with all seeds."""
        return groups_of(self.rows())

    def write_table(self) -> None:
        """Replaces the tables: runs.csv has a row for each run, table.csv, .md and .tex one for all its seeds."""
        rows, groups = self.rows(), self.groups()
        about = {**self.settings.to_dict(), "machine": machine(self.settings, self.contenders[0])}
        runs = [row.values() for row in rows]
        means = [group.values() for group in groups]
        write_json(self.folder / TABLE, {**about, "rows": runs, "means": means})
        write_text(self.folder / RUNS_CSV, to_csv(runs))
        write_text(self.folder / TABLE_CSV, to_csv(means))
        write_text(self.folder / TABLE_MARKDOWN, to_markdown(groups))
        write_text(self.folder / TABLE_LATEX, to_latex(groups))

    def _about(self, contender: Contender, varied: Iterable[str], several: bool) -> dict[str, Any]:
        """The seed, and what varies between contenders."""
        recipe = self.settings.recipe(contender)
        named = {"recipe": Path(contender.recipe).stem or default_name(self.settings.options)} if several else {}
        return {**named, **{name: getattr(recipe, name) for name in varied}, "seed": recipe.seed}

    def _row(self, contender: Contender, about: Mapping[str, Any]) -> Row:
        found = self._measured(contender)
        result = running.result_of(self.folder / contender.name) or {}
        reason = result.get("reason", "")
        if not result:
            reason = NOT_RUN if isinstance(found, Measured) or not found else found
        if isinstance(found, Measured) and not result and not self._steps(found):
            reason = f"a step takes {found.seconds_per_step:.3g} s, the budget is {self.settings.budget:g} s"
        measured = found if isinstance(found, Measured) else None
        return Row(contender, self.settings.budget, measured, result, reason, about)

    def _measure(self, group: list[Contender]) -> None:
        missing = [contender for contender in dict.fromkeys(group) if not self._kept(contender)]
        if not missing:
            return
        self.say(f"measuring {group[0].group}: {', '.join(c.backend for c in missing)}")
        recipes = {contender.name: self.settings.recipe(contender) for contender in missing}
        seconds = max(_MEASURING_LEAST, _MEASURING_FRACTION * self.settings.budget)
        found, failed = measure(recipes, self.data, seconds, plain=group[0].is_plain)
        for contender in missing:
            name = contender.name
            kept = found[name].to_dict() if name in found else {"reason": failed[name]}
            self._measured_file(contender).parent.mkdir(exist_ok=True)
            write_json(self._measured_file(contender), kept)

    def _train(self, contender: Contender, title: str) -> None:
        found = self._measured(contender)
        if not isinstance(found, Measured) or not self._steps(found):
            self.say(f"{title}: {self._row(contender, {}).reason}")
            return
        recipe = self._recipe(contender, found)
        if self.settings.search:
            recipe = self._searched(contender, recipe)
        seconds = found.seconds_per_epoch
        self.say(f"{title}: {recipe.epochs:.1f} epochs of {seconds:.3g} s, {found.images / seconds:.0f} images/s")
        result = running.run(recipe, self.data, self.folder / contender.name, plain=contender.is_plain)
        if reason := result.get("reason"):
            self.say(f"{title}: failed: {reason}")
            return
        self.say(
            f"{title}: accuracy {result['accuracy']:.1%}, CRA at 36/255 {result['cra'][0]:.1%},"
            f" audited L {result['lipschitz']:.7f}"
        )

    def _searched(self, contender: Contender, recipe: Recipe) -> Recipe:
        """The recipe with the best pair of the search, which is the same for all backends and seeds of a group."""
        alike = (c for c in (*self.contenders, contender) if c.group == contender.group)
        first, measured = next((c, m) for c in alike if isinstance(m := self._measured(c), Measured))
        trial = self._recipe(first, measured, BUDGET_FRACTION)
        self.say(f"{contender.group}: {self.settings.search + 1} trials of {trial.epochs:.1f} epochs")
        folder = self.folder / "search" / contender.group
        best = search(trial, self.data, folder, self.settings.search, plain=contender.is_plain)[0]
        return dataclasses.replace(recipe, lr=best["lr"], weight_decay=best["weight_decay"])

    def _recipe(self, contender: Contender, measured: Measured, fraction: float = 1.0) -> Recipe:
        """The contender's recipe with the number of steps, at least one, for this fraction of the budget."""
        steps = max(1, self._steps(measured, fraction))
        return self.settings.recipe(contender, epochs=steps / measured.steps_per_epoch)

    def _steps(self, measured: Measured, fraction: float = 1.0) -> int:
        return int(fraction * self.settings.budget / measured.seconds_per_step)

    def _measured_file(self, contender: Contender) -> Path:
        # Costs do not depend on the seed.
        return self.folder / "measured" / f"{contender.with_seed(None).name}.json"

    def _kept(self, contender: Contender) -> bool:
        return self._measured_file(contender).is_file()

    def _measured(self, contender: Contender) -> Measured | str:
        """The measured costs, or the reason why there are none; "" where nothing was tried."""
        if not self._kept(contender):
            return ""
        kept = read_json(self._measured_file(contender))
        return kept["reason"] if "reason" in kept else Measured(**kept)


def _section(field: dataclasses.Field[Any]) -> int:
    return _SECTIONS.index(field.metadata["key"].partition(".")[0])


def machine(settings: Settings, contender: Contender) -> dict[str, Any]:
    """The device and the versions with which the study ran, and the threads of this run, which all runs have."""
    wanted = settings.options.get("device", "auto")
    on_gpu = torch.cuda.is_available() and not wanted.startswith("cpu")
    return {
        "device": torch.cuda.get_device_name() if on_gpu else processor(),
        "threads": settings.recipe(contender).threads or torch.get_num_threads(),
        "torch": torch.__version__,
        "fastlip": fastlip.__version__,
    }
