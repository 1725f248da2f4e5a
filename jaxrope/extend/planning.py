"""The plan of an extension: how much of everything fits the budget on this machine.

Forward tokens a second are measured at the target length, for up to a minute. Everything else is
counted in them: a search as its own dry run says, a trained token as four (forward, backward, and
once more for what was not kept), an evaluation as what it reads. The plan is the most that fits
`_SHARE` of the budget, the search first. It is stored, and never measured again.
"""

import contextlib
import dataclasses
import math
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np

from jaxrope import data, decoder, rope, schema, search, setup
from jaxrope.convert import exporting, gguf_export, lost_elsewhere
from jaxrope.errors import InputError
from jaxrope.extend import recipes
from jaxrope.extend.request import Request
from jaxrope.shell import duration
from jaxrope.store import files, sealed

FORMAT = "jaxrope.extend/1"
_SHARE = 0.75  # of a budget that is planned for: the rest is for what was not foreseen
_TRAINED = 4  # forward passes that a trained token costs
_STAGE = 2.0  # times the seconds that the measurement took to load and compile, of every stage
_FORM = "monotone"  # of the factors, by default
_SHORTEST, _LEAST = 16, 5  # tokens and number of conversations that are measured
_UNLEARNS = (
    "the model has a chat template, and the training reads plain text alone: it will unlearn some "
    "of how it answers. Give conversations too (--chat=FILES): a tenth of the rows are theirs"
)
_ONE_SET = {  # programs that do not choose a set for each prompt
    "vllm": "vLLM gives all prompts the one for long texts",
    "llama.cpp": "llama.cpp takes one by the size of its context (-c)",
}
_LONGER = 1.25  # times as long may words of the training text be
_LAST = 30.0  # seconds for exports and the page
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
      notes: what the user should know.
    """

    request: Request
    facts: recipes.Facts
    effort: recipes.Effort
    seconds: dict[str, float]
    speed: float
    notes: tuple[str, ...]

    def text(self) -> str:
        """Returns the plan in words."""
        request, facts, effort = self.request, self.facts, self.effort
        rows = {
            "model": f"{request.model}, {facts.num_params:,} parameters, {facts.length:,} tokens",
            "target": f"{request.target_len:,} tokens, "
            f"{request.target_len / facts.length:g} times as many",
            "search": f"{effort.steps} steps, {effort.samples} texts a candidate"
            + (f"; again for {facts.length:,} tokens" if effort.recovers else ""),
            "training": f"{effort.train_steps} steps of {effort.rows} x {request.target_len:,} "
            f"tokens, {request.finetune}"
            if effort.train_steps
            else "none",
            "measurement": f"{effort.windows} held-out texts at "
            f"{', '.join(f'{n:,}' for n in effort.lengths)} tokens"
            + (f", {effort.trials} pass keys and needles" if effort.trials else ""),
            "for": ", ".join(request.programs),
            "time": f"about {duration(sum(self.seconds.values()))}: "
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


def make(request: Request, folder: Path) -> Plan:
    """Returns the plan: the stored one, or a new one; nothing is written.

    Raises:
      InputError: the model, the text or the target do not fit; the budget is too small.
    """
    return stored(request, folder) or _new(request, folder)


def store(plan: Plan, folder: Path) -> None:
    """Writes plan.json and the recipe, config.py, where they are not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "plan.json").exists():
        text = recipes.text(plan.request, plan.facts, plan.effort)
        files.write_text_atomic(folder / "config.py", text)
        sealed.write_json(folder / "plan.json", {"format": FORMAT, **dataclasses.asdict(plan)})


def _new(request: Request, folder: Path) -> Plan:
    config = _search_config(request, recipes.SEARCHES[0])
    problem = search.prepare(config)
    facts, notes = _facts(request, config, problem)
    _check_disk(request, facts, folder)
    start = time.monotonic()
    speed = search.speed(problem)
    setting_up = time.monotonic() - start
    for effort in recipes.efforts(request, facts):
        seconds = _foreseen(request, facts, effort, speed, setting_up)
        best = Plan(request, facts, effort, seconds, speed, notes)
        if not request.budget or sum(seconds.values()) <= _SHARE * request.budget - setting_up:
            return best
    least = (sum(best.seconds.values()) + setting_up) / _SHARE
    raise InputError(
        f"--budget={duration(request.budget)} is too small: the least that is worth doing takes "
        f"{duration(least)} here. Raise it, or lower --target_len."
    )


