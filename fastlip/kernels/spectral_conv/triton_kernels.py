"""spectral_conv in Triton: transforms as matrix products (torch.fft on large images), and the mixing.

A spectrum is (2, F, n, c): real and imaginary parts at the unique frequencies. Every sum is one program's, in order;
float32 is multiplied as 3xTF32.
"""

# pyright: reportArgumentType=false
# Triton's own compiler reads the kernels: to pyright its constants are numbers.

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastlip.kernels.common import gpu, triton_launch
from fastlip.kernels.common.checks import VOLUMES
from fastlip.kernels.common.split_triton import complex_step
from fastlip.kernels.common.tiles_triton import multiply_add
from fastlip.kernels.spectral_conv import finish_triton, matrix_triton, tables
from fastlip.kernels.spectral_conv import planes_triton as planes
from fastlip.kernels.spectral_conv.api import dense, dense_format, empty_gradients, empty_images
from fastlip.kernels.spectral_conv.finish_triton import Finish
from fastlip.kernels.spectral_conv.fixed import in_planes
from fastlip.kernels.spectral_conv.frequencies import Size
from fastlip.kernels.spectral_conv.reference import REAL

_DTYPES = {torch.float32: "fp32", torch.float64: "fp64"}
_SIXTEEN_BITS = {torch.float16: "fp16", torch.bfloat16: "bf16"}  # of images, whose spectra are float32
# Of the products, which hold twice as many sums and factors: of larger tiles fewer programs fit, or registers spill.
# Float64 numbers take two registers each, hence half as many rows and twice as many warps.
_PRODUCT_ROWS = {torch.float32: 64, torch.float64: 32}
_PRODUCT_WARPS = {torch.float32: 4, torch.float64: 8}
_PRODUCT_COLUMNS, _PRODUCT_TERMS = 32, 16


