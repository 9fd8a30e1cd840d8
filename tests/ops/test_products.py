"""Products of matrices read and write only what is theirs, whatever the layouts, the threads and the processes."""

import ctypes
import itertools
import multiprocessing
import sys
import threading

import pytest
import torch

from fastlip.certification.rounding.residual import residual_matrix
from fastlip.certification.rounding.sums import dense
from fastlip.certification.rounding.terms import Unit
from fastlip.kernels.common import binding, products
from fastlip.kernels.common.products import product

pytest.importorskip("fastlip.kernels.linear.native")
residual = pytest.importorskip("fastlip.kernels.sdp_residual.dense")
PAGE = 4096
# Distances of neighbours in a column and in a row of an m x n matrix: of parts of larger ones, and of views.
STRIDES = {
    "rows": lambda m, n: (n, 1),
    "columns": lambda m, n: (1, m),
    "wide": lambda m, n: (n + 3, 1),
    "tall": lambda m, n: (1, m + 5),
    "apart": lambda m, n: (2 * n + 1, 2),
    "one row": lambda m, n: (0, 1),
    "one column": lambda m, n: (1, 0),
    "one number": lambda m, n: (0, 0),
    "overlapping": lambda m, n: (1, 1),
}


class Walled:
    """Numbers between two pages of memory that nobody may read, at their end: a read beyond them ends the process."""

    def __init__(self, count, dtype):
        libc = ctypes.CDLL(None)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long
        libc.mprotect.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
        libc.munmap.argtypes = ctypes.c_void_p, ctypes.c_size_t
        size = count * dtype.itemsize
        inside = max(1, -(-size // PAGE)) * PAGE
        self.free, self.total = libc.munmap, inside + 2 * PAGE
        self.base = libc.mmap(None, self.total, 3, 0x22, -1, 0)
        for wall in (self.base, self.base + PAGE + inside):
            assert libc.mprotect(wall, PAGE, 0) == 0
        memory = (ctypes.c_char * max(size, 1)).from_address(self.base + PAGE + inside - max(size, 1))
        self.numbers = torch.frombuffer(memory, dtype=dtype, count=count) if count else torch.empty(0, dtype=dtype)

    def close(self):
        del self.numbers
        self.free(self.base, self.total)


@pytest.mark.skipif(sys.platform != "linux", reason="mmap by its numbers on Linux")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layouts", list(itertools.product(STRIDES, repeat=2)), ids=" and ".join)
def test_nothing_beyond_the_matrices_is_read_or_written(layouts, dtype):
    generator = torch.Generator().manual_seed(0)
    for m, k, n in ((1, 1, 1), (3, 20, 5), (9, 33, 17), (8, 16, 32), (5, 193, 34), (1, 40, 70), (17, 1, 33)):
        walls, factors = [], []
        for shape, layout in zip(((m, k), (k, n)), layouts, strict=True):
            strides = STRIDES[layout](*shape)
            walls.append(Walled(1 + sum((s - 1) * d for s, d in zip(shape, strides, strict=True)), dtype))
            walls[-1].numbers.copy_(torch.randn(len(walls[-1].numbers), generator=generator))
            factors.append(walls[-1].numbers.as_strided(shape, strides))
        walls += [Walled(m * n, dtype), Walled(n, dtype)]
        out, bias = walls[2].numbers.view(m, n), walls[3].numbers.fill_(0.5)
        a, b = (factor.double() for factor in factors)
        right, size = 0.5 - 2 * (a @ b), 0.5 + 2 * (a.abs() @ b.abs())
        for options in ({"bias": bias}, {"add": True}):
            out.fill_(0.5)
            assert product(*factors, out=out, alpha=-2.0, least=0, **options) is out
            assert ((out - right).abs() <= (k + 2) * torch.finfo(dtype).eps * size).all()
        del factors, out, bias
        for wall in walls:
            wall.close()


@pytest.mark.parametrize("layout", ["columns", "wide", "apart", "tall"])
@pytest.mark.parametrize("options", [{}, {"add": True}, {"alpha": 0.5}, {"bias": torch.ones(40)}], ids=str)
def test_a_result_in_any_layout(layout, options):
    a, b = torch.randn(30, 50), torch.randn(50, 40)
    strides = STRIDES[layout](30, 40)
    memory = torch.full((1 + 29 * strides[0] + 39 * strides[1] + 9,), 7.0)
    out = memory.as_strided((30, 40), strides)
    right = options.get("alpha", 1) * (a @ b) + (7 if "add" in options else options.get("bias", 0))
    product(a, b, out=out, least=0, **options)
    torch.testing.assert_close(out, right, rtol=1e-5, atol=1e-4)
    untouched = torch.ones(len(memory), dtype=torch.bool)
    untouched.as_strided((30, 40), strides)[:] = False
    assert (memory[untouched] == 7).all()


@pytest.mark.parametrize("least", [0, 1])
def test_what_does_not_fit_is_the_error_of_torch(least, monkeypatch):
    monkeypatch.setattr(products, "is_faster", lambda: True)
    a, b = torch.ones(4, 5), torch.ones(5, 6)
    for others in ((a, b[:3]), (a, b.double()), (a.half(), b)):
        with pytest.raises(RuntimeError, match=r"shapes cannot be multiplied|same dtype"):
            product(*others, least=least)
    for bias in (torch.ones(5), torch.ones(6, dtype=torch.float64)):
        with pytest.raises(RuntimeError, match=r"expanded size|same dtype|dtype"):
            product(a, b, bias=bias, least=least)


def test_the_factor_is_a_real_number_to_the_kernel(monkeypatch):
    """What records and repeats calls tells integers from real numbers by their types."""
    seen = []
    monkeypatch.setitem(products.CPU, "product_float32", lambda *arguments: seen.append(type(arguments[-2])))
    product(torch.ones(4, 5), torch.ones(5, 6), alpha=-1, least=0)
    assert seen == [float]


def test_the_precision_that_is_set_is_that_of_torch(monkeypatch):
    monkeypatch.setattr(products, "is_faster", lambda: True)
    monkeypatch.setitem(products.CPU, "product_float32", lambda *_: pytest.fail("kernel"))
    before = torch.backends.mkldnn.matmul.fp32_precision
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    try:
        product(torch.ones(128, 128), torch.ones(128, 128))
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before


def test_threads_of_python_at_once():
    a, b = torch.randn(90, 400), torch.randn(400, 70)
    right, wrong = product(a, b, least=0), []

    def work(rows):
        for _ in range(20):
            if not torch.equal(product(a[:rows], b, least=0), right[:rows]):
                wrong.append(rows)

    threads = [threading.Thread(target=work, args=(rows,)) for rows in (90, 8, 33, 90)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def _multiply(queue):
    torch.set_num_threads(1)
    queue.put(product(torch.ones(90, 400), torch.ones(400, 70), least=0).sum().item())


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_multiplies_too():
    product(torch.ones(90, 400), torch.ones(400, 70), least=0)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=_multiply, args=(queue,))
    process.start()
    assert queue.get(timeout=60) == 90 * 400 * 70
    process.join()


class TestWhereTheKernelIsFaster:
    @pytest.fixture(autouse=True)
    def forget(self):
        products.is_faster.cache_clear()
        yield
        products.is_faster.cache_clear()

    @staticmethod
    def told(monkeypatch, instruction_set="avx512", cpuinfo="vendor_id : AuthenticAMD"):
        """What is_faster says on such a machine; an exception in place of a value is raised."""

        def give(value):
            if isinstance(value, Exception):
                raise value
            return value

        reads = []
        module = type("Module", (), {"instruction_set": instruction_set})
        monkeypatch.setattr(binding, "library", lambda _: give(instruction_set) and module)
        monkeypatch.setattr(products.Path, "read_text", lambda path: reads.append(path) or give(cpuinfo))
        answers = products.is_faster(), products.is_faster()
        assert len(reads) <= 1, "asked again"
        assert answers[0] == answers[1]
        return answers[0]

    def test_on_processors_of_amd_with_wide_vectors(self, monkeypatch):
        assert self.told(monkeypatch)

    @pytest.mark.parametrize("instruction_set", ["default", "avx2", ImportError("not built")])
    def test_not_with_narrower_vectors(self, instruction_set, monkeypatch):
        assert not self.told(monkeypatch, instruction_set)

    @pytest.mark.parametrize("cpuinfo", ["vendor_id : GenuineIntel", FileNotFoundError(), PermissionError()])
    def test_not_elsewhere(self, cpuinfo, monkeypatch):
        assert not self.told(monkeypatch, cpuinfo=cpuinfo)
        monkeypatch.setitem(products.CPU, "product_float32", lambda *_: pytest.fail("kernel"))
        product(torch.ones(128, 128), torch.ones(128, 128))
        assert products.few(torch.ones(256, 256), torch.ones(256, 256))


@pytest.mark.parametrize("m", [1, 17])
@pytest.mark.parametrize("k", [1, 7, 191, 192, 193, 500, 2000])
@pytest.mark.parametrize("bias", [None, 3.0])
def test_errors_are_those_that_certificates_count(m, k, bias):
    """Sums of 192 terms, of these sums and a bias: of each product no more roundings, whatever the numbers are.

    Small terms after a large one are lost one by one. Added one after another, 2000 of them would break the bound.
    """
    unit, n = Unit.of(torch.float32), 40
    generator = torch.Generator().manual_seed(k)
    lost = torch.full((m, k), 0.45 * 2.0**-23)
    lost[:, 0] = 1.0
    draws = torch.randn(m, k, generator=generator), torch.randn(n, k, generator=generator)
    for x, W in (draws, (lost, torch.ones(n, k))):
        b = None if bias is None else torch.full((n,), bias)
        right = x.double() @ W.double().T + (0 if b is None else b.double())
        error = (product(x, W.T, bias=b, least=0) - right).abs()
        size = x.double().abs() @ W.double().abs().T + (bias or 0)
        assert (error <= unit.gamma(min(k, 192) + -(-k // 192)) * size).all()
        counted = dense(unit, W, b, (n,))
        assert (error.norm(dim=1) <= counted.relative * x.double().norm(dim=1) + counted.constant).all()
        counted = residual_matrix(unit, W, b, torch.ones(n), (k,))
        away = residual.forward(x, W, b, torch.ones(n))[0] - (x.double() - right.relu() @ W.double())
        assert (away.norm(dim=1) <= counted.relative * x.double().norm(dim=1) + counted.constant).all()
