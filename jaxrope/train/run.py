"""Fine-tuning, or training from scratch: `train(config, workdir)` is what train.py calls.

A run is a folder. Started again there it goes on from its newest whole checkpoint, and ends with
the same weights and the same metrics, bit for bit, as if it had never been interrupted: batches are
a function of the step, and everything that a step changes is in the checkpoint.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import jax

from jaxrope import schema, setup
from jaxrope.errors import InputError
from jaxrope.mesh import hosts, replicas, sharding
from jaxrope.schema import Config
from jaxrope.shell import Progress
from jaxrope.store import CheckpointError, Checkpoints, files, run_lock
from jaxrope.train import resume
from jaxrope.train.describe import out_of_memory
from jaxrope.train.loop import Clock, Corrupted, Diverged, Run, Stop, run_steps, stop_on_signals
from jaxrope.train.metrics import MetricsLog
from jaxrope.train.plan import Plan, compile_step, first_state
from jaxrope.train.program import abstract_state
from jaxrope.train.step import TrainState


def train(
    config: Config, workdir: Path | str, *, devices: Sequence[jax.Device] | None = None
) -> int:
    """Trains until `config.train.steps`, from where the run in `workdir` stands.

    Args:
      config: of configs/base.py.
      workdir: the run's folder; made if needed.
      devices: which; None = all there are.

    Returns:
      The exit code: 0; 1 when a loss or gradient was not finite too often, copies of a parameter
      differ, or a checkpoint could not be written; 143 or 130 when SIGTERM or Ctrl-C stopped it,
      everything saved (of several processes each ends with 143, whichever received the signal).

    Raises:
      InputError: the config does not fit itself, the machine, the data or the run in `workdir`.
    """
    config, workdir = schema.read(config), files.absolute(workdir)
    mesh = sharding.make_mesh(config.mesh, devices)  # refuses one that is not here
    hosts.from_main("workdir", lambda: resume.check_workdir(workdir))
    say = Progress(config.train.steps).write if hosts.is_main() else _say_nothing
    with jax.set_mesh(mesh), run_lock(workdir):
        try:
            return _train(config, workdir, devices, say)
        except (Corrupted, Diverged, CheckpointError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise InputError(out_of_memory(config, str(error))) from None


def _train(config: Config, workdir: Path, devices, say: Callable[[str], None]) -> int:
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
        plan, begun_at = resume.stand(config, workdir, devices=devices)
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


def _say_nothing(_text: str) -> None:
    """Process 0 speaks for all."""


def _begin(plan: Plan, begun_at: int | None, workdir: Path, store: Checkpoints, say) -> Run:
    """Returns the run with its state restored or made, its step compiled and its folder written."""
    abstract, shardings = abstract_state(plan.program)
    done = begun_at is not None and begun_at >= plan.config.train.steps
    if begun_at is None and hosts.is_main():
        resume.begin(plan, workdir)
    step_fn, rope = (None, None) if done else compile_step(plan, abstract, shardings)
    hosts.barrier("compiled", long=True)
    if begun_at is None:
        drawn = plan.config.model.source == "scratch"  # on the mesh
        params = {} if drawn else setup.load_model(plan.config).params
        state = first_state(plan, params, shardings)
        say(f"a new run of {plan.config.train.steps:,} steps in {workdir}")
    else:
        state = _restored(store, begun_at, abstract)
        if hosts.is_main():
            resume.goes_on(plan, workdir)
        say(f"going on from step {begun_at:,} of {plan.config.train.steps:,} in {workdir}")
    log = MetricsLog(workdir, resumed_step=begun_at or 0, say=say)
    hosts.barrier("first step", long=True)  # CPU processes that come late by 30 s do not connect
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
