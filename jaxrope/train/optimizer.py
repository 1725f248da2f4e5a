"""AdamW with a schedule and clipping."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import optax

from jaxrope.schema import training


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


def make(section: training.Optimizer, *, num_steps: int) -> Optimizer:
    """Returns the optimizer of config.optimizer.

    Weight decay is for matrices: parameters named `*norm*` and `*bias*` have none.

    Args:
      section: config.optimizer.
      num_steps: optimizer steps of the whole run, where the schedule ends.
    """
    constants = section.schedule.to_dict()
    name = constants.pop("name")
    schedule = SCHEDULES[name](section.learning_rate, num_steps, **constants)
    adamw = optax.adamw(
        schedule,
        b1=section.b1,
        b2=section.b2,
        eps=section.eps,
        weight_decay=section.weight_decay,
        mask=_decayed,
    )
    clipping = [optax.clip_by_global_norm(section.clip_norm)] if section.clip_norm else []
    return Optimizer(optax.chain(*clipping, adamw), schedule, section.offload)


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


def _decayed(params):
    """Returns the tree of which parameters decay."""

    def decays(path, _):
        name = jax.tree_util.keystr(path[-1:], simple=True)
        return "norm" not in name and "bias" not in name

    return jax.tree_util.tree_map_with_path(decays, params)
