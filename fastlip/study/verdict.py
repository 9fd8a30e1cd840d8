"""The result of a study in one sentence."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import torch

from fastlip.study.formats import percent
from fastlip.study.means import CRA, Group
from fastlip.study.table import EPS_NAMES

_EPS = 36 / 255
# A lead of fewer standard errors may be chance.
_ERRORS = 2.0
_SHOWN = 0.0005  # a smaller lead is 0.0 points


def verdict(groups: Sequence[Group], budget: float) -> str:
    """Which network certifies most, by how much and how surely, and what the plain network does."""
    bounded = [group for group in groups if group.finished and not group.contender.is_plain]
    if not bounded:
        return "No network with a bounded Lipschitz constant is finished yet."
    ranked = sorted(bounded, key=lambda group: -(group.mean(CRA) or 0.0))
    first = ranked[0]
    text = (
        f"With {budget:g} s of training for each run, {first.label} certifies"
        f"{' most' if len(ranked) > 1 else ''}: CRA({EPS_NAMES[0]}) {percent(first, CRA)} %"
        f" at {percent(first, 'accuracy')} % accuracy"
    )
    if (second := _rival(first, ranked[1:])) is not None:
        text += f", {_lead(first, second)}"
    if plain := [group for group in groups if group.contender.is_plain and group.finished]:
        text += "; " + ", ".join(_unconstrained(group) for group in plain)
    return f"{text}."


def _rival(first: Group, others: Sequence[Group]) -> Group | None:
    """The best of another group than that which differs in the backend only, if there is one."""
    unlike = [group for group in others if group.contender.group != first.contender.group]
    return next(iter(unlike or others), None)


def _lead(first: Group, second: Group) -> str:
    lead = (first.mean(CRA) or 0.0) - (second.mean(CRA) or 0.0)
    if lead < _SHOWN:
        return f"as much as {second.label}"
    error = standard_error(first, second)
    doubt = "" if lead > _ERRORS * error else ", so that this may be chance"
    return f"{100 * lead:.1f} points ahead of {second.label} (standard error {100 * error:.1f}{doubt})"


def standard_error(first: Group, second: Group) -> float:
    r"""The standard error of the difference in CRA(36/255) between two groups.

    .. math:: \sqrt{\frac{s_1^2}{n_1} + \frac{s_2^2}{n_2} + \frac{\operatorname{var}_i(p_{1i} - p_{2i})}{m}}

    s is the deviation over n seeds (0 for one seed), p_i the fraction of a group's runs that certify test image i,
    and m the number of test images, which all runs have in common.
    """
    seeds = sum((group.deviation(CRA) or 0.0) ** 2 / len(group.finished) for group in (first, second))
    one, other = (_certified(group) for group in (first, second))
    images = 0.0
    if len(one) == len(other) > 1:
        images = statistics.variance([a - b for a, b in zip(one, other, strict=True)]) / len(one)
    return math.sqrt(seeds + images)


def _certified(group: Group) -> list[float]:
    """For each test image the fraction of the group's runs that certify it."""
    radii = torch.tensor([row.result["radii"] for row in group.finished], dtype=torch.float64)
    return (radii > _EPS).double().mean(0).tolist()


def _unconstrained(group: Group) -> str:
    return f"the {group.label} network has {percent(group, 'accuracy')} % accuracy and CRA {percent(group, CRA)} %"
