"""What a step may cost at most: the committed budgets of tools/gpu/ledger.py are within these bars.

The ledger counts, and fails above its budgets; a budget that is written anew above a bar fails here.
"""

import ast
import json
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools" / "gpu"
BUDGETS = json.loads((TOOLS / "budgets.json").read_text())
# Launches of a training step of the ConvNet S on 256 images.
LAUNCHES = {"aol": 650, "cayley": 800, "aoc": 900, "sll": 900, "cpl": 1100, "lot": 1500, "bcop": 1500, "soc": 1800}
# Bytes that forward and backward of a layer move, in units of its activations.
ACTIVATIONS = {"CayleyConv2d 64x32": 20, "AOLConv2d 64x32": 12}


@pytest.mark.parametrize("method", LAUNCHES)
def test_a_step_has_at_most_so_many_launches(method):
    assert 0 < BUDGETS[method]["launches"] <= LAUNCHES[method]


@pytest.mark.parametrize("layer", ACTIVATIONS)
def test_a_layer_moves_at_most_so_many_activations(layer):
    assert 0 < BUDGETS[layer]["activations"] <= ACTIVATIONS[layer]


@pytest.mark.parametrize("name", BUDGETS)
def test_the_host_never_waits(name):
    assert BUDGETS[name]["waits"] == 0


def test_the_ledger_compares_with_the_same_bars():
    tree = ast.parse((TOOLS / "ledger.py").read_text())
    found = {ast.unparse(node.targets[0]): node.value for node in tree.body if isinstance(node, ast.Assign)}
    assert ast.literal_eval(found["TARGETS"]) == LAUNCHES
    assert ast.literal_eval(found["LAYER_TARGETS"]) == ACTIVATIONS
