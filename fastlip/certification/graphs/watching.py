"""Sees when a step changes in place what a later step reads, through whatever view."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx

from fastlip.certification.graphs.functions import UnknownError, text


class Watch:
    """The versions of the values of a graph, in the order in which its nodes run.

    Views share the version counter of their base: a change in place through one of them shows in all.
    """

    def __init__(self, source: fx.Node, nodes: list[fx.Node], values: dict[fx.Node, Any]):
        self._values = values
        self._last_use = {used: index for index, node in enumerate(nodes) for used in node.all_input_nodes}
        self._position = {node: index for index, node in enumerate(nodes)}
        self._versions: dict[fx.Node, list[int]] = {source: _versions(values[source])}

    def see(self, node: fx.Node) -> None:
        """Takes note of a node's value; UnknownError if the step changed another one that is used later."""
        now = self._position[node]
        for other, versions in list(self._versions.items()):
            if self._last_use.get(other, -1) <= now:
                del self._versions[other]
            elif _versions(self._values[other]) != versions:
                raise UnknownError(f"{text(node)} changes in place what others use")
        self._versions[node] = _versions(self._values[node])


def _versions(value: Any) -> list[int]:
    parts = value if isinstance(value, (tuple, list)) else (value,)
    return [part._version for part in parts if isinstance(part, Tensor) and not part.is_inference()]
