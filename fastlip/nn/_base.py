"""What every layer with a constrained weight shares: precision, the evaluation cache, and the bound."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

from fastlip import ops
from fastlip.kernels.common.dispatch import check_backend
from fastlip.kernels.common.gate import is_onnx, is_recorded
from fastlip.kernels.common.literals import Backend
from fastlip.kernels.common.precision import autocasts, full_precision, is_ieee, widens
from fastlip.nn._cache import CACHED_CONTEXTS, EvaluationCache
from fastlip.nn._postponed import in_one_step
from fastlip.nn._whole import WholeModule


def at_least_float32(tensor: Tensor) -> Tensor:
    """float32 for the sixteen-bit types, unchanged otherwise: parametrizations never run in less.

    float64 in a compiled program whose float32 products are lowered to TF32 or bfloat16.
    """
    if torch.compiler.is_compiling() and widens(tensor.device):
        return tensor.double()
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def decomposed_dtype() -> torch.dtype:
    """The default dtype, but at least float32: that of random orthogonal matrices, which torch decomposes."""
    return torch.promote_types(torch.get_default_dtype(), torch.float32)


@torch.no_grad()
def orthogonal_(tensor: Tensor) -> Tensor:
    """``torch.nn.init.orthogonal_``, in at least float32."""
    return tensor.copy_(nn.init.orthogonal_(at_least_float32(tensor.detach())))


def as_it_runs(weight: Tensor) -> Tensor:
    """The weight as products and convolutions see it, rounded under autocast, in float64: for bounds."""
    if autocasts(weight.device) and weight.dtype != torch.float64:
        weight = weight.to(torch.get_autocast_dtype(weight.device.type))
    return weight.detach().to("cpu", torch.float64)


class LipschitzLayer(EvaluationCache, WholeModule):
    """A layer whose effective weight is a function of its parameters and perhaps of the input's resolution.

    A method implements ``parametrize(*context)``, differentiable, in at least float32; forward asks
    ``effective(*context)`` for its result in the parameters' dtype (complex results as they are). In eval mode,
    when no gradient of a parameter can be asked for, the result is computed once per context and kept until a bit of
    a parameter or buffer changes, by whatever means, or an attribute is assigned (:class:`EvaluationCache`). The
    cache holds no graph, is not in the state dict, and is not pickled or copied.

    An argument of the constructor that an attribute shows is one of two kinds. ``options`` names those that may be
    set at any time, each with what checks a value, at construction and later: the layer is then as if constructed so.
    ``fixed`` names those that shapes, padding or other arguments were derived from: another value is refused.

    ``orthogonal`` says that with circular padding and as many outputs as inputs the layer is an isometry.
    ``supplied``: asked for the effective weights first, with the layer and the context; None from it leaves them to
    the layer (training shares them between parts and processes).
    """

    options: ClassVar[dict[str, Callable[[Any], Any]]] = {"backend": check_backend}
    fixed: ClassVar[tuple[str, ...]] = ()
    backend: Backend
    orthogonal = False
    supplied: Callable[[LipschitzLayer, tuple[Hashable, ...]], tuple[Tensor, ...] | None] | None = None

    def __init__(self, backend: Backend):
        super().__init__()
        self.backend = backend
        self.forget()

    def make_parameters(self, device: Any, dtype: Any) -> None:
        """Creates the parameters and buffers, empty."""
        raise NotImplementedError

    def reset_parameters(self) -> None:
        """Initialises parameters and buffers."""
        raise NotImplementedError

    def parametrize(self, *context: Hashable) -> tuple[Tensor, ...]:
        """The effective weights, at least float32, differentiable; context is what else they depend on."""
        raise NotImplementedError

    def lipschitz_bound(self, input_shape: tuple[int, ...]) -> float:
        """An upper bound of the L2 Lipschitz constant of this layer as it runs, from its effective weight.

        input_shape has no batch dimension. Computed in float64 from the weight in the dtype in which it is used.
        """
        raise NotImplementedError

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As ``torch.nn.Module``; the name stays known where a wrapper takes the parameter out of the register."""
        self.__dict__.setdefault("_tensor_names", {})[name] = None
        super().register_parameter(name, param)

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """As ``torch.nn.Module``; see :meth:`register_parameter`."""
        self.__dict__.setdefault("_tensor_names", {})[name] = None
        super().register_buffer(name, tensor, persistent)

    def tensor_names(self) -> tuple[str, ...]:
        """The attributes that are parameters or buffers, or were registered as such."""
        return tuple(self.__dict__.get("_tensor_names", ()))

    def own_tensors(self) -> list[Tensor]:
        """The parameters and buffers, also where they are plain attributes.

        They are in the replicas of ``DataParallel``, under FSDP's flat parameters, and where a hook computes them
        (pruning, weight norm).
        """
        found = [*self.parameters(), *self.buffers()]
        plain = (self.__dict__.get(name) for name in self.tensor_names())
        return found + [tensor for tensor in plain if isinstance(tensor, Tensor)]

    def reference(self) -> Tensor:
        """The tensor whose dtype and device are the layer's: its first parameter."""
        for parameter in self._parameters.values():
            if parameter is not None:
                return parameter
        return next(tensor for tensor in self.own_tensors() if tensor.is_floating_point())

    def effective(self, *context: Hashable) -> tuple[Tensor, ...]:
        """The effective weights in the parameters' dtype, kept where that is sound. Do not write to them."""
        if is_onnx():
            raise ValueError(
                f"torch.onnx.export: ONNX has no operators for the weights of {type(self).__name__}: "
                "give it the copy that fastlip.export makes"
            )
        if self.supplied is not None and (supplied := self.supplied(self, context)) is not None:
            return supplied
        if self.may_cache():
            return self.recall(context, lambda layer: layer._compute(context), CACHED_CONTEXTS)
        if self._modules:  # parametrizations of the parameters
            return self._compute(context)
        return self._differentiable(context) if self.may_keep() else self._computed(context)

    def _computed(self, context: tuple[Hashable, ...]) -> tuple[Tensor, ...]:
        # A dispatch mode may go on: it sees the products of the one step.
        traced = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or is_recorded()
        if traced or forward_ad._current_level >= 0:
            return self._compute(context)
        if not torch.is_grad_enabled() or is_ieee(self.reference().device):
            return self._compute(context)
        return in_one_step(self, context)  # autograd's own products would be of lower precision in the backward

    def _differentiable(self, context: tuple[Hashable, ...]) -> tuple[Tensor, ...]:
        """The effective weights with their gradients: those that are kept, where nothing has changed since."""
        generation = self._generation
        mark, kept = self.look_up(context)
        if kept is not None:
            return in_one_step(self, context, kept)
        weights = self._computed(context)
        values = tuple(weight.detach() for weight in weights)
        self.keep_unless_changed(context, mark, generation, values, CACHED_CONTEXTS)
        return weights

    def only_weight(self) -> Tensor:
        """The one effective weight for the user; what the cache holds is copied, so that no write reaches it."""
        (weight,) = self.effective()
        return weight.clone() if self.may_cache() else weight

    def _compute(self, context: tuple[Hashable, ...]) -> tuple[Tensor, ...]:
        reference = self.reference()
        with full_precision(reference.device):
            weights = self.parametrize(*context)
        # Spectra stay complex, and in at least float32: no sixteen-bit complex type has kernels.
        rounded = (weight if weight.is_complex() else weight.to(reference.dtype) for weight in weights)
        return tuple(weight.contiguous() for weight in rounded)

    def check_numbers(self, x: Tensor) -> None:
        """Raises ValueError for a parameter on meta and an x that is not: torch would read what is not there."""
        if torch.compiler.is_compiling():
            return
        for tensors in (self._parameters, self._buffers):
            for name, tensor in tensors.items():
                if tensor is not None and tensor.is_meta and not x.is_meta:
                    raise ValueError(f"{name}: is on meta, without numbers, and x on {x.device}: load it first")

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets an attribute; another value makes the layer forget its evaluation weights: options decide on them.

        ValueError for a value that the constructor would refuse, and for another value of what is fixed.
        """
        if name in self.options:
            value = self.options[name](value)
        present = self.__dict__.get(name, self)
        if name in self.fixed and present is not self and present != value:
            kind = type(self).__name__
            raise ValueError(f"{name}={value!r}: allowed is {present!r}: {kind} reads {name} at construction")
        if present is not value:
            self.forget()
        super().__setattr__(name, value)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Takes numbers of shape () for tensors of shape (1,): as this package once saved them."""
        for name in self.tensor_names():
            value, own = state_dict.get(prefix + name), getattr(self, name)
            if isinstance(value, Tensor) and value.dim() == 0 and own is not None and own.shape == (1,):
                state_dict[prefix + name] = value.reshape(1)
        super()._load_from_state_dict(state_dict, prefix, *args)


