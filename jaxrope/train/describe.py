"""What --dry_run says of a training: what it is, what it takes, and how long."""

import functools
import math
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh

from jaxrope import decoder, evaluate, setup
from jaxrope.errors import InputError
from jaxrope.mesh import chips, hosts
from jaxrope.schema import Config
from jaxrope.shell import duration, heap
from jaxrope.store import files
from jaxrope.train import resume
from jaxrope.train.plan import Plan, compile_step, first_state, prepare
from jaxrope.train.program import abstract_state
from jaxrope.train.step import flops_per_token

_SECONDS = 60.0  # a dry run measures no longer
_SHARE = 1 / 3  # of what a device can do, that a step reaches
_PRODUCT = 2048  # rows and columns of the matrices whose product tells what a CPU can do


def dry_run(
    config: Config,
    workdir: Path | str | None = None,
    expected: setup.Expected = setup.NOTHING,
    *,
    timing: bool = True,
    devices: Sequence[jax.Device] | None = None,
) -> str:
    """Returns what a training is and what it takes. Writes nothing but the cache of tokens.

    Args:
      config: of configs/base.py.
      workdir: where it would run; None: nowhere yet.
      expected: what earlier stages of a recipe will leave.
      timing: compiles the step and measures it, on random weights, for up to a minute.
      devices: which; None: all there are. A mesh of more is only planned.

    Raises:
      InputError: see train.
    """
    if workdir is None:
        plan, begun_at = prepare(config, expected, devices=devices), None
    else:
        workdir = files.absolute(workdir)
        resume.check_workdir(workdir)
        plan, begun_at = resume.stand(config, workdir, expected, devices=devices)
    rest = max(plan.config.train.steps - (begun_at or 0), 0)
    stands = f"the run stands at step {begun_at:,}" if begun_at else "a new run"
    lines = [*_shape(plan), *_cost(plan)]
    if isinstance(plan.mesh, AbstractMesh):
        lines.append(
            f"not on this machine: {plan.mesh.size:,} devices alone can tell what a step needs "
            "while it runs, and its time. For a TPU slice --compile_only with --topology=NAME:AxB "
            "tells the first, and a bound of the second"
        )
    elif timing:
        try:
            with jax.set_mesh(plan.mesh):
                lines += _measured(plan, rest)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise InputError(out_of_memory(plan.config, str(error))) from None
    return "\n".join([*lines, stands, *plan.remarks])


