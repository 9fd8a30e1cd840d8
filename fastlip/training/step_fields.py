"""The fields of a recipe that say how a step changes the weights: optimiser and schedule."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import get_args

from fastlip.training.field_rules import about
from fastlip.training.literals import Decayed, Optimizer, Schedule

SCHEDULE_FREE: Optimizer = "adamw-schedulefree"


@dataclass(frozen=True)
class StepFields:
    """The optimiser, its learning rate over the run, and the number of steps."""

    epochs: float = field(
        default=100.0,
        metadata=about(
            "schedule.epochs",
            "passes over the training images, rounded to whole steps (0.5: half of the images)",
            above=0,
            most=1e9,
        ),
    )
    batch_size: int = field(
        default=256,
        metadata=about(
            "schedule.batch_size", "images in a training step, over all processes and parts", least=1, most=2**31 - 1
        ),
    )
    optimizer: Optimizer = field(
        default="sgd", metadata=about("optimizer.name", "optimiser", choices=get_args(Optimizer))
    )
    lr: float = field(default=0.1, metadata=about("optimizer.lr", "highest learning rate of the schedule", above=0))
    momentum: float = field(default=0.9, metadata=about("optimizer.momentum", "momentum of SGD", least=0, below=1))
    nesterov: bool = field(default=False, metadata=about("optimizer.nesterov", "Nesterov momentum"))
    beta1: float = field(
        default=0.9, metadata=about("optimizer.beta1", "Adam's decay rate of the mean gradient", least=0, below=1)
    )
    beta2: float = field(
        default=0.999,
        metadata=about("optimizer.beta2", "Adam's decay rate of the squared gradient", least=0, below=1),
    )
    weight_decay: float = field(
        default=0.0,
        metadata=about("optimizer.weight_decay", "L2 penalty (adamw: decay times the learning rate)", least=0),
    )
    decayed: Decayed = field(
        default="all",
        metadata=about(
            "optimizer.decayed",
            "parameters that weight_decay acts on; weights: no biases and scales",
            choices=get_args(Decayed),
        ),
    )
    clip_norm: float = field(
        default=0.0,
        metadata=about("optimizer.clip_norm", "largest norm of the gradient of all parameters; 0: any", least=0),
    )
    ema: float = field(
        default=0.0,
        metadata=about(
            "optimizer.ema",
            "decay of a moving average of the weights, which is then what is certified; 0: none",
            least=0,
            below=1,
        ),
    )
    lookahead: int = field(
        default=0,
        metadata=about(
            "optimizer.lookahead",
            "steps after which Lookahead moves its slow weights; 0: without Lookahead",
            least=0,
            most=10_000,
        ),
    )
    lookahead_alpha: float = field(
        default=0.5,
        metadata=about(
            "optimizer.lookahead_alpha",
            "fraction of the way that Lookahead's slow weights go, to 1",
            above=0,
            most=1,
        ),
    )
    manifold_lr: float = field(
        default=0.0,
        metadata=about("optimizer.manifold_lr", "as lr, of orthogonal matrices in radians; 0: lr", least=0),
    )
    schedule: Schedule = field(
        default="onecycle",
        metadata=about("schedule.name", "schedule of the learning rate", choices=get_args(Schedule)),
    )
    warmup: float = field(
        default=0.3,
        metadata=about(
            "schedule.warmup",
            "fraction of the steps in which the learning rate of onecycle, cosine or constant rises",
            above=0,
            below=1,
        ),
    )

    def _check_step(self) -> None:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov=True: needs momentum above 0")
        if self.optimizer != SCHEDULE_FREE:
            return
        if self.schedule != "constant":
            raise ValueError(f"schedule={self.schedule!r}: optimizer={SCHEDULE_FREE!r} needs 'constant'")
        if self.beta1 == 0:
            raise ValueError(f"beta1=0.0: optimizer={SCHEDULE_FREE!r} needs a value above 0")
        if self.lookahead:
            raise ValueError(f"lookahead={self.lookahead}: optimizer={SCHEDULE_FREE!r} has an average of its own")
