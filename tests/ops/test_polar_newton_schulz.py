"""The iteration for GPUs: as CUDA kernels on the CPU, and as kernels and by products in Triton's interpreter.

tests/gpu/test_interpreter.py runs this file there.
"""

import itertools
import math

import pytest
import shim
import torch

from fastlip import ops, testing
from fastlip.kernels.common import binding
from fastlip.kernels.polar import newton_schulz, on_cuda
from fastlip.kernels.polar.api import OP
from fastlip.kernels.polar.reference import adjoint_from_factor

DTYPES = (torch.float32, torch.complex64)
EPS = torch.finfo(torch.float32).eps
WIDE = {torch.float32: torch.float64, torch.complex64: torch.complex128}
SQUARE = ((2, 3, 3), (1, 17, 17), (1, 32, 32), (1, 33, 33), (1, 48, 48), (1, 63, 63), (1, 64, 64))
OTHERS = ((1, 1, 1), (2, 5, 3), (1, 3, 33), (2, 64, 1), (1, 17, 64), (1, 64, 61))
# Complex ones take time and show no more. Nor do those that take the interpreter long.
REPEATED = {(1, 32, 32), (1, 48, 48), (1, 63, 63), (1, 64, 64), (1, 17, 64), (1, 64, 61)}
LONG = REPEATED | {(2, 3, 3)}
LONG_COMPLEX = REPEATED | {(2, 3, 3), (1, 17, 17), (1, 33, 33), (1, 3, 33), (2, 64, 1)}
slow = pytest.mark.slow


def interpreted():
    return not OP.why_not("triton", torch.zeros(2, 2), 0)


long_if_interpreted = slow if interpreted() else ()


@pytest.fixture(scope="module")
def compiled():
    return shim.Kernels(shim.build("kernels.so", "-O0", "-shared"))


# What batched products do is what "triton" does with larger matrices, in a hundred launches for each test.
KERNELS = ["triton", pytest.param("products", marks=slow), "cuda"]


@pytest.fixture(params=KERNELS)
def kernels(request, monkeypatch):
    """The module whose kernels run: all matrices by one that is made for them, or by batched products."""
    if request.param == "cuda":
        if interpreted():
            pytest.skip("runs where the interpreter does not")
        compiled = request.getfixturevalue("compiled")
        for name in compiled.names:
            monkeypatch.setitem(binding.CPU, name, compiled[name])
        return on_cuda
    triton_kernels = pytest.importorskip("fastlip.kernels.polar.triton_kernels")
    if not interpreted():
        pytest.skip("needs Triton's interpreter")
    if request.param == "products":
        by_products(monkeypatch, triton_kernels)
    return triton_kernels


def skip_repeated(kernels, V):
    """Matrices that do not fit a program take the same way under "triton" as under "products"."""
    largest = getattr(kernels, "_LARGEST_FORWARD", {}).get(V.is_complex(), 0)
    if largest and max(V.shape[-2:]) > largest:
        pytest.skip("tested as products")


def by_products(monkeypatch, triton_kernels):
    monkeypatch.setattr(triton_kernels, "_LARGEST_FORWARD", {False: 0, True: 0})
    monkeypatch.setattr(triton_kernels, "_LARGEST_BACKWARD", {False: 0, True: 0})


