"""Docstrings of the public surface: complete, with examples that run and print what they say.

Every public function and class documents each argument on a line of its own under ``Args:`` (a class those of its
constructor; a result's fields may stand under ``Attributes:``), says under ``Raises:`` which of ValueError and
TypeError its own source raises, and has an example. Public methods need no example, and those that override a method
of a base class need nothing. ``python tests/test_docstrings.py`` prints what is missing.

Examples see ``torch``, ``fastlip`` and ``lip`` (``fastlip.nn``), start at seed 0, and run in an empty folder.
"""

import ast
import doctest
import functools
import inspect
import re
import textwrap
from pathlib import Path

import pytest
import torch
from pending import DOCSTRINGS as PENDING
from surface import OBJECTS, constructor, is_result, public_objects

import fastlip

USER_ERRORS = ("ValueError", "TypeError")
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
# A section of a docstring: its title, and its lines, which are indented further.
SECTION = re.compile(r"^( *)(?P<title>Args|Attributes|Raises):\n(?P<body>(?:\1 +.*\n|\s*\n)*)", re.M)
ENTRY = re.compile(r"\*{0,2}(\w+)(?: \(.*?\))?: \S")


def sections(text):
    """The entries of each section of a docstring."""
    text = inspect.cleandoc(text) + "\n"
    return {match["title"]: entries(match["body"]) for match in SECTION.finditer(text)}


def entries(body):
    """The names that open a line at a section's own indentation."""
    lines = textwrap.dedent(body).splitlines()
    return [match[1] for line in lines if (match := ENTRY.match(line))]


def arguments(function):
    """The names of what a caller passes."""
    return [name for name in inspect.signature(function).parameters if name not in ("self", "cls")]


