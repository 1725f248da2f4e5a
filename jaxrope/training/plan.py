"""Everything a run needs, made and checked before anything is compiled or written."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxrope import data, evaluation, llama, optimizer, rope, setup, sharding
from jaxrope.errors import InputError
from jaxrope.evaluation import EvalModel, passkey, perplexity
from jaxrope.pretrained import Pretrained
from jaxrope.training import step as step_lib


@dataclasses.dataclass(frozen=True)
class Plan:
    """A run, ready to begin.

    Attributes:
      config: of the program.
      mesh: where it runs.
      model: the shape of the model, as model.json will have it.
      params: what it starts from; {} when a checkpoint of the run gives them.
      rope_fn: the rope by length.
      settings: how the model is run.
      optimizer: transform and schedule.
      tokenizer, tokenizer_at: the tokenizer, and "bytes" or where it came from.
      loader: batches by step.
      bench: what is evaluated on the way, or None.
      remarks: lines for the user.
    """

    config: Any
    mesh: Mesh
    model: llama.LlamaConfig
    params: dict
    rope_fn: rope.RopeFn
    settings: llama.ForwardSettings
    optimizer: optimizer.Optimizer
    tokenizer: Any
    tokenizer_at: Path | str
    loader: data.TrainLoader
    bench: Any
    remarks: tuple[str, ...]

    def eval_model(self, params) -> EvalModel:
        """Returns the model that evaluators see, with the current parameters."""
        label = self.config.eval.label or self.rope_fn.method
        return EvalModel(
            config=self.model,
            params=params,
            rope_fn=self.rope_fn,
            tokenizer=self.tokenizer,
            settings=self.settings,
            label=label,
            window=self.config.eval.window,
            mesh=self.mesh,
        )

    def put_batch(self, step: int) -> dict[str, jax.Array]:
        """Returns the batch of a step on the devices, [A, B, T]."""
        parts = self.config.train.accumulation
        where = sharding.batch_sharding(self.mesh)

        def put(rows: np.ndarray):
            return jax.device_put(rows.reshape(parts, -1, rows.shape[-1]), where)

        return {key: put(rows) for key, rows in self.loader.batch(step).items()}


def check_numbers(config) -> None:
    """Refuses sizes and counts that make no run.

    Raises:
      InputError: the key, and what it must be.
    """
    least = {f"train.{key}": 1 for key in ("seq_len", "batch_size", "accumulation", "steps")}
    least |= {"train.log_every": 1, "train.max_bad_steps": 1, "train.chunk_tokens": 1}
    least |= {"train.eval_every": 0, "checkpoint.every": 1, "checkpoint.keep_last": 1}
    least |= {"checkpoint.keep_every": 0, "seed": 0}
    for key, low in least.items():
        section, _, name = key.rpartition(".")
        value = (config[section] if section else config)[name]
        if not isinstance(value, int) or isinstance(value, bool) or value < low:
            raise InputError(f"{key} must be a whole number, {low} or more, got {value!r}.")


def make_plan(config, mesh: Mesh, begun: Pretrained | None, *, weights: bool = True) -> Plan:
    """Returns the run that `config` asks for.

    Args:
      config: of the program; check_numbers has passed it.
      mesh: of sharding.make_mesh.
      begun: the model of a run that goes on, without its weights; None = a new run.
      weights: False leaves the plan of a new run without parameters.

    Raises:
      InputError: anything does not fit anything else.
    """
    sharding.check_batch(mesh, config.train.batch_size, config.train.accumulation)
    updates = optimizer.make(config.optimizer, num_steps=config.train.steps)
    settings = llama.ForwardSettings(**config.forward)
    loaded = setup.load_model(config, weights=weights) if begun is None else begun
    model, rope_fn = loaded.config, loaded.rope_fn
    if begun is None:
        rope_fn = setup.rope_fn(config, model, rope_fn)
    model = dataclasses.replace(model, max_len=setup.longest(config, model, rope_fn))
    _check_rope(config, model, rope_fn)
    tokenizer, place = setup.tokenizer(config, loaded.tokenizer_dir, model.vocab_size)
    if begun is None:
        model = _with_special_ids(model, tokenizer)
    documents = setup.documents(
        config,
        config.data.train_files,
        tokenizer,
        setting="data.train_files",
        exclude=config.data.exclude,
    )
    loader = data.TrainLoader(
        documents,
        seq_len=config.train.seq_len,
        batch_size=config.train.batch_size,
        seed=config.seed,
        mode=config.data.mode,
        bos_id=model.bos_id,
        eos_id=model.eos_id,
    )
    bench, remarks = _bench(config, tokenizer, documents)
    plan = Plan(
        config=config,
        mesh=mesh,
        model=model,
        params=loaded.params,
        rope_fn=rope_fn,
        settings=settings,
        optimizer=updates,
        tokenizer=tokenizer,
        tokenizer_at=place,
        loader=loader,
        bench=bench,
        remarks=(*loaded.notes, *remarks),
    )
    _check_evaluation(plan)
    return plan


def state_shardings(plan: Plan):
    """Returns (abstract TrainState, its shardings); moments lie where their parameters do."""
    abstract_params = llama.abstract_params(plan.model, plan.config.train.param_dtype)
    axes = llama.logical_axes(plan.model)
    params = sharding.param_shardings(plan.mesh, axes, abstract_params)
    everywhere = sharding.replicated(plan.mesh)
    transform = plan.optimizer.transform
    abstract = jax.eval_shape(lambda p: step_lib.init_state(p, transform), abstract_params)
    opt_state = _like_params(abstract.opt_state, abstract_params, params, everywhere)
    shardings = step_lib.TrainState(params, opt_state, everywhere, everywhere, everywhere)
    return jax.tree.map(_placed, abstract, shardings), shardings


def first_state(plan: Plan, shardings) -> step_lib.TrainState:
    """Returns the state before the first step, on the mesh."""
    params = jax.device_put(plan.params, shardings.params)
    init = jax.jit(
        lambda p: step_lib.init_state(p, plan.optimizer.transform),
        out_shardings=shardings,
        donate_argnums=0,
    )
    return init(params)


def compile_step(plan: Plan, abstract_state, shardings):
    """Returns (the compiled step, the rope it takes)."""
    step = step_lib.make_step(
        plan.model, plan.settings, plan.optimizer, chunk_tokens=plan.config.train.chunk_tokens
    )
    everywhere = sharding.replicated(plan.mesh)
    rope_of_len = jax.device_put(plan.rope_fn(plan.config.train.seq_len), everywhere)
    parts = plan.config.train.accumulation
    shape = (parts, plan.config.train.batch_size // parts, plan.config.train.seq_len)
    where = sharding.batch_sharding(plan.mesh)
    names = ("tokens_BT", "targets_BT", "positions_BT", "segment_ids_BT")
    batch = {name: jax.ShapeDtypeStruct(shape, jnp.int32, sharding=where) for name in names}
    batch["loss_weights_BT"] = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=where)
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(shardings, everywhere))
    return jitted.lower(abstract_state, batch, rope_of_len).compile(), rope_of_len


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


def _check_rope(config, model: llama.LlamaConfig, rope_fn: rope.RopeFn) -> None:
    seq_len = config.train.seq_len
    if not rope_fn.buckets and not setup.is_own_rope(rope_fn, model):
        raise InputError(
            f"rope.method '{rope_fn.method}' chooses its factors anew for each length, so a "
            "training "
            "has no factors to keep. Choose a method with factors for one length."
        )
    if rope_fn.max_len and seq_len > rope_fn.max_len:
        raise InputError(
            f"train.seq_len is {seq_len} tokens, but the rope ends at {rope_fn.max_len}. Use a "
            "rope "
            "with a longer last bucket, or shorter rows."
        )
    if seq_len > model.max_len:
        raise InputError(
            f"train.seq_len is {seq_len} tokens, but the model serves {model.max_len}. Set "
            "target_len "
            "to what it is to be extended to, or use shorter rows."
        )


def _with_special_ids(model: llama.LlamaConfig, tokenizer) -> llama.LlamaConfig:
    bos_id = tokenizer.bos_id if model.bos_id is None else model.bos_id
    eos_id = tokenizer.eos_id if model.eos_id is None else model.eos_id
    return dataclasses.replace(model, bos_id=bos_id, eos_id=eos_id)


def _bench(config, tokenizer, train_documents):
    """Returns (what is evaluated on the way, or None; remarks)."""
    if not config.data.eval_files or not config.eval.suites:
        return None, ("no data.eval_files or no eval.suites: nothing is evaluated on the way",)
    held_out = setup.documents(config, config.data.eval_files, tokenizer, setting="data.eval_files")
    shared = data.overlap(train_documents, held_out)
    remarks = [f"data.eval_files: {name} is trained on as well" for name in shared[:3]]
    return evaluation.bench(config.eval, documents=held_out, seed=config.seed), remarks


def _check_evaluation(plan: Plan) -> None:
    """Finds out now, not after the training, what cannot be evaluated."""
    if plan.bench is None:
        return
    model, suites = plan.eval_model({}), plan.config.eval.suites
    evaluation.cost(model, plan.bench, suites)
    for length in plan.bench.lengths:
        plan.rope_fn.bucket(min(model.window, length) or length)
        if "perplexity" in suites:
            perplexity.text_windows(model, plan.bench, length)
        if "passkey" in suites and not model.window:
            passkey.make_trials(plan.tokenizer, plan.bench, length)
