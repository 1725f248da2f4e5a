"""One optimizer step as a pure function, and the state that it carries.

Loss and gradients are computed inside one shard_map over the whole mesh, each device on its tokens
and its part of the parameters; the update happens outside, on the sharded arrays.

Letters: A parts of a batch (accumulation), B rows of a part, T length.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from jaxrope import decoder
from jaxrope.decoder import losses
from jaxrope.mesh import collectives, sharding
from jaxrope.train import lora as lora_lib
from jaxrope.train.optimizer import Optimizer


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that a step changes.

    Attributes:
      params: master weights; with adapters the frozen weights too, in the compute dtype.
      opt_state: of optax, for what is trained.
      updates: int32, updates applied; the learning rate follows it, so a step that was not applied
        does not move the schedule.
      bad_in_row: int32, steps not applied since the last one that was.
      bad_total: int32, steps not applied.
    """

    params: Any
    opt_state: Any
    updates: jax.Array
    bad_in_row: jax.Array
    bad_total: jax.Array


def init_state(
    params, transform: optax.GradientTransformation, lora: lora_lib.Lora | None = None
) -> TrainState:
    """Returns the state before the first step."""
    zero = jnp.zeros((), jnp.int32)
    trained, _ = lora_lib.split(params, lora)
    return TrainState(params, transform.init(trained), zero, zero, zero)


def make_step(
    config: decoder.DecoderConfig,
    settings: decoder.ForwardSettings,
    optimizer: Optimizer,
    *,
    chunk_tokens: int,
    packed: bool = True,
    lora: lora_lib.Lora | None = None,
) -> Callable:
    """Returns step(state, batch, rope) -> (state, metrics).

    `batch` holds tokens_ABT, targets_ABT, positions_ABT, segment_ids_ABT (int32) and
    loss_weights_ABT (float32). The loss is the mean over the whole batch weighted by loss_weights,
    whatever A and the mesh (of the settings) are: parts are summed in float32 or wider and divided
    once. Where it also holds rope_ids_ABT (int32, one number in all of a row), `rope` is that of
    program.two_ropes, and a row takes the one of its number; tokens of all rows count alike.

    Where the model has experts, their imbalance times router_loss is part of the loss: of each part
    of a batch, over all of its tokens but padding, whatever the mesh.

    Where the loss or the gradient's norm is not finite, parameters and optimizer state stay as they
    were, to the bit, and the step counts as bad.

    Args:
      config, settings: the model, and how it is run.
      optimizer: what updates it.
      chunk_tokens: tokens of each row and device whose logits exist at one time.
      packed: a row may hold several documents. If not, it is one from its beginning, and what fills
        it up at the end is attended to by no token that counts, so that attention needs no segment
        ids.
      lora: what is trained; None: everything.
    """
    sums = _on_mesh(config, settings, lora, _sums(config, settings, chunk_tokens, packed))
    keep, work = _moves(optimizer)

    def step(state: TrainState, batch: dict, rope):
        total = jnp.maximum(jnp.sum(batch["loss_weights_BT"]), 1.0)
        counted = jnp.sum(batch["loss_weights_BT"] != 0, dtype=jnp.float32)
        trained, frozen = lora_lib.split(state.params, lora)
        loss, grads = sums(trained, frozen, batch, rope)
        loss = loss / total
        grads = jax.tree.map(lambda grad, p: (grad / total).astype(p.dtype), grads, trained)
        norm = optax.tree.norm(grads)
        good = jnp.isfinite(loss) & jnp.isfinite(norm)
        old = work(state.opt_state, norm)
        changes, opt_state = optimizer.transform.update(grads, old, trained)
        params = optax.apply_updates(trained, changes)
        bad = 1 - good.astype(jnp.int32)
        new = TrainState(
            lora_lib.join(_choose(good, params, trained), frozen),
            keep(_choose(good, opt_state, old)),
            state.updates + 1 - bad,
            (state.bad_in_row + 1) * bad,
            state.bad_total + bad,
        )
        metrics = {"loss": loss, "grad_norm": norm, "lr": optimizer.schedule(state.updates)}
        metrics |= {"tokens": counted, "bad_in_row": new.bad_in_row, "bad_total": new.bad_total}
        return new, metrics

    return step


def _sums(config, settings, chunk_tokens, packed) -> Callable:
    """Returns (trained, frozen, batch, rope) -> (sum of the losses, its gradients for what is
    trained), over the tokens of its arguments.
    """
    natural = not packed and sharding.ways(settings.mesh, "context") == 1
    copies = sharding.ways(settings.mesh, *collectives.TENSOR)  # that have the same tokens

    def loss_sum(frozen, trained, part, rope):
        params = lora_lib.join(trained, frozen)
        given = config, params, part["tokens_BT"], _of_rows(rope, part)
        how = dict(
            positions_BT=None if natural else part["positions_BT"],
            segment_ids_BT=part["segment_ids_BT"] if packed else None,
            settings=settings,
        )
        if config.num_experts and config.router_loss:
            counted_BT = part["segment_ids_BT"] > 0
            x_BTD, imbalance = decoder.hidden_and_imbalance(*given, counted_BT, **how)
        else:
            x_BTD, imbalance = decoder.hidden(*given, **how), None
        total = losses.nll_sum(
            x_BTD,
            decoder.head_DV(config, params),
            losses.Targets(part["targets_BT"], part["loss_weights_BT"]),
            chunk=chunk_tokens,
            mesh=settings.mesh,
            vocab_size=config.vocab_size,
            cap=config.logit_cap,
        )
        if imbalance is not None:  # a mean: it counts for each token of the loss
            total = total + config.router_loss * imbalance * jnp.sum(part["loss_weights_BT"])
        return total / copies

    def sums(trained, frozen, batch, rope):
        of_trained = functools.partial(loss_sum, frozen)
        return _accumulate(jax.value_and_grad(of_trained), trained, batch, rope)

    return sums


