"""RandAugment and TrivialAugment: what is drawn, what torchvision is asked for, and runs resumed bit for bit.

A module with the interface of torchvision's functions stands in for it, and the last test compares with torchvision
itself where that can be imported.
"""

import dataclasses
import sys
from types import ModuleType

import pytest
import torch
from checkpoints import assert_equal, load_state, without_times
from same_batches import check_shares, check_workers

from fastlip._extras import MissingPackageError
from fastlip.data import Augmentation, Batches, ImageOperations, TensorImages
from fastlip.data.operations import _NAMES, _OPERATIONS, value_of
from fastlip.training.recipe import Recipe
from fastlip.training.setup import batches_of

KINDS = ("randaugment", "trivialaugment")
MODULES = (
    "torchvision",
    "torchvision.transforms",
    "torchvision.transforms.v2",
    "torchvision.transforms.v2.functional",
)


class Functions(ModuleType):
    """Functions with the signatures of ``torchvision.transforms.v2.functional``; they note their calls."""

    def __init__(self):
        super().__init__(MODULES[-1])
        self.calls = []

    def _note(self, image, name, *values):
        assert image.dtype == torch.uint8
        assert image.dim() == 4
        self.calls.append((name, *values))
        return image ^ (1 + len(name) % 7)  # one to one, so that every change shows

    def affine(self, image, angle, translate, scale, shear, interpolation=None, fill=None, center=None):
        assert (angle, scale) == (0.0, 1.0)
        return self._note(image, "affine", *translate, *shear, tuple(center) if center else None)

    def rotate(self, image, angle, interpolation=None, expand=False, center=None, fill=None):
        return self._note(image, "rotate", angle)

    def adjust_brightness(self, image, brightness_factor):
        return self._note(image, "brightness", brightness_factor)

    def adjust_saturation(self, image, saturation_factor):
        return self._note(image, "saturation", saturation_factor)

    def adjust_contrast(self, image, contrast_factor):
        return self._note(image, "contrast", contrast_factor)

    def adjust_sharpness(self, image, sharpness_factor):
        return self._note(image, "sharpness", sharpness_factor)

    def posterize(self, image, bits):
        return self._note(image, "posterize", bits)

    def solarize(self, image, threshold):
        return self._note(image, "solarize", threshold)

    def autocontrast(self, image):
        return self._note(image, "autocontrast")

    def equalize(self, image):
        return self._note(image, "equalize")


@pytest.fixture
def functions(monkeypatch):
    modules = [*map(ModuleType, MODULES[:-1]), Functions()]
    for name, module, inner in zip(MODULES, modules, [*modules[1:], None], strict=True):
        monkeypatch.setitem(sys.modules, name, module)
        if inner is not None:
            setattr(module, inner.__name__.rpartition(".")[2], inner)
    return modules[-1]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def whole(operations, x, seed=0):
    return operations(x, generator(seed), slice(0, len(x)), len(x))


def images(count=400, side=4):
    return torch.randint(256, (count, 3, side, side), generator=generator(9)).float() / 255


@pytest.mark.parametrize("kind", KINDS)
def test_a_fraction_of_the_images_changes_and_the_rest_keeps_its_bits(functions, kind):
    x, state = images(), torch.get_rng_state()
    y = whole(ImageOperations(kind, operations=1, probability=0.5), x)
    changed = (x != y).flatten(1).any(1)
    assert 150 < changed.sum() < 230  # half of them, but those whose operation is the identity
    assert torch.equal(y * 255, (y * 255).round())
    assert torch.equal(state, torch.get_rng_state()), "torch's own generator is left alone"
    assert not torch.equal(y, whole(ImageOperations(kind, operations=1, probability=0.5), x, seed=1))
    assert torch.equal(x, images()), "the images are not changed in place"


