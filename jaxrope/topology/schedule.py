"""The collectives of a compiled program, and whether computation overlaps them; read from its
scheduled HLO.

Bytes are those that one device sends in one run of the program, by the ring algorithm: where each
of n devices has x bytes, an all-gather sends (n - 1) x, a reduce-scatter or an all-to-all
(n - 1) / n x, an all-reduce twice that, a collective-permute x. What goes from slice to slice is of
the kind "between slices", an all-reduce of so many. Padding of layouts is not counted.
"""

import collections
import dataclasses
import math
import re

from jaxrope.topology import hlo
from jaxrope.topology.hlo import Computation, Instruction, Module

BETWEEN = "between slices"
KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute", BETWEEN)
_KERNELS = ("tpu_custom_call", "mosaic_gpu", "__gpu$xla.gpu.triton", "__cudnn")
_MATRIX = ("dot", "convolution")
_RENDEZVOUS = re.compile(r'_xla_host_transfer_rendezvous="[^"]*"(?=.*_xla_megascale_target)')
_HOPS_THAT_MAKE_A_LOOP = 3  # a ring of so few devices has no loop over its hops left


@dataclasses.dataclass(frozen=True)
class Collective:
    """One instruction that moves data between devices.

    Attributes:
      kind: of KINDS.
      name, computation: its place in the program.
      op_name: its place in the source.
      devices: that take part together.
      wire_bytes: that each of them sends, in one run of the instruction.
      times: how often it runs in one run of the program.
      overlapped: matrix products or kernels run between its start and its end.
      brings_home: it is not overlapped and need not be: after the last hop of a ring it returns the
        gradients of keys and values to the devices that hold these.
    """

    kind: str
    name: str
    computation: str
    op_name: str
    devices: int
    wire_bytes: float
    times: int
    overlapped: bool
    brings_home: bool = False

    @property
    def total_bytes(self) -> float:
        """Sent by a device in one run of the program."""
        return self.wire_bytes * self.times


@dataclasses.dataclass(frozen=True)
class Schedule:
    """All collectives of a program.

    Attributes:
      collectives: all of them.
      unknown_loops: loops of unknown trip count; counted once.
    """

    collectives: tuple[Collective, ...]
    unknown_loops: tuple[str, ...]

    def wire_bytes(self, kind: str, *, overlapped: bool | None = None) -> float:
        """Returns the bytes a device sends by collectives of a kind, optionally filtered."""
        chosen = [c for c in self.collectives if c.kind == kind]
        if overlapped is not None:
            chosen = [c for c in chosen if c.overlapped == overlapped]
        return sum(c.total_bytes for c in chosen)

    def permutes(self) -> tuple[Collective, ...]:
        """Returns the hops of the rings."""
        return tuple(c for c in self.collectives if c.kind == "collective-permute")

    def exposed(self) -> tuple[Collective, ...]:
        """Returns the hops that no computation overlaps, though it could."""
        return tuple(c for c in self.permutes() if not c.overlapped and not c.brings_home)

    def coming_home(self) -> tuple[Collective, ...]:
        """Returns the last hops, of the gradients of keys and values."""
        return tuple(c for c in self.permutes() if c.brings_home)


def read(text: str) -> Schedule:
    """Returns the schedule in the text of a compiled program.

    Raises:
      ValueError: the text is not that of a scheduled program.
    """
    module = hlo.parse(text)
    if not module.is_scheduled:
        raise ValueError("the program is not scheduled: give the text of a compiled one")
    times, unknown = hlo.executions(module)
    computing = _computing(module)
    collectives = []
    for name, count in times.items():
        computation = module.computations[name]
        for place, instruction in enumerate(computation.instructions):
            kind = _kind(computation, instruction)
            if kind in KINDS and count and not _is_continuation(computation, instruction):
                over = _overlapped(computation, place, computing)
                collective = _collective(module, computation, instruction, kind)
                home = kind == "collective-permute" and not over
                home = home and "transpose(" in collective.op_name  # of a backward pass
                home = home and _brings_home(module, computation, instruction, computing)
                collectives.append(
                    dataclasses.replace(collective, times=count, overlapped=over, brings_home=home)
                )
    return Schedule(tuple(collectives), unknown)


def _kind(computation: Computation, instruction: Instruction) -> str:
    if instruction.opcode == "send" and _RENDEZVOUS.search(instruction.attributes):
        return BETWEEN
    kind = instruction.opcode.removesuffix("-start")
    # a TPU writes a reduce-scatter so: the sum, and the slice of it that a device keeps
    summed = kind == "all-reduce" and computation.name.startswith("all-reduce-scatter")
    return "reduce-scatter" if summed else kind


def _collective(
    module: Module, computation: Computation, instruction: Instruction, kind: str
) -> Collective:
    num_bytes = hlo.operand_bytes(computation, instruction)
    devices = _group_size(instruction)
    share = {
        "all-gather": devices - 1,
        "reduce-scatter": (devices - 1) / devices,
        "all-reduce": 2 * (devices - 1) / devices,
        "all-to-all": (devices - 1) / devices,
        "collective-permute": 1,
        BETWEEN: 2 * (devices - 1) / devices,
    }[kind]
    op_name = instruction.op_name or _op_name_before(computation, instruction)
    where = (kind, instruction.name, computation.name, op_name)
    return Collective(*where, devices, num_bytes * share, 0, False)


