"""Fine-tuning, or training from scratch: `train(config, workdir)` is what train.py calls.

A run is a folder. Started again there it goes on from its newest whole checkpoint, and ends with
the same weights and the same metrics, bit for bit, as if it had never been interrupted: batches are
a function of the step, and everything that a step changes is in the checkpoint.
"""

import math
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import jax

from jaxrope import llama
from jaxrope.errors import InputError
from jaxrope.mesh import hosts, replicas, sharding
from jaxrope.shell.progress import Progress
from jaxrope.store import files
from jaxrope.store.checkpoint import CheckpointError, Checkpoints
from jaxrope.store.lock import run_lock
from jaxrope.store.steps import describe, whole_steps
from jaxrope.train import resume
from jaxrope.train.loop import Clock, Corrupted, Diverged, Run, Stop, run_steps, stop_on_signals
from jaxrope.train.metrics import MetricsLog
from jaxrope.train.plan import Plan, check_numbers, compile_step, first_state, make_plan
from jaxrope.train.program import abstract_state
from jaxrope.train.step import TrainState, flops_per_token, init_state, make_step

__all__ = ["TrainState", "flops_per_token", "init_state", "make_step", "train"]


def train(
    config, workdir: Path, dry_run: bool = False, *, devices: Sequence[jax.Device] | None = None
) -> int:
    """Trains until `config.train.steps`, from where the run in `workdir` stands.

    Args:
      config: of configs/base.py.
      workdir: the run's folder; made if needed.
      dry_run: only say what would be trained and what it takes. Writes nothing but the cache of
        tokens.
      devices: which; None = all there are.

    Returns:
      The exit code: 0; 1 when a loss or gradient was not finite too often, copies of a parameter
      differ, or a checkpoint could not be written; 143 or 130 when SIGTERM or Ctrl-C stopped it,
      everything saved (of several processes each ends with 143, whichever received the signal).

    Raises:
      InputError: the config does not fit itself, the machine, the data or the run in `workdir`.
    """
    workdir = files.absolute(workdir)
    check_numbers(config)
    mesh = sharding.make_mesh(config.mesh, devices)
    hosts.from_main("workdir", lambda: resume.check_workdir(workdir))
    say = Progress(config.train.steps).write if hosts.is_main() else _say_nothing
    with jax.set_mesh(mesh):
        if dry_run:
            _describe(*_prepared(config, workdir, mesh, weights=False), say=print)
            return 0
        with run_lock(workdir):
            try:
                return _train(config, workdir, mesh, say)
            except (Corrupted, Diverged, CheckpointError) as error:
                print(f"error: {error}", file=sys.stderr)
                return 1
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                raise InputError(_out_of_memory(config, str(error))) from None


def _train(config, workdir: Path, mesh, say: Callable[[str], None]) -> int:
    checkpoints = config.checkpoint
    store = Checkpoints(
        workdir,
        keep_last=checkpoints.keep_last,
        keep_every=checkpoints.keep_every,
        asynchronous=checkpoints.asynchronous,
    )
    try:
        for line in store.rejected:
            say(line)
        plan, begun_at = _prepared(config, workdir, mesh)
        for line in plan.remarks:
            say(line)
        run = _begin(plan, begun_at, workdir, store, say)
        with stop_on_signals(run.stop):
            try:
                run_steps(run)
            finally:
                run.log.close()
        return (
            0
            if run.stop.signal is None or run.step == config.train.steps
            else 128 + run.stop.signal
        )
    finally:
        store.close()


def _prepared(config, workdir: Path, mesh, *, weights: bool = True) -> tuple[Plan, int | None]:
    """Returns (the plan, the step that the run in `workdir` has reached; None: there is no run)."""
    newest = hosts.from_main("where the run stands", lambda: _newest(workdir))
    if newest is None:
        return make_plan(config, mesh, None, weights=weights), None
    step, meta = newest
    plan = make_plan(config, mesh, resume.continued(config, workdir, meta))
    resume.check_text(
        config, workdir, meta, data=plan.loader.fingerprint, tokenizer=plan.tokenizer.fingerprint
    )
    return plan, step


def _newest(workdir: Path) -> tuple[int, dict] | None:
    """Returns the newest whole step and its meta. Hosts may see a file system differently, so all
    use what process 0 sees.
    """
    steps = whole_steps(workdir)
    return (steps[-1], describe(workdir, steps[-1])) if steps else None


def _say_nothing(_text: str) -> None:
    """Process 0 speaks for all."""


