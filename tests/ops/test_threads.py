"""The compiled kernels give the same bits however torch splits their loops, and for every number of threads."""

import ctypes
from contextlib import contextmanager

import pytest
import torch

from fastlip import testing
from fastlip.kernels.common import binding

# Of each op the cases with enough work for several threads.
SPLIT = {
    "block_conv": ("3x3, 64 channels", "2x2 to 4x4, 64 channels"),
    "cayley": ("c16_s32", "dense_512"),
    "conv_chain": ("network 512",),
    "conv_exp": ("S, 256 channels",),
    "gram_rowsum": ("c63_k3_psi", "conv_64_k5", "groups_of_35", "dense_300_transposed"),
    "linear": ("dense_256", "long"),
    "maxmin": ("net_256x256x2", "dense_256x512"),
    "pixel_unshuffle": ("network 64",),
    "polar": ("bcop_c32", "lot_c16_s16"),
    "polar_linear": ("dense_256",),
    "sdp_residual": ("network 128",),
    "spectral_cayley": ("c16_s32",),
    "spectral_conv": ("c63_s5", "c63_to_17_s8_channels_last", "depthwise_torus", "torus_s32_34_channels_last"),
    "spectral_exp": ("c64", "c100", "c16_s32"),
    "spectral_polar": ("c40",),
}
# Beside their own loops these call torch's convolutions and products, whose sums torch's libraries split.
WITH_TORCH = ("conv_chain", "conv_exp", "polar_linear", "sdp_residual", "spectral_cayley", "spectral_polar")
WITHOUT_LOOPS = ("block_reflector", "cayley_linear", "skew_exp", "skew_exp_linear")

Body = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)
Loop = ctypes.CFUNCTYPE(
    ctypes.c_int32, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p
)


def parametrized(exclude=()):
    cases = [(op, name) for op, names in SPLIT.items() if op not in exclude for name in names]
    return pytest.mark.parametrize(("op_name", "case_name"), cases, ids=[" ".join(case) for case in cases])


def results(op_name, case_name):
    if reason := testing.op(op_name).status("native"):
        pytest.skip(reason)
    case = testing.cases_of(op_name).CASES[case_name]
    dtypes = testing.dtypes_of(op_name)
    tensors = case.make(torch.float32 if torch.float32 in dtypes else torch.complex64)
    return testing.outputs_and_gradients(lambda **t: testing.call(op_name, "native", case, t), tensors)


def assert_same_bits(ones, others):
    for name, value in ones.items():
        assert torch.equal(value, others[name]), name


@contextmanager
def threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def split_into(parts):
    """Runs the kernels' loops as torch splits them for that many threads, one part after another, the last first."""
    sizes = []

    def run(begin, end, grain, body, context):
        size = max(grain, -(-(end - begin) // parts))
        sizes.append(end - begin)
        for start in reversed(range(begin, end, size)):
            Body(body)(start, min(start + size, end), context)
        return 0

    loop, library = Loop(run), binding.library("cpu")
    library.set_parallel_for(ctypes.cast(loop, ctypes.c_void_p).value)
    try:
        yield sizes
    finally:
        library.set_parallel_for(binding._torch_parallel_for())


@parametrized()
def test_the_bits_do_not_depend_on_how_loops_are_split(op_name, case_name):
    with threads(1):
        whole = results(op_name, case_name)
        for parts in (2, 7):
            with split_into(parts) as sizes:
                assert_same_bits(whole, results(op_name, case_name))
            assert sizes, "too little work to be split"


@parametrized(WITH_TORCH)
def test_the_bits_do_not_depend_on_the_number_of_threads(op_name, case_name):
    with threads(1):
        one = results(op_name, case_name)
    for count in (2, 3):
        with threads(count):
            assert_same_bits(one, results(op_name, case_name))


def test_every_op_with_a_compiled_kernel_is_here():
    native = {name for name in testing.ops_with_cases() if "native" in testing.backends_of(name)}
    assert native == {*SPLIT, *WITHOUT_LOOPS}
