"""The colours of a report: hexadecimal in figures, and as CSS variables with a value for light and one for dark."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from fastlip.models import METHODS
from fastlip.study.means import Group

# Okabe and Ito's colours, which colour-blind people can tell apart (without yellow, which is pale on white), and
# some of Tol's; next to each the one that takes its place on a dark page. A method has the same colour everywhere.
PALETTE = (
    ("#0072b2", "#4aa8e0"),
    ("#e69f00", "#f0b429"),
    ("#009e73", "#2bc49a"),
    ("#d55e00", "#f08040"),
    ("#cc79a7", "#e29bc4"),
    ("#56b4e9", "#9ad4f5"),
    ("#000000", "#f5f5f5"),
    ("#882255", "#d0608f"),
    ("#999933", "#c9c95c"),
    ("#6655bb", "#a99bf0"),
    ("#7a4a1e", "#c99563"),
    ("#44aa99", "#7fdccb"),
)
INK, GREY, LINE, PLAIN = "#222222", "#555555", "#dddddd", "#777777"
# Name of the CSS variable: its value on a light and on a dark page.
VARIABLES = {
    "ink": (INK, "#e6e6e6"),
    "grey": (GREY, "#a8a8a8"),
    "line": (LINE, "#3c4043"),
    "plain": (PLAIN, "#9a9a9a"),
    **{f"c{index}": pair for index, pair in enumerate(PALETTE)},
}
_BY_COLOR = {light: f"var(--{name})" for name, (light, _) in VARIABLES.items()}
_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 2, 1, 2)))
_MARKERS = "os^Dv<>PX*hp"


def color(method: str) -> str:
    """The method's colour."""
    return PALETTE[METHODS.index(method) % len(PALETTE)][0]


def variable(color: str) -> str:
    """The CSS variable of this colour."""
    return _BY_COLOR[color]


def themed(text: str) -> str:
    """Text in which CSS variables take the place of colours, so that it follows the page's light or dark colours."""
    return re.sub("#[0-9a-f]{6}", lambda found: _BY_COLOR.get(found[0], found[0]), text)


class Looks:
    """Colours and lines of groups: methods differ in colour and variants of a method in dashes.

    Variants of a single method differ in colour.
    """

    def __init__(self, groups: Sequence[Group]):
        constrained = [group.contender for group in groups if not group.contender.is_plain]
        self.variants = list(dict.fromkeys(contender.variant for contender in constrained))
        self.by_variant = len({contender.method for contender in constrained}) == 1

    def color(self, group: Group) -> str:
        """The group's colour."""
        contender = group.contender
        if contender.is_plain:
            return PLAIN
        if self.by_variant and len(self.variants) > 1:
            return PALETTE[self.variants.index(contender.variant) % len(PALETTE)][0]
        return color(contender.method)

    def line(self, group: Group) -> dict[str, Any]:
        """Colour, marker and dashes of the group's curve."""
        contender = group.contender
        if contender.is_plain:
            return {"color": PLAIN, "linestyle": _DASHES[1], "linewidth": 1.6}
        index = self.variants.index(contender.variant)
        marker = index if self.by_variant else METHODS.index(contender.method)
        dash = 0 if self.by_variant else index
        return {
            "color": self.color(group),
            "marker": _MARKERS[marker % len(_MARKERS)],
            "linestyle": _DASHES[dash % len(_DASHES)],
            "linewidth": 1.6,
        }