def _begin(plan: Plan, begun_at: int | None, workdir: Path, store: Checkpoints, say) -> Run:
    """Returns the run with its state restored or made, its step compiled and its folder written."""
    abstract, shardings = abstract_state(plan.program)
    done = begun_at is not None and begun_at >= plan.config.train.steps
    if begun_at is None and hosts.is_main():
        resume.begin(plan.config, workdir, plan.model, plan.rope_fn, plan.tokenizer_at)
    step_fn, rope = (None, None) if done else compile_step(plan, abstract, shardings)
    hosts.barrier("compiled", long=True)
    if begun_at is None:
        state = first_state(plan, shardings)
        say(f"a new run of {plan.config.train.steps:,} steps in {workdir}")
    else:
        state = _restored(store, begun_at, abstract)
        if hosts.is_main():
            resume.write_config(plan.config, workdir)
        say(f"going on from step {begun_at:,} of {plan.config.train.steps:,} in {workdir}")
    log = MetricsLog(workdir, resumed_step=begun_at or 0, say=say)
    hosts.barrier("first step", long=True)  # CPU processes that come late by 30 s do not connect
    plan.params.clear()  # the state has them now
    return Run(
        plan=plan,
        step_fn=step_fn,
        digests_fn=_digests_fn(plan, state),
        rope=rope,
        store=store,
        log=log,
        stop=Stop(say),
        say=say,
        step=begun_at or 0,
        state=state,
        clock=Clock(),
    )


def _digests_fn(plan: Plan, state: TrainState) -> Callable | None:
    """Returns the function that compares copies of parameters; None if there are no copies or
    train.check_every is 0.
    """
    is_enabled = plan.config.train.check_every and replicas.any_copies(state.params)
    return replicas.make_check(plan.mesh, state.params) if is_enabled else None


def _restored(store: Checkpoints, step: int, abstract: TrainState) -> TrainState:
    names = ("opt_state", "updates", "bad_in_row", "bad_total")
    rest = {name: getattr(abstract, name) for name in names}
    params, rest, _ = store.restore(step, abstract.params, rest)
    return TrainState(params=params, **rest)


def _out_of_memory(config, message: str) -> str:
    """Returns the line for a step that does not fit, with the settings that would make it less."""
    match = re.search(
        r"(Used [\d.]+\w+ of [\d.]+\w+|[Aa]ttempt\w* to allocate [\d.]+\s?\w+|"
        r"[Tt]rying to allocate [\d.]+\s?\w+)",
        message,
    )
    options = {
        "optimizer.offload=True": not config.optimizer.offload,
        "forward.remat='full'": config.forward.remat in ("none", "minimal", "save_attention"),
        "forward.remat='offload'": config.forward.remat != "offload",
        "a smaller forward.mlp_chunk": True,
        f"train.chunk_tokens={max(config.train.chunk_tokens // 4, 1)}": True,
        f"train.accumulation={2 * config.train.accumulation}": True,
        "more devices on mesh.fsdp or mesh.context": True,
    }
    reason = match.group(1) if match else message.splitlines()[0][:160]
    knobs = ", ".join(name for name, useful in options.items() if useful)
    return (
        "train: the step does not fit into the memory of a device "
        f"({reason}). Less is needed with: {knobs}. "
        "--compile_only says what takes how much."
    )


def _describe(plan: Plan, begun_at: int | None, say: Callable[[str], None]) -> None:
    """Prints what the run is and what it takes."""
    train = plan.config.train
    abstract, shardings = abstract_state(plan.program)
    compiled, _ = compile_step(plan, abstract, shardings)
    state = sum(_device_bytes(leaf) for leaf in jax.tree.leaves(abstract))
    flops = flops_per_token(plan.model, train.seq_len, plan.program.lora)
    tokens = train.batch_size * train.seq_len
    analysis = compiled.memory_analysis()
    working = analysis.temp_size_in_bytes if analysis else 0
    mesh = ", ".join(f"{axis} {size}" for axis, size in plan.mesh.shape.items())
    epochs = train.steps * train.batch_size / plan.loader.num_rows
    say(plan.config.to_json(indent=1))
    say(f"parameters: {llama.num_params(plan.model):,} ({train.param_dtype})")
    say(f"mesh: {mesh}")
    say(
        f"memory on each device: {_gib(state)} of parameters and optimizer state, {_gib(working)} "
        "while a step runs (the compiler's figure)"
    )
    say(
        f"data: {plan.loader.num_targets:,} tokens in {plan.loader.num_rows:,} rows of "
        f"{train.seq_len:,}; {train.steps:,} steps of {tokens:,} tokens are {epochs:.2f} epochs"
    )
    say(f"arithmetic: {flops * tokens:.3g} FLOP a step, {flops * tokens * train.steps:.3g} in all")
    say(f"the run stands at step {begun_at or 0:,}" if begun_at else "a new run")
    for line in plan.remarks:
        say(line)


def _device_bytes(leaf) -> int:
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**28 else f"{size / 2**20:.1f} MiB"