def test_randaugment_has_one_magnitude_and_trivialaugment_all(functions):
    x, found = images(2000), {}
    for kind in KINDS:
        functions.calls.clear()
        whole(ImageOperations(kind, operations=1, magnitude=15), x)
        found[kind] = {call[1] for call in functions.calls if call[0] == "rotate"}
    assert found["randaugment"] == {-15.0, 15.0}
    assert len(found["trivialaugment"]) > 40
    assert {abs(angle) for angle in found["trivialaugment"]} <= {4.5 * step for step in range(31)}


def test_each_operation_is_as_likely_and_called_with_its_value(functions):
    count = 14_000
    drawn = ImageOperations("randaugment")._draw(count, generator())
    assert drawn.shape == (3, count)
    assert (drawn[0].bincount(minlength=14) - 1000).abs().max() < 150
    assert abs(drawn[2].sum() - count // 2) < 300
    expected = {
        "affine": {(9, 0, 0.0, 0.0, None), (-9, 0, 0.0, 0.0, None), (0, 9, 0.0, 0.0, None), (0, -9, 0.0, 0.0, None)},
        "rotate": {(20.0,), (-20.0,)},
        "posterize": {(5,)},
        "autocontrast": {()},
        "equalize": {()},
    }
    whole(ImageOperations("randaugment", operations=1, magnitude=20), images(1000, side=32)[..., :32, :32])
    calls = {}
    for name, *values in functions.calls:
        calls.setdefault(name, set()).add(tuple(values))
    shears = {values for values in calls["affine"] if values[-1] is not None}
    angle = 11.3099324740202  # of the slope 0.2, in degrees
    flat = sorted(round(number, 4) for values in shears for number in values[2:4])
    assert flat == sorted([round(angle, 4), 0, -round(angle, 4), 0] * 2)
    assert all(values[4] == (0, 0) for values in shears)
    assert calls["affine"] - shears == expected.pop("affine")
    for name in ("brightness", "saturation", "contrast", "sharpness"):
        assert sorted(value for (value,) in calls[name]) == pytest.approx([0.4, 1.6])
    assert [value for (value,) in calls["solarize"]] == pytest.approx([85])
    assert {name: calls[name] for name in expected} == expected


def batches(**options):
    stored = TensorImages((images(23) * 255).round().byte(), torch.arange(23))
    operations = ImageOperations("randaugment", probability=0.7)
    options = {"augmentation": Augmentation(1, True), "mean": (0.5, 0.4, 0.3), **options}
    return Batches(stored, 255.0, 10, operations=operations, **options)


def test_an_epoch_continues_from_any_batch(functions):
    every = list(batches().epoch(4))
    for start in range(3):
        for pair, expected in zip(batches().epoch(4, start), every[start:], strict=True):
            assert all(map(torch.equal, pair, expected))
    assert not torch.equal(every[0][0], next(iter(batches(seed=1).epoch(4)))[0])
    plain = next(iter(batches()))[0]
    assert torch.equal(plain + torch.tensor([0.5, 0.4, 0.3]).view(-1, 1, 1), plain + batches().mean)


@pytest.mark.parametrize("count", [2, 7])
def test_the_shares_of_all_processes_are_the_batches(functions, count):
    check_shares(batches, count)


def test_worker_processes_hand_out_the_same_batches(functions):
    check_workers(batches)


def test_evaluation_is_not_changed(functions, tiny_data, tiny_recipe):
    recipe = tiny_recipe(augment="randaugment")
    assert batches_of(recipe, tiny_data, tiny_data.train).operations is None
    assert batches_of(recipe, tiny_data, tiny_data.train, augment=True).operations.kind == "randaugment"


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_is_the_same_bit_for_bit(functions, make_training, tiny_recipe, tmp_path, kind):
    recipe = tiny_recipe(augment=kind, augment_probability=0.6, shift=1, epochs=3)
    straight = make_training(recipe, "straight")
    straight.fit(tensorboard=False)
    make_training(recipe).fit(stop_after=1, tensorboard=False)
    parts = make_training(recipe, state=load_state(tmp_path / "run"))
    parts.fit(tensorboard=False)
    assert_equal(*(without_times(load_state(training.folder.path)) for training in (straight, parts)))
    plain = make_training(dataclasses.replace(recipe, augment="none"), "plain")
    plain.fit(tensorboard=False)
    assert plain.progress.history[-1]["train_loss"] != parts.progress.history[-1]["train_loss"]


def test_without_torchvision_the_message_says_how_to_get_it(monkeypatch, cli, tmp_path):
    for name in MODULES:
        monkeypatch.setitem(sys.modules, name, None)
    text = "augment='randaugment': torchvision is not installed: pip install \"fastlip[augment]\""
    with pytest.raises(MissingPackageError) as caught:
        ImageOperations("randaugment")
    assert str(caught.value) == text
    code, _, errors = cli("train", "--augment=randaugment", f"--out={tmp_path / 'run'}")
    assert code != 0
    assert text in errors
    assert "Traceback" not in errors


def test_a_torchvision_that_does_not_fit_is_named(monkeypatch, functions):
    class Broken(ModuleType):
        def __getattr__(self, name):
            raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setitem(sys.modules, MODULES[2], Broken(MODULES[2]))
    with pytest.raises(ValueError, match=r"^augment='randaugment': torchvision does not fit this torch, .*nms"):
        ImageOperations("randaugment")


def test_images_of_two_channels_have_no_colours(functions, tiny_data, tiny_recipe):
    two = TensorImages(torch.zeros(4, 2, 8, 8, dtype=torch.uint8), torch.arange(4))
    data = dataclasses.replace(tiny_data, train=two, shape=(2, 8, 8))
    with pytest.raises(ValueError, match="needs images of 1 or 3 channels, digits has 2"):
        batches_of(tiny_recipe(augment="randaugment"), data, two, augment=True)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"augment": "augmix"}, "augment='augmix': allowed are 'none', 'randaugment', 'trivialaugment'"),
        ({"augment_operations": 0}, "augment_operations=0: must be at least 1"),
        ({"augment_operations": 17}, "augment_operations=17: must be at most 16"),
        ({"augment_magnitude": 31}, "augment_magnitude=31: must be at most 30"),
        ({"augment_magnitude": -1}, "augment_magnitude=-1: must be at least 0"),
        ({"augment_probability": 0.0}, "augment_probability=0.0: must be above 0"),
        ({"augment_probability": 1.5}, "augment_probability=1.5: must be at most 1"),
    ],
)
def test_a_wrong_value_is_named(fields, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        Recipe(**fields)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "none"}, "kind='none': allowed are"),
        ({"operations": 0}, "operations=0: must be at least 1"),
        ({"magnitude": 31}, "magnitude=31: must be from 0 to 30"),
        ({"probability": 0.0}, r"probability=0\.0: must be above 0 and at most 1"),
    ],
)
def test_a_wrong_argument_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        ImageOperations(**{"kind": "randaugment", **arguments})


def test_the_operations_are_those_of_torchvision():
    try:
        from torchvision.transforms import v2
    except (ImportError, RuntimeError):
        pytest.skip("torchvision cannot be imported")
    for kind, transform in zip(KINDS, (v2.RandAugment(), v2.TrivialAugmentWide()), strict=True):
        theirs = transform._AUGMENTATION_SPACE
        assert [name.replace(" ", "") for name in _NAMES] == [name.lower() for name in theirs]
        x = (images(3, side=32) * 255).byte()
        for index, (name, (magnitudes, signed)) in enumerate(theirs.items()):
            assert _OPERATIONS[_NAMES[index]][1] == signed
            values = magnitudes(31, 32, 32)
            for magnitude in (0, 9, 17, 30):
                value = 0.0 if values is None else float(values[magnitude])
                own = value_of(kind, _NAMES[index], 32, magnitude)
                numbers = (torch.full((3,), number) for number in (index, magnitude, 0))
                expected = transform._apply_image_or_video_transform(
                    x, name, value, interpolation=transform.interpolation, fill=transform._fill
                )
                assert torch.equal(ImageOperations(kind)._apply(x, *numbers), expected), (name, magnitude, own)
