"""The loop: dispatch a step, read the one before it, and now and then log, evaluate and save."""

import contextlib
import dataclasses
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

from jaxrope import evaluate
from jaxrope.mesh import chips, hosts, replicas
from jaxrope.shell import duration
from jaxrope.store import Checkpoints
from jaxrope.train import step as step_lib
from jaxrope.train.metrics import MetricsLog
from jaxrope.train.plan import Plan


class Diverged(RuntimeError):
    """Too many steps in a row had a loss or gradient that is not finite."""


class Corrupted(RuntimeError):
    """Devices that hold the same part of a parameter hold different bits."""


class Stop:
    """Whether a stop of the run was requested, and by which signal.

    A single process handles the signals itself. With several processes, any of them may receive
    the signal: jax listens to SIGTERM since hosts.initialize, and stops all processes at the same
    step, one of the next few.
    """

    def __init__(self, say: Callable[[str], None]):
        self.signal: int | None = None
        self._say = say

    def requested(self, step: int) -> bool:
        """Returns whether to stop before the next step; every process calls this at every step."""
        if self.signal is None and hosts.preempted(step):
            self.signal = signal.SIGTERM
            self._say(f"SIGTERM: saving and stopping after step {step:,}, on all processes")
        return self.signal is not None

    def __call__(self, number, _frame) -> None:
        """The first signal requests a stop; then both have their default handlers: stop at once."""
        self.signal = number
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, signal.SIG_DFL)
        name = signal.Signals(number).name
        self._say(f"{name}: saving and stopping after this step; a second signal stops at once")


@contextlib.contextmanager
def stop_on_signals(stop: Stop) -> Iterator[None]:
    """Makes `stop` the handler of SIGTERM and Ctrl-C; only possible in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    listen = {signal.SIGTERM: stop, signal.SIGINT: stop}
    if hosts.count() > 1:
        # A handler of ours for SIGTERM would take it from jax, and nobody would stop.
        listen = {signal.SIGINT: _as_sigterm}
    before = {number: signal.signal(number, handler) for number, handler in listen.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _as_sigterm(_number, _frame) -> None:
    """Ctrl-C on one of several processes stops all of them; a second Ctrl-C ends this process."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.kill(os.getpid(), signal.SIGTERM)


@dataclasses.dataclass
class Run:
    """A run that is going on.

    Attributes:
      plan: what it does.
      step_fn: compiled: (state, batch, rope) -> (state, metrics).
      digests_fn: of replicas.make_check for the parameters, or None.
      rope: its argument.
      store: checkpoints.
      log: metrics.
      stop: whether a stop was requested.
      say: prints a line.
      step: optimizer steps done.
      state: after those.
      clock: since the last line.
    """

    plan: Plan
    step_fn: Callable
    digests_fn: Callable | None
    rope: Any
    store: Checkpoints
    log: MetricsLog
    stop: Stop
    say: Callable[[str], None]
    step: int
    state: step_lib.TrainState
    clock: "Clock"


class Clock:
    """Time since the last line of the log, without what evaluating and saving took."""

    def __init__(self):
        self.restart()

    def restart(self) -> None:
        """Begins a new line."""
        self._since, self.tokens, self.steps, self.waited = time.perf_counter(), 0, 0, 0.0

    def read(self) -> float:
        """Returns seconds since the line began."""
        return time.perf_counter() - self._since

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves out what happens inside."""
        began = time.perf_counter()
        yield
        self._since += time.perf_counter() - began


def run_steps(run: Run) -> None:
    """Trains until the last step, or until a signal requests a stop; saves either way.

    Raises:
      Diverged: config.train.max_bad_steps steps in a row were not applied.
      Corrupted: copies of a parameter differ.
      checkpoint.CheckpointError: a checkpoint could not be written.
    """
    config = run.plan.config
    last = config.train.steps
    batch = run.plan.put_batch(run.step) if run.step < last else None
    unread = None
    if _evaluation_due(run):  # the run was killed between a checkpoint and its evaluation
        _evaluate(run)
    run.clock.restart()
    while run.step < last and not run.stop.requested(run.step):
        run.state, metrics = run.step_fn(run.state, batch, run.rope)
        run.step += 1
        if run.digests_fn and run.step % config.train.check_every == 0:
            metrics["digests"] = run.digests_fn(run.state.params)
        batch = _next_batch(run, metrics) if run.step < last else None
        if unread is not None:
            _read(run, *unread)
        unread = run.step, metrics
        saves = run.step % config.checkpoint.every == 0 or run.step == last
        if saves or _evaluation_due(run):
            _read(run, *unread)
            unread = None
            run.log.flush()  # before the checkpoint: rows of its steps never come again
        if _evaluation_due(run):
            _evaluate(run)
        if saves:
            with run.clock.paused():
                _save(run)
    if unread is not None:
        _read(run, *unread)
    run.log.flush()
    if run.stop.signal is not None and run.step not in (0, run.store.requested_step):
        _save(run)
    run.store.wait()


def _next_batch(run: Run, metrics: dict):
    """Makes the next batch while the device works; time counts as waiting if it had finished."""
    began = time.perf_counter()
    batch = run.plan.put_batch(run.step)
    if metrics["loss"].is_ready():
        run.clock.waited += time.perf_counter() - began
    return batch


def _read(run: Run, step: int, metrics: dict) -> None:
    """Takes a step's numbers off the device, logs them, and stops a run that diverges."""
    metrics = jax.device_get(metrics)
    if "digests" in metrics:
        _compare_copies(run, step, metrics.pop("digests"))
    values = {key: value.item() for key, value in metrics.items()}
    tokens = int(values["tokens"]) if math.isfinite(values["tokens"]) else 0
    run.clock.tokens += tokens
    run.clock.steps += 1
    row = {"step": step, "loss": values["loss"], "perplexity": _exp(values["loss"])}
    row |= {"lr": values["lr"], "grad_norm": values["grad_norm"], "tokens": tokens}
    row |= {"bad_steps": values["bad_total"]}
    if values["bad_in_row"]:
        run.say(
            f"step {step}: loss {values['loss']:.4g}, gradient norm {values['grad_norm']:.4g}: not "
            f"applied ({values['bad_in_row']} in a row; batch {step - 1})"
        )
    config = run.plan.config.train
    if step % config.log_every == 0 or step in (1, config.steps):
        row["timing"] = _timing(run, step)
        run.say(_line(row, config.steps))
        run.clock.restart()
    run.log.add(row)
    if "timing" in row:
        run.log.flush()
        run.store.check()
    if values["bad_in_row"] >= config.max_bad_steps:
        raise Diverged(
            f"stopped at step {step}: the loss or the gradient was not finite in "
            f"{values['bad_in_row']} steps in a row (train.max_bad_steps), batches "
            f"{step - values['bad_in_row']} to {step - 1}. Lower optimizer.learning_rate, or look "
            "at these."
        )