def random(shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def conditioned(shape, dtype, condition):
    """Matrices with singular values from 5 down to 5 / condition."""
    U, s, Wh = torch.linalg.svd(random(shape, WIDE[dtype]), full_matrices=False)
    s = torch.logspace(0, -math.log10(condition), s.shape[-1], dtype=torch.float64)
    return (5 * (U * s) @ Wh).to(dtype)


def reference(V, G, reals=0):
    V = V.to(WIDE[V.dtype]).requires_grad_()
    Q = ops.polar(V, reals, backend="reference")
    return Q.detach(), torch.autograd.grad(Q, V, G.to(V.dtype))[0]


def ours(kernels, V, G, reals=0):
    Q, failed = kernels.polar_forward(V, reals)
    return Q, kernels.polar_backward(G, V, Q, failed, reals), failed


def error(value, expected):
    return ((value - expected).abs().max() / expected.abs().max().clamp(min=1e-3)).item()


def defect(Q):
    gram = Q @ Q.mH if Q.shape[-2] < Q.shape[-1] else Q.mH @ Q
    return torch.linalg.matrix_norm(gram - torch.eye(gram.shape[-1], dtype=Q.dtype)).max().item()


def shapes_and_dtypes():
    for shape in SQUARE + OTHERS:
        long = interpreted() and shape in LONG
        yield pytest.param(shape, torch.float32, id=f"{shape}-float32", marks=slow if long else ())
        long = shape in (LONG_COMPLEX if interpreted() else REPEATED)
        yield pytest.param(shape, torch.complex64, id=f"{shape}-complex64", marks=slow if long else ())


# By products in every run: matrices of several tiles, and tall ones.
BY_PRODUCTS = (((1, 33, 33), torch.float32), ((2, 5, 3), torch.complex64))


@pytest.mark.parametrize(
    ("kernels", "shape", "dtype"), [("products", *case) for case in BY_PRODUCTS], indirect=["kernels"], ids=str
)
def test_products_agree_with_float64(shape, dtype, kernels):
    test_factor_and_gradient_agree_with_float64(shape, dtype, kernels)


@pytest.mark.parametrize(("shape", "dtype"), [*shapes_and_dtypes()])
def test_factor_and_gradient_agree_with_float64(shape, dtype, kernels):
    V, G = conditioned(shape, dtype, 10), random(shape, dtype, 1)
    skip_repeated(kernels, V)
    Q, gradient, failed = ours(kernels, V, G)
    expected = reference(V, G)
    assert not failed.any()
    # Random signs add up 10 rounding errors of each of n terms, magnified at most by the condition.
    allowed = 10 * EPS * max(shape) ** 0.5
    assert error(Q, expected[0]) < allowed
    assert error(gradient, expected[1]) < allowed


@pytest.mark.parametrize("condition", [1e3, pytest.param(1e6, marks=long_if_interpreted)])
@pytest.mark.parametrize("shape", [(1, 17, 17), pytest.param((1, 33, 20), marks=long_if_interpreted)], ids=str)
def test_ill_conditioned_matrices(shape, condition, kernels):
    V, G = conditioned(shape, torch.float32, condition), random(shape, seed=1)
    skip_repeated(kernels, V)
    Q, gradient, _ = ours(kernels, V, G)
    assert defect(Q.double()) < newton_schulz.tolerance(V)
    H = Q.double().mT @ V.double()
    assert (H - H.mT).abs().max() < 50 * EPS
    assert torch.linalg.eigvalsh(H).min() > -50 * EPS
    assert gradient.isfinite().all()
    if condition == 1e3:
        assert error(gradient, reference(V, G)[1]) < condition * 2 * EPS


def difficult():
    V = conditioned((6, 4, 4), torch.float32, 3)
    V[1] = 0
    V[2] = torch.diag(torch.tensor([1.0, 1, 0, 0]))
    V[3, 1, 2] = math.nan
    V[4] *= 2.0**-70
    return V


@pytest.mark.filterwarnings("ignore:All-NaN slice")  # the interpreter's maximum
@pytest.mark.parametrize(
    ("kernels", "columns", "dtype"),
    [
        *(("cuda", *case) for case in itertools.product((4, 2), DTYPES)),
        ("triton", 4, torch.complex64),
        ("triton", 2, torch.float32),
        ("products", 2, torch.float32),
        pytest.param("products", 4, torch.complex64, marks=slow),
        pytest.param("triton", 4, torch.float32, marks=slow),
        pytest.param("triton", 2, torch.complex64, marks=slow),
        pytest.param("products", 4, torch.float32, marks=slow),
        pytest.param("products", 2, torch.complex64, marks=slow),
    ],
    indirect=["kernels"],
    ids=str,
)
def test_every_finite_matrix_has_an_orthonormal_factor_and_its_gradient(kernels, columns, dtype, monkeypatch):
    """Also zeros and singular matrices, without the host: their zero singular values are perturbed."""
    V = difficult()[..., -columns:].to(dtype)
    G = random(V.shape, dtype, 1)
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "cpu", None)
        Q, gradient, perturbed = ours(kernels, V, G)
    assert perturbed.tolist() == [False, True, True, False, True, False]
    broken = torch.arange(6) == 3
    assert Q[broken].isnan().all()
    assert gradient[broken].isnan().all()
    assert defect(Q[~broken]) < newton_schulz.tolerance(V)
    assert error(gradient[0], reference(V[:1], G[:1])[1][0]) < 1e-6
    for zero in (1, 4):  # its denominators are 1: HX + XH = QᴴG - GᴴQ with H = I
        inner = Q[zero].mH @ G[zero]
        tangent = Q[zero] @ (inner - inner.mH) / 2 + G[zero] - Q[zero] @ inner
        torch.testing.assert_close(gradient[zero], tangent, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("kernels", "columns", "dtype"),
    [
        *(("cuda", *case) for case in itertools.product((5, 4), DTYPES)),
        ("triton", 4, torch.float32),
        pytest.param("products", 5, torch.float32, marks=long_if_interpreted),
        *(pytest.param("triton", *case, marks=slow) for case in ((4, torch.complex64), (5, torch.complex64))),
        pytest.param("products", 4, torch.complex64, marks=slow),
    ],
    indirect=["kernels"],
    ids=str,
)
def test_the_gradient_of_a_perturbed_matrix_is_that_of_the_factor_it_got(kernels, columns, dtype):
    """Of rank 3: exact on what the zero singular values do not touch; between these, by small denominators."""
    wide = WIDE[dtype]
    V = torch.eye(5, columns, dtype=dtype)[None] * torch.tensor([3.0, 2, 1, 0, 0])[:columns]
    G = random((2, 5, columns), wide, 2)
    between = torch.zeros_like(G)
    between[:, 3:, 3:] = G[:, 3:, 3:]
    Q, perturbed = kernels.polar_forward(V, 0)
    assert perturbed.all()

    def ours_and_by_decomposition(of_Q):
        found = kernels.polar_backward(of_Q.to(dtype), V, Q, perturbed, 0)
        return found.to(wide), adjoint_from_factor(of_Q.to(dtype), Q, V).to(wide)

    assert error(*ours_and_by_decomposition(G[:1] - between[:1])) < 1e-4
    found, expected = ours_and_by_decomposition(between[1:])
    ratio = (found * expected.conj()).sum().real / expected.abs().square().sum()
    assert 1 / 8 < ratio < 1