def out_of_memory(config: Config, message: str) -> str:
    """Returns the line for a step that does not fit, with the settings that would make it less."""
    match = re.search(
        r"(Used [\d.]+\w+ of [\d.]+\w+|[Aa]ttempt\w* to allocate [\d.]+\s?\w+|"
        r"[Tt]rying to allocate [\d.]+\s?\w+)",
        message,
    )
    options = {
        "optimizer.offload=True": not config.optimizer.offload,
        "forward.remat='full'": config.forward.remat not in ("full", "offload"),
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


def _shape(plan: Plan) -> list[str]:
    """Returns what is trained, on what."""
    train, model = plan.config.train, plan.model
    mesh = ", ".join(f"{axis} {size}" for axis, size in plan.mesh.shape.items())
    epochs = train.steps * train.batch_size / plan.loader.num_rows
    served = decoder.own_base(model).length
    return [
        f"parameters: {decoder.num_params(model):,} ({train.param_dtype})",
        f"rope: {plan.rope_fn.method}; the model served {served:,} tokens and is to "
        f"serve {model.max_len:,}",
        f"mesh: {mesh}",
        f"data: {plan.loader.num_targets:,} tokens in {plan.loader.num_rows:,} rows of "
        f"{train.seq_len:,}; {train.steps:,} steps of {_batch_tokens(plan):,} tokens are "
        f"{epochs:.2f} epochs",
    ]


def _cost(plan: Plan) -> list[str]:
    """Returns what can be counted."""
    train, flops = plan.config.train, _flops(plan)
    lines = [
        f"memory on each device: {_gib(_state_bytes(plan))} of parameters and optimizer state",
        f"arithmetic: {flops:.3g} FLOP a step, {flops * train.steps:.3g} in all",
    ]
    if plan.bench is not None:
        tokens = evaluate.forward_tokens(plan.eval_model({}), plan.bench)
        times = math.ceil(train.steps / (train.eval_every or train.steps))
        lines.append(f"evaluated on the way: {times:,} times {tokens:,} forward tokens at most")
    return lines


def _measured(plan: Plan, rest: int) -> list[str]:
    """Returns what the compiler says of the step, and its time, for the `rest` of the steps."""
    abstract, shardings = abstract_state(plan.program)
    step_fn, rope = compile_step(plan, abstract, shardings)
    analysis = step_fn.memory_analysis()
    working = analysis.temp_size_in_bytes if analysis else 0
    lines = [f"memory while a step runs: {_gib(working)} more on each device (the compiler's)"]
    device = plan.mesh.local_devices[0]
    shared = device.platform == "cpu"  # its devices are one machine
    needed = (_state_bytes(plan) + working) * (plan.mesh.size if shared else 1)
    if shared:
        needed = _process_bytes(plan, working)
        lines.append(f"memory of the process: about {_gib(needed)} in all")
    if not rest:
        return lines
    room = _room(device)
    if needed > room:
        return [*lines, f"time: not measured, as it takes {_gib(needed)} of {_gib(room)}"]
    least = _flops(plan) / (1 if shared else plan.mesh.size)
    least = hosts.from_main("arithmetic of the devices", lambda: least / _rate(device))
    if 2 * least > _SHARE * _SECONDS:
        return [
            *lines,
            f"time: not measured, as {rest:,} steps take more than {duration(least * rest)}, "
            f"{duration(least)} each, by their arithmetic alone",
        ]
    state = first_state(plan, {}, shardings)
    for number in (0, 1):  # the first one warms up
        batch = plan.put_batch(number)
        began = time.perf_counter()
        state, metrics = step_fn(state, batch, rope)
        jax.block_until_ready((state, metrics))
        seconds = time.perf_counter() - began
    return [
        *lines,
        f"time: {duration(seconds * rest)} for {rest:,} steps, evaluations aside: {seconds:.3g} s "
        f"a step, {_batch_tokens(plan) / seconds:,.0f} tokens/s (measured on random weights)",
    ]


def _process_bytes(plan: Plan, working: int) -> int:
    """Returns the bytes that a process takes whose devices are this machine's processors: what it
    has taken already, the state and its copy on the way to a checkpoint, and a step's own.
    """
    devices = len(plan.mesh.local_devices)
    return heap.resident() + devices * (2 * _state_bytes(plan) + heap.most(working))


def _batch_tokens(plan: Plan) -> int:
    return plan.config.train.batch_size * plan.config.train.seq_len


def _flops(plan: Plan) -> float:
    per_token = flops_per_token(plan.model, plan.config.train.seq_len, plan.program.lora)
    return per_token * _batch_tokens(plan)


def _state_bytes(plan: Plan) -> int:
    """Returns the bytes of parameters and optimizer state on a device."""
    abstract, _ = abstract_state(plan.program)
    leaves = jax.tree.leaves(abstract)
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)


def _rate(device: jax.Device) -> float:
    """Returns FLOP/s that no step exceeds."""
    if peak := chips.peak_flops(device):
        return peak
    product = jax.jit(functools.partial(jnp.matmul, preferred_element_type=jnp.float32))
    matrix = jax.device_put(jnp.ones((_PRODUCT, _PRODUCT), jnp.float32), device)
    best = math.inf
    for _ in range(3):
        began = time.perf_counter()
        product(matrix, matrix).block_until_ready()
        best = min(best, time.perf_counter() - began)
    return 2 * _PRODUCT**3 / best


def _room(device: jax.Device) -> int:
    """Returns the bytes that a device has; of a CPU all of them together."""
    stats = device.memory_stats() or {}
    return stats.get("bytes_limit") or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**28 else f"{size / 2**20:.1f} MiB"
