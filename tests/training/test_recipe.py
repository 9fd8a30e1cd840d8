import dataclasses
from typing import get_args, get_type_hints

import pytest
import torch
from click.testing import CliRunner

from fastlip.cli.train import train
from fastlip.data import DATASETS
from fastlip.models import METHODS
from fastlip.training.card import card_text, make_card
from fastlip.training.checkpoint import describe
from fastlip.training.gradients import correct_and_certified
from fastlip.training.recipe import Recipe
from fastlip.training.recipe_files import default_recipe
from fastlip.training.setup import model_of


def test_a_recipe_is_frozen_and_survives_a_round_trip():
    recipe = default_recipe({"method": "aol", "lr": 0.5, "shift": 2})
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.lr = 1.0


def test_types_list_what_is_allowed():
    types = get_type_hints(Recipe)
    listed = {
        item.name: item.metadata["choices"] for item in dataclasses.fields(Recipe) if "choices" in item.metadata
    }
    allowed = {name: get_args(types[name]) for name in listed}
    for name in ("data", "augment"):  # or a function of one's own
        literal, text = allowed[name]
        allowed[name] = get_args(literal)
        assert text is str
    assert listed == allowed
    assert listed["data"] == DATASETS
    assert get_args(types["method"]) == METHODS


def test_defaults_follow_the_data_set_and_what_is_given_wins():
    digits = default_recipe({})
    cifar = default_recipe({"data": "cifar10", "path": "x"})
    assert (digits.data, cifar.batch_size, cifar.flip) == ("digits", 256, True)
    assert not digits.flip
    assert default_recipe({"data": "cifar10", "path": "x", "flip": False, "batch_size": 7}).batch_size == 7
    assert cifar.offset == pytest.approx(2 * 2**0.5 * 36 / 255)
    assert cifar.temperature == 0.25
    assert default_recipe({"data": "cifar10", "path": "x", "method": "cayley"}).lr == 0.017


def test_the_sll_network_has_a_recipe_of_its_own():
    recipe = default_recipe({"model": "sll_net", "data": "cifar10", "path": "x"})
    assert (recipe.method, recipe.size) == ("sll", "S")
    assert recipe.offset == pytest.approx(3 / 2**0.5)
    assert default_recipe({"model": "sll_net", "size": "XL", "lr": 0.3}).lr == 0.3
    with pytest.raises(ValueError, match="method='aol': model='sll_net'"):
        default_recipe({"model": "sll_net", "method": "aol"})


def test_networks_have_what_the_recipe_says(tiny_data, tiny_recipe):
    sizes = {"width": 4, "depth": 2, "quasi_residual": False, "centering": False}
    model = model_of(tiny_recipe(model="lip_res_net", method="cayley", **sizes), tiny_data)
    assert [type(layer).__name__ for layer in model.blocks] == ["CayleyConv2d", "MaxMin"] * 2
    assert not model.blocks[0].quasi_residual
    model = model_of(tiny_recipe(model="bro_net"), tiny_data)
    assert model.blocks[0].quasi_residual == 0.5
    with pytest.raises(ValueError, match="method='aol': model='bro_net' has layers of 'bro' only"):
        tiny_recipe(model="bro_net", method="aol")


def test_the_card_of_a_twin_says_that_nothing_constrains_it(tiny_data, tiny_recipe):
    recipe = tiny_recipe(model="plain_lip_conv_net", width=8)
    model = model_of(recipe, tiny_data).eval()
    text = card_text(make_card(model, recipe, describe(tiny_data)))
    assert text.startswith("# plain_lip_conv_net XS on digits\n\nplain_lip_conv_net of unconstrained layers")
    scores, labels = torch.tensor([[9.0, 0.0]]), torch.tensor([0])
    assert [int(count) for count in correct_and_certified(model, scores, labels)] == [1, 0]


def test_another_constant_is_that_of_the_network_and_its_card(tiny_data, tiny_recipe):
    recipe = tiny_recipe(lipschitz=5.0)
    model = model_of(recipe, tiny_data).eval()
    card = make_card(model, recipe, describe(tiny_data))
    assert 4 < card["audit"]["bound"] <= 5 + 1e-5
    assert card["recipe"]["lipschitz"] == 5
    with pytest.raises(ValueError, match="lipschitz=5: model='sll_net' has the constant 1"):
        default_recipe({"model": "sll_net", "lipschitz": 5.0})
    scores = torch.tensor([[0.5, 0.0], [2.0, 0.0]])  # the first margin is too small for L = 5
    assert [int(count) for count in correct_and_certified(model, scores, torch.tensor([0, 0]))] == [2, 1]


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("data", "imagenet", "data='imagenet': allowed are 'digits'"),
        ("size", "XXL", "size='XXL': allowed are 'XS', 'S', 'M', 'L', 'XL'"),
        ("model", "resnet", "model='resnet': allowed are 'bro_net', 'lip_conv_net'"),
        ("backend", "fast", "backend='fast': allowed are 'auto'"),
        ("epochs", 0, "epochs=0: must be above 0"),
        ("batch_size", -1, "batch_size=-1: must be at least 1"),
        ("lr", 0.0, "lr=0.0: must be above 0"),
        ("lr", float("nan"), "lr=nan: must be finite"),
        ("momentum", 1.0, "momentum=1.0: must be below 1"),
        ("warmup", 0.0, "warmup=0.0: must be above 0"),
        ("loss", "mse", "loss='mse': allowed are 'offset-ce'"),
        ("temperature", 0.0, "temperature=0.0"),
        ("seed", -1, "seed=-1"),
        ("lipschitz", 0.0, "lipschitz=0.0: must be above 0"),
        ("depth", 3, "depth=3: model='lip_conv_net' has no such option"),
        ("centering", False, "centering=False: model='lip_conv_net' has no such option"),
        ("path", "/x", "path='/x'"),
    ],
)
def test_a_wrong_value_is_named(field, value, text):
    with pytest.raises(ValueError, match=f"^{text}"):
        default_recipe({field: value})


def test_a_compiler_shares_nothing():
    with pytest.raises(ValueError, match=r"^share=True: compile=True compiles"):
        default_recipe({"share": True, "compile": True})


def test_a_wrong_type_is_named():
    with pytest.raises(TypeError, match=r"batch_size: got 1\.5, expected int"):
        default_recipe({"batch_size": 1.5})


def test_a_data_set_of_files_needs_its_path():
    with pytest.raises(ValueError, match="path='': data='cifar10'"):
        default_recipe({"data": "cifar10"})


def test_unknown_fields_are_named():
    values = Recipe().to_dict()
    with pytest.raises(ValueError, match="recipe: unknown fields: colour"):
        Recipe.from_dict({**values, "colour": 1})


def test_a_resumed_run_keeps_its_recipe_but_may_move():
    recipe = default_recipe({})
    recipe.refuse_changes({"device": "cpu", "lr": recipe.lr})
    with pytest.raises(ValueError, match=r"epochs=999: the run has 30"):
        recipe.refuse_changes({"epochs": 999})


def test_the_help_writes_names_as_they_are_and_each_default_once():
    lines = CliRunner().invoke(train, ["--help"], terminal_width=200).output.splitlines()
    assert any("CPU threads" in line for line in lines)
    assert any(line.rstrip().endswith("(sll_net: S to XL).  [default: XS]") for line in lines)
    assert max(line.count("[default") for line in lines) == 1