def _compare_copies(run: Run, step: int, digests_DL2) -> None:
    lines = replicas.differences(run.plan.mesh, run.state.params, digests_DL2)
    if lines:
        more = f" (and {len(lines) - 3} more)" if len(lines) > 3 else ""
        every = run.plan.config.train.check_every
        raise Corrupted(
            f"stopped at step {step}: copies of a parameter are not equal: {'; '.join(lines[:3])}"
            f"{more}. A device computes wrongly. Leave it out, and go on from a checkpoint of step "
            f"{max(step - every, 0)} or before, where all were equal (train.check_every)."
        )


def _timing(run: Run, step: int) -> dict[str, float | int | None]:
    seconds = max(run.clock.read(), 1e-9)
    plan = run.plan
    rate = run.clock.tokens / seconds
    timing = {"tokens_per_s": rate, "step_s": seconds / run.clock.steps}
    timing["data_wait_s"] = run.clock.waited / run.clock.steps
    peak = chips.peak_flops(plan.mesh.devices.flat[0])
    if peak:
        seq_len, lora = plan.config.train.seq_len, plan.program.lora
        flops = step_lib.flops_per_token(plan.model, seq_len, lora) * rate
        timing["mfu"] = flops / (peak * plan.mesh.size)
    timing["eta_s"] = timing["step_s"] * (plan.config.train.steps - step)
    timing["durable_step"] = run.store.durable_step
    return timing


def _line(row: dict, steps: int) -> str:
    timing = row["timing"]
    durable = "none" if timing["durable_step"] is None else timing["durable_step"]
    parts = [
        f"step {row['step']:,}/{steps:,}",
        f"loss {row['loss']:.4f}",
        f"perplexity {row['perplexity']:.4g}",
        f"lr {row['lr']:.3g}",
        f"gradient norm {row['grad_norm']:.3g}",
        f"{timing['tokens_per_s']:,.0f} tokens/s",
        *([f"MFU {timing['mfu']:.1%}"] if "mfu" in timing else []),
        f"data wait {timing['data_wait_s'] * 1000:.0f} ms",
        f"durable step {durable}",
        f"ETA {duration(timing['eta_s'])}",
    ]
    return "  ".join(parts)


def _evaluation_due(run: Run) -> bool:
    if run.plan.bench is None or run.step == 0 or run.log.has_evaluation(run.step):
        return False
    every = run.plan.config.train.eval_every
    return run.step == run.plan.config.train.steps or bool(every and run.step % every == 0)


class _Interrupted(Exception):
    """An evaluation was abandoned because of a stop request; it runs again on resume."""


def _evaluate(run: Run) -> None:
    def tick(_tokens: int) -> None:
        if run.stop.signal is not None:
            raise _Interrupted

    bench = dataclasses.replace(run.plan.bench, tick=tick)
    began = time.perf_counter()
    with run.clock.paused():
        try:
            model = run.plan.eval_model(run.state.params)
            results = list(evaluate.run(model, bench))
        except _Interrupted:
            return
    scores = evaluate.scalars(results)
    seconds = time.perf_counter() - began
    run.say(
        f"step {run.step:,}: "
        + "  ".join(f"{name} {score:.4g}" for name, score in scores.items())
        + f"  ({duration(seconds)})"
    )
    row = {"step": run.step, "eval": scores, "of": run.plan.measured}
    run.log.add(row | {"timing": {"eval_s": seconds}})
    run.log.flush()


def _save(run: Run) -> None:
    meta = {"versions": {"jax": jax.__version__}, "process": os.getpid()}
    state = run.state
    rest = {
        name: getattr(state, name) for name in ("opt_state", "updates", "bad_in_row", "bad_total")
    }
    run.store.save(run.step, state.params, rest, meta)


def _exp(loss: float) -> float:
    return math.exp(loss) if loss < 700 else math.inf
