"""A training run as one frozen, validated dataclass, stored in checkpoints; its fields are the command's options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, get_args

from fastlip.kernels.common.dispatch import check_backend
from fastlip.kernels.common.literals import Backend
from fastlip.losses import RECIPE_LOSSES, LossName
from fastlip.models import METHODS
from fastlip.models.catalog import PLAIN, list_models, model_named
from fastlip.models.literals import MethodName
from fastlip.models.registry import owners_of
from fastlip.training.data_fields import DataFields
from fastlip.training.field_rules import about, check_value
from fastlip.training.literals import Network, Precision, Size
from fastlip.training.step_fields import StepFields

# What may differ when a run is resumed or evaluated elsewhere: where and how it runs, not what is computed.
MOVABLE = ("path", "extra_data", "device", "accumulate", "workers", "save_every", "share", "compile", "cuda_graph")
_OF_SOME_NETWORKS = ("depth", "patch", "quasi_residual", "centering", "rank")


@dataclass(frozen=True)
class Recipe(StepFields, DataFields):
    """Everything that decides the outcome of a run. ValueError names the field that is not allowed.

    A recipe file (``fastlip/recipes/*.toml``, :mod:`fastlip.training.recipe_files`) has the same fields under the
    keys given here, such as ``optimizer.lr``. :func:`fastlip.training.recipe_files.default_recipe` takes the file
    made for a data set, network and method.

    The fields of ``DataFields`` and ``StepFields`` belong to it too.
    """

    model: Network = field(
        default="lip_conv_net",
        metadata=about("model.name", "network; plain_*: a twin without a constraint", choices=get_args(Network)),
    )
    method: MethodName = field(
        default="aol",
        metadata=about(
            "model.method",
            f"parametrization of the layers: {', '.join(METHODS)} (sll_net: sll, bro_net: bro, lip_next: lot)",
        ),
    )
    size: Size = field(
        default="XS",
        metadata=about(
            "model.size",
            "size of the network (sll_net: S to XL)",
            choices=get_args(Size),
        ),
    )
    width: int = field(
        default=0,
        metadata=about("model.width", "channels of the first block; 0: those of the size", least=0, most=2**16),
    )
    layers_per_block: int = field(
        default=5,
        metadata=about("model.layers_per_block", "convolutions in each block of lip_conv_net", least=1, most=1000),
    )
    depth: int = field(
        default=0,
        metadata=about(
            "model.depth", "blocks of bro_net, lip_res_net and lip_next; 0: by size", least=0, most=10_000
        ),
    )
    patch: int = field(
        default=0,
        metadata=about("model.patch", "side of the patches of lip_next; 0: by image size", least=0, most=1000),
    )
    quasi_residual: bool = field(
        default=True,
        metadata=about(
            "model.quasi_residual", "identity before orthogonalisation in the blocks of bro_net and lip_res_net"
        ),
    )
    centering: bool = field(
        default=True,
        metadata=about("model.centering", "subtract the mean of each channel in bro_net and lip_res_net"),
    )
    rank: float = field(
        default=0.0,
        metadata=about(
            "model.rank", "columns of V in bro_net, as a fraction of its rows; 0: its default", least=0, below=1
        ),
    )
    lipschitz: float = field(
        default=1.0,
        metadata=about("model.lipschitz", "Lipschitz constant of lip_conv_net: scores are times it", above=0.0),
    )
    backend: Backend = field(
        default="auto", metadata=about("model.backend", "kernels: auto, reference, native or triton")
    )
    loss: LossName = field(default="offset-ce", metadata=about("loss.name", "loss", choices=tuple(RECIPE_LOSSES)))
    offset: float = field(
        default=2**1.5 * 36 / 255,
        metadata=about("loss.offset", "margin that training asks for (u of offset-ce and logit-annealing)", least=0),
    )
    temperature: float = field(
        default=0.25,
        metadata=about("loss.temperature", "temperature (t of offset-ce, 1 / tau of temperature-ce)", above=0),
    )
    radius: float = field(
        default=3 * 36 / 255, metadata=about("loss.radius", "largest radius that emma trains for", least=0)
    )
    radius_start: float = field(
        default=0.1 * 36 / 255, metadata=about("loss.radius_start", "radius of emma in the first step", least=0)
    )
    ramp: float = field(
        default=0.5,
        metadata=about(
            "loss.ramp",
            "fraction of the steps in which emma's radius goes from the first to the largest",
            least=0,
            most=1,
        ),
    )
    annealing: float = field(
        default=5.0, metadata=about("loss.annealing", "exponent of logit-annealing (beta)", least=0)
    )
    alpha: float = field(default=0.9, metadata=about("loss.alpha", "weight of the hinge in hkr", least=0, most=1))
    min_margin: float = field(default=1.0, metadata=about("loss.min_margin", "margin of the hinge in hkr", above=0))
    seed: int = field(
        default=0,
        metadata=about(
            "run.seed", "seed of initialisation, order of the images and augmentation", least=0, below=2**63
        ),
    )
    deterministic: bool = field(
        default=False, metadata=about("run.deterministic", "use deterministic algorithms only (a CPU always does)")
    )
    device: str = field(default="auto", metadata=about("run.device", "where to run: auto, cpu, cuda or cuda:1"))
    channels_last: bool = field(
        default=False, metadata=about("run.channels_last", "keep images and weights in channels-last memory format")
    )
    threads: int = field(
        default=0, metadata=about("run.threads", "CPU threads; 0: torch's default", least=0, most=1024)
    )
    precision: Precision = field(
        default="fp32",
        metadata=about(
            "run.precision", "dtype of activations in training; weights stay in fp32", choices=get_args(Precision)
        ),
    )
    accumulate: int = field(
        default=1,
        metadata=about(
            "run.accumulate", "number of parts in which each process takes its images of a step", least=1, most=2**16
        ),
    )
    share: bool = field(
        default=False,
        metadata=about(
            "run.share", "with several processes, each computes the effective weights of some of the layers"
        ),
    )
    compile: bool = field(default=False, metadata=about("run.compile", "train through torch.compile"))
    cuda_graph: bool = field(
        default=False,
        metadata=about("run.cuda_graph", "launch each training step as one CUDA graph (one process, one GPU)"),
    )
    workers: int = field(
        default=0,
        metadata=about("run.workers", "processes that read images; 0: threads of this process", least=0, most=256),
    )
    save_every: int = field(
        default=0,
        metadata=about(
            "run.save_every",
            "number of steps after which the run is saved within an epoch; 0: after each epoch only",
            least=0,
            most=2**63 - 1,
        ),
    )

    def __post_init__(self):
        for item in fields(self):
            as_type(item.name, getattr(self, item.name), type(item.default))
            check_value(item.name, getattr(self, item.name), item.metadata)
        check_backend(self.backend)
        owners = owners_of(self.model)
        if owners and self.method not in owners:
            allowed = ", ".join(map(repr, owners))
            raise ValueError(f"method={self.method!r}: model={self.model!r} has layers of {allowed} only")
        if self.lipschitz != 1 and self.model.removeprefix(PLAIN) != "lip_conv_net":
            raise ValueError(f"lipschitz={_shown(self.lipschitz)}: model={self.model!r} has the constant 1")
        self._require_fields_of_the_network()
        self._check_step()
        if self.accumulate > 1 and RECIPE_LOSSES[self.loss].whole_batch:
            raise ValueError(
                f"accumulate={self.accumulate}: loss={self.loss!r} compares the classes of a whole batch"
            )
        if self.share and self.compile:
            raise ValueError("share=True: compile=True compiles the computation of effective weights into the step")
        self._check_data(self.batch_size)

    def _require_fields_of_the_network(self) -> None:
        taken = model_named(self.model).fields if self.model in list_models() else ()
        for name in _OF_SOME_NETWORKS:
            if name not in taken and getattr(self, name) != getattr(Recipe, name):
                raise ValueError(f"{name}={getattr(self, name)!r}: model={self.model!r} has no such option")

    def to_dict(self) -> dict[str, Any]:
        """The fields as values that JSON and checkpoints can hold."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """The recipe with these fields and defaults for the rest; ValueError names an unknown field."""
        if not isinstance(values, Mapping):
            raise TypeError(f"recipe: got {type(values).__name__}, expected names and values")
        if unknown := set(values) - {item.name for item in fields(cls)}:
            raise ValueError(f"recipe: unknown fields: {', '.join(sorted(map(str, unknown)))}")
        return cls(**values)

    def refuse_changes(self, given: Mapping[str, Any]) -> None:
        """Raises ValueError where a given option contradicts this recipe: a resumed run keeps its own."""
        for name, value in given.items():
            if name not in MOVABLE and value != getattr(self, name):
                raise ValueError(f"{name}={_shown(value)}: the run has {_shown(getattr(self, name))} and keeps it")


def _shown(value: Any) -> str:
    """A field's value for messages: whole numbers without a decimal point."""
    return repr(int(value) if isinstance(value, float) and value.is_integer() else value)


def as_type(name: str, value: Any, kind: type) -> Any:
    """The value, an int converted to a float where one is expected; TypeError if it has another type."""
    if kind is float and type(value) is int:
        try:
            return float(value)
        except OverflowError:
            raise ValueError(f"{name}: got an integer of {value.bit_length()} bits, expected a float32") from None
    if type(value) is not kind:
        raise TypeError(f"{name}: got {value!r}, expected {kind.__name__}")
    return value