@pytest.mark.parametrize("steps", [1, 2, 3, 6])
def test_no_step_leaves_a_singular_value_above_one(steps, kernels, monkeypatch):
    monkeypatch.setattr(kernels, "STEPS", steps)
    if hasattr(kernels, "by_products_triton"):
        monkeypatch.setattr(kernels.by_products_triton, "STEPS", steps)
    V = torch.cat((random((4, 6, 6)), conditioned((2, 6, 6), torch.float32, 1e4), torch.ones(1, 6, 6)))
    Q, residual = kernels.iterate(V, 0)
    assert torch.linalg.matrix_norm(Q, 2).max() < 1 + 10 * EPS
    torch.testing.assert_close(residual, torch.linalg.matrix_norm(Q.mT @ Q - torch.eye(6)), rtol=1e-4, atol=10 * EPS)


def test_powers_of_two_change_no_bit(kernels):
    V = random((2, 5, 5))
    Q = kernels.polar_forward(V, 0)[0]
    assert all(torch.equal(kernels.polar_forward(V * factor, 0)[0], Q) for factor in (2.0**90, 2.0**-50))


@pytest.mark.parametrize("shape", [pytest.param((4, 2, 3, 3), marks=slow), (4, 2, 3)], ids=str)
def test_the_first_matrices_are_taken_as_real(shape, kernels):
    V, G = random(shape, torch.complex64), random(shape, torch.complex64, 1)
    V[1] = 0
    Q, gradient, _ = ours(kernels, V, G, 2)
    expected = reference(V, G, 2)
    assert (Q[:2].imag == 0).all()
    assert (gradient[:2].imag == 0).all()
    keep = [0, 2, 3]
    assert error(Q[keep], expected[0][keep]) < 30 * EPS
    assert error(gradient[keep], expected[1][keep]) < 100 * EPS


ON_CHIP = [(rows, columns, dtype) for rows, columns in ((6, 6), (7, 4), (4, 7), (5, 1)) for dtype in DTYPES]


@pytest.mark.parametrize(
    ("kernels", "rows", "columns", "dtype"),
    [
        *((kernels, *case) for kernels in ("triton", "cuda") for case in ON_CHIP),
        *(pytest.param("products", *case, marks=slow) for case in ON_CHIP),
    ],
    indirect=["kernels"],
    ids=str,
)
def test_on_chip_too_without_the_host(rows, columns, dtype, kernels, monkeypatch):
    """What has not converged is perturbed and iterated again; what has is as it was."""
    monkeypatch.setattr(torch.Tensor, "cpu", None)
    V = random((5, rows, columns), dtype)
    V[1] = 0
    V[2, :, 0] = 0
    V[3] = V[3, :, :1] @ V[3, :1]
    Q, _ = newton_schulz.completed_factor(kernels.iterate, V, 0)
    X = Q if rows >= columns else Q.mT
    assert (X.mH @ X - torch.eye(min(rows, columns))).abs().amax() < 10 * EPS
    H = Q.mH @ V if rows >= columns else V @ Q.mH
    size = torch.linalg.matrix_norm(V, 2)[:, None, None]
    assert ((H - H.mH).abs() <= 10 * EPS * size).all()
    assert torch.linalg.eigvalsh((H + H.mH) / 2).amin() > -100 * EPS
    assert torch.equal(Q[4], kernels.iterate(V, 0)[0][4])


def test_the_operator_passes_torchs_checks_and_keeps_two_matrices(kernels):
    backend = "native" if kernels is on_cuda else "triton"
    V = conditioned((3, 4, 4), torch.complex64, 3).requires_grad_()
    if reason := OP.why_not(backend, V, 1):
        pytest.skip(reason)
    packet = torch.ops.fastlip.polar_forward.default
    tests = ["test_schema", "test_faketensor", "test_autograd_registration"]
    torch.library.opcheck(packet, (V, 1, backend), test_utils=tests)
    kept = testing.bytes_kept(lambda: ops.polar(V, 1, backend=backend))
    assert kept == 2 * V.nbytes + len(V)


@pytest.mark.parametrize("kernels", ["cuda"], indirect=True)
def test_what_the_cuda_kernels_cannot_do_is_left_to_others(kernels):
    assert kernels.supports(torch.ones(2, 64, 64, dtype=torch.complex64), 1) == ""
    assert "65 x 3" in kernels.supports(torch.ones(65, 3), 0)
    assert "float64" in kernels.supports(torch.ones(2, 2, dtype=torch.float64), 0)
