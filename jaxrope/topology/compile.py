"""Compiles the step of a config for devices that need not be attached, and reports its cost."""

import re
import tempfile
import time
from pathlib import Path

import jax
from jax.sharding import Mesh

from jaxrope import setup
from jaxrope.errors import InputError
from jaxrope.mesh import chips, sharding
from jaxrope.store import files
from jaxrope.topology import memory as memory_lib
from jaxrope.topology import roofline, schedule, slices
from jaxrope.topology.jobs import Job, train_job
from jaxrope.topology.report import Memory, Report

FILE = "compile.jsonl"
_GIB = 2**30
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def compile_train(
    config, topology: str, workdir: Path | None, expected: setup.Expected = setup.NOTHING
) -> Report:
    """Compiles the step of train.py, prints its report, and appends it to a file of the workdir.

    Args:
      config: of the program; its mesh must have as many devices as the slice.
      topology: such as "v5p:4x4x4"; "" = the devices of this machine.
      workdir: for compile.jsonl; None: no file.
      expected: what earlier stages of a recipe will leave.

    Raises:
      InputError: the config is inconsistent or does not fit the slice, or the step does not fit
        its memory.
    """
    mesh, where = place(config, topology)
    report = compile_job(train_job(config, mesh, expected), mesh, where)
    show(report.text(), report.json_dict(), workdir)
    return report


def place(config, topology: str) -> tuple[Mesh, str]:
    """Returns (the mesh of a config on a slice, what to call the slice)."""
    devices = slices.devices(topology) if topology else jax.devices()
    # no jax.set_mesh: a constant created while tracing would be placed on absent devices
    return sharding.make_mesh(config.mesh, devices), topology or "the devices of this machine"


def show(text: str, record: dict, workdir: Path | None) -> None:
    """Prints what was compiled, and appends it to a file of the workdir, if there is one."""
    print(text, flush=True)
    if workdir is not None:
        files.append_jsonl(workdir / FILE, record)
        print(f"wrote {workdir / FILE}", flush=True)


def compile_job(job: Job, mesh: Mesh, where: str) -> Report:
    """Compiles a job and returns its report.

    Raises:
      InputError: the step does not fit the memory of a device.
    """
    device = mesh.devices.flat[0]
    chip = chips.chip_of(device)
    usable = chip.usable_bytes if chip else None
    start = time.perf_counter()
    try:
        compiled, text = with_text(job.lower(), device.platform)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise InputError(_too_large(job, str(error), where, usable)) from None
    seconds = time.perf_counter() - start
    memory = _memory(compiled, usable)
    if usable and memory.peak > usable:
        raise InputError(
            _too_large(
                job, f"needs {memory.peak / _GIB:.2f}G of {usable / _GIB:.2f}G", where, usable
            )
        )
    versions = {"jax": jax.__version__}
    if device.platform == "tpu":
        versions = {"libtpu": slices.libtpu_version()} | versions
    step_schedule = schedule.read(text)
    prediction = roofline.predict(job.work, step_schedule, chip, mesh.size) if chip else None
    return Report(
        what=job.what,
        runs=job.runs,
        where=where,
        versions=versions,
        mesh=dict(mesh.shape),
        device_kind=device.device_kind,
        remarks=job.remarks,
        seconds=seconds,
        memory=memory,
        work=job.work,
        schedule=step_schedule,
        prediction=prediction,
    )


def with_text(lowered: jax.stages.Lowered, platform: str) -> tuple[jax.stages.Compiled, str]:
    """Compiles; returns the compiled program and its HLO text.

    For TPUs the text is the compiler's own dump: jaxlib's parser, through which
    `compiled.as_text()` goes, does not know all that libtpu 0.0.52 writes (jax 0.10).
    """
    if platform != "tpu":
        compiled = lowered.compile()
        return compiled, compiled.as_text()
    with tempfile.TemporaryDirectory() as folder:
        compiled = lowered.compile(compiler_options={"xla_dump_to": folder})
        dumped = list(Path(folder).glob("*.after_codegen.txt"))
        if not dumped:  # it came from the compilation cache
            return compiled, compiled.as_text()
        largest = max(dumped, key=lambda path: path.stat().st_size)
        return compiled, largest.read_text(encoding="utf-8", errors="replace")


def _memory(compiled: jax.stages.Compiled, usable: int | None) -> Memory:
    stats = compiled.memory_analysis()
    host = (
        stats.host_argument_size_in_bytes
        + stats.host_output_size_in_bytes
        - stats.host_alias_size_in_bytes
        + stats.host_temp_size_in_bytes
    )
    return Memory(
        arguments=stats.argument_size_in_bytes,
        outputs=stats.output_size_in_bytes,
        temporaries=stats.temp_size_in_bytes,
        peak=stats.peak_memory_in_bytes,
        host=host,
        usable=usable,
    )


def _too_large(job: Job, message: str, where: str, usable: int | None) -> str:
    """Returns one line: the memory needed, its largest uses, and settings that reduce it."""
    sizes = [float(n) * _UNITS[unit] for n, unit in re.findall(r"\b([\d.]+)([KMGT])\b", message)]
    needed = max(sizes) if sizes else 0.0
    demand = f"needs {needed / _GIB:.1f} GiB" if needed else "needs more than there is"
    text = f"The {job.what} {demand} on each device of {where}"
    text += f", where a program may use {usable / _GIB:.1f} GiB." if usable else "."
    if job.footprint is None:
        return f"{text} Use {' or '.join(filter(None, ('a larger slice', job.remedy)))}."
    parts = sorted(job.footprint.parts().items(), key=lambda item: -item[1])
    estimates = ", ".join(f"{name} {size / _GIB:.1f}" for name, size in parts)
    text += f" By estimate, in GiB: {estimates}. Settings that make it less, and by how many GiB: "
    options = memory_lib.knobs(job.footprint)
    return text + "; ".join(f"{name} (-{saved / _GIB:.1f})" for name, saved in options) + "."
