"""spectral_exp in C++ (csrc/spectral_exp): real and complex, single and double precision."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastlip.kernels.common import binding
from fastlip.kernels.common.binding import CPU
from fastlip.kernels.common.precision import full_precision
from fastlip.kernels.spectral_conv.frequencies import Size, kernel_spectrum, kernel_spectrum_adjoint
from fastlip.kernels.spectral_exp import reference

binding.require()

_FORWARD = {
    torch.float32: "spectral_exp_forward_float32",
    torch.float64: "spectral_exp_forward_float64",
    torch.complex64: "spectral_exp_forward_complex64",
    torch.complex128: "spectral_exp_forward_complex128",
}
_BACKWARD = {dtype: name.replace("forward", "backward") for dtype, name in _FORWARD.items()}
_EIGENVECTORS_FROM = 128  # channels: float64 takes longer there


def supports(K_hat: Tensor, *_: Any) -> str:
    """Empty, or why these kernels cannot run, also on a kernel's matrices."""
    name = _FORWARD.get(K_hat.dtype)
    if name is None:
        return f"no kernel for dtype {K_hat.dtype}"
    return "" if K_hat.is_cpu and name in CPU else binding.missing(name, K_hat.device)


def spectral_exp_forward(K_hat: Tensor) -> Tensor:
    """exp((K - Kᴴ) / 2): of large K in double precision, of larger or wider K as the reference."""
    K = _plain(K_hat)
    E, failed = _launch(_FORWARD[K.dtype], K)
    if failed.any():
        if _goes_on_in_double(K):
            E[failed] = spectral_exp_forward(K[failed].to(_wide(K))).to(K.dtype)
        else:
            with full_precision(K.device):
                E[failed] = reference.spectral_exp(K[failed])
    return E


def spectral_exp_backward(gradient: Tensor, K_hat: Tensor) -> Tensor:
    """The gradient of K."""
    gradient, K = _plain(gradient), _plain(K_hat)
    result, failed = _launch(_BACKWARD[K.dtype], gradient, K)
    if failed.any():
        if _goes_on_in_double(K):
            wide = spectral_exp_backward(gradient[failed].to(_wide(K)), K[failed].to(_wide(K)))
            result[failed] = wide.to(K.dtype)
        else:
            result[failed] = reference.exponential_adjoint(gradient[failed], *reference.decompose(K[failed]))
    return result


def kernel_exp_forward(kernel: Tensor, size: Size, dilation: Size, groups: int) -> Tensor:
    """The exponentials at each frequency."""
    spectrum = kernel_spectrum(kernel, size, dilation).unflatten(1, (groups, -1))
    return spectral_exp_forward(spectrum).flatten(1, 2)


def kernel_exp_backward(gradient: Tensor, kernel: Tensor, size: Size, dilation: Size, groups: int) -> Tensor:
    """The gradient of the kernel, whose matrices are computed again."""
    spectrum = kernel_spectrum(kernel, size, dilation).unflatten(1, (groups, -1))
    of_spectrum = spectral_exp_backward(gradient.unflatten(1, (groups, -1)), spectrum).flatten(1, 2)
    return kernel_spectrum_adjoint(of_spectrum, kernel.shape, size, dilation)


def _launch(name: str, *inputs: Tensor) -> tuple[Tensor, Tensor]:
    """The kernel's result, and for which matrices there is none."""
    result = torch.empty_like(inputs[0])
    channels = result.shape[-1]
    failed = torch.empty(result.shape[:-2], dtype=torch.bool)
    addresses = [tensor.data_ptr() for tensor in (*inputs, result, failed)]
    binding.launch(name, result.device, *addresses, failed.numel(), channels)
    return result, failed


def _goes_on_in_double(K: Tensor) -> bool:
    """Whether what float32 cannot do is for float64, rather than for the reference's eigenvectors."""
    return K.dtype != _wide(K) and K.shape[-1] < _EIGENVECTORS_FROM


def _wide(K: Tensor) -> torch.dtype:
    return torch.complex128 if K.is_complex() else torch.float64


def _plain(tensor: Tensor) -> Tensor:
    """Contiguous numbers as they are in memory, no conjugation or sign left to be done by who reads them."""
    return tensor.contiguous().resolve_conj().resolve_neg()