def _check_disk(request: Request, facts: recipes.Facts, folder: Path) -> None:
    """Refuses a folder without room for what is written."""
    if files.is_remote(folder):
        return
    there = next(place for place in (folder, *folder.parents) if place.exists())
    size = _EXPORTED + (0 if request.finetune == "none" else _CHECKPOINTS)
    needed, free = size * facts.num_params, shutil.disk_usage(there).free
    if needed > free:
        raise InputError(
            f"--out={folder}: the results take about {needed / 2**30:.1f} GiB, and "
            f"{free / 2**30:.1f} GiB are free. Make room, or give another folder."
        )


def _search_config(request: Request, effort: dict[str, int]) -> schema.Config:
    return schema.read(recipes.base_config(request, effort))


def _facts(request: Request, config, problem) -> tuple[recipes.Facts, tuple[str, ...]]:
    """Returns what recipes need to know of the model and the text, and notes."""
    model, length = problem.model, decoder.own_base(problem.model).length
    tokenizer, place = setup.tokenizer(
        config, problem.loaded.tokenizer_dir, problem.model.vocab_size
    )
    held_out = setup.held_out_documents(config, tokenizer, place)
    whole = held_out.lengths // request.target_len
    num_windows = int(whole.clip(max=recipes.WINDOWS_PER_DOCUMENT).sum())
    if not num_windows:
        raise InputError(
            f"{held_out.setting}: no text has {request.target_len:,} tokens, the longest has "
            f"{int(held_out.lengths.max()):,}. Give longer texts in --eval_text or --text."
        )
    notes = [*problem.notes, *problem.loaded.notes]
    if not request.eval_text:
        notes.append(
            f"no --eval_text: {len(held_out)} of the documents of --text, the last ones, are held "
            "out: no search and no training reads them"
        )
    form, two_sets, more = _sets(request, problem, length)
    chat_len, num_chats = (
        _chats(request, config, tokenizer, place, length) if request.chat else (0, 0)
    )
    if request.chat and problem.task.documents.are_chats.any():
        raise InputError("--text has conversations. Name their files in --chat alone.")
    if request.finetune != "none" and not request.chat and _speaks(place):
        notes.append(_UNLEARNS)
    facts = recipes.Facts(
        length=length,
        num_params=decoder.num_params(model),
        num_windows=num_windows,
        form=form,
        two_sets=two_sets,
        taught_keys=_keys_with_room(tokenizer, request.target_len),
        least_asked=data.needles.most_tokens(_source(tokenizer, "evaluation"), recipes.KEYS, 1),
        chat_len=chat_len,
        num_chats=num_chats,
    )
    return facts, (*notes, *more)


def _chats(request: Request, config, tokenizer, place, length: int) -> tuple[int, int]:
    """Returns at what length held-out conversations are measured, `length` or a half of it, a
    quarter, ... as they are long, and how many.

    Raises:
      InputError: there are no conversations, or too few.
    """
    config = schema.replace(config, recipes.chat_keys(request))
    held_out = setup.held_out_documents(config, tokenizer, place)
    if not held_out.are_chats.all():
        raise InputError(f"--chat: {held_out.names[0]} is no conversation. Name it in --text.")
    most = recipes.MEASUREMENTS[0]["windows"]
    while length >= _SHORTEST:
        for count in (most, _LEAST):
            with contextlib.suppress(InputError):  # too few are so long
                data.eval_windows(held_out, length=length, num_windows=count, bos_id=None)
                return length, count
        length //= 2
    raise InputError(
        f"--chat: {len(held_out)} conversations are held out, a tenth, and fewer than {_LEAST} of "
        "them have an answer near their beginning. Give more."
    )


def _speaks(place) -> bool:
    try:
        return data.chat.load_template(place) is not None
    except InputError:
        return False


