"""A graph that is being rewritten: its modules, the changes to it, and the record of them."""

from __future__ import annotations

import operator
from typing import Any

from torch import Tensor, fx, nn

from fastlip.certification.graphs.functions import depending_on
from fastlip.converting.layers import Head, Start, Weights
from fastlip.converting.report import Step
from fastlip.converting.tracing import Flow
from fastlip.nn._calls import hooks_of
from fastlip.nn.method import Method

FAINT = 0.05  # the share of the norm of which a network with kept weights is to keep more
WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.Linear)


class Rewriting:
    """One conversion.

    ``live``: nodes that depend on the input. ``channel``: for each live node the dimension of its channels, counted
    from the end. ``head``: the node of the last dense layer, if no convolution follows it.
    """

    def __init__(self, root: nn.Module, flow: Flow, method: Method, weights: Weights, head_kind: Head):
        self.root, self.graph, self.values = root, flow.graph, flow.values
        self.paths, self.whole = flow.paths, flow.whole
        self.method = method
        self.head_kind: Head = head_kind
        (self.input,) = (node for node in flow.graph.nodes if node.op == "placeholder")
        self.live = depending_on(self.input, flow.graph)
        self.steps: list[Step] = []
        self.failures: list[Step] = []
        self.channel: dict[fx.Node, int] = {}
        self.modules = dict(root.named_modules())
        self.replaced: set[str] = set()
        self.head = self._last_dense()
        count = sum(isinstance(module, WEIGHTED) for module in self.modules.values())
        self.start = Start(weights, FAINT ** (1 / max(count, 1)))

    def _last_dense(self) -> fx.Node | None:
        calls = [node for node in self.graph.nodes if node.op == "call_module" and node in self.live]
        weighted = [node for node in calls if isinstance(self.module_of(node), WEIGHTED)]
        return weighted[-1] if weighted and isinstance(self.module_of(weighted[-1]), nn.Linear) else None

    def module_of(self, node: fx.Node) -> nn.Module:
        """The module of the original model that a node calls."""
        return self.modules[str(node.target)]

    def path_of(self, node: fx.Node) -> str:
        """The name under which a node is reported, and under which a module for it is added."""
        if node.op == "call_module":
            return str(node.target)
        return f"{self.paths[node]}.{node.name}" if self.paths.get(node) else node.name

    def sources(self, node: fx.Node) -> list[fx.Node]:
        """The live inputs of a node that are tensors."""
        return [
            used for used in node.all_input_nodes if used in self.live and isinstance(self.values.get(used), Tensor)
        ]

    def note(self, node: fx.Node, before: str, after: str, note: str = "") -> None:
        """Records a step."""
        if node.op == "call_module" and hooks_of(self.module_of(node)):
            note = f"{note}; its hooks are removed".removeprefix("; ")
        self.steps.append(Step(self.path_of(node), before, after, note))

    def fail(self, node: fx.Node, before: str, why: str) -> None:
        """Records what could not be converted."""
        self.failures.append(Step(self.path_of(node), before, "", why))

    def fail_for_good(self, node: fx.Node, before: str, why: str) -> None:
        """Records a function that no layer can stand for, and that it must be left out."""
        path = self.paths.get(node, "")
        remedy = "leave it out of the model's forward"
        if path:
            kind = type(self.modules[path]).__name__
            remedy = f"leave it out, for example by torch.nn.Identity() in the place of {path} ({kind})"
        self.fail(node, before, f"{why}: {remedy}")

    def put(self, node: fx.Node, module: nn.Module) -> None:
        """Lets a node call a module on its first live input: in the place of the node's own, or under a new name."""
        path = self.path_of(node)
        if path in self.replaced or node.op != "call_module":
            path = self._free(path)
        self.add(path, module)
        source = self.sources(node)[0]
        if node.op == "call_module":
            node.target, node.args, node.kwargs = path, (source,), {}
            return
        with self.graph.inserting_before(node):
            made = self.graph.call_module(path, (source,))
        self.move(node, made)

    def _free(self, path: str) -> str:
        """The path, with a number if its module has an attribute of this name."""
        parent, _, name = path.rpartition(".")
        owner, found, index = self.root.get_submodule(parent), name, 2
        while hasattr(owner, found):
            found, index = f"{name}_{index}", index + 1
        return f"{parent}.{found}" if parent else found

    def add(self, path: str, made: nn.Module | nn.Parameter) -> None:
        """Adds a module or a parameter to the model."""
        parent, _, name = path.rpartition(".")
        setattr(self.root.get_submodule(parent), name, made)
        self.replaced.add(path)

    def move(self, node: fx.Node, made: fx.Node) -> None:
        """Puts a node in the place of another one, with its value."""
        self.values[made], self.paths[made] = self.values[node], self.paths.get(node, "")
        self.live.add(made)
        self.channel[made] = self.channel[node]
        node.replace_all_uses_with(made)
        self.graph.erase_node(node)

    def drop(self, node: fx.Node) -> None:
        """Removes a node; its first live input takes its place."""
        node.replace_all_uses_with(self.sources(node)[0])
        self.graph.erase_node(node)

    def scale(self, node: fx.Node, factor: float) -> None:
        """Multiplies a node's value."""
        users = list(node.users)
        with self.graph.inserting_after(node):
            made = self.graph.call_function(operator.mul, (node, factor))
        self.values[made], self.paths[made] = self.values[node], self.paths.get(node, "")
        self.live.add(made)
        self.channel[made] = self.channel[node]
        for user in users:
            user.replace_input_with(node, made)

    def call(self, before: fx.Node, target: Any, *args: Any) -> fx.Node:
        """A function's node before another node."""
        with self.graph.inserting_before(before):
            return self.graph.call_function(target, args)
