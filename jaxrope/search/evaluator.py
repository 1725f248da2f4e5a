"""Candidates on the devices: one compiled function for a whole search.

Ropes are arguments of it, stacked and vmapped, spread over the local devices; samples are looped
inside, so that memory is that of one sample for each candidate of a batch. Batches are filled up
to one size. No device sees another one's candidates, and the arithmetic of a candidate depends on
the candidates per device alone, never on which they are.

Letters: P candidates, W samples.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxrope import rope
from jaxrope.search.objective import Objective

_AXIS = "candidate"
_POLL_SECONDS = 0.002  # a signal is heard between polls; a blocking wait would hear it at its end


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """See the module.

    Attributes:
      losses_fn: (params, ropes with leading P, samples) -> losses_PW; compiled at its first call.
      params, samples: on all devices.
      num_devices: that share a batch.
      per_device: candidates of a batch on each of them.
    """

    losses_fn: Callable[[Any, rope.Rope, Any], jax.Array]
    params: Any
    samples: Any
    num_devices: int
    per_device: int

    @property
    def batch_size(self) -> int:
        return self.num_devices * self.per_device


class OutOfMemory(Exception):
    """The devices cannot hold a batch of this size."""


def make(
    objective: Objective, params: Any, *, per_device: int, devices: Sequence[jax.Device]
) -> Evaluator:
    """Returns an evaluator; nothing is compiled yet.

    Args:
      objective: what is computed.
      params: the model, copied to each device.
      per_device: candidates evaluated together on each device.
      devices: of this process.
    """
    mesh = Mesh(np.asarray(devices), (_AXIS,))

    def losses_PW(params, ropes, samples):
        def one_sample(sample):
            return jax.vmap(lambda r: objective.loss_fn(params, r, sample))(ropes)

        return jax.lax.map(one_sample, samples).T

    shared, split = PartitionSpec(), PartitionSpec(_AXIS)
    sharded = jax.shard_map(
        losses_PW,
        mesh=mesh,
        in_specs=(shared, split, shared),
        out_specs=split,
        check_vma=False,  # no collective: scans inside start from constants, which vary nowhere
    )
    everywhere = NamedSharding(mesh, shared)
    return Evaluator(
        losses_fn=jax.jit(sharded),
        params=jax.device_put(params, everywhere),
        samples=jax.device_put(objective.samples, everywhere),
        num_devices=len(devices),
        per_device=per_device,
    )


def halve(evaluator: Evaluator) -> Evaluator:
    """Returns an evaluator of half the batch; the caller sees that a candidate is left."""
    return dataclasses.replace(evaluator, per_device=evaluator.per_device // 2)


def evaluate(evaluator: Evaluator, ropes: Sequence[rope.Rope]) -> np.ndarray:
    """Returns losses_PW, float64, of at most `batch_size` candidates.

    Raises:
      OutOfMemory: see there.
    """
    missing = evaluator.batch_size - len(ropes)
    stacked = rope.stack([*ropes, *[ropes[-1]] * missing])
    try:
        found = evaluator.losses_fn(evaluator.params, stacked, evaluator.samples)
        while not found.is_ready():
            time.sleep(_POLL_SECONDS)
        return np.asarray(found, np.float64)[: len(ropes)]
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            raise OutOfMemory(str(error).splitlines()[0]) from None
        raise