def _sets(request: Request, problem: search.Problem, length: int) -> tuple[str, bool, list[str]]:
    """Returns the form of the factors, the default or what all programs asked for can run, whether
    they can have two sets, and notes.

    Raises:
      InputError: a program can run none.
    """
    model, programs = problem.model, request.programs
    yarn = rope.make("yarn", **model.geometry, factor=request.target_len / model.original_len)
    refused = _refusal(request, problem, _trial(problem, request.target_len))
    if refused:
        if _refusal(request, problem, yarn):
            raise InputError(f"--for={','.join(programs)}: {refused}")
        note = "the search is for YaRN's constants, which all programs read, for there is one that "
        note += f"cannot read factors: {refused} Short lengths have the same constants"
        return "yarn", False, [note]
    refused = _refusal(request, problem, _trial(problem, length, request.target_len))
    if refused:
        return _FORM, False, [f"one set of factors for all lengths: {refused}"]
    notes = [_ONE_SET[name] for name in programs if name in _ONE_SET]
    return _FORM, True, [f"of two sets of factors, {' and '.join(notes)}"] if notes else []


def _refusal(request: Request, problem: search.Problem, rope_fn: rope.RopeFn) -> str:
    """Returns why one of the programs could not run a rope; "": all could."""
    lost = lost_elsewhere(problem.model, rope_fn)
    if lost:
        return f"no other program can express {'; '.join(lost)}."
    try:
        exported = dataclasses.replace(problem.loaded, rope_fn=rope_fn)
        if "llama.cpp" in request.programs:
            gguf_export.plan(exported, exporting.Settings(), "model")
    except InputError as error:
        return str(error)
    return ""


def _trial(problem: search.Problem, *lengths: int) -> rope.RopeFn:
    """Returns a rope with a set of ascending factors for each of some lengths."""
    model = problem.model
    factors = np.linspace(1.0, lengths[-1] / model.original_len, model.rotary_dim // 2)
    bucket = dict(start_tokens=0, attention_factor=1.0)
    buckets = [
        bucket | dict(max_len=length, factors=rope.as_factors(factors * length / lengths[-1]))
        for length in lengths
    ]
    return rope.make("longrope", **model.geometry, buckets=buckets)


def _keys_with_room(tokenizer: data.Tokenizer, length: int) -> int:
    """Returns how many needles, all asked for, a row has room for; its words may be longer."""
    source = _source(tokenizer, "training")
    fitting = (
        keys
        for keys in range(recipes.KEYS, 0, -1)
        if _LONGER * data.needles.most_tokens(source, keys, keys) <= length
    )
    return next(fitting, 0)


def _source(tokenizer: data.Tokenizer, use: str) -> data.needles.Source:
    return data.needles.Source(tokenizer, data.needles.grass(tokenizer), use, "--target_len")


def _foreseen(request, facts, effort, speed: float, setting_up: float) -> dict[str, float]:
    """Returns the seconds of each phase."""
    problem = search.prepare(_search_config(request, dataclasses.asdict(effort)))
    tokens = {"search": sum(search.planned(problem).values())}
    if effort.train_steps:
        trained = effort.train_steps * effort.rows * request.target_len
        tokens["training"] = _TRAINED * trained
    if effort.recovers:
        tokens["recovery"] = _recovery_tokens(request, facts, effort, problem)
    texts = effort.windows * sum(effort.lengths)
    texts += facts.num_chats * facts.chat_len
    trials = 2 * effort.trials * sum(recipes.retrieval_lengths(facts, effort))
    rows = len(recipes.METHODS) + 1 + bool(effort.train_steps)
    tokens["measurement"] = rows * (texts + trials)
    seconds = {name: count / speed + _STAGE * setting_up for name, count in tokens.items()}
    return {name: math.ceil(value) for name, value in (seconds | {"exports": _LAST}).items()}


def _recovery_tokens(request, facts, effort, problem: search.Problem) -> int:
    """Returns the forward tokens of the search at the model's own length."""
    section = dict(method="file", path="rope.json")  # that is not there yet
    changes = {**recipes.recovery(request, facts), "rope": section}
    expected = setup.Expected(ropes={section["path"]: _trial(problem, request.target_len)})
    config = schema.replace(problem.config, changes)
    return sum(search.planned(search.prepare(config, expected)).values())


def _of_json(content: dict[str, Any]) -> Plan:
    def tuples(section: dict) -> dict:
        return {k: tuple(v) if isinstance(v, list) else v for k, v in section.items()}

    return Plan(
        request=Request(**tuples(content["request"])),
        facts=recipes.Facts(**content["facts"]),
        effort=recipes.Effort(**tuples(content["effort"])),
        seconds=content["seconds"],
        speed=content["speed"],
        notes=tuple(content["notes"]),
    )
