"""The one base class of all layers with a constrained weight: precision, the evaluation cache, and the bound."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from operator import methodcaller
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, fx, nn

from fastlip._names import constructor_lists_keywords
from fastlip.kernels.common.dispatch import check_backend
from fastlip.kernels.common.gate import is_onnx
from fastlip.kernels.common.literals import Backend
from fastlip.kernels.common.one_step import WIDE, in_float64, is_needed, is_wide
from fastlip.kernels.common.precision import (
    FULL,
    PRODUCTS,
    autocasts,
    cpu_convolutions,
    cpu_products,
    full_precision,
    widens,
)
from fastlip.nn._cache import CACHED_CONTEXTS, EvaluationCache, kept_of, may_cache, may_keep, tensors_of
from fastlip.nn._earlier import EarlierName, name_of_today, state_of_today, take_over_earlier, without_earlier
from fastlip.nn._postponed import in_one_step
from fastlip.nn._recorded import record_forward, recorded_call

if TYPE_CHECKING:
    from fastlip.nn.applications import Application

# Looked up once: each forward asks them.
_is_compiling = torch.compiler.is_compiling
# What torch sets on a replica for data parallelism, which has the original's cache meanwhile.
_REPLICATED = frozenset({"__dict__", "_parameters", "_buffers", "_modules", "_is_replica"})
_SIXTEEN = (torch.float16, torch.bfloat16)


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor in float32 if it has a sixteen-bit type, else unchanged: parametrizations never run in less.

    float64 where float32 products are lowered to TF32 or bfloat16: in a compiled program, and in weights that
    torch.func differentiates.
    """
    if widens(tensor.device) if _is_compiling() else WIDE.active:
        return tensor.double()
    return tensor.float() if tensor.dtype in _SIXTEEN else tensor


def as_it_runs(weight: Tensor) -> Tensor:
    """The weight as products and convolutions see it, rounded under autocast, in float64 on the CPU: for bounds."""
    if autocasts(weight.device) and weight.dtype != torch.float64:
        weight = weight.to(torch.get_autocast_dtype(weight.device.type))
    return weight.detach().to("cpu", torch.float64)