def _op_name_before(computation: Computation, instruction: Instruction) -> str:
    """Returns the place in the source of what an instruction without one works on."""
    for name in instruction.operands:
        before = computation.by_name.get(name)
        op_name = before and (before.op_name or _op_name_before(computation, before))
        if op_name:
            return op_name
    return f"in {computation.name}"


def _group_size(instruction: Instruction) -> int:
    """Returns how many devices take part: of the first group, or around the ring of a permute; how
    many slices, of what goes between them.
    """
    slices = re.search(r'_xla_megascale_target="\{([\d,:]*)\}', instruction.attributes)
    if slices:
        spans = [span.split(":") for span in slices.group(1).split(",")]
        return sum(int(span[-1]) - int(span[0]) + 1 for span in spans)
    pairs = re.search(r"source_target_pairs=\{(.*?)\}\}", instruction.attributes)
    if pairs:
        hops = re.findall(r"\{(\d+),(\d+)", pairs.group(0))
        to, (start, at), length = dict(hops), hops[0], 1
        while at != start and at in to and length <= len(hops):
            at, length = to[at], length + 1
        return length if at == start else length + 1
    explicit = re.search(r"replica_groups=\{\{([\d,]*)\}", instruction.attributes)
    if explicit:
        return explicit.group(1).count(",") + 1
    named = re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", instruction.attributes)
    if named:
        sizes = dict(re.findall(r"('\w+')=(\d+)", named.group(1)))
        return math.prod(int(sizes[axis]) for axis in named.group(2).split(","))
    counted = re.search(r"replica_groups=\[\d+,(\d+)\]", instruction.attributes)
    return int(counted.group(1)) if counted else 1


def _is_continuation(computation: Computation, instruction: Instruction) -> bool:
    """Whether it only continues a collective that another fusion began. A TPU splits an all-gather
    into steps, each fused into a computation, and repeats the instruction in each."""
    if "async_collective_fusion_config" not in instruction.attributes:
        return False
    return not _begins_fused(computation)


def _begins_fused(computation: Computation) -> bool:
    return any('"AsyncCollectiveStart"' in i.attributes for i in computation.instructions)


def _computing(module: Module) -> set[str]:
    """Returns the computations that hold a matrix product or a kernel, or call one that does."""
    has_compute: dict[str, bool] = {}

    def holds(name: str) -> bool:
        if name not in has_compute:
            has_compute[name] = any(computes(i) for i in module.computations[name].instructions)
        return has_compute[name]

    def computes(instruction: Instruction) -> bool:
        if instruction.opcode in _MATRIX:
            return True
        if instruction.opcode == "custom-call":
            return any(f'custom_call_target="{k}' in instruction.attributes for k in _KERNELS)
        called = [holds(name) for names in instruction.calls.values() for name in names]
        return all(called) and bool(called) if instruction.opcode == "conditional" else any(called)

    return {name for name in module.computations if holds(name)} | {
        f"{computation.name}/{instruction.name}"
        for computation in module.computations.values()
        for instruction in computation.instructions
        if computes(instruction)
    }


def _overlapped(computation: Computation, place: int, computing: set[str]) -> bool:
    """Whether there is computation between the start and the end of a collective."""
    start = computation.instructions[place]
    if start.opcode == "send":
        return _overlapped_between(computation, place, computing)
    if not start.opcode.endswith("-start"):
        return _begins_fused(computation)  # fused into computations, all of it
    done = start.opcode.removesuffix("-start") + "-done"
    between = []
    for instruction in computation.instructions[place + 1 :]:
        if instruction.opcode == done and start.name in instruction.operands:
            return any(f"{computation.name}/{name}" in computing for name in between)
        between.append(instruction.name)
    return False  # it ends elsewhere: assume that nothing overlaps it


def _overlapped_between(computation: Computation, place: int, computing: set[str]) -> bool:
    """The same of what goes to other slices, until what comes from them is there."""
    rendezvous = _RENDEZVOUS.search(computation.instructions[place].attributes).group(0)
    later, received = computation.instructions[place + 1 :], ""
    for instruction in computation.instructions:
        if instruction.opcode == "recv" and rendezvous in instruction.attributes:
            received = instruction.name
    for i, instruction in enumerate(later):
        if instruction.opcode == "recv-done" and received in instruction.operands:
            return any(f"{computation.name}/{x.name}" in computing for x in later[:i])
    return False


def _brings_home(
    module: Module, computation: Computation, permute: Instruction, computing: set[str]
) -> bool:
    """Whether a permute sends the result of the loop over the hops of a ring."""
    queue, visited = collections.deque(permute.operands), set()
    while queue:
        name = queue.popleft()
        if name in visited or name not in computation.by_name:
            continue
        visited.add(name)
        instruction = computation.by_name[name]
        if instruction.opcode == "while" and _hops(module, instruction):
            return True
        computes = f"{computation.name}/{name}" in computing
        if computes and _group_size(permute) <= _HOPS_THAT_MAKE_A_LOOP:
            return True
        queue.extend(() if computes else instruction.operands)
    return False


def _hops(module: Module, loop: Instruction) -> bool:
    body = module.computations[loop.calls["body"][0]]
    return any(i.opcode.startswith("collective-permute") for i in body.instructions)
