"""RandAugment by kornia: each function against its formula, and against torchvision where that can be imported."""

import math
import sys

import pytest
import torch
from checkpoints import assert_equal, load_state, without_times
from torch.nn import functional

from fastlip._extras import MissingPackageError
from fastlip.data import ImageOperations
from fastlip.data.kornia_functions import KorniaFunctions
from fastlip.data.operations import _OPERATIONS, MOST_MAGNITUDE, value_of


@pytest.fixture(scope="module")
def by_kornia():
    pytest.importorskip("kornia")
    return KorniaFunctions()


def pictures(channels=3, count=5, side=32):
    """Smooth images of bytes."""
    small = torch.rand(count, channels, 8, 8, generator=torch.Generator().manual_seed(3))
    return functional.interpolate(small, size=side, mode="bicubic").clamp_(0, 1).mul_(255).byte()


def test_moved_images(by_kornia):
    x = pictures()
    right = by_kornia.affine(x, 0.0, [5, 0], 1.0, [0.0, 0.0])
    assert torch.equal(right[..., 5:], x[..., :-5])
    assert not right[..., :5].any()
    up = by_kornia.affine(x, 0.0, [0, -3], 1.0, [0.0, 0.0])
    assert torch.equal(up[..., :-3, :], x[..., 3:, :])
    assert torch.equal(by_kornia.rotate(x, 90.0), x.rot90(1, (2, 3)))
    sheared = by_kornia.affine(x, 0.0, [0, 0], 1.0, [math.degrees(math.atan(0.3)), 0.0], [0, 0])
    for row in range(32):
        left = round(0.3 * (row + 0.5))
        assert torch.equal(sheared[:, :, row, : 32 - left], x[:, :, row, left:]), row


def test_changed_values(by_kornia):
    x = pictures()
    values = x.double()
    grey = 0.299 * values[:, :1] + 0.587 * values[:, 1:2] + 0.114 * values[:, 2:]
    means = grey.mean((1, 2, 3), keepdim=True)
    for factor in (0.3, 1.0, 1.7):
        for found, expected in (
            (by_kornia.adjust_brightness(x, factor), factor * values),
            (by_kornia.adjust_contrast(x, factor), means + factor * (values - means)),
            (by_kornia.adjust_saturation(x, factor), grey + factor * (values - grey)),
        ):
            assert (found - expected.clamp(0, 255)).abs().max() <= 1.5
    assert torch.equal(by_kornia.posterize(x, 3), x // 32 * 32)
    assert torch.equal(by_kornia.solarize(x, 100.0), torch.where(x >= 100, 255 - x, x))
    flat = x.clone()
    flat[0, 1] = 77
    stretched = by_kornia.autocontrast(flat)
    assert torch.equal(stretched[0, 1], flat[0, 1])
    assert (stretched[1:].amin((2, 3)) == 0).all()
    assert (stretched[1:].amax((2, 3)) == 255).all()
    assert torch.equal(by_kornia.adjust_sharpness(x, 1.0), x)
    dull = torch.randint(60, 120, (1, 3, 256, 256), generator=torch.Generator().manual_seed(0)).byte()
    found = by_kornia.equalize(dull)[0, 0].flatten().float().sort().values
    assert (found - torch.linspace(0, 255, len(found))).abs().max() < 6


def test_images_of_one_channel(by_kornia):
    x = pictures(channels=1)
    assert torch.equal(by_kornia.adjust_saturation(x, 1.9), x)
    tiny = pictures(side=8)[..., :2, :2]
    assert torch.equal(by_kornia.adjust_sharpness(tiny, 0.1), tiny)
    for apply, signed in _OPERATIONS.values():
        assert apply(by_kornia, x, -0.5 if signed else 0.5).shape == x.shape


def test_results_are_close_to_those_of_torchvision(by_kornia):
    try:
        from torchvision.transforms.v2 import functional as theirs
    except (ImportError, RuntimeError):
        pytest.skip("torchvision cannot be imported")
    for x in (pictures(), pictures(channels=1)):
        for name, (apply, signed) in _OPERATIONS.items():
            for magnitude in (3, 17, MOST_MAGNITUDE):
                for sign in (1, -1) if signed else (1,):
                    value = sign * value_of("randaugment", name, 32, magnitude)
                    difference = apply(by_kornia, x, value).int() - apply(theirs, x, value).int()
                    assert difference.abs().max() <= 2, (name, magnitude)


@pytest.mark.parametrize("kind", ["randaugment", "trivialaugment"])
def test_a_resumed_run_is_the_same_bit_for_bit(by_kornia, make_training, tiny_recipe, tmp_path, kind):
    recipe = tiny_recipe(augment=kind, augment_by="kornia", augment_probability=0.6, shift=1, epochs=3)
    straight = make_training(recipe, "straight")
    straight.fit(tensorboard=False)
    make_training(recipe).fit(stop_after=1, tensorboard=False)
    parts = make_training(recipe, state=load_state(tmp_path / "run"))
    parts.fit(tensorboard=False)
    assert_equal(*(without_times(load_state(training.folder.path)) for training in (straight, parts)))


def test_without_kornia_the_message_says_how_to_get_it(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "kornia"] + ["kornia"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingPackageError) as caught:
        ImageOperations("randaugment", package="kornia")
    assert str(caught.value) == "augment='randaugment': kornia is not installed: pip install \"fastlip[kornia]\""
    with pytest.raises(ValueError, match=r"^package='pillow': allowed are 'torchvision', 'kornia'"):
        ImageOperations("randaugment", package="pillow")
