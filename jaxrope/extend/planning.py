"""The plan of an extension: how much of everything fits the budget on this machine.

Forward tokens a second are measured at the target length, for up to a minute, and how long the
weights and a compilation take; everything else is counted in them (cost.py). The plan is the most
that fits `_SHARE` of the budget, the search first. It is stored, and never measured again; where
what came before the measurement of the result took longer than was planned, less is measured, and
that is stored before it begins.
"""

import dataclasses
import math
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxrope import search
from jaxrope.errors import InputError
from jaxrope.extend import cost, recipes
from jaxrope.extend import facts as facts_of
from jaxrope.extend.request import Request
from jaxrope.shell import duration
from jaxrope.store import files, sealed

FORMAT = "jaxrope.extend/2"
_SHARE = 0.9  # of a budget that is planned for
_FOLDERS = {  # of phases
    "search": "search",
    "training": "tuned",
    "control": "control",
    "recovery": "recovery",
}
_MEASURING = 5.0  # seconds that the speed is measured, at least
# Bytes of a parameter on the disk: an export, and what a training keeps: two checkpoints with both
# moments, while one of them is replaced.
_EXPORTED, _CHECKPOINTS = 4, 2 * 3 * 4


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is done.

    Attributes:
      request: what was asked for.
      facts: about the model: what recipes need.
      effort: how much of everything.
      seconds: of each phase, foreseen.
      speed: forward tokens a second.
      ready: seconds that it takes to load the weights and to compile.
      memory: in words.
      notes: what the user should know.
    """

    request: Request
    facts: recipes.Facts
    effort: recipes.Effort
    seconds: dict[str, float]
    speed: float
    ready: float
    memory: str
    notes: tuple[str, ...]

    @property
    def total(self) -> int:
        """Seconds of everything, foreseen."""
        return sum(self.seconds.values())

    @property
    def foreseen(self) -> dict[str, int]:
        """Returns the seconds of each phase but the planning."""
        rate = dict(speed=self.speed, ready=self.ready)
        return cost.seconds(self.request, self.facts, self.effort, **rate)

    def text(self) -> str:
        """Returns the plan in words."""
        request, facts, effort = self.request, self.facts, self.effort
        rows = {
            "model": f"{request.model}, {facts.num_params:,} parameters, {facts.length:,} tokens",
            "target": f"{request.target_len:,} tokens, "
            f"{request.target_len / facts.length:g} times as many",
            "search": f"{effort.steps} steps, {effort.samples} texts a candidate"
            + (f"; again for {facts.length:,} tokens" if effort.recovers else ""),
            "training": f"{effort.train_steps} steps of {recipes.rows(facts, effort)} x "
            f"{request.target_len:,} tokens, {request.finetune}"
            if effort.train_steps
            else "none",
            "measurement": f"{effort.windows} held-out texts at "
            f"{', '.join(f'{n:,}' for n in effort.lengths)} tokens"
            + (f", {effort.trials} pass keys and needles" if effort.trials else ""),
            "for": ", ".join(request.programs),
            "memory": self.memory,
            "time": f"about {duration(self.total)}: "
            + ", ".join(f"{name} {duration(value)}" for name, value in self.seconds.items())
            + (f"; the budget is {duration(request.budget)}" if request.budget else ""),
        }
        lines = [f"{name:<14}{text}" for name, text in rows.items()]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def stored(request: Request, folder: Path) -> Plan | None:
    """Returns the plan that is in a folder.

    Raises:
      InputError: it is of another request.
    """
    path = folder / "plan.json"
    if not path.exists():
        return None
    content = sealed.read_json(path, form=FORMAT)
    plan = _of_json(content)
    for name, asked in dataclasses.asdict(request).items():
        before = getattr(plan.request, name)
        if before != asked:
            raise InputError(
                f"{folder} has an extension with {name} {before!r}, got {asked!r}. Ask for the "
                "same, or give another --out."
            )
    return plan


def make(request: Request, folder: Path, efforts: Sequence[recipes.Effort] = ()) -> Plan:
    """Returns the plan: the stored one, or a new one; nothing is written.

    Args:
      request: what was asked for.
      folder: of the results.
      efforts: from the most to the least; (): those that are worth doing.

    Raises:
      InputError: the model, the text or the target do not fit; the budget is too small.
    """
    return stored(request, folder) or _new(request, folder, efforts)


def store(plan: Plan, folder: Path) -> None:
    """Writes the recipe, config.py, and plan.json, which is there only if the recipe is."""
    folder.mkdir(parents=True, exist_ok=True)
    text = recipes.text(plan.request, plan.facts, plan.effort)
    files.write_text_atomic(folder / "config.py", text)
    sealed.write_json(folder / "plan.json", {"format": FORMAT, **dataclasses.asdict(plan)})


def _new(request: Request, folder: Path, efforts: Sequence[recipes.Effort]) -> Plan:
    began, config = time.monotonic(), recipes.base_config(request, recipes.SEARCHES[0])
    problem = search.prepare(config)
    facts, notes = facts_of.make(request, problem)
    _check_disk(request, facts, folder)
    rate = search.measured(problem, _MEASURING)
    spent = {"planning": math.ceil(time.monotonic() - began)}
    memory = cost.memory(request, facts, problem)
    for effort in efforts or recipes.efforts(request, facts):
        more = facts_of.of_two_sets(request) if effort.recovers else ()
        said = (*notes, *more)
        best = Plan(request, facts, effort, spent, rate.tokens, rate.ready, memory, said)
        best = dataclasses.replace(best, seconds=spent | best.foreseen)
        if not request.budget or best.total <= _SHARE * request.budget:
            return best
    least = best.total / _SHARE
    raise InputError(
        f"--budget={duration(request.budget)} is too small: the least that is worth doing takes "
        f"{duration(least)} here. Raise it, or lower --target_len."
    )


def cut_down(plan: Plan, folder: Path) -> Plan:
    """Returns the plan with as much to measure as the budget has room for, now that all that comes
    before has been done; it is stored if that is less than was planned, and the recipe is still
    the plan's.
    """
    names, rest = [name for name in plan.seconds if name in _FOLDERS], ("measurement", "exports")
    took = [sealed.read_json(folder / _FOLDERS[name] / "stage.json")["seconds"] for name in names]
    slower = max(1.0, sum(took) / sum(plan.seconds[name] for name in names))
    left = plan.request.budget - plan.seconds["planning"] - sum(took)
    for effort in recipes.with_less_measured(plan.request, plan.facts, plan.effort):
        shorter = dataclasses.replace(plan, effort=effort)
        shorter = dataclasses.replace(shorter, seconds=plan.seconds | shorter.foreseen)
        needed = slower * sum(shorter.seconds[name] for name in rest)
        if needed <= left:
            break
    written = (folder / "config.py").read_text(encoding="utf-8")
    ours = [recipes.text(plan.request, plan.facts, each.effort) for each in (plan, shorter)]
    if shorter.effort == plan.effort or written not in ours:
        return plan
    note = (
        f"so far it took {duration(sum(took))}, {slower:.1f} times what was planned: less is "
        f"measured, which takes about {duration(needed)}"
    )
    shorter = dataclasses.replace(shorter, notes=(*plan.notes, note))
    store(shorter, folder)
    return shorter


def _check_disk(request: Request, facts: recipes.Facts, folder: Path) -> None:
    """Refuses a folder without room for what is written."""
    if files.is_remote(folder):
        return
    there = next(place for place in (folder, *folder.parents) if place.exists())
    trainings = 0 if request.finetune == "none" else 1 + request.control
    size = _EXPORTED + trainings * _CHECKPOINTS
    needed, free = size * facts.num_params, shutil.disk_usage(there).free
    if needed > free:
        raise InputError(
            f"--out={folder}: the results take about {needed / 2**30:.1f} GiB, and "
            f"{free / 2**30:.1f} GiB are free. Make room, or give another folder."
        )


def _of_json(content: dict[str, Any]) -> Plan:
    def tuples(section: dict) -> dict:
        return {k: tuple(v) if isinstance(v, list) else v for k, v in section.items()}

    return Plan(
        request=Request(**tuples(content["request"])),
        facts=recipes.Facts(**content["facts"]),
        effort=recipes.Effort(**tuples(content["effort"])),
        seconds=content["seconds"],
        speed=content["speed"],
        ready=content["ready"],
        memory=content["memory"],
        notes=tuple(content["notes"]),
    )
