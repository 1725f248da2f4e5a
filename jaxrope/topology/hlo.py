"""Parses the text of a compiled program (`compiled.as_text()`): the instructions in the order in
which they run, and the trip count of each loop.

Only what `schedule` needs is parsed: names, opcodes, operands, shapes and called computations.
"""

import dataclasses
import functools
import math
import re

# Bits of an element; any other type is a token or a tuple, which takes no bytes.
_BITS = {"pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "f16": 16}
_BITS |= {"bf16": 16, "s32": 32, "u32": 32, "f32": 32, "s64": 64, "u64": 64, "f64": 64}
_BITS |= {"c64": 64, "c128": 128, "f8e4m3fn": 8, "f8e5m2": 8, "f8e4m3": 8}
_CALLS = re.compile(r"\b(calls|to_apply|body|condition|branch_computations)=(\{[^}]*\}|%?[\w.\-]+)")
_NAME = re.compile(r"%([\w.\-]+(?:#\d+)*)")
# Operations that pass their operand on; a TPU keeps scalars in several memories and copies them.
_PASS = ("copy", "bitcast", "convert", "reshape", "copy-start", "copy-done", "optimization-barrier")

_MIRRORED = {"LT": "GT", "LE": "GE", "GT": "LT", "GE": "LE"}


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a program.

    Attributes:
      name, opcode: of the instruction.
      shape: its type, such as "bf16[8,128]{1,0}" or a tuple of them.
      arguments: the text between its parentheses.
      attributes: the text after them.
    """

    name: str
    opcode: str
    shape: str
    arguments: str
    attributes: str

    @functools.cached_property
    def operands(self) -> tuple[str, ...]:
        """Names of the instructions whose results it takes."""
        return tuple(_NAME.findall(self.arguments))

    @functools.cached_property
    def calls(self) -> dict[str, tuple[str, ...]]:
        """The computations it calls, by attribute ("body", "calls", ...)."""
        pairs = _CALLS.findall(self.attributes)
        return {key: tuple(re.findall(r"[\w.\-]+", names)) for key, names in pairs}

    @functools.cached_property
    def op_name(self) -> str:
        """Its place in the source program."""
        match = re.search(r'op_name="([^"]*)"', self.attributes)
        return match.group(1) if match else ""

    @property
    def index(self) -> int:
        """Of a get-tuple-element."""
        return int(re.search(r"\bindex=(\d+)", self.attributes).group(1))


@dataclasses.dataclass(frozen=True)
class Computation:
    """A named list of instructions in the order in which they run; its result is that of the root,
    else of the last instruction."""

    name: str
    instructions: tuple[Instruction, ...]
    root: str

    @functools.cached_property
    def by_name(self) -> dict[str, Instruction]:
        """The instructions by their names."""
        return {instruction.name: instruction for instruction in self.instructions}


@dataclasses.dataclass(frozen=True)
class Module:
    """A whole program."""

    computations: dict[str, Computation]
    entry: str
    is_scheduled: bool


def parse(text: str) -> Module:
    """Returns the program that `compiled.as_text()` shows."""
    computations, entry, name, lines = {}, "", "", []
    for line in text.splitlines():
        header = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if header:
            name, lines = header.group(2), []
            entry = name if header.group(1) else entry
        elif name and re.fullmatch(r"\}(, execution_thread=.*)?", line):
            computations[name] = _computation(name, lines)
            name = ""
        elif name and re.match(r"  (ROOT )?%?[\w.\-]+ = ", line):
            lines.append(line.strip())
        elif name and lines:
            lines[-1] += line  # the attributes of a kernel are printed with line breaks
    return Module(computations, entry, "is_scheduled=true" in text.partition("\n")[0])


def _computation(name: str, lines: list[str]) -> Computation:
    instructions, root = {}, ""
    for line in lines:
        instruction = _instruction(line.removeprefix("ROOT "))
        for operand in instruction.operands:
            _write_out(instructions, operand)
        instructions[instruction.name] = instruction
        if line.startswith("ROOT ") or not root:
            root = instruction.name
    return Computation(name, tuple(instructions.values()), root)


def _write_out(instructions: dict[str, Instruction], name: str) -> None:
    """Adds the get-tuple-element that "x#1" is short for (libtpu's dump under jax 0.12)."""
    owner, _, index = name.rpartition("#")
    if not owner or name in instructions:
        return
    _write_out(instructions, owner)
    if owner in instructions:
        shape = _elements(instructions[owner].shape)[int(index)]
        element = Instruction(name, "get-tuple-element", shape, f"%{owner}", f", index={index}")
        instructions[name] = element


def _elements(shape: str) -> list[str]:
    """Returns the types in a tuple's type."""
    rest, elements = shape.removeprefix("(").removesuffix(")"), []
    while rest:
        end = _close(rest, ",")
        elements.append(re.sub(r"/\*.*?\*/", "", rest[:end]).strip())
        rest = rest[end + 1 :]
    return elements


def _instruction(line: str) -> Instruction:
    name, _, rest = line.partition(" = ")
    end = _close(rest, " ")
    shape, rest = rest[:end], rest[end + 1 :]
    opcode, _, rest = rest.partition("(")
    end = _close(rest, ")")
    return Instruction(name.lstrip("%"), opcode, shape, rest[:end], rest[end + 1 :])


def _close(text: str, end: str) -> int:
    """Returns the index of the first `end` outside of brackets."""
    depth = 0
    for place, letter in enumerate(text):
        if letter == end and depth == 0:
            return place
        depth += (letter in "([{") - (letter in ")]}")
    return len(text)


def num_bytes(shape: str) -> int:
    """Returns the bytes of a type, without the padding of its layout."""
    total = 0
    for kind, sizes in re.findall(r"\b([a-z]\w*)\[([\d,<=]*)\]", shape):
        count = math.prod(int(size.strip("<=")) for size in sizes.split(",") if size)
        total += count * _BITS.get(kind, 0)
    return total // 8


def operand_bytes(computation: Computation, instruction: Instruction) -> int:
    """Returns the bytes of an instruction's operands."""
    by_name = computation.by_name
    return sum(num_bytes(by_name[name].shape) for name in instruction.operands if name in by_name)


def executions(module: Module) -> tuple[dict[str, int], tuple[str, ...]]:
    """Returns (how often each computation runs in one run of the program, the loops of unknown trip
    count, which are counted once).

    Both branches of a conditional count: an upper bound.
    """
    times, unknown = {}, []

    def visit(name: str, count: int, callers: tuple) -> None:
        times[name] = times.get(name, 0) + count
        computation = module.computations[name]
        for instruction in computation.instructions:
            turns = 1
            if instruction.opcode == "while":
                turns = trip_count(module, computation, instruction, callers)
                if turns is None:
                    unknown.append(instruction.name)
                    turns = 1
            if instruction.opcode in ("async-done", "async-update"):
                continue  # async-start has counted this computation
            for key, called in instruction.calls.items():
                for other in called if key != "condition" else ():
                    inner = (*callers, (computation, instruction)) if key == "body" else callers
                    visit(other, count * turns, inner)

    visit(module.entry, 1, ())
    return times, tuple(unknown)


def trip_count(
    module: Module, computation: Computation, loop: Instruction, callers: tuple = ()
) -> int | None:
    """Returns the trip count of a while loop, or None where it cannot be read from the text.

    Either the compiler annotated it, or the loop counts: its condition compares an element of the
    state with a constant, and its body adds a constant to that element.

    Args:
      module: the program.
      computation: the one that holds the loop.
      loop: the instruction.
      callers: (computation, loop) of the loops around it, outermost first.
    """
    written = re.search(r"known_trip_count\W+n\W+(\d+)", loop.attributes)
    if written:
        return int(written.group(1))
    condition = module.computations[loop.calls["condition"][0]]
    bound = _bound(module, condition)
    if bound is None:
        return None
    (index, shift), direction, last = bound
    body = module.computations[loop.calls["body"][0]]
    around = (*callers, (computation, loop))
    first, limit = _entering(module, around, index, shift), _entering(module, around, *last)
    step = _linear(module, body, _element(body, body.root, index))
    if limit is None or first is None or step is None or step[0] != index or not step[1]:
        return None
    distance = (limit - first) * (1 if step[1] > 0 else -1) + (direction in ("LE", "GE"))
    return max(0, -(-distance // abs(step[1])))


def _bound(module: Module, condition: Computation):
    """Returns ((element, offset), direction, limit) of the comparison that keeps the loop going;
    None: the condition is not such a comparison."""
    root, scope, bound = condition.by_name[condition.root], condition, ()
    if root.opcode == "fusion":
        bound = tuple(_linear(module, condition, name) for name in root.operands)
        scope = module.computations[root.calls["calls"][0]]
        root = scope.by_name[scope.root]
    if root.opcode != "compare":
        return None
    direction = re.search(r"direction=(\w+)", root.attributes).group(1)
    lhs, rhs = (_linear(module, scope, name, bound) for name in root.operands)
    if lhs is None or rhs is None or direction not in _MIRRORED:
        return None
    if lhs[0] is None:
        lhs, rhs, direction = rhs, lhs, _MIRRORED[direction]
    return (lhs, direction, rhs) if lhs[0] is not None else None


def _entering(module: Module, around: tuple, index: int | None, shift: int) -> int | None:
    """Returns the initial value of an element of the innermost loop's state, plus `shift`."""
    if index is None:
        return shift
    *callers, (computation, loop) = around
    value = _linear(module, computation, _element(computation, loop.operands[0], index))
    if value is None or value[0] is None:
        return None if value is None else value[1] + shift
    if not callers:
        return None
    outer, outer_loop = callers[-1]
    body = module.computations[outer_loop.calls["body"][0]]
    carried = body is computation and _linear(module, body, _element(body, body.root, value[0]))
    if carried != (value[0], 0):  # the loop around it changes the element
        return None
    return _entering(module, tuple(callers), value[0], value[1] + shift)


def _element(computation: Computation, name: str, index: int) -> str:
    """Returns the instruction that is element `index` of a tuple, "" if it cannot be determined."""
    instruction = computation.by_name[name]
    while instruction.opcode in _PASS:
        instruction = computation.by_name[instruction.operands[0]]
    return instruction.operands[index] if instruction.opcode == "tuple" else ""


def _linear(module: Module, computation: Computation, name: str, bound: tuple = ()):
    """Returns (element of the loop's state or None, number) whose sum is the value; None: the value
    has another form.

    Args:
      module, computation: that hold the instruction.
      name: of the instruction.
      bound: the same pairs for the parameters of a fusion.
    """
    if name not in computation.by_name:
        return None
    instruction = computation.by_name[name]
    follow = functools.partial(_linear, module, computation, bound=bound)
    match instruction.opcode:
        case "constant":
            is_whole = re.fullmatch(r"-?\d+", instruction.arguments)
            return (None, int(instruction.arguments)) if is_whole else None
        case "parameter":
            number = int(instruction.arguments)
            return bound[number] if number < len(bound) else None
        case "get-tuple-element":
            owner = computation.by_name[instruction.operands[0]]
            return (instruction.index, 0) if owner.opcode == "parameter" else None
        case "add" | "subtract":
            lhs, rhs = (follow(operand) for operand in instruction.operands)
            if lhs is None or rhs is None:
                return None
            if instruction.opcode == "subtract":
                return None if rhs[0] is not None else (lhs[0], lhs[1] - rhs[1])
            if lhs[0] is not None and rhs[0] is not None:
                return None
            return (rhs[0] if lhs[0] is None else lhs[0], lhs[1] + rhs[1])
        case "fusion":
            values = tuple(follow(operand) for operand in instruction.operands)
            inner = module.computations[instruction.calls["calls"][0]]
            return _linear(module, inner, inner.root, values)
        case opcode if opcode in _PASS:
            return follow(instruction.operands[0])
    return None
