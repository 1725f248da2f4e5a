"""Everything a run needs, made and checked before weights are read or anything is compiled."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh

from jaxrope import data, decoder, evaluate, rope, schema, setup
from jaxrope.convert import Pretrained
from jaxrope.errors import InputError
from jaxrope.evaluate import EvalModel
from jaxrope.mesh import sharding
from jaxrope.schema import Config, Identity
from jaxrope.store import sealed
from jaxrope.train import lora as lora_lib
from jaxrope.train import step as step_lib
from jaxrope.train.program import Program, lower_step, make_program, rope_argument
from jaxrope.train.rows import describe_rows


@dataclasses.dataclass(frozen=True)
class Plan:
    """A run, ready to begin.

    Attributes:
      config: of the program.
      program: the step; its model is the one that model.json will have.
      rope_fn: the rope by length.
      tokenizer, tokenizer_at: the tokenizer, and "bytes" or where it came from.
      documents: the text.
      loader: batches by step.
      bench: what is evaluated on the way, or None.
      remarks: lines for the user.
    """

    config: Config
    program: Program
    rope_fn: rope.RopeFn
    tokenizer: Any
    tokenizer_at: Path | str
    documents: data.TokenDocuments
    loader: data.TrainLoader | data.MixtureLoader
    bench: Any
    remarks: tuple[str, ...]

    @property
    def mesh(self) -> Mesh | AbstractMesh:
        """Where it runs."""
        return self.program.mesh

    @property
    def model(self) -> decoder.DecoderConfig:
        """The shape of the model."""
        return self.program.model

    @functools.cached_property
    def identity(self) -> Identity:
        """What its result depends on; reads all of the weights that it starts from."""
        return self.identify(setup.fingerprint(self.config))

    def identify(self, weights: str) -> Identity:
        """Returns what its result depends on where it starts from weights with this digest."""
        content = {"weights": weights, "rope": setup.rope_digest(self.rope_fn)}
        content |= {"text": self.documents.fingerprint, "tokenizer": self.tokenizer.fingerprint}
        content |= {"batches": self.loader.fingerprint}
        return schema.identify("train", self.config, content, free=_unused(self.config))

    @property
    def outcome(self) -> Pretrained:
        """The model that it will leave, without weights; see setup.Expected."""
        place = None if self.tokenizer_at == "bytes" else self.tokenizer_at
        return _trained(self.model, self.rope_fn, place)

    @functools.cached_property
    def measured(self) -> str:
        """A digest of what an evaluation on the way depends on, beside the weights."""
        settings = [self.config.eval.to_dict(), self.config.seed]
        return sealed.digest_of([settings, evaluate.texts(self.bench)])[:16]

    def eval_model(self, params) -> EvalModel:
        """Returns the model that evaluators see, with the current parameters."""
        label = self.config.eval.label or self.rope_fn.method
        return EvalModel(
            config=self.model,
            params=decoder.adapters.merged(params) if params else params,
            rope_fn=self.rope_fn,
            tokenizer=self.tokenizer,
            settings=self.program.settings,
            label=label,
            window=self.config.eval.window,
        )

    def put_batch(self, step: int) -> dict[str, jax.Array]:
        """Returns the batch of a step on the devices, [A, B, T]; tokens in the order that attention
        wants them in. A process reads only the rows of its devices.
        """
        shape, where = self.program.batch_shape, sharding.batch_sharding(self.mesh)
        spans = where.addressable_devices_indices_map(shape).values()
        row_numbers = sorted({row for part, rows, _ in spans for row in _rows(shape, part, rows)})
        arrays = _read(self.loader, step, row_numbers)
        order = decoder.token_order(self.program.settings, shape[2])
        at = {row: i for i, row in enumerate(row_numbers)}

        def put(rows_BT: np.ndarray):
            rows_BT = rows_BT if order is None else rows_BT[:, order]

            def read(index):
                part, rows, tokens = index
                picked = [at[row] for row in _rows(shape, part, rows)]
                block = rows_BT[picked, tokens]
                return block.reshape(-1, len(range(shape[1])[rows]), block.shape[-1])

            return jax.make_array_from_callback(shape, where, read)

        return {key: put(rows) for key, rows in arrays.items()}


def _rows(shape, part: slice, rows: slice) -> list[int]:
    """Returns the rows of the batch that a device has of each of its parts."""
    parts, per_part, _ = shape
    return [a * per_part + b for a in range(parts)[part] for b in range(per_part)[rows]]


def _read(loader, step: int, row_numbers: list[int]) -> dict[str, np.ndarray]:
    """Returns the rows `row_numbers` (ascending) of a batch."""
    runs: list[list[int]] = []
    for row in row_numbers:
        if runs and row == runs[-1][1]:
            runs[-1][1] = row + 1
        else:
            runs.append([row, row + 1])
    read = [loader.batch(step, rows=slice(*run)) for run in runs]
    return {key: np.concatenate([part[key] for part in read]) for key in read[0]}


def outline(config: Config, expected: setup.Expected = setup.NOTHING) -> Pretrained:
    """Returns the model that a training will leave, without weights, from its config alone: no text
    and no tokenizer need be there, and no checkpoint if model.shape names its shape.
    """
    config = schema.read(config)
    loaded = setup.outlined(config, expected)
    rope_fn = setup.rope_fn(config, loaded.config, loaded.rope_fn, expected)
    max_len = setup.longest(config, loaded.config, rope_fn)
    return _trained(dataclasses.replace(loaded.config, max_len=max_len), rope_fn, None)


def _trained(
    model: decoder.DecoderConfig, rope_fn: rope.RopeFn, tokenizer_at: Path | None
) -> Pretrained:
    own_rope = decoder.own_rope(model)
    if not setup.is_own_rope(rope_fn, model):
        rows = [dataclasses.asdict(bucket) for bucket in rope_fn.buckets]
        rows[-1]["max_len"] = rows[-1]["max_len"] or model.max_len
        geometry = dataclasses.asdict(rope_fn.geometry)
        table = rope.make("longrope", **geometry, buckets=rows)
        own_rope = dataclasses.replace(rope_fn, buckets=table.buckets, schedule=table.schedule)
    return Pretrained(model, {}, tokenizer_at, own_rope, "train")


def prepare(
    config: Config,
    expected: setup.Expected = setup.NOTHING,
    *,
    devices: Sequence[jax.Device] | None = None,
) -> Plan:
    """Returns the run that a config asks for; no weights are read, nothing is compiled.

    Args:
      config: of configs/base.py.
      expected: what earlier stages of a recipe will leave.
      devices: which; None: all there are. Where they are fewer than the mesh has, the plan has an
        abstract mesh: all is checked but what only these devices can tell.

    Raises:
      InputError: anything does not fit anything else.
    """
    config = schema.read(config)
    mesh = sharding.make_mesh(config.mesh, devices, planned=True)
    loaded = setup.load_model(config, weights=False, expected=expected)
    rope_fn = setup.rope_fn(config, loaded.config, loaded.rope_fn, expected)
    model = loaded.config
    notes = _notes(config, model, rope_fn)
    notes += [f"note: {note}" for note in setup.rope_notes(config, model, rope_fn, expected)]
    model = dataclasses.replace(model, max_len=setup.longest(config, model, rope_fn))
    _check_rope(config, model, rope_fn)
    tokenizer, place = setup.tokenizer(config, loaded.tokenizer_dir, model.vocab_size)
    model = _with_special_ids(model, tokenizer)
    program = make_program(config, mesh, model)
    documents = setup.train_documents(config, tokenizer, place)
    loader = _loader(config, model, documents, tokenizer)
    bench, remarks = _bench(config, tokenizer, place, documents)
    plan = Plan(
        config=config,
        program=program,
        rope_fn=rope_fn,
        tokenizer=tokenizer,
        tokenizer_at=place,
        documents=documents,
        loader=loader,
        bench=bench,
        remarks=(
            documents.summary,
            *describe_rows(config, documents, loader),
            *loaded.notes,
            *tokenizer.notes,
            *program.remarks,
            *notes,
            *remarks,
        ),
    )
    if bench is not None:
        evaluate.check(plan.eval_model({}), bench)
    return plan


def _unused(config: Config) -> tuple[str, ...]:
    """Returns the keys that change nothing with what others have."""
    keys: tuple[str, ...] = ()
    if config.lora.rank == 0:
        keys += tuple(f"lora.{name}" for name in config.lora.to_dict() if name != "rank")
    if config.data.long_share == 0:
        keys += ("data.long_tokens",)
    if config.data.needle_share == 0:
        keys += ("data.needle_keys", "data.needle_weight")
    return keys


def first_state(plan: Plan, params: dict, shardings) -> step_lib.TrainState:
    """Returns the state before the first step, on the mesh; no device ever has all of it.

    Args:
      plan: of the run.
      params: what it starts from, on the host; {}: they are drawn.
      shardings: of program.abstract_state.
    """
    program = plan.program
    key, base = (
        jax.random.key(plan.config.seed),
        decoder.param_shardings(program.model, program.mesh),
    )
    if params:
        params = sharding.put(lora_lib.freeze(params, program.lora), base)
    else:
        draw = functools.partial(decoder.init_params, program.model, dtype=program.param_dtype)
        params = jax.jit(draw, out_shardings=base)(key)

    def init(params, key):
        params = lora_lib.begin(params, program.model, program.lora, key)
        return step_lib.init_state(params, program.optimizer.transform, program.lora)

    init_fn = jax.jit(init, out_shardings=shardings, donate_argnums=0)
    return init_fn(params, jax.random.fold_in(key, 1))


def compile_step(plan: Plan, abstract_state, shardings):
    """Returns (the compiled step, the rope it takes)."""
    program = plan.program
    rope_of_len = rope_argument(program, plan.rope_fn(program.seq_len))
    lowered = lower_step(program, abstract_state, shardings, rope_of_len)
    return lowered.compile(), sharding.put(rope_of_len, sharding.replicated(program.mesh))


def _loader(config, model: decoder.DecoderConfig, documents, tokenizer):
    """Returns what makes batches: of text alone, or a mixture."""
    section = config.data
    special = dict(bos_id=tokenizer.bos_id, eos_id=tokenizer.eos_id)
    shares = data.Shares(
        needle=section.needle_share,
        needle_keys=section.needle_keys,
        needle_weight=section.needle_weight,
        short=section.short_share,
        short_len=decoder.own_base(model).length,
    )
    data.check_shares(shares, config.train.seq_len)
    text = data.TrainLoader(
        documents,
        seq_len=config.train.seq_len,
        batch_size=config.train.batch_size,
        seed=config.seed,
        mode=section.mode,
        groups=data.make_groups(
            documents,
            section.sources,
            long_share=section.long_share,
            long_tokens=section.long_tokens or config.train.seq_len,
            chat_share=section.chat_share,
        ),
        **special,
    )
    if not shares.any:
        return text
    return data.MixtureLoader(text, documents, shares, tokenizer=tokenizer, **special)


def _notes(config, model: decoder.DecoderConfig, rope_fn: rope.RopeFn) -> list[str]:
    """Returns what the user should know before anything is paid: of the model as it was."""
    length = max(setup.longest(config, model, rope_fn), config.train.seq_len)
    about = [*setup.restated_notes(config, model), *setup.window_notes(config, model, length)]
    notes = [f"note: {note}" for note in about]
    served, is_own = decoder.own_base(model).length, setup.is_own_rope(rope_fn, model)
    if config.model.source == "checkpoint" and is_own and length > max(served, model.max_len):
        notes.append(
            f"note: config.rope extends nothing: the model serves {served:,} tokens with its own "
            f"rope and is to serve {length:,}; a search or a method (config.rope) gives it factors"
        )
    return notes


def _check_rope(config, model: decoder.DecoderConfig, rope_fn: rope.RopeFn) -> None:
    seq_len = config.train.seq_len
    if not rope_fn.buckets and not setup.is_own_rope(rope_fn, model):
        raise InputError(
            f"rope.method '{rope_fn.method}' chooses its factors anew for each length, so a "
            "training has no factors to keep. Choose a method with factors for one length."
        )
    if rope_fn.max_len and seq_len > rope_fn.max_len:
        raise InputError(
            f"train.seq_len is {seq_len} tokens, but the rope ends at {rope_fn.max_len}. Use a "
            "rope with a longer last bucket, or shorter rows."
        )
    if seq_len > model.max_len:
        raise InputError(
            f"train.seq_len is {seq_len} tokens, but the model serves {model.max_len}. Set "
            "target_len to what it is to be extended to, or use shorter rows."
        )


def _with_special_ids(model: decoder.DecoderConfig, tokenizer) -> decoder.DecoderConfig:
    bos_id = tokenizer.bos_token_id if model.bos_id is None else model.bos_id
    eos_id = tokenizer.eos_id if model.eos_id is None else model.eos_id
    return dataclasses.replace(model, bos_id=bos_id, eos_id=eos_id)


def _bench(config, tokenizer, place, train_documents):
    """Returns (what is evaluated on the way, or None; remarks)."""
    remark = "no held-out text, or no eval.suites: nothing is evaluated on the way"
    nothing = None, (remark,)
    if not config.eval.suites:
        return nothing
    bench = evaluate.Bench(config.eval, config.seed)
    if not evaluate.needs_text(bench.options):
        return bench, ()
    if not config.data.eval_files and not config.data.held_out:
        return nothing
    held_out = setup.held_out_documents(config, tokenizer, place)
    shared = data.overlap(train_documents, held_out) if config.data.eval_files else []
    remarks = [held_out.summary]
    remarks += [f"data.eval_files: {name} is trained on as well" for name in shared[:3]]
    return dataclasses.replace(bench, documents=held_out), remarks
