"""spectral_polar in C++ (csrc/spectral_polar): square matrices, single and double precision."""

from __future__ import annotations

import torch
from torch import Tensor

from fastlip.ops import _native
from fastlip.ops.polar import reference as polar_reference
from fastlip.ops.spectral_conv.frequencies import Size, kernel_spectrum, kernel_spectrum_adjoint, own_frequencies
from fastlip.ops.spectral_polar import reference

_native.require()

_NAMES = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.complex64: "complex64",
    torch.complex128: "complex128",
}


def supports(weight: Tensor, groups: int) -> str:
    """Empty, or why these kernels cannot run."""
    if weight.shape[0] != groups * weight.shape[1]:
        return "the matrices are not square"
    return _native.missing(f"spectral_polar_forward_{_NAMES[weight.dtype]}", weight.device)


def spectral_polar_forward(weight: Tensor, size: Size, dilation: Size, groups: int) -> Tensor:
    """The factors at each frequency."""
    V = _spectrum(weight, size, dilation, groups)
    Q = torch.empty_like(V)
    for part in _parts(size):
        Q[part] = _factors(_matrices(V, part))
    return Q.flatten(1, 2)


def spectral_polar_backward(
    gradient: Tensor, Q: Tensor, weight: Tensor, size: Size, dilation: Size, groups: int
) -> Tensor:
    """The gradient of the weight, whose matrices are computed again."""
    V = _spectrum(weight, size, dilation, groups)
    gradient, Q = gradient.unflatten(1, (groups, -1)), Q.unflatten(1, (groups, -1))
    of_spectrum = torch.empty_like(V)
    for part in _parts(size):
        of_spectrum[part] = _adjoints(*(_matrices(tensor, part) for tensor in (gradient, Q, V)))
    return kernel_spectrum_adjoint(of_spectrum.flatten(1, 2), weight.shape, size, dilation)


def _spectrum(weight: Tensor, size: Size, dilation: Size, groups: int) -> Tensor:
    return kernel_spectrum(weight, size, dilation).unflatten(1, (groups, -1))


def _parts(size: Size) -> tuple[slice, slice]:
    """The self-conjugate frequencies, and the others."""
    own = own_frequencies(size)
    return slice(own), slice(own, None)


def _matrices(tensor: Tensor, part: slice) -> Tensor:
    """Contiguous numbers, real ones of the self-conjugate frequencies."""
    chosen = tensor[part].resolve_conj()
    return (chosen.real if part.start is None else chosen).contiguous()


def _factors(V: Tensor) -> Tensor:
    """Ill-conditioned matrices as the reference."""
    Q, failed = _launch("forward", V)
    if failed.any():
        Q[failed] = polar_reference.polar(V[failed])
    return Q


def _adjoints(gradient: Tensor, Q: Tensor, V: Tensor) -> Tensor:
    result, failed = _launch("backward", gradient, Q, V)
    if failed.any():
        result[failed] = reference.adjoint_from_factor(gradient[failed], Q[failed], V[failed])
    return result


def _launch(direction: str, *inputs: Tensor) -> tuple[Tensor, Tensor]:
    """The kernel's result, and for which matrices there is none."""
    result = torch.empty_like(inputs[0])
    failed = torch.empty(result.shape[:-2], dtype=torch.bool)
    addresses = [tensor.data_ptr() for tensor in (*inputs, result, failed)]
    name = f"spectral_polar_{direction}_{_NAMES[result.dtype]}"
    _native.launch(name, result.device, *addresses, failed.numel(), result.shape[-1])
    return result, failed
