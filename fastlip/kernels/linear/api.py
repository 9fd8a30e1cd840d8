"""A matrix times each vector of a batch."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastlip.kernels.common.asked import asked
from fastlip.kernels.common.dispatch import Op
from fastlip.kernels.common.literals import Backend
from fastlip.kernels.common.precision import full_precision
from fastlip.kernels.linear import reference

OP = Op("linear", backends=("native",))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, backend: Backend = "auto") -> Tensor:
    r"""Returns W x + b, as ``torch.nn.functional.linear``.

    The C++ kernel multiplies with the widest vectors that the processor has. Torch's library has half as wide ones on
    AMD's processors with AVX-512; there ``"auto"`` runs the kernel, in float32 and from 1.6 million multiply-adds on.

    Args:
        x: (..., n).
        weight: W, (m, n), of the dtype of x.
        bias: b, (m,); default None.
        backend: ``"auto"`` (default), ``"reference"`` or ``"native"``.

    Returns:
        y: (..., m).

    Raises:
        TypeError: an argument is not a floating-point tensor, or they are not of one dtype.
        ValueError: the shapes do not fit, or the backend is unknown or cannot run here.

    >>> fastlip.ops.linear(torch.tensor([1.0, 2.0]), torch.tensor([[3.0, 0.0], [0.0, -2.0]]), torch.ones(2))
    tensor([ 4., -3.])
    """
    tensors = {"x": x, "weight": weight, **({} if bias is None else {"bias": bias})}
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point() or tensor.dtype != x.dtype:
            told = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise TypeError(f"{name}: got {told}, expected a floating-point tensor, all of one dtype")
    if weight.dim() != 2:
        raise ValueError(f"weight: got shape {tuple(weight.shape)}, expected (m, n)")
    if x.dim() == 0 or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"x: got shape {tuple(x.shape)}, expected (*, {weight.shape[1]})")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias: got shape {tuple(bias.shape)}, expected ({weight.shape[0]},)")
    return OPERATOR(x, weight, bias, backend)


def _fake_forward(x: Tensor, weight: Tensor, bias: Tensor | None, backend: Backend) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _fake_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, wanted: list[bool], backend: Backend
) -> tuple[Tensor, Tensor]:
    shapes = (tensor.shape if want else (0,) for tensor, want in zip((x, weight), wanted, strict=True))
    of_x, of_weight = (x.new_empty(shape) for shape in shapes)
    return of_x, of_weight


def _gradients(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    x_wanted, weight_wanted, *bias_wanted = asked(ctx)
    wanted = [x_wanted, weight_wanted]
    x, weight, *_ = ctx.saved_tensors
    gradients = _backward.outputs(gradient, x, weight, wanted, *ctx.options)
    of_bias = gradient.reshape(-1, gradient.shape[-1]).sum(0) if any(bias_wanted) else None
    found = (value if want else None for value, want in zip(gradients, wanted, strict=True))
    return *found, of_bias, None


# linear(x, weight, bias, backend).
OPERATOR = OP.main(
    "linear_forward(Tensor x, Tensor weight, Tensor? bias, str backend) -> Tensor",
    reference=reference.linear,
    precision=full_precision,
    fake=_fake_forward,
    saves=("x", "weight", "bias"),
    keeps=("backend",),
    backward=_gradients,
)
_backward = OP.define(
    "linear_backward(Tensor gradient, Tensor x, Tensor weight, bool[] wanted, str backend) -> (Tensor, Tensor)",
    fake=_fake_backward,
)
