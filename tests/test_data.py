"""Data sets: what they hand out, and that a damaged file is named in one clear error."""

import numpy as np
import pytest
import torch
from PIL import Image

from fastlip.data import Batches, DataError, Share, TensorImages, load
from fastlip.data.batches import Augmentation
from fastlip.data.images import FileList


def write_cifar(folder, label_bytes, files, records, labels=10):
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for name in files:
        content = generator.integers(0, 256, (records, label_bytes + 3072), dtype=np.uint8)
        content[:, :label_bytes] = generator.integers(0, labels, (records, label_bytes))
        content.tofile(folder / name)


CIFAR10 = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]


@pytest.fixture
def cifar10(tmp_path):
    write_cifar(tmp_path / "cifar-10-batches-bin", 1, CIFAR10, 4)
    return tmp_path


@pytest.fixture
def image_folder(tmp_path):
    generator = np.random.default_rng(0)
    for split, count in (("train", 3), ("val", 2)):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / name / f"{i}.png")
    return tmp_path


def test_digits_are_split_once_and_for_all():
    data = load("digits")
    assert data.shape == (1, 8, 8)
    assert (len(data.train.labels), len(data.test.labels)) == (1437, 360)
    shares = torch.bincount(data.test.labels) / torch.bincount(torch.cat([data.train.labels, data.test.labels]))
    assert (shares - 0.2).abs().max() < 0.01
    again = load("digits")
    assert torch.equal(data.test.pixels(torch.arange(360)), again.test.pixels(torch.arange(360)))
    assert data.test.labels[:8].tolist() == [7, 6, 3, 7, 7, 3, 2, 8]


def test_inputs_are_stored_values_over_the_divisor():
    data = load("digits")
    x, y = next(iter(Batches(data.train, data.divisor, 1437)))
    assert x.dtype == torch.float32
    assert (x.min(), x.max()) == (0, 1)
    assert torch.equal(x * 16, data.train.pixels(torch.arange(1437)).float())
    assert torch.equal(y, data.train.labels)


def test_centring_subtracts_the_mean_and_nothing_else():
    data = load("digits")
    x, _ = next(iter(Batches(data.train, data.divisor, 1437)))
    centred, _ = next(iter(Batches(data.train, data.divisor, 1437, mean=data.mean)))
    assert torch.equal(centred, x - data.mean[0])
    assert abs(centred.mean()) < 1e-3


def test_cifar10_reads_planes_and_labels(cifar10):
    data = load("cifar10", cifar10)
    assert (len(data.train.labels), len(data.test.labels), len(data.classes)) == (20, 4, 10)
    record = np.fromfile(cifar10 / "cifar-10-batches-bin" / "data_batch_2.bin", dtype=np.uint8)[:3073]
    assert data.train.labels[4] == record[0]
    assert data.train.pixels(torch.tensor([4]))[0, 2, 1, 3] == record[1 + 2 * 1024 + 32 + 3]


def test_cifar10_takes_the_folder_of_the_files_and_its_class_names(cifar10):
    folder = cifar10 / "cifar-10-batches-bin"
    (folder / "batches.meta.txt").write_text("a b c d e f g h i j\n")
    assert load("cifar10", folder).classes == tuple("abcdefghij")


def test_cifar100_has_fine_labels(tmp_path):
    write_cifar(tmp_path, 2, ["train.bin", "test.bin"], 3, labels=100)
    record = np.fromfile(tmp_path / "train.bin", dtype=np.uint8)[:3074]
    data = load("cifar100", tmp_path)
    assert len(data.classes) == 100
    assert data.train.labels[0] == record[1]
    assert data.train.pixels(torch.tensor([0])).flatten()[0] == record[2]


def test_a_truncated_cifar_file_is_named(cifar10):
    file = cifar10 / "cifar-10-batches-bin" / "data_batch_3.bin"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(DataError, match=r"data_batch_3\.bin: got 12287 bytes.*truncated"):
        load("cifar10", cifar10)
    file.write_bytes(b"")
    with pytest.raises(DataError, match=r"data_batch_3\.bin: got 0 bytes"):
        load("cifar10", cifar10)