class LipschitzLayer(nn.Module):
    """A layer whose effective weights are a function of its parameters, and perhaps of the image's size.

    A method of the field is one subclass. Its constructor makes the application (``_application``: how the layer
    applies its effective weights to an input, see :mod:`fastlip.nn.applications`), the parameters, and calls
    ``reset_parameters``. Its ``_parametrize`` computes the effective weights. Forward, evaluation cache, bound,
    fusing, export and rounding errors follow from the application.

    Args:
        application: how the effective weights act on an input; also says what shapes and arguments the layer has.
        backend: which kernels run: ``"auto"``, ``"reference"``, ``"native"`` or ``"triton"``.

    A subclass implements ``_parametrize(*context)``: it returns a tuple of tensors, differentiable, computed in at
    least float32 (:func:`at_least_float32`); TF32 and autocast are off inside it. ``context`` is what the weights
    depend on besides the parameters, such as an FFT size. In eval mode, where no gradient of a parameter can be asked
    for, its result is kept per context until a bit of a parameter or buffer changes, by whatever means, or an
    attribute is assigned. The cache holds no graph, is not in the state dict, and is not pickled or copied.

    A constructor's argument that an attribute shows is of one of two kinds. ``_options`` names those that may be set
    at any time, each with what checks a value, at construction and later: the layer is then as if constructed so.
    ``_fixed`` names those from which shapes or other arguments were derived: setting another value raises ValueError.

    ``_supplied(layer, context)`` is an optional hook, called before the effective weights are computed. It returns
    them, or None to let the layer compute them. Training shares weights between parts and processes through it.
    """

    _options: ClassVar[dict[str, Callable[[Any], Any]]] = {"backend": check_backend}
    _fixed: ClassVar[tuple[str, ...]] = ("application",)
    _axes: ClassVar[int] = 2  # along which a convolution runs
    _of_images: ClassVar[Any] = None  # the two-dimensional layer whose methods a layer of sequences or volumes has
    _grouped: ClassVar[bool] = False  # whether n layers may be computed as one of n times the groups (_merging.py)
    backend: Backend
    _application: Application
    bias: nn.Parameter | None
    _supplied: Callable[[LipschitzLayer, tuple[Hashable, ...]], tuple[Tensor, ...] | None] | None = None
    _cache: EvaluationCache
    application, effective, supplied = EarlierName(), EarlierName(), EarlierName()

    def __init__(self, application: Application, backend: Backend = "auto"):
        super().__init__()
        self.__dict__["_cache"] = EvaluationCache()
        self.backend = backend
        self._application = application

    def __init_subclass__(cls, **options: Any):
        """A forward of a subclass's own is recorded as one call by ``torch.fx``, as this class's is."""
        super().__init_subclass__(**options)
        record_forward(cls)
        constructor_lists_keywords(cls)
        take_over_earlier(cls)

    def reset_parameters(self) -> None:
        """Fills parameters and buffers with their initial values."""
        raise NotImplementedError

    def _parametrize(self, *context: Any) -> tuple[Tensor, ...]:
        """The effective weights, at least float32, differentiable; context is what else they depend on."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Applies the effective weights to x."""
        if isinstance(x, fx.Proxy) and type(self).forward is LipschitzLayer.forward:
            recorded = recorded_call(self, x)
            if recorded is not None:
                return recorded  # type: ignore[return-value]
        try:
            return self._application(self, x)
        except RuntimeError:
            self._refuse_dtype(x)
            raise

    def lipschitz_bound(self, input_shape: tuple[int, ...]) -> float:
        """An upper bound of the L2 Lipschitz constant of this layer as it runs, from its effective weights.

        Args:
            input_shape: the shape of one input, without the batch dimension.

        Returns:
            The bound, computed in float64 from the weights in the dtype in which they are used.
        """
        return self._application.bound(self, input_shape)

    def _effective(self, *context: Hashable) -> tuple[Tensor, ...]:
        """The effective weights in the parameters' dtype, kept where that is sound. Do not write to them.

        Args:
            context: what the weights depend on besides the parameters, such as the two sides of an FFT size.

        Raises:
            ValueError: ``torch.onnx.export`` is running, for which ``fastlip.export`` makes a copy.
        """
        if (_is_compiling() or torch._C._get_tracing_state() is not None) and is_onnx():
            raise ValueError(
                f"torch.onnx.export: ONNX has no operators for the weights of {type(self).__name__}: "
                "give it the copy that fastlip.export makes"
            )
        if self._supplied is not None and (supplied := self._supplied(self, context)) is not None:
            return supplied
        if not self.training:
            if (tensors := kept_of(self)) is not None:
                compute = methodcaller("_compute", context)
                return self._cache.recall(self, context, compute, CACHED_CONTEXTS, tensors)
            if may_keep(self) and not self._modules:
                return self._differentiable(context)
        reference, full, entries = self._reference(), False, PRODUCTS.entries
        if reference.is_cpu and not (_is_compiling() or PRODUCTS.holders or torch.is_autocast_enabled("cpu")):
            # Products are IEEE float32 here anyway: no setting has to be changed for the weights.
            full = cpu_products() in FULL and cpu_convolutions() in FULL and PRODUCTS.entries == entries
        return self._compute(context, reference) if full else self._computed(context)

    def _computed(self, context: tuple[Hashable, ...]) -> tuple[Tensor, ...]:
        """The effective weights; in one step where autograd's own products would be of lower precision."""
        device = self._reference().device
        # A dispatch mode may go on: it sees the products of the one step.
        if is_needed(device):
            return in_one_step(self, context)
        if not _is_compiling() and is_wide(device):
            with in_float64():
                return self._compute(context)
        return self._compute(context)

    def _differentiable(self, context: tuple[Hashable, ...]) -> tuple[Tensor, ...]:
        """The effective weights with their gradients: those that are kept, where nothing has changed since."""
        generation = self._cache.generation
        mark, kept = self._cache.look_up(self, context)
        if kept is not None:
            return in_one_step(self, context, kept)
        weights = self._computed(context)
        values = tuple(weight.detach() for weight in weights)
        self._cache.keep_unless_changed(self, context, mark, generation, values, CACHED_CONTEXTS)
        return weights

    def _compute(self, context: tuple[Hashable, ...], reference: Tensor | None = None) -> tuple[Tensor, ...]:
        """The effective weights, computed now. With a reference the settings are those of full precision already."""
        if reference is not None:
            weights = self._parametrize(*context)
        else:
            reference = self._reference()
            with full_precision(reference.device):
                weights = self._parametrize(*context)
        rounded: tuple[Tensor, ...] = ()
        for weight in weights:
            # Spectra stay complex, and in at least float32: no sixteen-bit complex type has kernels.
            dtype = reference.dtype
            if weight.is_complex():
                dtype = torch.complex128 if dtype == torch.float64 else torch.complex64
            rounded += (weight.to(dtype).contiguous(),)
        return rounded

    def _reference(self) -> Tensor:
        """The tensor whose dtype and device are the layer's: its first parameter."""
        for parameter in self._parameters.values():
            if parameter is not None:
                return parameter
        return next(tensor for tensor in tensors_of(self) if tensor.is_floating_point())

    def _only_weight(self) -> Tensor:
        """The one effective weight for the user; what the cache holds is copied, so that no write reaches it."""
        (weight,) = self._effective()
        return weight.clone() if not self.training and may_cache(self) else weight

    def _check_input(self, x: Tensor, size: int, axes: int = 0) -> None:
        """Raises ValueError unless x has the right shape and the parameters have numbers.

        Args:
            x: the input.
            size: the number of its channels, or features.
            axes: along which a convolution runs: x is (n, size, h, w) or (size, h, w) for 2, also with a depth for 3.
                For 0, a dense layer, x is (..., size).
        """
        if not isinstance(x, Tensor):
            raise TypeError(f"x: got {type(x).__name__}, expected a tensor, such as torch.as_tensor(x)")
        dims = x.dim()
        if dims <= axes or (axes and dims > axes + 2) or x.shape[-1 - axes] != size:
            sides = ", ".join(("d", "h", "w")[3 - axes :])
            expected = f"(n, {size}, {sides}) or ({size}, {sides})" if axes else f"(*, {size})"
            raise ValueError(f"x: got shape {tuple(x.shape)}, expected {expected}")
        for tensors in (self._parameters, self._buffers):
            for name, tensor in tensors.items():
                # Unless x is on meta too: torch would read what is not there.
                if tensor is not None and tensor.is_meta and not (x.is_meta or _is_compiling()):
                    raise ValueError(f"{name}: is on meta, without numbers, and x on {x.device}: load it first")

    def _refuse_dtype(self, x: Tensor) -> None:
        """Raises TypeError if x has another dtype than the parameters; torch has refused it and names no argument."""
        own = self._reference().dtype
        casts = x.is_floating_point() and x.dtype != torch.float64 and torch.is_autocast_enabled(x.device.type)
        if x.dtype != own and not casts:
            expected = f"expected {own}, the dtype of the layer's parameters"
            raise TypeError(f"x: got {x.dtype}, {expected}; convert x or the layer with .to(dtype)")

    def extra_repr(self) -> str:
        """The arguments that differ from layer to layer."""
        text = self._application.describe(self)
        factor = getattr(self, "quasi_residual", 0.0)
        return f"{text}, quasi_residual={factor:.4g}" if factor else text

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As ``torch.nn.Module``; the name stays known where a wrapper takes the parameter out of the register."""
        self.__dict__.setdefault("_tensor_names", {})[name] = None
        super().register_parameter(name, param)

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """As ``torch.nn.Module``; see :meth:`register_parameter`."""
        self.__dict__.setdefault("_tensor_names", {})[name] = None
        super().register_buffer(name, tensor, persistent)

    def _registered(self) -> tuple[str, ...]:
        """The attributes that are parameters or buffers, or were registered as such."""
        return tuple(self.__dict__.get("_tensor_names", ()))

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets an attribute; another value makes the layer forget its evaluation weights: options decide on them.

        ValueError for a value that the constructor would refuse, and for another value of what is fixed.
        """
        name = name_of_today(type(self), name)
        if name in self._options:
            value = self._options[name](value)
        present = self.__dict__.get(name, self)
        shown = name.removeprefix("_")
        if present is not self and shown in self._fixed and present != value:
            kind = type(self).__name__
            raise ValueError(f"{shown}={value!r}: allowed is {present!r}: {kind} reads {shown} at construction")
        if present is not value and name not in _REPLICATED:
            self._cache.clear()
        super().__setattr__(name, value)

    def train(self, mode: bool = True) -> Any:
        """Sets training or evaluation mode, and forgets the evaluation weights."""
        self._cache.thaw()
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self._cache.thaw()
        return super()._apply(*args, **kwargs)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Takes numbers of shape () for tensors of shape (1,): as this package once saved them."""
        self._cache.thaw()
        for name in self._registered():
            value, own = state_dict.get(prefix + name), getattr(self, name)
            if isinstance(value, Tensor) and value.dim() == 0 and own is not None and own.shape == (1,):
                state_dict[prefix + name] = value.reshape(1)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def __dir__(self) -> list[str]:
        return without_earlier(type(self), list(super().__dir__()))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": EvaluationCache()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Takes the attributes of a pickled layer, of an earlier version too."""
        super().__setstate__(state_of_today(type(self), state))

    def _replicate_for_data_parallel(self) -> Any:
        replica = super()._replicate_for_data_parallel()
        replica.__dict__["_cache"] = EvaluationCache()  # its tensors are on another device
        return replica


# A layer with one effective weight shows it as ``torch.nn`` layers do: its class has ``weight = effective_weight``.
effective_weight = property(
    LipschitzLayer._only_weight, doc="The effective weight; differentiable in training, a copy in evaluation."
)
