"""Candidates on the devices: one compiled function for a whole search.

Ropes are arguments of it, stacked and vmapped, spread over `data` and `fsdp`; the sample is spread
over `context`, the parameters lie as in training. It is called once for each sample, so that memory
is that of one sample for each candidate of a batch. Batches are filled up to one size. The
arithmetic of a candidate depends on the number of candidates per device alone, not on the other
candidates.

Letters: P candidates, W samples, T length.
"""

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxrope import decoder, rope
from jaxrope.mesh import sharding
from jaxrope.search.objective import Judge

_POLL_SECONDS = 0.002  # a signal is heard between polls; a blocking wait would hear it at its end
_SPLIT, _SAMPLE = PartitionSpec(sharding.BATCH_AXES), PartitionSpec("context")


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """See the module.

    Attributes:
      losses_fns: of each kind of sample (params, ropes with leading P, sample) -> losses_P;
        compiled at their first call.
      params: on all devices.
      samples: W of them, {name: [T]} each, on all devices.
      num_groups: groups of devices that share a batch; those of a group share a sequence.
      per_device: candidates of a batch in each group: each of its devices computes a part of them.
      ropes_at: where ropes lie; None: where jax puts them.
    """

    losses_fns: tuple[Callable[[Any, rope.Rope, Any], jax.Array], ...]
    params: Any
    samples: list[dict[str, jax.Array]]
    num_groups: int
    per_device: int
    ropes_at: NamedSharding | None = None

    @property
    def batch_size(self) -> int:
        return self.num_groups * self.per_device


class OutOfMemory(Exception):
    """The devices cannot hold a batch of this size."""


def make(
    objective: Judge, model: decoder.DecoderConfig, params: Any, *, per_device: int, mesh: Mesh
) -> Evaluator:
    """Returns an evaluator; nothing is compiled yet.

    Args:
      objective: what is computed, on this mesh.
      model: the shape of the model.
      params: of the model, on the host.
      per_device: candidates evaluated together in each group of devices.
      mesh: of sharding.make_mesh.
    """
    return Evaluator(
        losses_fns=losses_fns(objective, model, mesh),
        params=sharding.put(params, decoder.param_shardings(model, mesh)),
        samples=place(objective, mesh),
        num_groups=sharding.ways(mesh, *sharding.BATCH_AXES),
        per_device=per_device,
        ropes_at=NamedSharding(mesh, _SPLIT),
    )


def place(objective: Judge, mesh: Mesh) -> list[dict[str, jax.Array]]:
    """Returns the samples of an objective, on all devices."""
    where = NamedSharding(mesh, _SAMPLE)
    return [sharding.put(sample, where) for sample in objective.laid()]


def lower(
    objective: Judge,
    model: decoder.DecoderConfig,
    mesh: Mesh,
    plain: rope.Rope,
    *,
    dtype: str,
    kind: int,
    per_device: int,
) -> jax.stages.Lowered:
    """Returns a function of an Evaluator, or of its gradient, lowered; its devices need not be
    there.

    Args:
      objective: what is computed, on this mesh.
      model: its shape.
      mesh: of sharding.make_mesh.
      plain: a rope of the search.
      dtype: of the parameters.
      kind: which of the objective's kinds of samples.
      per_device: candidates evaluated together in each group of devices; 0: the gradient.
    """

    def abstract(leaf, where):
        return jax.ShapeDtypeStruct(np.shape(leaf), jnp.result_type(leaf), sharding=where)

    params = decoder.abstract_params(model, dtype)
    params = jax.tree.map(abstract, params, decoder.param_shardings(model, mesh))
    at = NamedSharding(mesh, _SAMPLE)
    sample = {name: abstract(x_T, at) for name, x_T in objective.laid()[kind].items()}
    loss_fn, split = objective.loss_fns[kind], NamedSharding(mesh, _SPLIT)
    if not per_device:
        r = jax.tree.map(lambda leaf: abstract(leaf, sharding.replicated(mesh)), plain)
        return _gradient_fn(loss_fn, model, mesh).lower(params, r, sample)
    count = per_device * sharding.ways(mesh, *sharding.BATCH_AXES)
    ropes = jax.tree.map(lambda leaf: abstract(leaf, split), rope.stack([plain] * count))
    return _losses_fn(loss_fn, model, mesh).lower(params, ropes, sample)


