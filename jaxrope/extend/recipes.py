"""How much of everything an extension may do, and the recipe that does it.

The recipe is written as an experiment file: whoever wants to change a stage edits that, and runs
the same command, or `python -m jaxrope.train --config=DIR/config.py --workdir=DIR`.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from jaxrope.extend.request import Request
from jaxrope.shell import load

# Of a search, from the default down: texts of a candidate, YaRNs with other borders, steps, texts
# of the last word, and whether short lengths are recovered.
SEARCHES = (
    dict(samples=2, ramps=10, steps=18, judged=8, recovers=True),
    dict(samples=2, ramps=5, steps=9, judged=5, recovers=True),
    dict(samples=1, ramps=3, steps=4, judged=5, recovers=False),
)
# Of a recovery: its texts are short, so there may be more of them.
_RECOVERY = {
    "search.attention_factor": "rope",
    "search.gradient.batch": 4,
    "search.judge.num_samples": 32,
    "search.batch_size": 2,  # candidates: more are never measured at once
}
_SAMPLES = 8  # of different texts, where there are as many
_BOUND = 1.25  # times the extension: the largest factor of a recovery
# Of the measurement: texts, lengths, trials of each kind of retrieval.
MEASUREMENTS = (
    dict(windows=16, num_lengths=5, trials=24),
    dict(windows=16, num_lengths=3, trials=12),
    dict(windows=8, num_lengths=2, trials=6),
    dict(windows=5, num_lengths=2, trials=0),
)
_PAIRS = ((0, 0), (0, 1), (1, 1), (1, 2), (2, 2), (2, 3))  # of the two, from the richest down
_STEPS = (200, 100, 60, 30, 15)  # of a training
_ROWS = 8
WINDOWS_PER_DOCUMENT = 4
METHODS = ("none", "ntk", "yarn", "sliding")  # rows of the measurement, beside the result
HELD_OUT = 0.1  # share of the text, where none is given, and of the conversations
_CHATS = 0.1  # share of the rows of a training
_SHORT, _NEEDLES = 0.25, 0.25
_ANSWER = 8.0  # weight of a digit of an answer: there are few of them among the other tokens
KEYS = 6  # needles of a document, at most
# Learning rates by the number of parameters: LongRoPE's for a 7B, larger ones for smaller models.
_RATES = ((2e9, 2e-5), (2e8, 1e-4), (0, 5e-4))
_LORA_RATE, _LORA_RANK = 2e-4, 8


@dataclasses.dataclass(frozen=True)
class Facts:
    """About the model and the text.

    Attributes:
      length: tokens that the model serves.
      num_params: of it.
      num_devices: that train it.
      num_texts: documents to search on that have more tokens than that.
      num_windows: of the target length in the held-out text, a few of a document at most.
      windows_per_doc: that a measurement takes from a document: as few as will do.
      form: of the factors: what all programs can run.
      two_sets: they can take factors for short lengths and others for long ones.
      taught_keys: needles that a row of training has room for; 0: none.
      asked_keys: needles of a document of the measurement: as many as fill half of one of the
        model's own length, one at least and KEYS at most.
      least_asked: tokens of a document with so many needles, at least.
      chat_len, num_chats: of the held-out conversations that are measured; 0: there are none.
    """

    length: int
    num_params: int
    num_devices: int
    num_texts: int
    num_windows: int
    windows_per_doc: int
    form: str
    two_sets: bool
    taught_keys: int
    asked_keys: int
    least_asked: int
    chat_len: int
    num_chats: int


@dataclasses.dataclass(frozen=True)
class Effort:
    """How much of everything.

    Attributes:
      samples, ramps, steps, judged: of the search, see SEARCHES.
      recovers: short lengths have a search of their own.
      train_steps: of the training; 0: there is none.
      rows: of a batch, at least.
      windows: texts of the measurement.
      lengths: at which it measures, tokens.
      trials: pass keys, and needles, at the first and the last length.
    """

    samples: int
    ramps: int
    steps: int
    judged: int
    recovers: bool
    train_steps: int
    rows: int
    windows: int
    lengths: tuple[int, ...]
    trials: int


def efforts(request: Request, facts: Facts) -> Iterator[Effort]:
    """Yields what may be spent, from the most to the least that is worth doing: half of a training
    goes for a step down of the rest.
    """
    steps = (1,) if request.finetune == "none" else _STEPS
    choices = [(place, count) for place in range(len(_PAIRS)) for count in steps]
    for place, count in sorted(choices, key=lambda choice: choice[0] - math.log2(choice[1])):
        searching, measuring = _PAIRS[place]
        search = SEARCHES[searching]
        yield Effort(
            **search | dict(recovers=search["recovers"] and facts.two_sets),
            train_steps=0 if request.finetune == "none" else count,
            rows=_ROWS,
            **_measurement(request, facts, MEASUREMENTS[measuring]),
        )


def with_less_measured(request: Request, facts: Facts, effort: Effort) -> Iterator[Effort]:
    """Yields an effort, and then with less and less to measure."""
    choices = [_measurement(request, facts, measured) for measured in MEASUREMENTS]
    own = {name: getattr(effort, name) for name in choices[0]}
    for choice in choices[choices.index(own) :]:
        yield dataclasses.replace(effort, **choice)


def _measurement(request: Request, facts: Facts, measured: dict[str, int]) -> dict[str, Any]:
    return {
        "windows": min(measured["windows"], facts.num_windows),
        "lengths": lengths(facts.length, request.target_len, measured["num_lengths"]),
        "trials": measured["trials"],
    }


def lengths(first: int, last: int, count: int) -> tuple[int, ...]:
    """Returns `count` lengths at most: doublings of the first, and the last."""
    doubled = [first]
    while 2 * doubled[-1] < last:
        doubled.append(2 * doubled[-1])
    doubled.append(last)
    while len(doubled) > count:
        del doubled[len(doubled) // 2]
    return tuple(doubled)


def base_config(request: Request, effort: dict[str, Any]) -> ConfigDict:
    """Returns configs/base.py for the model, the text and the search of an effort."""
    config = load("configs/base.py")
    for key, value in _base_keys(request, effort).items():
        _set(config, key, value)
    return config


def text(request: Request, facts: Facts, effort: Effort) -> str:
    """Returns the experiment file."""
    lines = [f"    {line}" for line in _lines(request, facts, effort)]
    return "\n".join([_HEAD.format(target=f"{request.target_len:,}"), *lines])


_HEAD = '''"""A model for {target} tokens: the recipe that jaxrope-extend wrote here.

  python -m jaxrope.train --config=config.py --workdir=.     the stages
