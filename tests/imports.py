"""Which module of the package imports which: read from the sources, with the imports inside functions."""

import ast
from pathlib import Path

import fastlip

ROOT = Path(fastlip.__file__).parent


def name_of(path):
    """The name of the module in a file."""
    parts = ["fastlip", *path.relative_to(ROOT).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules():
    """The syntax tree of every module by its name, except for the package's own lazy ``__init__``."""
    trees = {name_of(path): ast.parse(path.read_text(encoding="utf-8")) for path in sorted(ROOT.rglob("*.py"))}
    del trees["fastlip"]
    return trees


def graph(trees):
    """The modules that each module imports.

    ``import a.b.c`` runs a, a.b and a.b.c: all three count, except for packages that hold the importing module,
    whose import has begun already. A name that ``fastlip`` imports lazily counts as the module that defines it.
    """
    return {
        name: {target for path in imported(tree) for target in runs(path, name, trees)}
        for name, tree in trees.items()
    }


def imported(tree):
    """The paths that a module imports, ``from a import b`` as a.b; TYPE_CHECKING's are left out."""
    has_package = False
    for node in at_run_time(tree):
        if isinstance(node, ast.Import):
            has_package |= any(alias.name == "fastlip" for alias in node.names)
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif (
            isinstance(node, ast.Call) and called(node) == "import_module" and isinstance(node.args[0], ast.Constant)
        ):
            yield node.args[0].value
    if has_package:
        yield from (f"fastlip.{node.attr}" for node in ast.walk(tree) if is_of_package(node))


def at_run_time(tree):
    """Every node but those under ``if TYPE_CHECKING``."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        checked = isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        waiting.extend(node.orelse if checked else ast.iter_child_nodes(node))


def called(call):
    """The last name of what is called."""
    return getattr(call.func, "attr", getattr(call.func, "id", ""))


def is_of_package(node):
    """Whether a node is ``fastlip.<name>``."""
    return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "fastlip"


def runs(path, importer, trees):
    """The modules that importing a path runs."""
    head, _, rest = path.partition(".")
    name, _, tail = rest.partition(".")
    if head == "fastlip" and name in fastlip._MODULE_OF:
        path = ".".join(filter(None, [f"fastlip.{fastlip._MODULE_OF[name]}", tail]))
    while path and path not in trees:  # an attribute of a module
        path = path.rpartition(".")[0]
    if path and path != importer:
        yield path
    while path := path.rpartition(".")[0]:
        if path in trees and not f"{importer}.".startswith(f"{path}."):
            yield path


def circles(edges):
    """The sets of modules that import each other, directly or through others: Tarjan's components."""
    order, low, stack, found = {}, {}, [], []

    def visit(name):
        order[name] = low[name] = len(order)
        stack.append(name)
        for target in sorted(edges[name]):
            if target not in order:
                visit(target)
                low[name] = min(low[name], low[target])
            elif target in stack:
                low[name] = min(low[name], order[target])
        if low[name] == order[name]:
            position = stack.index(name)
            found.append(sorted(stack[position:]))
            del stack[position:]

    for name in edges:
        if name not in order:
            visit(name)
    return [circle for circle in found if len(circle) > 1]
