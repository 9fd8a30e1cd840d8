"""Options that commands share: those of a recipe, and radii that may be written as fractions."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import Field, fields
from fractions import Fraction
from typing import Any

import click

from fastlip.certification.certificates import DEFAULT_EPS
from fastlip.training.recipe import Recipe
from fastlip.training.recipe_files import default_recipe

# The sections of a recipe as headings of the help.
_HEADINGS = {
    "data": "Data",
    "model": "Network",
    "optimizer": "Optimiser and schedule",
    "schedule": "Optimiser and schedule",
    "loss": "Loss",
    "run": "Run",
}
# Longer lists of choices stand in the text of an option, not in its name.
_LONG = 40


class SectionOption(click.Option):
    """An option with the heading under which the help lists it."""

    def __init__(self, *args: Any, heading: str, **options: Any):
        super().__init__(*args, **options)
        self.heading = heading


class Sections(click.Command):
    """A command whose help lists its own options first and those of a recipe under headings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the options by heading."""
        by_heading: dict[str, list[tuple[str, str]]] = {"Options": []}
        for heading in _HEADINGS.values():
            by_heading[heading] = []
        for parameter in self.get_params(ctx):
            if (record := parameter.get_help_record(ctx)) is not None:
                by_heading[getattr(parameter, "heading", "Options")].append(record)
        for heading, records in by_heading.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)


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
            cls=SectionOption,
            heading=_HEADINGS[item.metadata["key"].partition(".")[0]],
            type=None if kind is bool else _type(item),
            metavar="NAME" if _is_long(choices) else None,
            default=None,
            help=_help(item),
            show_default=False,
        )(command)
    return command


def _type(item: Field[Any]) -> Any:
    """The type of a field's option; where texts other than the choices are allowed, the recipe checks them."""
    choices = item.metadata.get("choices")
    return click.Choice(choices) if choices and "other" not in item.metadata else type(item.default)


def _is_long(choices: Sequence[str] | None) -> bool:
    return choices is not None and len("|".join(choices)) > _LONG


def _help(item: Field[Any]) -> str:
    """The field's text with its default on digits."""
    text = item.metadata["help"]
    choices = item.metadata.get("choices")
    if choices is not None and _is_long(choices):
        text = f"{text}; one of {', '.join(choices)}"
    sentence = f"{text[0].upper()}{text[1:]}."
    if isinstance(item.default, bool) or item.default == "":
        return sentence
    usual = getattr(default_recipe({}), item.name)
    return f"{sentence}  [default: {usual:.4g}]" if isinstance(usual, float) else f"{sentence}  [default: {usual}]"
