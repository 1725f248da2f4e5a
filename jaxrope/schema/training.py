"""How a model is trained: the loop, what is trained, the optimizer, what is saved."""

import dataclasses
from typing import Any

from jaxrope.errors import InputError
from jaxrope.schema.model import DTYPES
from jaxrope.schema.rules import (
    Choice,
    Many,
    Number,
    Section,
    Select,
    Switch,
    Whole,
    field,
)

TARGETS = ("q", "k", "v", "o", "gate", "up", "down", "head")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train(Section):
    """The training loop."""

    PATH = "train"

    seq_len: int = field(Whole(1, unit="tokens"))
    batch_size: int = field(Whole(1, unit="rows"))
    accumulation: int = field(Whole(1))
    steps: int = field(Whole(1))
    log_every: int = field(Whole(1, unit="steps"))
    eval_every: int = field(Whole(0, unit="steps"))
    check_every: int = field(Whole(0, unit="steps"))
    max_bad_steps: int = field(Whole(1))
    param_dtype: str = field(Choice(DTYPES))
    chunk_tokens: int = field(Whole(1, unit="tokens"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lora(Section):
    """What is trained."""

    PATH = "lora"

    rank: int = field(Whole(0))
    alpha: float = field(Number(above=0))
    targets: tuple = field(Many(Choice(TARGETS), distinct=True))
    train_norms: bool = field(Switch())
    train_embeddings: bool = field(Switch())

    def check(self) -> None:
        """Adapters have layers."""
        self.require(not self.rank or bool(self.targets), "targets", "name a linear layer")


class _Schedule(Section):
    PATH = "optimizer.schedule"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decaying(_Schedule):
    """Warm-up, then a fall to a fraction of the peak."""

    name: str = field(Choice(("linear", "cosine")))
    warmup_steps: int = field(Whole(0))
    final_fraction: float = field(Number(least=0, most=1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Constant(_Schedule):
    """Warm-up, then the peak."""

    name: str = field(Choice(("constant",)))
    warmup_steps: int = field(Whole(0))


SCHEDULE = Select("name", {"linear": Decaying, "constant": Constant, "cosine": Decaying})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer(Section):
    """AdamW."""

    PATH = "optimizer"

    learning_rate: float = field(Number(above=0, most=1))
    schedule: Any = field(SCHEDULE)
    b1: float = field(Number(least=0, below=1))
    b2: float = field(Number(least=0, below=1))
    eps: float = field(Number(above=0, below=1))
    weight_decay: float = field(Number(least=0, below=1))
    clip_norm: float = field(Number(least=0))
    offload: bool = field(Switch())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Saves(Section):
    """What is saved, and when."""

    PATH = "checkpoint"

    every: int = field(Whole(1, unit="steps"))
    keep_last: int = field(Whole(1))
    keep_every: int = field(Whole(0, unit="steps"))
    asynchronous: bool = field(Switch())


def check_together(train: Train, optimizer: Optimizer) -> None:
    """Refuses a training whose sections do not go together.

    Raises:
      InputError: the warm-up is longer than the run.
    """
    warmup = optimizer.schedule.warmup_steps
    if warmup > train.steps:
        raise InputError(
            f"optimizer.schedule.warmup_steps must be from 0 to train.steps, {train.steps}, got "
            f"{warmup}."
        )
