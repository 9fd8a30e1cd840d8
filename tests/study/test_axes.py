"""What ``fastlip compare`` compares: combinations of the axes, their names, seeds and the plain twins."""

import pytest
from studies import SMALL, assert_one_line

from fastlip.models import METHODS
from fastlip.study.axes import Axes, axis_of, contenders_of
from fastlip.study.contenders import PLAIN, Contender
from fastlip.study.settings import Settings

SETTINGS = Settings(5.0, 0, {"width": 2})


def names(study=SETTINGS, **axes):
    return [contender.name for contender in contenders_of(Axes(**axes), study)]


def test_the_default_is_every_method_on_both_backends():
    contenders = contenders_of(Axes(), SETTINGS)
    assert {contender.method for contender in contenders} == set(METHODS)
    assert {contender.backend for contender in contenders} == {"auto", "reference"}
    on_cifar = contenders_of(Axes(), Settings(5.0, 0, {"data": "cifar10", "path": "folder"}))
    assert {contender.backend for contender in on_cifar} == {"auto"}


def test_every_combination_has_a_name():
    changes = axis_of("data.center=true,false")
    found = names(methods=["aol", "sll"], backends=["auto"], losses=["offset-ce", "emma"], settings=[changes])
    # What the recipe says anyway is no change: its name is the same with and without it.
    assert found == [
        f"{method}-XS-auto{loss}{center}"
        for method in ("aol", "sll")
        for loss in ("", "-emma")
        for center in ("", "-no_center")
    ]


def test_seeds_are_counted_from_the_recipes():
    assert names(methods=["aol"], backends=["auto"], seeds=3) == [
        "aol-XS-auto",
        "aol-XS-auto-seed1",
        "aol-XS-auto-seed2",
    ]
    settings = Settings(5.0, 0, {"seed": 7})
    assert names(settings, methods=["aol"], backends=["auto"], seeds=2) == ["aol-XS-auto", "aol-XS-auto-seed8"]


def test_one_plain_twin_stands_for_all_variants_of_a_network():
    found = names(methods=["aol", "sll"], sizes=["XS", "S"], losses=["offset-ce", "emma"], plain=True)
    assert [name for name in found if name.startswith(PLAIN)] == ["plain-XS-auto", "plain-S-auto"]
    assert len(found) == 2 * 2 * 2 * 2 + 2


def test_networks_of_several_sizes_have_a_plain_twin_each():
    widths = axis_of("model.width=2,3")
    found = names(methods=["aol", "sll"], backends=["auto"], settings=[widths], losses=["emma"], plain=True)
    # The study's own width is no change; the loss is none of the twins'.
    assert [name for name in found if name.startswith(PLAIN)] == ["plain-XS-auto", "plain-XS-auto-width=3"]
    depths = axis_of("model.depth=1,2")
    found = names(models=["bro_net"], backends=["auto"], settings=[depths], plain=True)
    assert [name for name in found if name.startswith(PLAIN)] == [
        "plain-XS-auto-bro_net-depth=1",
        "plain-XS-auto-bro_net-depth=2",
    ]


def test_a_network_is_compared_with_options_that_only_it_has():
    settings = Settings(5.0, 0, {"width": 8, "depth": 1})
    axes = [axis_of("model.centering=true,false"), axis_of("model.quasi_residual=true,false")]
    assert names(settings, models=["bro_net"], backends=["auto"], settings=axes, plain=True) == [
        "bro-XS-auto-bro_net",
        "bro-XS-auto-bro_net-no_quasi_residual",
        "bro-XS-auto-bro_net-no_centering",
        "bro-XS-auto-bro_net-no_centering-no_quasi_residual",
        "plain-XS-auto-bro_net",
    ]


def test_a_loss_is_trained_that_only_another_networks_recipe_has():
    settings = Settings(5.0, 0, {"data": "cifar10", "path": "folder"})
    losses = ["offset-ce", "logit-annealing"]
    found = contenders_of(Axes(models=["lip_conv_net", "bro_net"], losses=losses, methods=["bro"]), settings)
    recipes = [settings.recipe(one) for one in found]
    assert [(recipe.model, recipe.loss) for recipe in recipes] == [
        (model, loss) for model in ("lip_conv_net", "bro_net") for loss in losses
    ]