def errors_raised(function):
    """Which of the user's errors the source of a function raises itself."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    calls = (node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise))
    names = {call.func.id for call in calls if isinstance(call, ast.Call) and isinstance(call.func, ast.Name)}
    return [name for name in USER_ERRORS if name in names]


def own_methods(cls):
    """The public methods that a class introduces, or a base of the package that is not public itself."""
    for base in cls.__mro__:
        if not base.__module__.startswith("fastlip") or (base is not cls and base in OBJECTS.values()):
            continue
        inherited = {name for parent in base.__mro__[1:] for name in vars(parent)}
        for name, value in vars(base).items():
            value = getattr(value, "__func__", value)  # of a class method or a static method
            if inspect.isfunction(value) and not name.startswith("_") and name not in inherited:
                yield name, value


def missing_from(text, names, raised, titles=("Args",)):
    """Returns what a docstring leaves out."""
    found = sections(text)
    documented = [name for title in titles for name in found.get(title, [])]
    return [
        *(f"no line for {name} under Args" for name in names if name not in documented),
        *(f"no {error} under Raises" for error in raised if error not in found.get("Raises", [])),
    ]


@pytest.mark.parametrize("name", OBJECTS)
def test_the_first_sentence_is_one_line(name):
    """Editors and the reference show this line alone."""
    first, *_ = inspect.cleandoc(OBJECTS[name].__doc__ or "").split("\n\n")
    assert first.endswith((".", ":"))
    assert "\n" not in first


def missing(value):
    """Returns what the docstrings of a public function, or of a class and its methods, leave out."""
    text = value.__doc__ or ""
    if inspect.isfunction(value):
        problems = missing_from(text, arguments(value), errors_raised(value))
        return problems if ">>>" in text else [*problems, "no example"]
    if issubclass(value, Exception):
        return [] if text else ["no docstring"]
    build = constructor(value)
    titles = ("Args", "Attributes") if is_result(value) else ("Args",)
    names = arguments(value) if build or is_result(value) else []
    problems = missing_from(text, names, errors_raised(build) if build else [], titles)
    if ">>>" not in text:
        problems.append("no example")
    for name, method in own_methods(value):
        found = missing_from(method.__doc__ or "", arguments(method), errors_raised(method))
        problems.extend(f"{name}: {problem}" for problem in found)
    return problems


REFERS = re.compile(r"\b(see|as (in|for|of)) :")  # to an argument of another docstring


def without_default(value):
    """The optional arguments of a function or class whose line under Args does not say what is taken without them."""
    text = inspect.cleandoc(value.__doc__ or "") + "\n"
    body = next((match["body"] for match in SECTION.finditer(text) if match["title"] == "Args"), "")
    said = dict(re.findall(r"^    \*{0,2}(\w+)(?: \(.*?\))?: (.*(?:\n     .*)*)", body, re.M))
    for name, parameter in inspect.signature(value).parameters.items():
        line = said.get(name, "default")
        says = "default" in line.lower() or (parameter.default is None and "None" in line) or REFERS.search(line)
        if parameter.default is not parameter.empty and not says:
            yield name


CALLED = [name for name, value in OBJECTS.items() if inspect.isfunction(value) or constructor(value)]


@pytest.mark.parametrize("name", [name for name in CALLED if not is_result(OBJECTS[name])])
def test_defaults_are_in_the_docstring(name):
    assert [*without_default(OBJECTS[name])] == []


def test_a_default_that_is_missing_is_found():
    def function(one=1, two=None, three=3):
        """Nothing.

        Args:
            one: a number; default 1.
            two: another, or None.
            three: a third,
                in two lines.
        """

    assert [*without_default(function)] == ["three"]


@pytest.mark.parametrize("name", OBJECTS)
def test_a_docstring_is_complete(name):
    problems = missing(OBJECTS[name])
    if name in PENDING:
        assert problems, f"{name} is complete: take it off the list in tests/pending.py"
    else:
        assert problems == []


def test_the_list_of_pending_names_has_public_names_only():
    assert set(PENDING) <= set(OBJECTS)


def docstrings(value):
    """The docstring of an object, and those of its methods and properties."""
    yield "", value.__doc__ or ""
    if inspect.isclass(value):
        for name, member in vars(value).items():
            if isinstance(member, functools.cached_property | property) or inspect.isroutine(member):
                yield f".{name}", getattr(member, "__doc__", "") or ""


# fastlip.testing is for contributors: its examples run too, but it may have fewer.
EXAMPLES = {
    name: value
    for name, value in {**OBJECTS, **public_objects(["testing"])}.items()
    if any(">>>" in text for _, text in docstrings(value))
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_of_a_docstring_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    output = []
    try:
        for member, text in docstrings(EXAMPLES[name]):
            torch.manual_seed(0)
            names = {"torch": torch, "fastlip": fastlip, "lip": fastlip.nn}
            test = doctest.DocTestParser().get_doctest(text, names, name + member, None, None)
            doctest.DocTestRunner(optionflags=FLAGS).run(test, out=output.append)
    finally:
        torch.set_num_threads(threads)
    assert not output, "".join(output)


def test_the_check_sees_what_is_missing():
    def documented(x, y=1):
        """Returns x.

        Args:
            x: a number,
                and more about it: on a line of its own.
            y (int): another.

        Raises:
            ValueError: if x is 0.

        >>> 1
        1
        """
        if not x:
            raise ValueError("x")

    assert missing(documented) == []
    documented.__doc__ = documented.__doc__.replace("y (int)", "  y (int)").replace(">>>", "").replace("Raises", "On")
    assert missing(documented) == ["no line for y under Args", "no ValueError under Raises", "no example"]


def test_no_docstring_begins_with_a_fragment():
    """Such as "What the kernels share": a first line says what the function does or returns, or what the class is."""
    found = {}
    for path in sorted(Path(fastlip.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                first = (ast.get_docstring(node) or "").partition("\n")[0]
                if first.startswith(("Of ", "What ")):
                    found[f"{path.name}: {getattr(node, 'name', 'module')}"] = first
    assert found == {}


if __name__ == "__main__":
    for path, public in OBJECTS.items():
        if problems := missing(public):
            print(f"    {path!r},  # {'; '.join(problems)}")
