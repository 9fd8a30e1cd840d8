"""Recipe files: the values they promise, and one line for whatever is wrong in one."""

import pytest

from fastlip.models import METHODS
from fastlip.models.catalog import MODELS
from fastlip.models.registry import REGISTRY, owners_of
from fastlip.training.recipe import Recipe
from fastlip.training.recipe_files import FIELDS, default_name, default_recipe, names, parse_setting, read


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("method", METHODS)
def test_every_recipe_is_one_for_every_method(name, method):
    values = read(name).values_for({"method": method})
    if method in (owners_of(values["model"]) or METHODS):
        recipe = Recipe.from_dict(values)
        assert recipe.method == method
        assert recipe.lr != Recipe.lr or name in ("digits", "mnist-comparison") or method in ("aoc", "bro")
    assert read(name).summary


def test_published_recipes_say_what_was_published():
    small = Recipe.from_dict(read("cifar10-comparison").values_for({"method": "cpl", "size": "S"}))
    assert (small.optimizer, small.schedule, small.batch_size, small.momentum) == ("sgd", "onecycle", 256, 0.9)
    assert (small.lr, small.weight_decay, small.shift, small.flip) == (0.070, 1.5e-4, 4, True)
    sll = Recipe.from_dict(read("cifar10-sll").values_for({}))
    assert (sll.model, sll.optimizer, sll.lr, sll.beta1, sll.beta2) == ("sll_net", "adam", 0.01, 0.5, 0.9)
    assert (sll.schedule, sll.epochs, sll.weight_decay) == ("triangular", 1000, 0.0)
    bronet = Recipe.from_dict(read("cifar100-bronet").values_for({}))
    assert (bronet.data, bronet.model, bronet.method, bronet.size) == ("cifar100", "bro_net", "bro", "L")
    assert (bronet.optimizer, bronet.lr, bronet.weight_decay, bronet.clip_norm) == ("nadam", 1e-3, 4e-5, 3)
    assert (bronet.schedule, bronet.epochs * bronet.warmup, bronet.batch_size) == ("cosine", 20, 256)
    assert (bronet.loss, bronet.offset, bronet.temperature, bronet.annealing) == ("logit-annealing", 2, 0.75, 5)
    liresnet = Recipe.from_dict(read("cifar10-liresnet").values_for({}))
    assert (liresnet.model, liresnet.loss, liresnet.ramp) == ("lip_res_net", "emma", 0.5)
    assert [255 * radius for radius in (liresnet.radius_start, liresnet.radius)] == pytest.approx([3.6, 108])


def test_each_data_set_and_network_has_a_recipe():
    for data in FIELDS["data.name"].metadata["choices"]:
        for model in MODELS:
            given = {"data": data, "model": model}
            assert read(default_name(given)).values_for({})["data"] == data
            assert read(default_name(given)).values_for({})["model"] == model
            twin = {"data": data, "model": f"plain_{model}"}
            assert default_name(twin) == default_name(given if MODELS[model].twin else {"data": data})


def test_later_tables_win(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(
        'base = "cifar10-comparison"\n[optimizer]\nlr = 1\n'
        "[methods.aol]\noptimizer.momentum = 0.5\nS.optimizer.lr = 2.0\n"
    )
    (tmp_path / "next.toml").write_text('base = "mine.toml"\n[run]\nseed = 7\n')
    recipe = default_recipe({"path": "x", "size": "S"}, tmp_path / "next.toml")
    assert (recipe.data, recipe.lr, recipe.momentum, recipe.weight_decay, recipe.seed) == (
        "cifar10",
        2.0,
        0.5,
        5.4e-5,
        7,
    )
    other = default_recipe({"path": "x", "size": "M", "method": "lot"}, str(file))
    assert (other.lr, other.momentum, other.weight_decay) == (1.0, 0.9, 8.7e-6)
    assert default_recipe({"path": "x", "lr": 3.0}, file).lr == 3.0


def test_a_table_of_a_recipe_file_wins_over_the_methods_own_settings(tmp_path):
    assert default_recipe({"method": "lot"}).temperature == 0.1
    assert default_recipe({"method": "aol"}).temperature == 0.05
    file = tmp_path / "mine.toml"
    file.write_text('base = "digits"\n[methods.lot]\noptimizer.lr = 3.0\n')
    recipe = default_recipe({"method": "lot"}, file)
    assert (recipe.lr, recipe.temperature) == (3.0, 0.1)
    # A file of the same name that does not come with fastlip decides everything itself.
    (tmp_path / "digits.toml").write_text("[optimizer]\nlr = 4.0\n")
    assert default_recipe({"method": "lot"}, tmp_path / "digits.toml").lr == 4.0


def test_every_setting_of_a_method_is_of_a_recipe_and_a_key_that_exist():
    for method in REGISTRY.values():
        assert set(method.settings) <= set(names())
        assert {key for keys in method.settings.values() for key in keys} <= set(FIELDS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[optimizer]\nlr = -1.0", r"optimizer\.lr=-1\.0: must be above 0"),
        ("[optimizer]\nlr = 'fast'", r"optimizer\.lr='fast': expected float"),
        ("[optimizer]\nname = 'lion'", r"optimizer\.name='lion': allowed are 'sgd', 'adam'"),
        (
            "[optimizer]\nlearning_rate = 1",
            r"optimizer\.learning_rate: unknown key; (allowed are 'name', 'lr'|closest are )",
        ),
        ("[schedule]\nbatch_size = 1.5", r"schedule\.batch_size=1\.5: expected int"),
        ("[data]\nflip = 1", r"data\.flip=1: expected bool"),
        ("[data]\nflip = true\nflip = false", "is not TOML: Cannot overwrite"),
        ("[adam]\nlr = 1", "adam: unknown key; allowed are 'summary'"),
        ("[methods.eco]\noptimizer.lr = 1", r"methods\.eco: unknown key; allowed are 'a"),
        ("[methods.aol]\nlr = 1", r"methods\.aol\.lr: unknown key"),
        ("[methods.aol]\nS.optimizer.lr = 0", r"methods\.aol\.S\.optimizer\.lr=0: must be above 0"),
        ("methods = 3", "methods=3: expected a table"),
        ("optimizer = 3", "optimizer=3: expected a table"),
        ("summary = 3", "summary=3: expected str"),
        ("base = 'none'", "recipe='none': closest are "),
        ("base = 'mine.toml'", "its bases lead back to it"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, text, message):
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        read(file)
    assert "\n" not in str(error.value)
    assert str(file) in str(error.value) or "recipe=" in str(error.value)


def test_settings_have_the_type_of_their_key():
    assert parse_setting("optimizer.lr=1") == ("lr", 1.0)
    assert parse_setting("data.flip=true") == ("flip", True)
    assert parse_setting("data.path=a=b") == ("path", "a=b")
    assert parse_setting("schedule.epochs=3") == ("epochs", 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optimizer.lr", "expected KEY=VALUE"),
        ("lr=1", "unknown key 'lr'; closest are .*'optimizer.lr'"),
        ("optimizer.lr=fast", r"--set optimizer\.lr='fast': expected float"),
        ("optimizer.lr=0", r"--set optimizer\.lr=0: must be above 0"),
        ("data.flip=yes", r"--set data\.flip='yes': expected bool"),
        ("model.size=XXL", r"--set model\.size='XXL': allowed are 'XS'"),
    ],
)
def test_a_wrong_setting_is_named(text, message):
    with pytest.raises(ValueError, match=message):
        parse_setting(text)