def _on_mesh(config, settings, lora, sums: Callable) -> Callable:
    """Returns `sums` of whole arrays, computed by every device of the mesh on its part."""
    mesh = settings.mesh
    if mesh is None:
        return sums
    shardings, others = lora_lib.split(lora_lib.param_shardings(config, lora, mesh), lora)

    def local(trained, frozen, batch, rope):
        loss, grads = sums(trained, frozen, batch, rope)
        added = jax.tree.map(_sum_over_unnamed, grads, shardings)
        return jax.lax.psum(loss, mesh.axis_names), added

    specs, frozen_specs = (
        jax.tree.map(lambda where: where.spec, tree) for tree in (shardings, others)
    )
    rows = sharding.batch_sharding(mesh).spec
    everywhere = PartitionSpec()
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(specs, frozen_specs, rows, everywhere),
        out_specs=(everywhere, specs),
        check_vma=False,  # scans inside start from constants, which vary nowhere
    )


def _of_rows(rope, part):
    """Returns the rope of each row of a part."""
    if "rope_ids_BT" not in part:
        return rope
    ids_B = part["rope_ids_BT"][:, 0]
    axis = int(rope.per_layer)  # layers come first
    return jax.tree.map(lambda leaf: jnp.take(leaf, ids_B, axis=axis, mode="clip"), rope)


def _sum_over_unnamed(gradient: jax.Array, where: NamedSharding) -> jax.Array:
    """Sums, in float32 or wider, the gradients of devices with the same part of a parameter."""
    axes = sharding.unnamed_axes(where)
    wide = gradient.astype(jnp.promote_types(gradient.dtype, jnp.float32))
    return jax.lax.psum(wide, axes) if axes else gradient


def _moves(optimizer: Optimizer) -> tuple[Callable, Callable]:
    """Returns two functions: moments -> moments in the memory where they are stored; and
    (moments, an array that must be computed first) -> moments in the memory of the device.
    """
    if not optimizer.offload:
        return (lambda state: state), (lambda state, _: state)

    def to(space, state):
        return jax.tree.map(lambda x: x if x.ndim == 0 else jax.device_put(x, space), state)

    def work(state, dependency):
        # not while the gradient is computed: its memory is what the moments leave free
        state, _ = jax.lax.optimization_barrier((state, dependency))
        return to(jax.memory.Space.Device, state)

    return functools.partial(to, jax.memory.Space.Host), work


def _accumulate(loss_and_grad, params, batch, rope):
    """Returns (sum of losses, sum of gradients) over the parts, float32 or wider."""
    if jax.tree.leaves(batch)[0].shape[0] == 1:
        return loss_and_grad(params, jax.tree.map(lambda x_ABT: x_ABT[0], batch), rope)

    def add(sums, part):
        return jax.tree.map(jnp.add, sums, loss_and_grad(params, part, rope)), None

    def zeros(leaf):
        return jnp.zeros(leaf.shape, jnp.promote_types(leaf.dtype, jnp.float32))

    part = jax.tree.map(lambda x_ABT: x_ABT[0], batch)
    start = jax.tree.map(zeros, jax.eval_shape(loss_and_grad, params, part, rope))
    sums, _ = jax.lax.scan(add, start, batch)
    return sums


def _choose(good, new, old):
    return jax.tree.map(lambda a, b: jnp.where(good, a, b), new, old)


def flops_per_token(
    config: decoder.DecoderConfig, seq_len: int, lora: lora_lib.Lora | None = None
) -> float:
    """Returns the arithmetic of one trained token: forward and backward, nothing recomputed.

    6 for each weight of a matrix product (4 where it is frozen: it has no gradient of its own) and
    6 * layers * (num_heads * head_dim) * seq_len for attention, whose causal half is counted once
    (Kaplan et al. 2020, section 2.1, with the causal half; PaLM, appendix B, counts it twice), and
    three times a recurrence.
    """
    parts = lora_lib.split(lora_lib.abstract_params(config, lora, "float32"), lora)
    trained, frozen = (_product_weights(part, config) for part in parts)
    width = config.num_heads * config.head_dim
    mixing = 6.0 * config.num_attention_layers * width * seq_len
    mixing += 3.0 * config.num_delta_layers * decoder.delta_operations(config)
    return 6.0 * trained + 4.0 * frozen + mixing


def _product_weights(params: dict, config: decoder.DecoderConfig) -> int:
    """Returns how many weights a token is multiplied with: of the experts, those chosen for it."""
    weights = sum(leaf.size for leaf in jax.tree.leaves(params))
    idle = config.num_experts - config.experts_per_token
    for name, leaf in params["layers"].items():
        if name.startswith("expert_"):
            weights -= leaf.size // config.num_experts * idle
    if "embed_VD" in params and not config.tie_embeddings:
        weights -= params["embed_VD"].size  # a look-up is no product
    return weights