def losses_fns(objective: Judge, model: decoder.DecoderConfig, mesh: Mesh) -> tuple[Callable, ...]:
    """Returns the functions of an Evaluator for this objective."""
    return tuple(_losses_fn(loss_fn, model, mesh) for loss_fn in objective.loss_fns)


def _losses_fn(loss_fn: Callable, model: decoder.DecoderConfig, mesh: Mesh) -> Callable:
    def losses_P(params, ropes, sample):
        return jax.vmap(lambda r: loss_fn(params, r, sample))(ropes)

    specs = jax.tree.map(lambda where: where.spec, decoder.param_shardings(model, mesh))
    spread = jax.shard_map(
        losses_P,
        mesh=mesh,
        in_specs=(specs, _SPLIT, _SAMPLE),
        out_specs=_SPLIT,
        check_vma=False,  # scans inside start from constants, which vary nowhere
    )
    return jax.jit(spread, out_shardings=sharding.replicated(mesh))  # every process reads all


def gradient_fns(
    objective: Judge, model: decoder.DecoderConfig, mesh: Mesh
) -> tuple[Callable, ...]:
    """Returns for each kind of sample (params, rope, sample) -> (loss, gradient in its factors,
    gradient in its attention factor), compiled at its first call; params and sample (of
    decoder.lay_out, {name: [T]}) lie as in an Evaluator.
    """
    return tuple(_gradient_fn(loss_fn, model, mesh) for loss_fn in objective.loss_fns)


def _gradient_fn(sample_loss_fn: Callable, model: decoder.DecoderConfig, mesh: Mesh) -> Callable:
    specs = jax.tree.map(lambda where: where.spec, decoder.param_shardings(model, mesh))
    everywhere, tokens = PartitionSpec(), PartitionSpec("context")

    def loss_fn(params, r, sample):
        spread = jax.shard_map(
            sample_loss_fn,
            mesh=mesh,
            in_specs=(specs, everywhere, tokens),
            out_specs=everywhere,
            check_vma=False,  # see _losses_fn
        )
        return spread(params, r, sample)

    def of_choice(chosen, params, r, sample):
        factors, attention_factor = chosen
        r = dataclasses.replace(r, factors_R=factors, attention_factor=attention_factor)
        return loss_fn(params, r, sample)

    @functools.partial(jax.jit, out_shardings=sharding.replicated(mesh))
    def value_and_grad_fn(params, r, sample):
        chosen = r.factors_R, r.attention_factor
        loss, (factors_grad, attention_grad) = jax.value_and_grad(of_choice)(
            chosen, params, r, sample
        )
        return loss, factors_grad, attention_grad

    return value_and_grad_fn


def halve(evaluator: Evaluator) -> Evaluator:
    """Returns an evaluator of half the batch, which must hold more than one candidate a device."""
    return dataclasses.replace(evaluator, per_device=evaluator.per_device // 2)


def part(evaluator: Evaluator, chosen: slice) -> Evaluator:
    """Returns an evaluator of some of the samples, which follow one another."""
    first = range(len(evaluator.samples))[chosen].start % len(evaluator.losses_fns)
    losses_fns = evaluator.losses_fns[first:] + evaluator.losses_fns[:first]
    return dataclasses.replace(evaluator, samples=evaluator.samples[chosen], losses_fns=losses_fns)


def evaluate(evaluator: Evaluator, ropes: Sequence[rope.Rope]) -> np.ndarray:
    """Returns losses_PW, float64, of at most `batch_size` candidates.

    Raises:
      OutOfMemory: the devices cannot hold the batch.
    """
    missing = evaluator.batch_size - len(ropes)
    stacked = rope.stack([*ropes, *[ropes[-1]] * missing])
    if evaluator.ropes_at is not None:
        stacked = sharding.put(stacked, evaluator.ropes_at)
    try:
        columns = []
        for sample, losses_fn in zip(evaluator.samples, itertools.cycle(evaluator.losses_fns)):
            losses_P = losses_fn(evaluator.params, stacked, sample)
            while not losses_P.is_ready():
                time.sleep(_POLL_SECONDS)
            columns.append(np.asarray(losses_P, np.float64)[: len(ropes)])
        return np.stack(columns, axis=1)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            raise OutOfMemory(str(error).splitlines()[0]) from None
        raise