@triton.jit
def _product_kernel(
    p_a, p_b, p_c, rows, columns, terms, groups,
    a_part, a_member, a_group, a_row, a_term, b_part, b_member, b_group, b_term, b_column,
    c_part, c_member, c_group, c_row, c_column,
    SIGN_A: tl.constexpr, SIGN_B: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, TERMS: tl.constexpr,
):  # fmt: skip
    """c = a b of each member and group, complex; a negative sign conjugates a factor.

    The tiles of a member are neighbours in the grid: what several of them read is still in the cache.
    """
    tiles = tl.cdiv(columns, COLUMNS)
    per_member = tl.cdiv(rows, ROWS) * tiles
    number, tile = tl.program_id(0) // per_member, tl.program_id(0) % per_member
    o_row = tile // tiles * ROWS + tl.arange(0, ROWS)
    o_column = tile % tiles * COLUMNS + tl.arange(0, COLUMNS)
    o_term = tl.arange(0, TERMS)
    m_row, m_column = (o_row < rows)[:, None], (o_column < columns)[None, :]
    member, group = (number // groups).to(tl.int64), number % groups
    p_left = p_a + member * a_member + group * a_group
    p_left += (o_row * a_row)[:, None] + (o_term * a_term)[None, :]  # [ROWS, TERMS]
    p_right = p_b + member * b_member + group * b_group
    p_right += (o_term * b_term)[:, None] + (o_column * b_column)[None, :]  # [TERMS, COLUMNS]
    re = tl.zeros((ROWS, COLUMNS), p_a.dtype.element_ty)
    im = tl.zeros((ROWS, COLUMNS), p_a.dtype.element_ty)
    for start in range(0, terms, TERMS):
        m_left = m_row & (start + o_term < terms)[None, :]
        m_right = m_column & (start + o_term < terms)[:, None]
        p_left_now, p_right_now = p_left + start * a_term, p_right + start * b_term
        a_re = tl.load(p_left_now, mask=m_left, other=0)
        a_im = SIGN_A * tl.load(p_left_now + a_part, mask=m_left, other=0)
        b_re = tl.load(p_right_now, mask=m_right, other=0)
        b_im = SIGN_B * tl.load(p_right_now + b_part, mask=m_right, other=0)
        if PRECISION == "tf32x3":
            re, im = complex_step(a_re, a_im, b_re, b_im, re, im)
        else:
            re, im = multiply_add(a_re, a_im, b_re, b_im, re, im, True, PRECISION)
    p_result = p_c + member * c_member + group * c_group + (o_row * c_row)[:, None] + (o_column * c_column)[None, :]
    tl.store(p_result, re, mask=m_row & m_column)
    tl.store(p_result + c_part, im, mask=m_row & m_column)


def supports(x: Tensor, Q: Tensor, bias: Tensor | None, fft_size: Size, groups: int) -> str:
    """Empty, or why these kernels cannot run."""
    if len(fft_size) != 2:
        return VOLUMES
    if x.dtype not in _DTYPES and x.dtype not in _SIXTEEN_BITS:
        return f"no kernel for dtype {x.dtype}"
    return "there are no channels" if 0 in Q.shape else triton_launch.why_not(x, _product_kernel)


def spectral_conv_forward(x: Tensor, Q: Tensor, bias: Tensor | None, fft_size: Size, groups: int) -> Tensor:
    """IDFT(Q DFT(x)) + bias."""
    last, fft_size = dense_format(x), (fft_size[0], fft_size[1])
    y = torch.empty((x.shape[0], Q.shape[1], *x.shape[2:]), dtype=x.dtype, device=x.device, memory_format=last)
    if x.shape[0] > 0:
        X = _analyse(x, fft_size, False, REAL[Q.dtype])
        _synthesize(_mix(X, Q, groups, adjoint=False), fft_size, y, Finish(bias), True)
    return y


def supports_fixed(x: Tensor) -> str:
    """Empty, or why these kernels cannot apply fixed matrices to x."""
    return triton_launch.why_not(x, _product_kernel)


def panels(Q: Tensor, fft_size: Size) -> Tensor:
    """Q, (F, cout, cin), as these kernels read fixed matrices."""
    return in_planes(Q)


def spectral_conv_fixed(
    x: Tensor,
    panels: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    outputs: int,
    fft_size: Size,
    activation: str,
    channels_last: bool,
    factor: float,
) -> Tensor:
    """activation(factor Q * x + bias), or of what it leaves of a residual."""
    y = empty_images(x, outputs, channels_last)
    if 0 in (*x.shape, outputs):
        return y
    fft_size = fft_size[0], fft_size[1]
    X = _analyse(x, fft_size, False, panels.dtype)
    Y = X.new_empty(*X.shape[:3], outputs)
    matrices = panels.stride(0), panels.stride(1), 0, panels.stride(2), panels.stride(3)
    strides = _spectrum(X, 1), matrices, _spectrum(Y, 1)
    _multiply(X, panels, Y, (x.shape[0], outputs, x.shape[1]), 1, strides, 1, 1)
    if residual is not None:
        residual = residual.contiguous(memory_format=dense_format(y))
    _synthesize(Y, fft_size, y, Finish(bias, residual, activation, factor), True)
    return y


def spectral_conv_backward(
    gradient: Tensor, x: Tensor, Q: Tensor, fft_size: Size, groups: int, wanted: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, Q and the bias; those that are not wanted are empty."""
    dtype, fft_size = REAL[Q.dtype], (fft_size[0], fft_size[1])
    x_gradient, Q_gradient, bias_gradient = empty_gradients(x, Q, wanted)
    if x.shape[0] == 0:
        return x_gradient, Q_gradient.zero_(), bias_gradient.zero_()
    Y = _analyse(gradient, fft_size, True, dtype)
    if wanted[2]:  # at frequency 0
        bias_gradient = fft_size[0] * fft_size[1] * Y[0, 0].sum(0)
    if wanted[1]:
        Q_gradient = _outer(Y, _analyse(x, fft_size, False, dtype), groups)
    if wanted[0]:
        _synthesize(_mix(Y, Q, groups, adjoint=True), fft_size, x_gradient, Finish(), False)
    return x_gradient, Q_gradient, bias_gradient


def _analyse(x: Tensor, fft_size: Size, weighted: bool, dtype: torch.dtype) -> Tensor:
    """The spectrum of x in this type; weighted: the adjoint of the synthesis, with its weights and its division."""
    n, channels, height, width = x.shape
    small = fft_size[0] * fft_size[1] <= tables.SMALL
    # torch.fft has no transform of 16 bits in float32.
    x = dense(x, x.dtype if small or planes.fits(fft_size, dtype) else dtype)
    if small:
        table = tables.transform(fft_size, (height, width), weighted, dtype, x.device)
        spectrum = x.new_empty(2, table.shape[0] // 2, n, channels, dtype=dtype)
        strides = _image_strides(x), spectrum, (n * channels, channels, 1)
        matrix_triton.transform(table, x, *strides, n, channels, Finish(), _precision(x.device, dtype))
        return spectrum
    if planes.fits(fft_size, dtype):
        return planes.analyse(x, fft_size, weighted, dtype, _precision(x.device, dtype))
    X = torch.view_as_real(torch.fft.rfft2(x, s=fft_size)).flatten(2, 3).permute(3, 2, 0, 1)
    X = X.index_select(1, tables.positions(fft_size, x.device))
    return X * tables.weights(fft_size, dtype, x.device)[:, None, None] if weighted else X


def _synthesize(spectrum: Tensor, fft_size: Size, y: Tensor, last: Finish, weighted: bool) -> None:
    """Writes y and what follows it; without weights this is the adjoint of the analysis."""
    n, channels, height, width = y.shape
    dtype = spectrum.dtype
    if fft_size[0] * fft_size[1] <= tables.SMALL:
        table = tables.transform(fft_size, (height, width), weighted, dtype, y.device).T
        strides = (n * channels, channels, 1), y, _image_strides(y)
        matrix_triton.transform(table, spectrum, *strides, n, channels, last, _precision(y.device, dtype))
        return
    if planes.fits(fft_size, dtype):
        planes.synthesize(spectrum, fft_size, y, last, weighted, _precision(y.device, dtype))
        return
    parts = spectrum.index_select(1, tables.sources(fft_size, y.device))
    parts *= tables.factors(fft_size, weighted, dtype, y.device)[:, :, None, None]
    Y = torch.complex(parts[0], parts[1])
    whole = torch.fft.irfft2(Y.permute(1, 2, 0).unflatten(2, (fft_size[0], -1)), s=fft_size)
    finish_triton.finish(whole, y, last)


def _image_strides(x: Tensor) -> tuple[int, int, int]:
    """Strides of pixels, images and channels, for a dense image of either memory format."""
    channels, height, width = x.shape[1:]
    if dense_format(x) is torch.channels_last:
        return channels, channels * height * width, 1
    return 1, channels * height * width, height * width


def _mix(X: Tensor, Q: Tensor, groups: int, adjoint: bool) -> Tensor:
    """Q X at each frequency, or Qᴴ X: as X Qᵀ and X conj(Q), since the rows of X are images."""
    _, count, n, _ = X.shape
    matrices = torch.view_as_real(Q.resolve_conj().contiguous())  # (F, cout, cin / groups, 2)
    inputs, outputs = Q.shape[2], Q.shape[1] // groups
    result = X.new_empty(2, count, n, groups * (inputs if adjoint else outputs))
    member, row = matrices.stride(0), matrices.stride(1)
    term, column = (row, 2) if adjoint else (2, row)
    sizes = (n, inputs, outputs) if adjoint else (n, outputs, inputs)
    factors = _spectrum(X, groups), (1, member, outputs * row, term, column), _spectrum(result, groups)
    _multiply(X, matrices, result, sizes, groups, factors, 1, -1 if adjoint else 1)
    return result


def _outer(Y: Tensor, X: Tensor, groups: int) -> Tensor:
    """Q̄ = Ȳ Xᴴ at each frequency, summed over images."""
    _, count, n, outputs = Y.shape
    inputs = X.shape[3] // groups
    result = Y.new_empty(count, outputs, inputs, 2)
    part, member, group, row, column = _spectrum(Y, groups)
    c = 1, result.stride(0), outputs // groups * result.stride(1), result.stride(1), 2
    sizes = outputs // groups, inputs, n
    _multiply(Y, X, result, sizes, groups, ((part, member, group, column, row), _spectrum(X, groups), c), 1, -1)
    return torch.view_as_complex(result)


def _spectrum(X: Tensor, groups: int) -> tuple[int, ...]:
    """Strides of a spectrum: from the real part to the imaginary, of frequencies, groups, images and channels."""
    return X.stride(0), X.stride(1), X.shape[3] // groups, X.stride(2), 1


def _multiply(
    a: Tensor, b: Tensor, c: Tensor, sizes: tuple[int, ...], groups: int, strides: Any, sign_a: int, sign_b: int
) -> None:
    rows, columns, terms = sizes
    tile = _PRODUCT_ROWS[a.dtype]
    grid = (a.shape[1] * groups * triton.cdiv(rows, tile) * triton.cdiv(columns, _PRODUCT_COLUMNS),)
    triton_launch.launch(
        _product_kernel, grid, a.device, a, b, c, rows, columns, terms, groups, *strides[0], *strides[1], *strides[2],
        SIGN_A=sign_a, SIGN_B=sign_b, PRECISION=_precision(a.device, a.dtype), ROWS=tile,
        COLUMNS=_PRODUCT_COLUMNS, TERMS=_PRODUCT_TERMS, num_warps=_product_warps(a),
    )  # fmt: skip


def _product_warps(a: Tensor) -> int:
    """The warps of a program: with four on sm_120, ptxas of Triton 3.6 spills."""
    return 8 if gpu.is_generation(a.device, 12) else _PRODUCT_WARPS[a.dtype]


def _precision(device: torch.device, dtype: torch.dtype) -> str:
    """TF32 alone is not admissible: its error would exceed fp32's by a factor of a thousand."""
    return "tf32x3" if dtype == torch.float32 and device.type == "cuda" else "ieee"


_STRIDES = (
    *(f"a_{axis}" for axis in ("part", "member", "group", "row", "term")),
    *(f"b_{axis}" for axis in ("part", "member", "group", "term", "column")),
    *(f"c_{axis}" for axis in ("part", "member", "group", "row", "column")),
)


def _product(dtype: str, real: torch.dtype, sign: int, **ones: int) -> triton_launch.Compilation:
    """Strides named in ones are 1, which Triton makes constants; the others are multiples of 16, as most are."""
    constants = {"SIGN_A": 1, "SIGN_B": sign, "PRECISION": "tf32x3" if dtype == "fp32" else "ieee"}
    constants |= {"ROWS": _PRODUCT_ROWS[real], "COLUMNS": _PRODUCT_COLUMNS, "TERMS": _PRODUCT_TERMS} | ones
    signature = dict.fromkeys(("p_a", "p_b", "p_c"), f"*{dtype}")
    signature |= dict.fromkeys(("rows", "columns", "terms", "groups", *_STRIDES), "i32")
    divisible = ("columns", *_STRIDES)
    return triton_launch.Compilation(_product_kernel, signature, constants, _PRODUCT_WARPS[real], divisible)


def _compilations(dtype: str, real: torch.dtype) -> list[triton_launch.Compilation]:
    return [
        _product(dtype, real, -1, a_term=1, b_part=1, c_column=1),
        _product(dtype, real, -1, a_row=1, b_column=1, c_part=1),
        _product(dtype, real, 1, a_term=1, b_column=1, c_column=1),
        *matrix_triton.compilations(dtype, dtype),
    ]


AOT = [compilation for dtype, name in _DTYPES.items() for compilation in _compilations(name, dtype)]
AOT += [entry for images in _SIXTEEN_BITS.values() for entry in matrix_triton.compilations("fp32", images)]
AOT += [entry for images in ("fp32", *_SIXTEEN_BITS.values()) for entry in planes.compilations(images)]
AOT += finish_triton.AOT
