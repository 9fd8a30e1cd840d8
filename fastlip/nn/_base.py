"""What every layer with a constrained weight shares: precision, the evaluation cache, and the bound."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlip import ops
from fastlip.ops._gate import is_observed, is_onnx
from fastlip.ops._op import check_backend
from fastlip.ops._precision import autocasts, without_autocast

CACHED_CONTEXTS = 8  # resolutions kept at once
_CACHED_DERIVATIVES = 2  # of each kind


def at_least_float32(tensor: Tensor) -> Tensor:
    """float32 for the sixteen-bit types, unchanged otherwise: parametrizations never run in less."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def as_it_runs(weight: Tensor) -> Tensor:
    """The weight as products and convolutions see it, rounded under autocast, in float64: for bounds."""
    if autocasts(weight.device) and weight.dtype != torch.float64:
        weight = weight.to(torch.get_autocast_dtype(weight.device.type))
    return weight.detach().to("cpu", torch.float64)


class LipschitzLayer(nn.Module):
    """A layer whose effective weight is a function of its parameters and perhaps of the input's resolution.

    A method implements ``parametrize(*context)``, differentiable, in at least float32; forward asks
    ``effective(*context)`` for its result in the parameters' dtype (complex results as they are). In eval mode,
    when no gradient of a parameter can be asked for, the result is computed once per context and kept until a
    parameter or an option changes: ``train()``, ``load_state_dict``, ``to()``, any in-place update (an optimiser
    step) and any assignment to an attribute refresh it. The cache holds no graph, is not in the state dict, and is
    not pickled or copied.

    An argument of the constructor that an attribute shows is one of two kinds. ``options`` names those that may be
    set at any time, each with what checks a value, at construction and later: the layer is then as if constructed so.
    ``fixed`` names those that shapes, padding or other arguments were derived from: another value is refused.

    ``orthogonal`` says that with circular padding and as many outputs as inputs the layer is an isometry.
    ``supplied``: asked for the effective weights first, with the layer and the context; None from it leaves them to
    the layer (training shares them between parts and processes).
    """

    options: ClassVar[dict[str, Callable[[Any], Any]]] = {"backend": check_backend}
    fixed: ClassVar[tuple[str, ...]] = ()
    backend: str
    orthogonal = False
    supplied: Callable[[LipschitzLayer, tuple[Hashable, ...]], tuple[Tensor, ...] | None] | None = None

    def __init__(self, backend: str):
        super().__init__()
        self.backend = backend
        self._cache: dict[tuple[Hashable, ...], tuple[list[Any], Any]] = {}

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

    def effective(self, *context: Hashable) -> tuple[Tensor, ...]:
        """The effective weights in the parameters' dtype, from the cache where that is sound."""
        if is_onnx():
            raise ValueError(
                f"torch.onnx.export: ONNX has no operators for the weights of {type(self).__name__}: "
                "give it the copy that fastlip.export makes"
            )
        if self.supplied is not None and (supplied := self.supplied(self, context)) is not None:
            return supplied
        if not self.may_cache():
            return self._compute(context)
        sources = (*self.parameters(), *self.buffers())
        return self._recall(context, sources, lambda: self._compute(context), CACHED_CONTEXTS)

    def derive(
        self,
        kind: str,
        context: Hashable,
        sources: Iterable[Tensor],
        compute: Callable[[], Any],
        most: int = _CACHED_DERIVATIVES,
    ) -> Any:
        """What compute() makes of sources, where :meth:`may_cache` holds: kept until one of them changes."""
        return self._recall((kind, context), sources, compute, most)

    def _recall(
        self, key: tuple[Hashable, ...], sources: Iterable[Tensor], compute: Callable[[], Any], most: int
    ) -> Any:
        stamp = self._stamp(sources)
        kept = self._cache.pop(key, None)
        if kept is None or not _same_stamp(kept[0], stamp):
            # Inference tensors could not be used later where autograd records.
            with torch.inference_mode(False), torch.no_grad():
                kept = stamp, compute()
        self._cache[key] = kept
        alike = [other for other in self._cache if _kind(other) == _kind(key)]
        for oldest in alike[:-most]:
            del self._cache[oldest]
        return kept[1]

    def _compute(self, context: tuple[Hashable, ...]) -> tuple[Tensor, ...]:
        reference = next(self.parameters())
        with without_autocast(reference.device):
            weights = self.parametrize(*context)
        # Spectra stay complex, and in at least float32: no sixteen-bit complex type has kernels.
        return tuple(weight if weight.is_complex() else weight.to(reference.dtype) for weight in weights)

    def check_numbers(self, x: Tensor) -> None:
        """Raises ValueError for a parameter on meta and an x that is not: torch would read what is not there."""
        if torch.compiler.is_compiling():
            return
        for tensors in (self._parameters, self._buffers):
            for name, tensor in tensors.items():
                if tensor is not None and tensor.is_meta and not x.is_meta:
                    raise ValueError(f"{name}: is on meta, without numbers, and x on {x.device}: load it first")

    def may_cache(self) -> bool:
        """Whether results for fixed parameters may be kept: in evaluation, and nothing follows torch's operations."""
        if self.training or torch.compiler.is_compiling():
            return False
        if is_observed():
            return False
        return not (torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters()))

    def _stamp(self, sources: Iterable[Tensor]) -> list[Any]:
        # The alias keeps the storage alive, so that its address cannot come back as another tensor's.
        stamp: list[Any] = []
        for tensor in sources:
            version = None if tensor.is_inference() else tensor._version
            stamp.append((tensor.detach(), tensor.data_ptr(), version, tensor.dtype, tensor.device))
        return stamp

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
            self.__dict__.get("_cache", {}).clear()
        super().__setattr__(name, value)

    def train(self, mode: bool = True) -> LipschitzLayer:
        """Sets training or evaluation mode, and forgets the evaluation weights."""
        self._cache.clear()
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> LipschitzLayer:
        self._cache.clear()
        return super()._apply(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": {}}


def _kind(key: tuple[Hashable, ...]) -> str:
    return key[0] if key and isinstance(key[0], str) else "weights"


def _same_stamp(kept: list[Any], current: list[Any]) -> bool:
    if len(kept) != len(current):
        return False
    # A tensor without a version counter (made in inference mode) may have changed unseen.
    return all(one[1:] == other[1:] and one[2] is not None for one, other in zip(kept, current, strict=True))


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
        backend: str = "auto",
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
        """The effective matrix, differentiable in training."""
        return self.effective()[0]

    def forward(self, x: Tensor) -> Tensor:
        """Weight x + bias."""
        self.check_input(x)
        return F.linear(x, self.weight, self.bias)

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