def test_a_named_recipe_that_changes_only_layers_of_other_networks_adds_no_twin(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('base = "digits"\n[model]\nlayers_per_block = 1\n')
    axes = {"recipes": ["digits", str(file)], "models": ["lip_conv_net", "bro_net"], "methods": ["bro"]}
    found = names(backends=["auto"], plain=True, **axes)
    twins = [name for name in found if name.startswith(PLAIN)]
    assert twins == ["plain-XS-auto-digits", "plain-XS-auto-digits-bro_net", "plain-XS-auto-mine"]


def test_recipes_of_several_networks_have_a_plain_twin_each():
    recipes = ["digits", "digits-bronet"]
    found = names(recipes=recipes, methods=["aol", "bro"], backends=["auto"], plain=True)
    assert [name for name in found if name.startswith(PLAIN)] == [
        "plain-XS-auto-digits",
        "plain-XS-auto-digits-bronet",
    ]


def test_a_network_with_a_method_of_its_own_is_compared_with_that():
    found = contenders_of(Axes(models=["lip_conv_net", "sll_net"], backends=["auto"]), SETTINGS)
    networks = {(dict(one.changes).get("model", "lip_conv_net"), one.method) for one in found}
    assert {method for model, method in networks if model == "sll_net"} == {"sll"}
    assert {method for model, method in networks if model == "lip_conv_net"} == set(METHODS)


def test_a_run_is_read_back_from_its_description():
    contender = Contender("aol", "XS", "auto", "mine.toml", (("loss", "emma"), ("lr", 0.1)), 3)
    assert Contender.from_dict(contender.to_dict()) == contender
    assert contender.name == "aol-XS-auto-mine-emma-lr=0.1-seed3"
    assert Contender.named("bjorck-S-reference") == Contender("bjorck", "S", "reference")


@pytest.mark.parametrize(
    ("arguments", "text", "code"),
    [
        (["--loss=mse"], "loss='mse': allowed are", 1),
        (["--model=resnet"], "model='resnet': allowed are", 1),
        (["--model=plain_resnet"], "model='plain_resnet': allowed are 'bro_net', 'lip_conv_net', 'lip_next'", 1),
        (["--model=plain_bro_net"], "model='plain_bro_net': --plain adds the twin of model='bro_net'", 1),
        (["--recipe=mnits"], "mnits", 1),
        (["--seeds=0"], "seeds=0: must be at least 1", 1),
        (["--set=lr"], "lr", 1),
        (["--set=optimizer.speed=1"], "optimizer.speed", 1),
        (["--set=optimizer.lr=fast"], "lr", 1),
        (["--set=optimizer.lr=-1"], "--set optimizer.lr=-1: must be above 0", 1),
        (["--set=optimizer.lr=0.1,0.2", "--lr=0.3"], "lr is given twice", 2),
        (["--set=optimizer.lr=0.1,0.2", "--search=2"], "varies lr, but search=2 looks for it", 1),
        (["--set=data.image_size=8"], "--image-size decides data.image_size of a study", 1),
        (["--set=model.method=aol,sll"], "--method decides model.method of a study", 1),
        (["--model=sll_net", "--method=aol"], "method='aol': model: 'sll_net' has no layers of it", 1),
        (["--model=sll_net", "--method=sll,aol"], "method='aol': model: 'sll_net' has no layers of it", 1),
        (["--models=lip_conv_net,bro_net", "--method=aol"], "model='bro_net': has layers of 'bro'; method: name", 1),
        (["--recipes=digits,digits-lipnext", "--method=aol"], "model='lip_next': has layers of 'bcop'", 1),
    ],
)
def test_a_wrong_axis_is_one_line(cli, tmp_path, arguments, text, code):
    assert_one_line(cli("compare", *SMALL, *arguments), text, code)
    assert not any(tmp_path.iterdir()), "a refused study leaves nothing behind"