Every key can be changed; jaxrope/configs/base.py says what each means.
"""

from jaxrope.configs import base


def get_config():
    """Returns the recipe."""
    config = base.get_config()'''


def _lines(request: Request, facts: Facts, effort: Effort) -> Iterator[str]:
    for key, value in _base_keys(request, dataclasses.asdict(effort)).items():
        yield f"config.{key} = {value!r}"
    yield f"config.search.form = {facts.form!r}"
    for key, value in _training_keys(request, facts, effort).items():
        yield f"config.{key} = {value!r}"
    yield "config.recipe = ("
    for stage in _stages(request, facts, effort):
        yield f"    {stage!r},"
    yield ")"
    yield "return config"


def _base_keys(request: Request, effort: dict[str, Any]) -> dict[str, Any]:
    keys = {
        "model.path": request.model,
        "target_len": request.target_len,
        "data.train_files": request.text,
        "search.objective.num_samples": effort["samples"],
        "search.gradient.ramps": effort["ramps"],
        "search.gradient.steps": effort["steps"],
        "search.judge.num_samples": effort["judged"],
        "eval.suites": (),
    }
    keys["data.exclude"] = request.eval_text + request.exclude
    if not request.eval_text:
        return keys | {"data.held_out": HELD_OUT}
    return keys | {"data.eval_files": request.eval_text}


def _training_keys(request: Request, facts: Facts, effort: Effort) -> dict[str, Any]:
    if not effort.train_steps:
        return {}
    rate = next(rate for least, rate in _RATES if facts.num_params >= least)
    keys = {
        "train.seq_len": request.target_len,
        "train.batch_size": rows(facts, effort),
        "train.accumulation": rows(facts, effort) // facts.num_devices,
        "train.steps": effort.train_steps,
        "optimizer.learning_rate": rate if request.finetune == "full" else _LORA_RATE,
        "optimizer.schedule": dict(
            name="linear", warmup_steps=max(1, effort.train_steps // 10), final_fraction=0.0
        ),
        "optimizer.b2": 0.95,
        "data.short_share": _SHORT,
        "checkpoint.every": max(1, effort.train_steps // 6),
        "checkpoint.keep_last": 1,
    }
    if facts.taught_keys:
        keys |= {"data.needle_share": _NEEDLES, "data.needle_keys": facts.taught_keys}
        keys |= {"data.needle_weight": _ANSWER}
    return keys | ({"lora.rank": _LORA_RANK} if request.finetune == "lora" else {})


def rows(facts: Facts, effort: Effort) -> int:
    """Returns the rows of a batch: as many for every device."""
    return facts.num_devices * math.ceil(effort.rows / facts.num_devices)


def stride(facts: Facts) -> int:
    """Returns by how many tokens the model's own window slides over a text."""
    return max(1, facts.length // 4)


def retrieval_lengths(facts: Facts, effort: Effort) -> tuple[int, ...]:
    """Returns at which lengths pass keys and needles are asked for; needles need room."""
    ends = dict.fromkeys((effort.lengths[0], effort.lengths[-1]))
    return tuple(n for n in ends if n >= facts.least_asked) if effort.trials else ()


def recovery(request: Request, facts: Facts) -> dict[str, Any]:
    """Returns the keys of the search for factors at the model's own length, beside those of `text`,
    the model and its rope.
    """
    highest = _BOUND * request.target_len / facts.length
    samples = {"search.objective.num_samples": min(_SAMPLES, facts.num_texts)}
    return {"target_len": facts.length, "search.highest": highest} | samples | _RECOVERY


def _stages(request: Request, facts: Facts, effort: Effort) -> Iterator[tuple]:
    searched, method = _file("search"), "model"
    yield "search", "search", ()
    if effort.train_steps:
        yield "tuned", "train", (searched, *_with_chats(request, facts))
    if effort.recovers:
        of = ("model.path", "{tuned}") if effort.train_steps else searched
        yield "recovery", "search", (of, *recovery(request, facts).items())
        sets = ("{recovery}", "{tuned}" if effort.train_steps else "{search}")
        yield "join", "join", (of, ("join.ropes", sets), ("join.weights", False))
        method = "{join}/rope.json"
    tuned = (("fine-tuned", "{tuned}", method),) if effort.train_steps else ()
    of_text = tuned
    if request.control:
        yield "control", "train", _control(request, facts, effort)
        of_text += ((f"control at {facts.length:,} tokens", "{control}", "sliding"),)
    measured = (
        _file("join") if effort.recovers and not effort.train_steps else searched,
        ("eval.label", "searched"),
        ("eval.rope_len", request.target_len),
    )
    if request.chat:
        spoken = (
            *chat_keys(request).items(),
            ("eval.checkpoints", tuned),
            ("eval.suites", ("perplexity",)),
            ("eval.methods", ("none",)),
            ("eval.baseline", "none"),
            ("eval.lengths", (facts.chat_len,)),
            ("eval.num_windows", facts.num_chats),
        )
        yield "conversations", "evaluate", (*measured, *spoken)
    text = (
        ("eval.suites", ("perplexity",)),
        ("eval.methods", METHODS),
        ("eval.checkpoints", of_text),
        ("eval.stride", stride(facts)),
        ("eval.baseline", "sliding"),
        ("eval.lengths", effort.lengths),
        ("eval.num_windows", effort.windows),
        ("eval.windows_per_doc", facts.windows_per_doc),
    )
    yield "scores", "evaluate", (*measured, *text)
    if retrieval_lengths(facts, effort):
        trials = (
            ("eval.suites", ("passkey", "needle")),
            ("eval.checkpoints", tuned),
            ("eval.methods", tuple(name for name in METHODS if name != "sliding")),
            ("eval.lengths", retrieval_lengths(facts, effort)),
            ("eval.passkey_trials", effort.trials),
            ("eval.needle_trials", effort.trials),
            ("eval.needle_keys", (facts.asked_keys,)),
        )
        yield "retrieval", "evaluate", (*measured, *trials)


def chat_keys(request: Request) -> dict[str, Any]:
    """Returns the keys that read the conversations alone, a part of them held out."""
    read = {"data.train_files": request.chat, "data.held_out": HELD_OUT}
    return read | {"data.eval_files": (), "data.exclude": ()}


def _with_chats(request: Request, facts: Facts) -> tuple[tuple[str, Any], ...]:
    """Returns the keys of a training on text and conversations, the rows of which are packed."""
    if not request.chat:
        return ()
    of_text = 1 - _SHORT - (_NEEDLES if facts.taught_keys else 0)
    files = ("data.train_files", (*request.text, *request.chat))
    share = ("data.chat_share", round(_CHATS / of_text, 4))
    held_out = (("data.held_out", HELD_OUT), ("data.eval_files", ()))
    return files, share, ("data.mode", "pack"), *held_out


def _file(stage: str) -> tuple[str, dict]:
    return "rope", dict(method="file", path=f"{{{stage}}}/rope.json")


def _control(request: Request, facts: Facts, effort: Effort) -> tuple:
    """Returns the keys of a training at the model's own length, on as many tokens or a few more,
    all of them text.
    """
    return (
        ("target_len", facts.length),
        ("train.seq_len", facts.length),
        ("train.batch_size", rows(facts, effort) * math.ceil(request.target_len / facts.length)),
        ("data.short_share", 0.0),
        ("data.needle_share", 0.0),
        *_with_chats(request, facts),
    )


def _set(config: ConfigDict, key: str, value: Any) -> None:
    section, _, leaf = key.rpartition(".")
    for name in filter(None, section.split(".")):
        config = config[name]
    config[leaf] = value
