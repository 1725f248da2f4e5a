"""The report of a compiled step: as text for a person, and as one line of JSON for a file."""

import dataclasses
from typing import Any

from jaxrope.shell import duration
from jaxrope.topology.roofline import (
    ATTENTION_EFFICIENCY,
    DENSE_EFFICIENCY,
    RECURRENCE_EFFICIENCY,
    Prediction,
    Work,
)
from jaxrope.topology.schedule import KINDS, Schedule

_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on each device, as the compiler counts them.

    Attributes:
      arguments, outputs, temporaries: of the program; an output that takes the place of an argument
        counts with both.
      peak: the most at one time, arguments included.
      host: in the host's memory, for each device.
      usable: what a program may use; None: unknown.
    """

    arguments: int
    outputs: int
    temporaries: int
    peak: int
    host: int
    usable: int | None


@dataclasses.dataclass(frozen=True)
class Report:
    """All that is reported of a compiled program.

    Attributes:
      what: the compiled program, such as "training step".
      runs: how often it runs in the whole training or search.
      where: the slice, such as "v5p:4x4x4".
      versions: of the compiler.
      mesh: devices on each axis.
      device_kind: of them.
      remarks: lines of the plan, such as the choice that `auto` made.
      seconds: of compiling.
      memory, work, schedule: see these classes.
      prediction: None where the chip is unknown.
    """

    what: str
    runs: int
    where: str
    versions: dict[str, str]
    mesh: dict[str, int]
    device_kind: str
    remarks: tuple[str, ...]
    seconds: float
    memory: Memory
    work: Work
    schedule: Schedule
    prediction: Prediction | None

    def text(self) -> str:
        """Returns lines for a person."""
        sections = (self._head(), self._memory(), self._arithmetic(), self._wire(), self._time())
        return "\n".join(line for section in sections for line in section)

    def json_dict(self) -> dict[str, Any]:
        """Returns the same for a file."""
        wire = {kind: self.schedule.wire_bytes(kind) for kind in KINDS}
        record = dataclasses.asdict(self)
        schedule = record.pop("schedule")
        exposed = [c.op_name for c in self.schedule.exposed()]
        record |= {"wire_bytes": wire, "exposed_permutes": exposed}
        record["permutes"] = len(self.schedule.permutes())
        record["permutes_coming_home"] = len(self.schedule.coming_home())
        record["unknown_loops"] = schedule["unknown_loops"]
        record["flops"] = self.work.flops
        if self.prediction:
            record["step_seconds"] = self.prediction.step
        return record

    def _head(self):
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        axes = ", ".join(f"{axis} {size}" for axis, size in self.mesh.items())
        devices = 1
        for size in self.mesh.values():
            devices *= size
        yield f"{self.what} compiled for {self.where} in {self.seconds:.0f} s ({versions})"
        yield f"mesh          {axes}: {devices} devices of kind {self.device_kind}"
        yield from self.remarks

    def _memory(self):
        memory = self.memory
        yield (
            f"memory        peak {gib(memory.peak)} on each device: {gib(memory.arguments)} of "
            f"arguments, {gib(memory.outputs)} of outputs, {gib(memory.temporaries)} of "
            "temporaries"
        )
        if memory.usable:
            yield (
                f"              {100 * memory.peak / memory.usable:.0f}% of the "
                f"{gib(memory.usable)} that a program may use"
            )
        yield f"host memory   {gib(memory.host)} for each device"

    def _arithmetic(self):
        work = self.work
        yield (
            f"arithmetic    {work.model_flops:.3g} FLOP by the model (the causal half of attention "
            f"once, nothing recomputed); {work.flops:.3g} computed: {work.dense_flops:.3g} in "
            f"products with weights, {work.attention_flops:.3g} in attention"
            + (f", {work.recurrence_flops:.3g} in recurrence" if work.recurrence_flops else "")
        )

    def _wire(self):
        sent = {kind: self.schedule.wire_bytes(kind) for kind in KINDS}
        listed = ", ".join(f"{kind} {gib(size)}" for kind, size in sent.items() if size)
        yield f"on the wire   {listed or 'nothing'}; sent by each device, ring algorithms"
        if self.schedule.unknown_loops:
            loops = ", ".join(self.schedule.unknown_loops)
            yield f"              loops of unknown length, counted once: {loops}"
        hops, home = self.schedule.permutes(), self.schedule.coming_home()
        if not hops:
            yield "ring          no permutes"
            return
        exposed = self.schedule.exposed()
        turns = sum(hop.times for hop in hops)
        yield (
            f"ring          {turns:,} permutes in {len(hops)} places: "
            f"{len(hops) - len(home) - len(exposed)} hidden by computation, {len(home)} bring dK "
            f"and dV home after the last hop, {len(exposed)} exposed"
        )
        for hop in exposed:
            yield (
                f"              exposed: {hop.name}, {hop.times:,} times, {gib(hop.total_bytes)} "
                f"({hop.op_name})"
            )

    def _time(self):
        prediction = self.prediction
        if prediction is None:
            yield "prediction    none: the chip's figures are not known"
            return
        yield (
            f"prediction    {prediction.step:.3g} s a {self.what}, {100 * prediction.mfu:.1f}% "
            f"MFU ({100 * prediction.ceiling:.1f}% with nothing recomputed or exposed), "
            f"{prediction.tokens_per_day / 1e9:.3g}e9 tokens a day; {self.runs:,} of them take "
            f"{duration(self.runs * prediction.step)}"
        )
        recurrence = (
            f"recurrence {prediction.recurrence:.3g} s (float32, at {RECURRENCE_EFFICIENCY:.0%}); "
            if prediction.recurrence
            else ""
        )
        yield (
            f"              products {prediction.dense:.3g} s "
            f"(at {DENSE_EFFICIENCY:.0%} of the peak) "
            f"or the gathers behind them {prediction.gathers:.3g} s; "
            f"attention {prediction.attention:.3g} s (at {ATTENTION_EFFICIENCY:.0%}) "
            f"or its hops {prediction.hops:.3g} s; {recurrence}"
            f"exposed on the wire {prediction.exposed:.3g} s; optimizer {prediction.update:.3g} s"
        )


def gib(size: float) -> str:
    """Returns bytes in words."""
    return f"{size / _GIB:.2f} GiB" if size >= 2**28 else f"{size / 2**20:.1f} MiB"
