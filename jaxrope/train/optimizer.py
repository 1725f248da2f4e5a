"""AdamW with a schedule and clipping, every number checked before anything is compiled."""

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

from jaxrope.errors import InputError, choose, nearest


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """What updates the parameters.

    Attributes:
      transform: of optax: clipping, then AdamW.
      schedule: updates applied so far -> learning rate of the next one.
      offload: its state is kept in the memory of the hosts, and moved to the devices for an update.
    """

    transform: optax.GradientTransformation
    schedule: Callable[[Any], Any]
    offload: bool = False


def make(section: Mapping[str, Any], *, num_steps: int) -> Optimizer:
    """Returns the optimizer of config.optimizer.

    Weight decay is for matrices: parameters named `*norm*` and `*bias*` have none.

    Args:
      section: learning_rate (at the peak), schedule, b1, b2, eps, weight_decay, clip_norm (0 =
        none), offload.
      num_steps: optimizer steps of the whole run, where the schedule ends.

    Raises:
      InputError: a number is out of its range, or the schedule is unknown or misses a constant.
    """
    number = _Numbers("optimizer", section)
    peak = number("learning_rate", above=0, most=1)
    b1, b2 = number("b1", least=0, below=1), number("b2", least=0, below=1)
    eps, decay = number("eps", above=0, below=1), number("weight_decay", least=0, below=1)
    clip = number("clip_norm", least=0)
    schedule = _schedule(dict(section["schedule"]), peak, num_steps)
    adamw = optax.adamw(schedule, b1=b1, b2=b2, eps=eps, weight_decay=decay, mask=_decayed)
    clipping = [optax.clip_by_global_norm(clip)] if clip else []
    if not isinstance(section["offload"], bool):
        raise InputError(f"optimizer.offload must be True or False, got {section['offload']!r}.")
    return Optimizer(optax.chain(*clipping, adamw), schedule, section["offload"])


def linear(peak: float, num_steps: int, warmup_steps: int, final_fraction: float):
    """Warm-up, then a straight line from the peak to `final_fraction` of it at `num_steps`."""
    decay = optax.linear_schedule(peak, peak * final_fraction, max(num_steps - warmup_steps, 1))
    return _warmed(peak, warmup_steps, decay)


def cosine(peak: float, num_steps: int, warmup_steps: int, final_fraction: float):
    """Warm-up, then half a cosine from the peak to `final_fraction` of it at `num_steps`."""
    decay = optax.cosine_decay_schedule(
        peak, max(num_steps - warmup_steps, 1), alpha=final_fraction
    )
    return _warmed(peak, warmup_steps, decay)


def constant(peak: float, num_steps: int, warmup_steps: int):
    """Warm-up, then the peak."""
    return _warmed(peak, warmup_steps, optax.constant_schedule(peak))


SCHEDULES = {"linear": linear, "constant": constant, "cosine": cosine}


def _warmed(peak, warmup_steps, then):
    """Rises to the peak in `warmup_steps` updates; the first has peak / warmup_steps, not 0."""
    if warmup_steps == 0:
        return then
    rise = optax.constant_schedule(peak)
    if warmup_steps > 1:
        rise = optax.linear_schedule(peak / warmup_steps, peak, warmup_steps - 1)
    return optax.join_schedules([rise, then], [warmup_steps])


def _schedule(section: dict, peak: float, num_steps: int):
    name = section.pop("name", "")
    factory = choose("optimizer.schedule.name", name, SCHEDULES)
    constants = list(inspect.signature(factory).parameters)[2:]
    for key in section:
        if key not in constants:
            raise InputError(
                f"Unknown optimizer.schedule.{key} of '{name}'. {nearest(key, constants)}"
            )
    for key in constants:
        if key not in section:
            raise InputError(
                f"optimizer.schedule.{key} is missing: '{name}' needs {', '.join(constants)}."
            )
    number = _Numbers("optimizer.schedule", section)
    if "final_fraction" in section:
        number("final_fraction", least=0, most=1)
    warmup = section["warmup_steps"]
    if not isinstance(warmup, int) or isinstance(warmup, bool) or not 0 <= warmup <= num_steps:
        raise InputError(
            "optimizer.schedule.warmup_steps must be a whole number from 0 to train.steps = "
            f"{num_steps}, got {warmup!r}."
        )
    return factory(peak, num_steps, **section)


class _Numbers:
    """Reads numbers of a section and checks their range."""

    def __init__(self, path: str, section: Mapping[str, Any]):
        self._path, self._section = path, section

    def __call__(
        self, key, *, least=-math.inf, above=-math.inf, most=math.inf, below=math.inf
    ) -> float:
        value = self._section[key]
        fits = (
            isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        )
        if fits and least <= value <= most and above < value < below:
            return float(value)
        bounds = [f"at least {least:g}"] * (least > -math.inf) + [f"above {above:g}"] * (
            above > -math.inf
        )
        bounds += [f"at most {most:g}"] * (most < math.inf) + [f"below {below:g}"] * (
            below < math.inf
        )
        raise InputError(
            f"{self._path}.{key} must be a number {' and '.join(bounds)}, got {value!r}."
        )


def _decayed(params):
    """Returns the tree of which parameters decay."""

    def decays(path, _):
        name = jax.tree_util.keystr(path[-1:], simple=True)
        return "norm" not in name and "bias" not in name

    return jax.tree_util.tree_map_with_path(decays, params)