def test_a_missing_or_foreign_cifar_file_is_named(cifar10):
    folder = cifar10 / "cifar-10-batches-bin"
    content = (folder / "test_batch.bin").read_bytes()
    (folder / "test_batch.bin").write_bytes(b"\x63" + content[1:])
    with pytest.raises(DataError, match=r"test_batch\.bin: label 99"):
        load("cifar10", cifar10)
    (folder / "test_batch.bin").unlink()
    with pytest.raises(DataError, match=r"test_batch\.bin: no such file"):
        load("cifar10", cifar10)


@pytest.mark.parametrize(
    ("name", "arguments", "text"),
    [
        ("imagenet", {}, "data='imagenet': allowed are 'digits'"),
        ("digits", {"path": "/somewhere"}, "path='/somewhere'"),
        ("digits", {"image_size": 16}, "image_size=16"),
        ("folder", {"image_size": -1}, "image_size=-1"),
        ("cifar10", {}, "path=''"),
        ("cifar10", {"path": "/no/such/folder"}, "/no/such/folder: no such folder"),
        ("cifar10", {"path": __file__}, "is not a folder"),
        ("cifar100", {"path": "/usr"}, "/usr: no train.bin"),
        ("folder", {"path": "/usr"}, "/usr/train: no such folder"),
        ("tinyimagenet", {"path": "/usr"}, "/usr/train: no such folder"),
    ],
)
def test_wrong_arguments_are_named(name, arguments, text):
    with pytest.raises(ValueError, match=text.replace("(", r"\(")):
        load(name, **arguments)


def test_an_image_folder_has_its_subfolders_as_classes(image_folder):
    data = load("folder", image_folder)
    assert (data.shape, data.classes) == ((3, 6, 6), ("cat", "dog"))
    assert data.test.labels.tolist() == [0, 0, 1, 1]
    stored = np.asarray(Image.open(image_folder / "val" / "dog" / "0.png"))
    assert torch.equal(data.test.pixels(torch.tensor([2]))[0].permute(1, 2, 0), torch.tensor(stored))


def test_an_image_folder_can_be_resized(image_folder):
    Image.new("L", (9, 5), 200).save(image_folder / "train" / "cat" / "grey.png")
    data = load("folder", image_folder, image_size=4)
    assert data.shape == (3, 4, 4)
    grey = data.train.files.index(image_folder / "train" / "cat" / "grey.png")
    assert (data.train.pixels(torch.tensor([grey])) == 200).all()
    with pytest.raises(DataError, match=r"grey\.png: got 9x5 pixels, expected 6x6"):
        load("folder", image_folder).train.pixels(torch.tensor([grey]))


def test_a_damaged_image_is_named(image_folder):
    file = image_folder / "train" / "dog" / "1.png"
    file.write_bytes(file.read_bytes()[:60])
    data = load("folder", image_folder)
    with pytest.raises(DataError, match=r"dog/1\.png: cannot be decoded"):
        list(Batches(data.train, data.divisor, 2).epoch(0))


def test_an_empty_or_unknown_class_is_named(image_folder):
    (image_folder / "val" / "bird").mkdir()
    with pytest.raises(DataError, match="bird: no such class"):
        load("folder", image_folder)
    (image_folder / "train" / "bird").mkdir()
    with pytest.raises(DataError, match="bird: no images of class"):
        load("folder", image_folder)


