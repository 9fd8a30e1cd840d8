"""The shape of the sources: short files and functions, no circles, explicit and typed public parameters.

``python tests/test_structure.py`` prints what breaks a rule.
"""

import ast
import inspect
import re
from pathlib import Path

import imports
import pending
import pytest
from surface import OBJECTS, constructor, is_result

ROOT = Path(__file__).parents[1]
FOLDERS = "fastlip", "tools", "benchmarks", "tests", "examples"
FILE_LINES, FUNCTION_LINES = 350, 60
SOURCES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in sorted([*ROOT.glob("*.py"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))])
}
# C++ and CUDA C++.
KERNELS = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for folder in ("csrc", "tests")
    for path in sorted((ROOT / folder).rglob("*"))
    if path.suffix in (".cpp", ".cu", ".h", ".cuh")
}
PACKAGE = {name: ast.parse(text) for name, text in SOURCES.items() if name.startswith("fastlip/")}
FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef

VARIABLE = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
# Arguments that go on to another public function, with the reason why they are not listed.
PASSED_ON = {
    "fastlip.models.create_model: options": "which options there are depends on the network",
    "fastlip.models.lip_conv_net: layer_options": "which options there are depends on the method's layers",
    "fastlip.models.lip_res_net: layer_options": "which options there are depends on the method's layers",
}
# Parameters that are text of the caller's own; all other strings are one of a few, and so a Literal.
TEXT = {
    "fastlip.data.from_datasets: name": "a data set has any name",
    "fastlip.data.from_datasets: classes": "classes have any names",
    "fastlip.hub.load: device": "a device has any number",
    "fastlip.hub.read: device": "a device has any number",
    "fastlip.models.list_models: pattern": "a pattern has any wildcards",
}
# Fields and properties that hold text: names, hashes, sentences.
TEXT_FIELDS = {
    "fastlip.Conversion: reason": "a sentence",
    "fastlip.ExportedFile: inputs": "names in the file",
    "fastlip.ExportedFile: outputs": "names in the file",
    "fastlip.PublishedLayer: name": "a name in the model",
    "fastlip.PublishedLayer: how": "a sentence",
    "fastlip.certification.Bound: how": "a sentence",
    "fastlip.certification.LayerBound: how": "a sentence",
    "fastlip.certification.LayerBound: kind": "the name of any class",
    "fastlip.certification.LayerBound: name": "a name in the model",
    "fastlip.data.Data: classes": "classes have any names",
    "fastlip.data.Data: name": "a data set has any name",
    "fastlip.models.ModelCard: certified_on": "a sentence",
    "fastlip.models.ModelCard: command": "a command",
    "fastlip.models.ModelCard: data": "a data set has any name",
    "fastlip.models.ModelCard: name": "a weight file has any name",
    "fastlip.models.ModelCard: network": "a function of any name",
    "fastlip.models.ModelCard: sha256": "a hash",
    "fastlip.models.ModelCard: versions": "versions have any names",
}


def long_files():
    """Files above the limit, of Python and of C++, and their numbers of lines."""
    lines = {name: text.count("\n") for name, text in (SOURCES | KERNELS).items()}
    return {name: count for name, count in lines.items() if count > FILE_LINES}


def long_functions():
    """Functions above the limit, without their docstrings."""
    found = {}
    for name, text in SOURCES.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, FUNCTION) and (lines := length(node)) > FUNCTION_LINES:
                found[f"{name}: {node.name}"] = lines
    return found


def length(function):
    """The number of lines of a function from its ``def`` on, without its docstring."""
    docstring = function.body[0] if ast.get_docstring(function) is not None else None
    lines = function.end_lineno - function.lineno + 1
    return lines - (docstring.end_lineno - docstring.lineno + 1 if docstring else 0)


def circles():
    """The import circles, each as its modules."""
    found = imports.circles(imports.graph(imports.modules()))
    return {" ".join(circle): len(circle) for circle in found}


