"""What a search costs on a slice: its programs are compiled, and their predicted times are
multiplied by how often each method runs them (search.cost).
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from jaxrope import search, setup
from jaxrope.errors import InputError
from jaxrope.mesh import chips
from jaxrope.search import Problem
from jaxrope.shell import duration
from jaxrope.topology import compile
from jaxrope.topology.jobs import Job, batch_jobs, gradient_jobs
from jaxrope.topology.report import Report, gib

_BACK = 0.95  # of the candidates that were expected to fit, where they do not


@dataclasses.dataclass(frozen=True)
class Batch:
    """A size of a batch, compiled.

    Attributes:
      per_device: candidates evaluated together in each group of devices.
      peak: bytes of a device.
      seconds: predicted, of a batch on one sample.
    """

    per_device: int
    peak: int
    seconds: float


def compile_search(
    config, topology: str, workdir: Path | None, expected: setup.Expected = setup.NOTHING
) -> None:
    """Compiles the batch of a search and its gradient, prints their reports, how many candidates
    fit, and what the whole search costs by each method, and appends all to a file of the workdir.

    Args:
      config: of the program; its mesh must have as many devices as the slice.
      topology: such as "v5p:4x4x4"; "" = the devices of this machine.
      workdir: for compile.jsonl; None: no file.
      expected: what earlier stages of a recipe will leave.

    Raises:
      InputError: the config is inconsistent or does not fit the slice, or a batch does not fit its
        memory, or a gradient where the method has descents.
    """
    mesh, where = compile.place(config, topology)
    problem = search.outline(config, mesh, expected)
    methods = search.cost.by_method(problem)

    def reports(jobs: Sequence[Job], *, shown: bool = True) -> list[Report]:
        return _compiled(jobs, mesh, where, workdir if shown else None, shown=shown)

    batches = [_batch(problem.per_device, reports(batch_jobs(problem, problem.per_device)))]
    chip = chips.chip_of(mesh.devices.flat[0])
    gradient, refusal = None, ""
    if "gradient" in methods:
        try:
            gradient = reports(gradient_jobs(methods["gradient"]))
        except InputError as error:
            if problem.gradient:
                raise
            refusal = str(error)
    if chip is None:  # no time and no limit is known
        return
    if not problem.config.search.batch_size:

        def another(per_device: int) -> Batch:
            jobs = batch_jobs(problem, per_device)
            return _batch(per_device, reports(jobs, shown=False))

        batches = compiled_sizes(problem, batches[0], another, chip.usable_bytes)
        text, record = _candidates(problem, batches, chip.usable_bytes)
        compile.show(text, record, workdir)
    seconds = _mean_seconds(gradient) if gradient else None
    text, record = _whole(methods, batches, seconds, mesh.size / chip.per_chip)
    compile.show("\n".join(filter(None, (text, refusal))), record, workdir)


def _compiled(
    jobs: Sequence[Job], mesh: Mesh, where: str, workdir: Path | None, *, shown: bool
) -> list[Report]:
    """Returns the report of each job; programs that are the same are compiled once."""
    reports: list[Report] = []
    programs: dict[str, Report] = {}
    for job in jobs:
        lowered = job.lower()
        text = lowered.as_text()
        if text not in programs:
            again = dataclasses.replace(job, lower=lambda lowered=lowered: lowered)
            programs[text] = report = compile.compile_job(again, mesh, where)
            if shown:
                compile.show(report.text(), report.json_dict(), workdir)
        reports.append(programs[text])
    return reports


def _batch(per_device: int, reports: Sequence[Report]) -> Batch:
    peak = max(report.memory.peak for report in reports)
    return Batch(per_device, peak, _mean_seconds(reports))


def _mean_seconds(reports: Sequence[Report]) -> float:
    """Of a run on one sample; NaN where the chip is unknown."""
    steps = [r.prediction.step if r.prediction else float("nan") for r in reports]
    return sum(steps) / len(steps)


def compiled_sizes(
    problem: Problem, first: Batch, compile_fn: Callable[[int], Batch], usable: int
) -> list[Batch]:
    """Returns batches that fit: the first, one of one candidate or two, and one of as many as a
    round has and memory allows, which grows by as much with each candidate.

    Args:
      problem: of the search.
      first: the batch of the search.
      compile_fn: compiles a batch; raises InputError where it does not fit.
      usable: bytes of a device.
    """
    batches = [first]

    def fits(per_device: int) -> bool:
        try:
            batches.append(compile_fn(per_device))
        except InputError:
            return False
        return True

    if not fits(1 if first.per_device > 1 else 2):
        return batches
    most = min(largest(problem), allowed(batches, usable))
    while most > max(batch.per_device for batch in batches) and not fits(most):
        most = int(_BACK * most)
    return batches


def largest(problem: Problem) -> int:
    """Returns the candidates that the largest round of a search has for each group of devices."""
    counts = search.cost.rounds(problem).values()
    return math.ceil(max(max(of_phase, default=1) for of_phase in counts) / problem.num_groups)


def allowed(batches: Sequence[Batch], usable: int) -> int:
    """Returns how many candidates fit on each device, by the line through the largest two sizes."""
    low, high = sorted(batches, key=lambda batch: batch.per_device)[-2:]
    each = (high.peak - low.peak) / (high.per_device - low.per_device)
    return low.per_device + int((usable - low.peak) / max(each, 1.0))


def best_size(problem: Problem, batches: Sequence[Batch]) -> tuple[int, float]:
    """Returns (candidates on each device, predicted seconds of all batches) where these are least.
    Batches are filled up: a size must suit the rounds of the search. A time between two of those
    compiled lies on the line through them.
    """
    compiled = [batch.per_device for batch in batches]

    def cost(per_device: int) -> float:
        runs = search.cost.batches(problem, per_device * problem.num_groups)
        return sum(runs.values()) * _seconds(batches, per_device)

    least = min(range(min(compiled), max(compiled) + 1), key=cost)
    return least, cost(least)


def _seconds(batches: Sequence[Batch], per_device: int) -> float:
    """Of a batch of a size: one that was compiled, or between two of these."""
    ordered = sorted(batches, key=lambda batch: batch.per_device)
    sizes, seconds = ([getattr(b, name) for b in ordered] for name in ("per_device", "seconds"))
    return float(np.interp(per_device, sizes, seconds))


def _candidates(
    problem: Problem, batches: Sequence[Batch], usable: int
) -> tuple[str, dict[str, Any]]:
    """Returns how many candidates fit and what a batch gains, in words and as a record."""
    ordered = sorted(batches, key=lambda batch: batch.per_device)
    rows = [
        f"{batch.per_device} on each device {gib(batch.peak)} and "
        f"{batch.seconds / batch.per_device / problem.num_groups:.4g} s a candidate"
        for batch in ordered
    ]
    fit = allowed(batches, usable) if len(batches) > 1 else batches[0].per_device
    fit = max(fit, ordered[-1].per_device)
    best, seconds = best_size(problem, batches)
    at_once, most = best * problem.num_groups, largest(problem)
    lines = [
        f"candidates    {'; '.join(rows)}",
        f"              {gib(usable)} hold about {fit:,} on each device; the largest round has "
        f"{most:,} for each",
        f"              search.batch_size={at_once:,} costs least: {duration(seconds)} of batches",
    ]
    record = {
        "what": "candidates at one time",
        "sizes": [dataclasses.asdict(batch) for batch in ordered],
        "allowed_per_device": fit,
        "batch_size": at_once,
    }
    return "\n".join(lines), record


def _whole(
    methods: dict[str, Problem],
    batches: Sequence[Batch],
    gradient_seconds: float | None,
    num_chips: float,
) -> tuple[str, dict[str, Any]]:
    """Returns what each method costs, in words and as a record; without `gradient_seconds` only
    that of methods without descents.
    """
    lines, costs = [], {}
    for name, problem in methods.items():
        if problem.gradient and gradient_seconds is None:
            continue
        size = problem.per_device
        runs = search.cost.batches(problem, size * problem.num_groups)
        alone = search.cost.samples_beside(problem)
        gradients = search.descent.draws(problem) * problem.objective.cycle
        seconds = (sum(runs.values()) + alone / size) * _seconds(batches, size)
        seconds += gradients * (gradient_seconds or 0.0)
        hours = seconds * num_chips / 3600
        costs[name] = dict(batches=runs, beside=alone, gradients=gradients)
        costs[name] |= dict(seconds=seconds, chip_hours=hours)
        counts = [f"{phase} {count:,}" for phase, count in runs.items() if count]
        price = f"{duration(seconds)}, {hours:,.{1 if hours < 100 else 0}f} chip hours"
        lines.append(
            f"{name:<13} {price}: batches of {size * problem.num_groups:,} for {', '.join(counts)}"
            f"{f'; gradients {gradients:,}' * bool(gradients)}; beside them {alone:,} samples, one "
            "candidate at a time"
        )
    lines = ["whole search, at most, by search.method", *lines]
    return "\n".join(lines), {"what": "whole search", "methods": costs}
