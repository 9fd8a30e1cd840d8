"""Which kernels computed a result: their operators have nodes in its graph, torch's own operations have others."""

from fastlip.kernels import OPS


def nodes(y):
    """Every node of the graph of a tensor."""
    waiting, seen = [y.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting.extend(following for following, _ in node.next_functions)
    return seen


def kernels_of(y):
    """The names of the ops whose kernels took part in a tensor with a graph."""
    names = [node.name() for node in nodes(y)]
    return {op for op in OPS if any(f"{op}_forward" in name for name in names)}
