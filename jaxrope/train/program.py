"""What compiling a training step needs, and nothing of data: it works on a mesh of devices that are
only described, too.

Letters: A parts of a batch (accumulation), B rows of a part, T length.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxrope import decoder, rope, setup
from jaxrope.mesh import sharding
from jaxrope.schema.training import check_together
from jaxrope.train import lora as lora_lib
from jaxrope.train import optimizer
from jaxrope.train import step as step_lib

_INTEGERS = ("tokens_BT", "targets_BT", "positions_BT", "segment_ids_BT")


@dataclasses.dataclass(frozen=True)
class Program:
    """A training step.

    Attributes:
      model: the shape of the model.
      mesh: where it runs.
      settings: how the model is run; `auto` has become a name.
      optimizer: transform and schedule.
      seq_len: tokens in a row.
      batch_size: rows in an optimizer step, over all devices.
      accumulation: equal parts a step's batch is cut into.
      chunk_tokens: tokens of each row and device whose logits exist at one time.
      param_dtype: of the master weights.
      packed: a row may hold several documents.
      mixed: rows choose between two ropes; see data.mixture.
      remarks: lines for the user: what `auto` has become.
      lora: what is trained; None: everything.
    """

    model: decoder.DecoderConfig
    mesh: Mesh
    settings: decoder.ForwardSettings
    optimizer: optimizer.Optimizer
    seq_len: int
    batch_size: int
    accumulation: int
    chunk_tokens: int
    param_dtype: str
    packed: bool
    mixed: bool = False
    remarks: tuple[str, ...] = ()
    lora: lora_lib.Lora | None = None

    @property
    def batch_shape(self) -> tuple[int, int, int]:
        """[A, B, T] of a step's batch."""
        return self.accumulation, self.batch_size // self.accumulation, self.seq_len


def make_program(config, mesh: Mesh, model: decoder.DecoderConfig) -> Program:
    """Returns the step that `config` asks for.

    Args:
      config: of the program.
      mesh: of sharding.make_mesh; its devices may be described only.
      model: the shape of the model.

    Raises:
      InputError: batch, length, heads or a number do not fit the mesh or each other.
    """
    train = config.train
    check_together(train, config.optimizer)
    sharding.check_batch(mesh, train.batch_size, train.accumulation)
    dtypes = dict(param_dtype=train.param_dtype, compute_dtype=config.forward.compute_dtype)
    lora = lora_lib.make(config.lora, model, **dtypes)
    lora_lib.param_shardings(model, lora, mesh)  # refuses what does not divide
    settings, remarks = setup.forward_settings(config, mesh, model, seq_len=train.seq_len)
    return Program(
        model=model,
        mesh=mesh,
        settings=settings,
        optimizer=optimizer.make(config.optimizer, num_steps=train.steps),
        seq_len=train.seq_len,
        batch_size=train.batch_size,
        accumulation=train.accumulation,
        chunk_tokens=train.chunk_tokens,
        param_dtype=train.param_dtype,
        packed=config.data.mode == "pack" or config.data.short_share > 0,
        mixed=config.data.short_share > 0,
        remarks=(*remarks, *_lora_remarks(model, lora)),
        lora=lora,
    )


def _lora_remarks(model: decoder.DecoderConfig, lora: lora_lib.Lora | None) -> list[str]:
    if lora is None:
        return []
    trained = lora_lib.num_trained(model, lora)
    share = trained / decoder.num_params(model)
    embedding = model.vocab_size * model.embed_dim if lora.train_embeddings else 0
    of_them = f" ({embedding:,} of them the embedding: lora.train_embeddings)" if embedding else ""
    return [
        f"lora: {trained:,} parameters{of_them} are trained, {share:.2%} of the"
        f" model's; frozen ones are {lora.frozen_dtype}"
    ]


def abstract_state(program: Program):
    """Returns (abstract TrainState with shardings, the shardings); moments lie where their
    parameters do, with optimizer.offload in the memory of the hosts.
    """
    abstract_params = lora_lib.abstract_params(program.model, program.lora, program.param_dtype)
    params = lora_lib.param_shardings(program.model, program.lora, program.mesh)
    everywhere = sharding.replicated(program.mesh)
    transform = program.optimizer.transform
    init = functools.partial(step_lib.init_state, transform=transform, lora=program.lora)
    abstract = jax.eval_shape(init, abstract_params)
    moments, _ = lora_lib.split(params, program.lora)
    if program.optimizer.offload:
        moments = jax.tree.map(lambda where: where.with_memory_kind("pinned_host"), moments)
    trained, _ = lora_lib.split(abstract_params, program.lora)
    opt_state = _like_params(abstract.opt_state, trained, moments, everywhere)
    shardings = step_lib.TrainState(params, opt_state, everywhere, everywhere, everywhere)
    return jax.tree.map(_placed, abstract, shardings), shardings


def lower_step(program: Program, abstract_state, shardings, r: rope.Rope) -> jax.stages.Lowered:
    """Returns the step (state, batch, rope) -> (state, metrics), lowered.

    Args:
      program: see there.
      abstract_state, shardings: of `abstract_state`.
      r: of `rope_argument`; of arrays of any kind, only their shapes matter.
    """
    step = step_lib.make_step(
        program.model,
        program.settings,
        program.optimizer,
        chunk_tokens=program.chunk_tokens,
        packed=program.packed,
        lora=program.lora,
    )
    everywhere = sharding.replicated(program.mesh)
    where = sharding.batch_sharding(program.mesh)
    dtypes = dict.fromkeys(_INTEGERS, jnp.int32) | {"loss_weights_BT": jnp.float32}
    dtypes |= {"rope_ids_BT": jnp.int32} if program.mixed else {}
    batch = {
        name: jax.ShapeDtypeStruct(program.batch_shape, dtype, sharding=where)
        for name, dtype in dtypes.items()
    }
    abstract_rope = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype, sharding=everywhere), r
    )
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(shardings, everywhere))
    return jitted.lower(abstract_state, batch, abstract_rope)


def rope_argument(program: Program, rope_of_len: rope.Rope) -> rope.Rope:
    """Returns the rope that a step takes: that of the length that is trained, on the host; where
    rows choose, the model's own at the length it was trained on beside it.
    """
    if not program.mixed:
        return rope_of_len
    trained = decoder.own_base(program.model).length
    return two_ropes(rope_of_len, decoder.own_rope(program.model)(trained))


def two_ropes(long: rope.Rope, short: rope.Rope) -> rope.Rope:
    """Returns both, stacked: number mixture.LONG and number mixture.SHORT.

    Args:
      long: may have layers.
      short: has none.
    """
    if long.per_layer:
        num_layers = long.start_tokens.shape[0]
        short = rope.stack([short] * num_layers, per_layer=True)
    axis = int(long.per_layer)  # layers stay first
    return jax.tree.map(lambda *leaves: np.stack(leaves, axis), long, short)


def _placed(leaf, where):
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)


def _like_params(opt_state, abstract_params, shardings, everywhere):
    """Subtrees of an optimizer's state that look like the parameters lie like them."""
    structure = jax.tree.structure(abstract_params)

    def is_params(node) -> bool:
        return jax.tree.structure(node) == structure

    def place(node):
        return shardings if is_params(node) else everywhere

    return jax.tree.map(place, opt_state, is_leaf=is_params)