def forbidden():
    """``assert`` in the package, and handlers that catch every exception."""
    found = {}
    for name, tree in PACKAGE.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Assert):
                found[f"{name}: assert"] = node.lineno
            elif isinstance(node, ast.ExceptHandler) and catches_all(node):
                found[f"{name}: catches every exception"] = node.lineno
    return found


def catches_all(handler):
    """Whether a handler takes every exception and does not raise it again as it is."""
    kinds = [handler.type] if not isinstance(handler.type, ast.Tuple) else handler.type.elts
    wide = any(kind is None or getattr(kind, "id", "") in ("Exception", "BaseException") for kind in kinds)
    again = isinstance(handler.body[-1], ast.Raise) and handler.body[-1].exc is None
    return wide and not again


def parameters():
    """(path, parameter) of everything that a caller may pass to a public function or constructor."""
    for path, value in OBJECTS.items():
        if inspect.isfunction(value) or constructor(value) or is_result(value):
            for parameter in inspect.signature(value).parameters.values():
                yield path, parameter


def variadic():
    """Public parameters of any number or any name."""
    return {
        name: parameter.kind.description
        for path, parameter in parameters()
        if parameter.kind in VARIABLE and (name := f"{path}: {parameter.name}") not in PASSED_ON
    }


def untyped():
    """Public parameters whose type says nothing, and functions that do not say what they return."""
    found = {
        f"{path}: {parameter.name}": kind_of(parameter)
        for path, parameter in parameters()
        if kind_of(parameter) in ("", "Any", "Any | None") and parameter.kind not in VARIABLE
    }
    for path, value in OBJECTS.items():
        if inspect.isfunction(value) and inspect.signature(value).return_annotation is inspect.Signature.empty:
            found[f"{path}: return"] = ""
    return found


def kind_of(parameter):
    """The annotation of a parameter as it is written; empty if there is none."""
    kind = parameter.annotation
    return "" if kind is parameter.empty else str(getattr(kind, "__name__", kind))


def loose_strings():
    """Public parameters that take any string where only some are allowed."""
    return {name: kind for name, kind in strings() if name not in TEXT}


def strings():
    """(path: parameter, type) of public parameters that are strings and not, by their type, paths or devices."""
    for path, parameter in parameters():
        kind = re.sub(r"Literal\[.*?\]|(dict|Mapping)\[str,", "", kind_of(parameter))
        if re.search(r"\bstr\b", kind) and not re.search(r"Path\b|device\b", kind) and not is_result(OBJECTS[path]):
            yield f"{path}: {parameter.name}", kind


def loose_fields():
    """Public fields and properties that hold any string where only some occur."""
    return {name: kind for name, kind in fields() if name not in TEXT_FIELDS}


def fields():
    """(path: field, type) of the fields of public results and the properties of public classes that are strings."""
    for path, value in OBJECTS.items():
        if not inspect.isclass(value):
            continue
        found = dict(vars(value).get("__annotations__", {})) if is_result(value) else {}
        for name, member in vars(value).items():
            if isinstance(member, property):
                found[name] = member.fget.__annotations__.get("return", "")
        for name, kind in found.items():
            text = re.sub(r"Literal\[.*?\]|(dict|Mapping)\[str,", "", getattr(kind, "__name__", str(kind)))
            if re.search(r"\bstr\b", text) and not name.startswith("_"):
                yield f"{path}: {name}", text


def options_without_literals():
    """Parameters of the package that are ``str``, checked against a fixed set: ``one_of`` and tests of membership."""
    found = {}
    for name, tree in PACKAGE.items():
        for node in ast.walk(tree):
            if isinstance(node, FUNCTION):
                checked = {checked_of(inner) for inner in ast.walk(node)}
                for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs):
                    kind = ast.unparse(argument.annotation) if argument.annotation else ""
                    if argument.arg in checked and kind in ("str", "str | None"):
                        found[f"{name}: {node.name}: {argument.arg}"] = kind
    return found


def checked_of(node):
    """The name that a call ``one_of("name", name, allowed)`` checks; None for anything else."""
    if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "one_of" and isinstance(node.args[1], ast.Name):
        return node.args[1].id
    return None


