"""The report of a study: one self-contained HTML file, and its pictures as SVG files."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from typing import Any

from fastlip import plotting
from fastlip._extras import needed_for
from fastlip._files import write_text
from fastlip.study import plots
from fastlip.study.colors import VARIABLES, Looks, themed, variable
from fastlip.study.comparing import TABLES, Comparison, machine
from fastlip.study.means import CRA, Group
from fastlip.study.report_tables import long_table, runs_table, short_table
from fastlip.study.verdict import verdict
from fastlip.training.recipe_files import FIELDS

REPORT, PLOTS = "report.html", "plots"
_SECTIONS = {
    plots.CERTIFIED: (
        "Certified accuracy against radius",
        "Fraction of test images that are classified correctly with a certified radius above ε.",
    ),
    plots.TIME: ("Accuracy against time", "After each epoch; evaluation and checkpoints are not counted."),
    plots.BACKENDS: (
        "What the kernels gain",
        "Epochs that fit into the same training time, and the certified accuracy after them.",
    ),
    plots.RADAR: (
        "Six axes",
        "The comparison paper's axes: the best value here scores 5 (outer ring), the worst 1 (inner ring); accuracies"
        " are scored linearly, times and bytes by their logarithm. Thin lines: the others.",
    ),
}


def write_report(comparison: Comparison) -> list[str]:
    """Writes the pictures and report.html into the study's folder; returns a note if the pictures are left out."""
    groups = comparison.groups()
    missing = plotting.missing()
    pictures = [] if missing else plots.draw(groups)
    folder = comparison.folder / PLOTS
    for old in folder.glob("*.svg"):
        old.unlink()
    for picture in pictures:
        folder.mkdir(exist_ok=True)
        write_text(folder / f"{picture.name}.svg", picture.svg)
    write_text(comparison.folder / REPORT, _render(comparison, groups, pictures, missing))
    return [f"plots left out: {missing}"] if missing else []


def _render(comparison: Comparison, groups: Sequence[Group], pictures: Sequence[plots.Picture], missing: str) -> str:
    with needed_for("the report"):
        import jinja2
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fastlip.study", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    folder = comparison.folder
    return environment.get_template("report.html.jinja").render(
        verdict=verdict(groups, comparison.settings.budget),
        data=str(comparison.data),
        settings=comparison.settings,
        machine=machine(comparison.settings, comparison.contenders[0]),
        variables=VARIABLES,
        short=short_table(groups, folder),
        long=long_table(groups, folder),
        runs=runs_table(groups, folder) if any(len(group.rows) > 1 for group in groups) else None,
        several=any(len(group.finished) > 1 for group in groups),
        plain=any(group.contender.is_plain for group in groups),
        gains=_gains(groups),
        sections=_sections(pictures),
        missing=missing,
        tables=TABLES,
        command=command_of(comparison),
    )


def _sections(pictures: Sequence[plots.Picture]) -> list[dict[str, Any]]:
    """The sections that have pictures, in the order of the report."""
    found = []
    for section, (title, caption) in _SECTIONS.items():
        own = [picture for picture in pictures if picture.section == section]
        if own:
            shown = [{"title": picture.title, "svg": _inline(picture.svg)} for picture in own]
            found.append({"name": section, "title": title, "caption": caption, "pictures": shown})
    return found


def _inline(svg: str) -> str:
    """The element of an SVG file for an HTML page: in the page's colours, without namespaces and size."""
    element = svg[svg.index("<svg") :]
    head, _, rest = element.partition(">")
    (view_box,) = re.findall(r'viewBox="[^"]*"', head)
    return themed(f"<svg {view_box}>{rest}")


def _gains(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Compares each other backend with the first of its method, size and variant."""
    gains = []
    looks = Looks(groups)
    first: dict[str, Group] = {}
    for group in groups:
        measured = group.rows[0].measured
        if measured is None or group.contender.is_plain:
            continue
        one = first.setdefault(group.contender.group, group)
        if one is not group:
            gains.append(
                {
                    "label": one.contender.group,
                    "color": variable(looks.color(one)),
                    "backends": (one.contender.backend, group.contender.backend),
                    "epochs": (one.rows[0].epochs_in_budget, group.rows[0].epochs_in_budget),
                    "cra": tuple(g.mean(CRA) for g in (one, group)),
                }
            )
    return gains


def command_of(comparison: Comparison) -> str:
    """The command that reproduces this study."""
    settings = comparison.settings
    words = ["fastlip compare", f"--budget {settings.budget:g}"]
    words += [f"--search {settings.search}"] if settings.search else []
    for name, value in settings.options.items():
        flag = name.replace("_", "-")
        words.append(
            f"--{'' if value else 'no-'}{flag}" if isinstance(value, bool) else f"--{flag} {shlex.quote(str(value))}"
        )
    rows = comparison.rows()
    contenders = [row.contender for row in rows]
    bounded = [row for row in rows if not row.contender.is_plain]
    for flag in ("method", "size", "backend", "recipe"):
        values = dict.fromkeys(getattr(row.contender, flag) for row in bounded)
        if any(values):
            words.append(f"--{flag} {','.join(map(shlex.quote, values))}")
    keys = {item.name: key for key, item in FIELDS.items()}
    for name in dict.fromkeys(name for contender in contenders for name, _ in contender.changes):
        values = ",".join(_typed(value) for value in dict.fromkeys(row.about[name] for row in bounded))
        setting = shlex.quote(f"{keys[name]}={values}")
        words.append(f"--{name} {values}" if name in ("model", "loss") else f"--set {setting}")
    seeds = {contender.seed for contender in contenders}
    words += [f"--seeds {len(seeds)}"] if len(seeds) > 1 else []
    return " ".join(words if any(contender.is_plain for contender in contenders) else [*words, "--no-plain"])


def _typed(value: Any) -> str:
    """A value as a recipe file has it."""
    return str(value).lower() if isinstance(value, bool) else str(value)
