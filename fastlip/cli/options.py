"""Options that commands share: those of a recipe, and radii that may be written as fractions."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import Field, fields
from fractions import Fraction
from typing import Any

import click

from fastlip.certification.certificates import DEFAULT_EPS
from fastlip.training.recipe import Recipe
from fastlip.training.recipe_files import default_recipe


class Radius(click.ParamType):
    """A positive number, or a fraction such as 36/255."""

    name = "radius"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The radius as a float."""
        try:
            radius = float(Fraction(value)) if isinstance(value, str) else float(value)
        except (ValueError, ZeroDivisionError):
            self.fail(f"{value!r} is not a number or a fraction such as 36/255", param, ctx)
        if radius <= 0:
            self.fail(f"{value!r} is not positive", param, ctx)
        return radius


def eps_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds ``--eps``, which may be repeated."""
    return click.option(
        "--eps",
        type=Radius(),
        multiple=True,
        default=DEFAULT_EPS,
        show_default=False,
        help="Radius of certified accuracy; repeat the option for several.  [default: 36/255, 72/255, 108/255, 1]",
    )(command)


def radius_name(eps: float) -> str:
    """The text 36/255 for a radius that is a multiple of 1/255, otherwise the number."""
    steps = round(eps * 255)
    return f"{steps}/255" if abs(eps * 255 - steps) < 1e-9 and steps % 255 else f"{eps:g}"


def recipe_options(command: Callable[..., Any], without: Collection[str] = ()) -> Callable[..., Any]:
    """Adds an option for each field of :class:`Recipe` except those in without; the default of each is None."""
    for item in reversed(fields(Recipe)):
        if item.name in without:
            continue
        name = item.name.replace("_", "-")
        kind, choices = type(item.default), item.metadata.get("choices")
        flag = f"--{name}/--no-{name}" if kind is bool else f"--{name}"
        command = click.option(
            flag,
            item.name,
            type=None if kind is bool else click.Choice(choices) if choices else kind,
            default=None,
            help=_help(item),
            show_default=False,
        )(command)
    return command


def _help(item: Field[Any]) -> str:
    """The field's text with its default on digits."""
    text = item.metadata["help"]
    sentence = f"{text[0].upper()}{text[1:]}."
    if isinstance(item.default, bool) or item.default == "":
        return sentence
    usual = getattr(default_recipe({}), item.name)
    return f"{sentence}  [default: {usual:.4g}]" if isinstance(usual, float) else f"{sentence}  [default: {usual}]"