# Each rule: what breaks it, and the names that still may.
RULES = {
    f"no file has more than {FILE_LINES} lines": (long_files, pending.FILES),
    f"no function has more than {FUNCTION_LINES} lines": (long_functions, pending.FUNCTIONS),
    "no modules import each other": (circles, pending.CIRCLES),
    "no assert, no handler of every exception": (forbidden, []),
    "public parameters are listed by name": (variadic, pending.VARIADIC),
    "public parameters and results have types": (untyped, pending.UNTYPED),
    "string options are literals": (loose_strings, pending.STRINGS),
    "fields that are one of a few strings are literals": (loose_fields, pending.STRINGS),
    "what is checked by one_of is a literal": (options_without_literals, pending.STRINGS),
}


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_holds(rule):
    find, allowed = RULES[rule]
    found = find()
    assert {name: value for name, value in found.items() if name not in allowed} == {}
    assert [name for name in allowed if name not in found] == [], "take what is done off the list in tests/pending.py"


def test_all_sources_are_looked_at():
    assert {"setup.py", "hubconf.py", "fastlip/ops.py", "examples/swap_layers.py"} <= set(SOURCES)
    assert {"csrc/cayley/cayley_cpu.cpp", "csrc/cayley/cayley_cuda.cu", "csrc/common/parallel.h"} <= set(KERNELS)


def test_exceptions_to_rules_are_needed():
    assert set(TEXT) <= {name for name, _ in strings()}
    assert set(TEXT_FIELDS) <= {name for name, _ in fields()}
    assert set(PASSED_ON) <= {
        f"{path}: {parameter.name}" for path, parameter in parameters() if parameter.kind in VARIABLE
    }


def test_circles_are_found():
    source = {
        "fastlip.a": "from fastlip.b.c import x",
        "fastlip.b": "",
        "fastlip.b.c": "def f():\n    from fastlip import d",
        "fastlip.d": "if TYPE_CHECKING:\n    from fastlip import a\nfrom fastlip import b",
    }
    trees = {name: ast.parse(text) for name, text in source.items()}
    assert imports.circles(imports.graph(trees)) == []
    trees["fastlip.b"] = ast.parse("def f():\n    import fastlip.a")
    expected = ["fastlip.a", "fastlip.b", "fastlip.b.c", "fastlip.d"]
    assert imports.circles(imports.graph(trees)) == [expected]
    trees["fastlip.b"] = ast.parse("from fastlip.b.c import f")
    assert imports.circles(imports.graph(trees)) == [["fastlip.b", "fastlip.b.c", "fastlip.d"]]
    trees["fastlip.d"] = ast.parse("import fastlip\nfastlip.a.x")
    trees["fastlip.b"] = ast.parse("")
    assert imports.circles(imports.graph(trees)) == [["fastlip.a", "fastlip.b.c", "fastlip.d"]]


@pytest.mark.parametrize(
    ("source", "forbidden"),
    [
        ("except Exception:\n    pass", True),
        ("except (ValueError, BaseException) as error:\n    print(error)", True),
        ("except:\n    pass", True),
        ("except BaseException:\n    undo()\n    raise", False),
        ("except ValueError:\n    pass", False),
    ],
)
def test_handlers_of_every_exception_are_found(source, forbidden):
    (handler,) = ast.parse(f"try:\n    f()\n{source}").body[0].handlers
    assert catches_all(handler) == forbidden


@pytest.mark.parametrize(("source", "name"), [("one_of('kind', kind, KINDS)", "kind"), ("min(kind, KINDS)", None)])
def test_checks_of_options_are_found(source, name):
    assert checked_of(ast.parse(source).body[0].value) == name


def test_a_docstring_does_not_count_as_lines():
    function = ast.parse('def f(\n    x,\n):\n    """One.\n\n    Two.\n    """\n    return x').body[0]
    assert length(function) == 4


if __name__ == "__main__":
    for title, (search, _) in RULES.items():
        print(title)
        for broken, value in search().items():
            print(f"    {broken!r},  # {value}")
