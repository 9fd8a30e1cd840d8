"""Fingerprints: equal for equal bits, different for any other, the same on every path and split over threads."""

import itertools

import pytest
import torch

from fastlip.nn import _fingerprint
from fastlip.nn._fingerprint import fingerprint, is_plain

SIZES = (0, 1, 3, 15, 16, 17, 255, 256, 257, 4096, 16384, 16385, 70001)
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.int8, torch.bool)


@pytest.fixture(params=["kernel", "torch"])
def path(request, monkeypatch):
    """Both ways of hashing on a CPU."""
    if request.param == "torch":
        monkeypatch.setattr(_fingerprint, "_kernel", lambda: None)
    elif _fingerprint._kernel() is None:
        pytest.skip("the extension is not built")


def random(size, dtype=torch.float32):
    return (100 * torch.randn(size, generator=torch.Generator().manual_seed(size))).to(dtype)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equal_bits_have_equal_fingerprints(dtype):
    for size in SIZES:
        x = random(size, dtype)
        assert fingerprint([x]) == fingerprint([x.clone()])


@pytest.mark.usefixtures("path")
def test_every_bit_counts():
    x = random(1030)
    bits = x.view(torch.int32)
    seen = {fingerprint([x])}
    for entry, bit in itertools.product((0, 1, 15, 16, 255, 256, 1023, 1029), range(32)):
        mask = torch.tensor(1 << bit, dtype=torch.int64).to(torch.int32)
        bits[entry] ^= mask
        seen.add(fingerprint([x]))
        bits[entry] ^= mask
    assert len(seen) == 1 + 8 * 32


@pytest.mark.usefixtures("path")
def test_positions_count():
    for size in (2, 16, 256, 4096, 40000):
        x = random(size)
        changed = [x, x.flip(0), x.roll(1), x.roll(16), x.roll(256), x.roll(16384), -x, 0 * x, torch.zeros(size)]
        different = {tuple(t.view(torch.int32).tolist()) for t in changed}
        assert len({fingerprint([t]) for t in changed}) == len(different)


@pytest.mark.usefixtures("path")
def test_zeros_of_either_sign_and_payloads_of_nan_are_told_apart():
    patterns = [0, -(1 << 31), 0x7FC00000, 0x7FC00001, 0x7FC00000 - (1 << 31), 0x7F800000, 1]
    numbers = [torch.tensor([value], dtype=torch.int64).to(torch.int32).view(torch.float32) for value in patterns]
    assert len({fingerprint([number]) for number in numbers}) == len(set(patterns))


@pytest.mark.usefixtures("path")
def test_shapes_dtypes_and_the_cut_into_tensors_count():
    x = random(24)
    alike = [[x], [x.view(4, 6)], [x.view(6, 4)], [x.view(torch.int32)], [x[:8], x[8:]], [x[:9], x[9:]], [x, x[:0]]]
    assert len({fingerprint(tensors) for tensors in alike}) == len(alike)
    assert fingerprint([x, -x]) != fingerprint([-x, x])
    many = [x + i for i in range(11)]
    assert len({fingerprint(many[:n]) for n in range(12)}) == 12


@pytest.mark.usefixtures("path")
def test_views_are_hashed_as_what_they_show():
    x = random(81).view(3, 3, 3, 3)
    views = [x.permute(order) for order in itertools.permutations(range(4))]
    views += [
        x.flip(0),
        torch._neg_view(x),
        x[:1].expand(3, 3, 3, 3),
        torch.stack((x, -x), -1)[..., 0].transpose(0, 1),
    ]
    seen = {}
    for view in views:
        seen.setdefault(fingerprint([view]), []).append(view)
    assert all(torch.equal(group[0], view) for group in seen.values() for view in group)
    assert fingerprint([torch._neg_view(x)]) == fingerprint([-x])
    complex_ = torch.complex(random(8), random(8))
    assert fingerprint([complex_.conj()]) == fingerprint([complex_.conj().resolve_conj()]) != fingerprint([complex_])


def test_the_split_over_threads_does_not_count():
    if _fingerprint._kernel() is None:
        pytest.skip("the extension is not built")
    x, before = random(1 << 20), torch.get_num_threads()
    seen = set()
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            seen.add(fingerprint([x, x[1:]]))
    finally:
        torch.set_num_threads(before)
    assert len(seen) == 1


def test_instruction_sets_agree():
    from fastlip.kernels.common import binding

    x, found = random(5000), set()
    for name in ("_native_default", "_native_avx2", "_native_avx512"):
        try:
            kernel = binding._load(name).fingerprint
        except ImportError:
            continue
        result = _fingerprint._Result()
        for size in (0, 1, 63, 64, 65, 1024, 20000):
            kernel(result.address, 7, x.data_ptr(), size, x.data_ptr() + 1, size, *[0] * 4)
            found.add((size, result.value.value))
    assert len(found) in (0, 7)


def test_what_has_no_bits_of_its_own_has_no_fingerprint():
    class Subclass(torch.Tensor):
        pass

    ours = torch.zeros(2).as_subclass(Subclass)
    assert fingerprint([ours]) is None
    assert not is_plain(ours)
    assert not is_plain(torch.zeros(2, device="meta"))
    assert not is_plain(torch.zeros(2, 2).to_sparse())
    assert is_plain(torch.nn.Parameter(torch.zeros(2)))