@pytest.fixture
def tiny(tmp_path):
    for wnid in ("n01", "n02"):
        folder = tmp_path / "train" / wnid / "images"
        folder.mkdir(parents=True)
        Image.new("RGB", (64, 64), (9, 9, 9)).save(folder / f"{wnid}_0.JPEG")
    (tmp_path / "val" / "images").mkdir(parents=True)
    Image.new("L", (64, 64), 7).save(tmp_path / "val" / "images" / "val_0.JPEG")
    (tmp_path / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn02\t0\t32\t44\t62\n")
    return tmp_path


def test_tinyimagenet_reads_its_validation_annotations(tiny):
    data = load("tinyimagenet", tiny)
    assert (data.shape, data.classes, data.test.labels.tolist()) == ((3, 64, 64), ("n01", "n02"), [1])
    assert data.test.pixels(torch.tensor([0])).shape == (1, 3, 64, 64)


@pytest.mark.parametrize(
    ("line", "text"),
    [("val_0.JPEG\tn03\n", "annotations.txt:1"), ("gone.JPEG\tn01\n", "gone.JPEG: no such file")],
)
def test_wrong_tinyimagenet_annotations_are_named(tiny, line, text):
    (tiny / "val" / "val_annotations.txt").write_text(line)
    with pytest.raises(DataError, match=text):
        load("tinyimagenet", tiny)


def make_batches(**options):
    images = TensorImages(
        torch.arange(1, 13, dtype=torch.uint8)[:, None, None, None].repeat(1, 1, 4, 4), torch.arange(12)
    )
    return Batches(images, 12.0, 5, **options)


def labels_of(batches):
    return [y.tolist() for _, y in batches]


def joined(lists):
    return [item for items in lists for item in items]


def test_an_epoch_is_a_permutation_of_its_own():
    batches = make_batches(seed=3)
    first, second = labels_of(batches.epoch(0)), labels_of(batches.epoch(1))
    assert sorted(joined(first)) == sorted(joined(second)) == list(range(12))
    assert first != second
    assert first == labels_of(make_batches(seed=3).epoch(0)) != labels_of(make_batches(seed=4).epoch(0))
    assert [len(batch) for batch in first] == [5, 5, 2]
    assert len(batches) == 3


def test_an_epoch_continues_from_any_batch_with_the_same_images():
    batches = make_batches(augmentation=Augmentation(shift=1, flip=True))
    whole = list(batches.epoch(2))
    for start in range(4):
        rest = list(batches.epoch(2, start))
        assert len(rest) == 3 - start
        for (x, y), (x_whole, y_whole) in zip(rest, whole[start:], strict=True):
            assert torch.equal(x, x_whole)
            assert torch.equal(y, y_whole)


def test_shifts_move_whole_images_and_fill_with_zeros():
    x = torch.rand(200, 2, 5, 5) + 1
    moved = Augmentation(shift=2)(x, torch.Generator().manual_seed(0))
    seen = set()
    for before, after in zip(x, moved, strict=True):
        rows, columns = after[0].nonzero()[0].tolist()
        fits = [(dy, dx) for dy in range(-2, 3) for dx in range(-2, 3) if torch.equal(shifted(before, dy, dx), after)]
        assert len(fits) == 1, (rows, columns)
        seen.add(fits[0])
    assert len(seen) == 25


def shifted(image, dy, dx):
    out = torch.zeros_like(image)
    h, w = image.shape[1:]
    out[:, max(dy, 0) : h + min(dy, 0), max(dx, 0) : w + min(dx, 0)] = image[
        :, max(-dy, 0) : h + min(-dy, 0), max(-dx, 0) : w + min(-dx, 0)
    ]
    return out


def test_flips_mirror_about_half_of_the_images():
    x = torch.rand(400, 1, 3, 4)
    flipped = Augmentation(flip=True)(x, torch.Generator().manual_seed(0))
    mirrored = (flipped == x.flip(3)).flatten(1).all(1)
    assert torch.equal(flipped[~mirrored], x[~mirrored])
    assert 150 < mirrored.sum() < 250


def test_evaluation_is_in_order_and_not_augmented():
    batches = make_batches(augmentation=Augmentation(shift=2), channels_last=True)
    assert joined(labels_of(batches)) == list(range(12))
    x = next(iter(batches))[0]
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(x[:, 0, 0, 0], torch.arange(1, 6) / 12)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_the_shares_of_all_processes_are_the_batches(count):
    options = {"augmentation": Augmentation(shift=1, flip=True)}
    whole = make_batches(**options)
    parts = [make_batches(share=Share(rank, count), **options) for rank in range(count)]
    for batch, pairs in enumerate(zip(whole.epoch(4), *(part.epoch(4) for part in parts), strict=True)):
        (x, y), *shares = pairs
        counts = [part.counts(batch)[0] for part in parts]
        assert max(counts) - min(counts) <= 1
        assert torch.equal(torch.cat([images[:n] for (images, _), n in zip(shares, counts, strict=True)]), x)
        assert torch.equal(torch.cat([labels[:n] for (_, labels), n in zip(shares, counts, strict=True)]), y)
        assert all(len(images) >= 1 for images, _ in shares)
    assert sorted(label for part in parts for labels in labels_of(part) for label in labels) == list(range(12))


def test_worker_processes_hand_out_the_same_batches(image_folder):
    data = load("folder", image_folder)
    options = {"augmentation": Augmentation(shift=1, flip=True), "seed": 2}
    here, there = (Batches(data.train, data.divisor, 2, workers=workers, **options) for workers in (0, 2))
    for start in (0, 1):
        for (x, y), (x_there, y_there) in zip(here.epoch(1, start), there.epoch(1, start), strict=True):
            assert torch.equal(x, x_there)
            assert torch.equal(y, y_there)
    (image_folder / "train" / "dog" / "1.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"^\S*dog/1\.png: cannot be decoded[^\n]*$"):
        list(there.epoch(0))


def test_small_sets_are_decoded_once_and_large_ones_as_needed(image_folder, monkeypatch):
    images = load("folder", image_folder).train
    every = torch.arange(6)
    first = images.pixels(every[:4])
    for file in images.files[:4]:
        file.write_bytes(b"no image")
    assert torch.equal(images.pixels(every)[:4], first)
    monkeypatch.setattr("fastlip.data.images.KEPT_BYTES", 6 * 3 * 6 * 6 - 1)
    with pytest.raises(DataError, match="cannot be decoded"):
        images.pixels(every)


def test_a_million_paths_take_little_memory():
    files = FileList([f"/data/train/n{i // 1000:05d}/é_{i:06d}.jpeg" for i in range(100_000)])
    assert files.block.nbytes < 100 * len(files)
    assert str(files[99_999]) == "/data/train/n00099/é_099999.jpeg"


def test_a_cifar_file_beyond_all_bounds_is_not_read(tmp_path):
    for name in CIFAR10:
        with (tmp_path / name).open("wb") as file:
            file.truncate(3073 * 10**9)  # a hole: it takes no room on the disk
    with pytest.raises(DataError, match=r"data_batch_1\.bin: got 3073000000000 bytes, expected at most"):
        load("cifar10", tmp_path)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("train/cat/scan.npy", "scan.npy: images of this format are not read"),
        ("train/loose.png", "train/loose.png: an image outside of the classes' folders"),
        ("val/loose.JPG", "val/loose.JPG: an image outside of the classes' folders"),
    ],
)
def test_images_that_would_be_missed_are_named(image_folder, file, text):
    (image_folder / file).write_bytes(b"anything")
    with pytest.raises(DataError, match=text):
        load("folder", image_folder)


@pytest.mark.parametrize("name", ["../../train/n01/images/0.JPEG", "..", "/etc/hostname", "a\0b"])
def test_annotations_name_files_of_their_folder_only(tiny, name):
    file = next(tiny.rglob("val_annotations.txt"))
    wnid = file.read_text().split("\t")[1]
    file.write_text(f"{name}\t{wnid}\t0\t0\t1\t1\n")
    with pytest.raises(DataError, match="expected the name of a file in images/"):
        load("tinyimagenet", tiny)