class LipschitzLinear(LipschitzLayer):
    """``torch.nn.Linear``'s arguments and shapes, for dense layers with a constrained weight."""

    fixed = ("in_features", "out_features")

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        backend: Backend = "auto",
    ):
        super().__init__(backend)
        self.in_features = check_positive_int("in_features", in_features)
        self.out_features = check_positive_int("out_features", out_features)
        self.bias = make_bias(out_features, bias, device, dtype)
        self.make_parameters(device, dtype)
        self.reset_parameters()

    def check_input(self, x: Tensor) -> None:
        """Raises ValueError unless the last dimension of x is in_features and parameters have numbers."""
        if x.dim() == 0 or x.shape[-1] != self.in_features:
            raise ValueError(f"x: got shape {tuple(x.shape)}, expected (*, {self.in_features})")
        self.check_numbers(x)

    def extra_repr(self) -> str:
        """The arguments that differ from layer to layer."""
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, backend={self.backend!r}"


class MatrixLinear(LipschitzLinear):
    """A dense layer y = weight x + bias: a method gives its matrix by ``parametrize() -> (weight,)``."""

    @property
    def weight(self) -> Tensor:
        """The effective matrix, differentiable in training, else a copy."""
        return self.only_weight()

    def forward(self, x: Tensor) -> Tensor:
        """Weight x + bias."""
        self.check_input(x)
        return F.linear(x, self.effective()[0], self.bias)

    @torch.no_grad()
    def lipschitz_bound(self, input_shape: tuple[int, ...]) -> float:
        """The largest singular value of the matrix, as products see it (rounded under autocast)."""
        return ops.spectral_norm(as_it_runs(self.weight)).item()


def make_bias(size: int, bias: bool, device: Any, dtype: Any) -> nn.Parameter | None:
    """A bias of zeros: layers start as linear maps, so that norms pass unchanged through a deep network."""
    return nn.Parameter(torch.zeros(size, device=device, dtype=dtype)) if bias else None


def check_positive_int(name: str, value: Any) -> int:
    """Returns a positive integer argument, or raises TypeError or ValueError naming it."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}={value!r}: expected an int, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name}={value}: expected at least 1")
    return value


def check_nonnegative(name: str, value: Any) -> float:
    """Returns a finite number of at least 0, or raises TypeError or ValueError naming the argument."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}={value!r}: expected a number, got {type(value).__name__}")
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name}={value}: expected a finite number of at least 0")
    return float(value)
