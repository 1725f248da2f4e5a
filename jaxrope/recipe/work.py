"""What a stage does: one function for each kind, and the evaluation at its end.

Each writes to the stage's folder what its own program writes to a workdir, and resumes where it was
stopped or killed.
"""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxrope import evaluate, report, search, train
from jaxrope.mesh import hosts
from jaxrope.recipe import join
from jaxrope.shell.interrupt import exit_at_once
from jaxrope.store import files


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The outcome of a stage.

    Attributes:
      code: 0, or the exit code with which the program is to end.
      result: for stage.json and the table: "what", "forward_tokens", "trained_tokens",
        "perplexity" (a text, or "").
    """

    code: int
    result: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of stage.

    Attributes:
      run: (config, folder) -> Outcome.
      what: (config) -> in words, for tables.
      tokens: (config) -> (forward tokens, trained tokens) of the stage, without evaluations.
      evaluated: (config, folder) -> the config that evaluates its output.
    """

    run: Callable[[Any, Path], Outcome]
    what: Callable[[Any], str]
    tokens: Callable[[Any], tuple[int, int]]
    evaluated: Callable[[Any, Path], Any]


def run(kind: str, config, folder: Path) -> Outcome:
    """Runs a stage and its evaluation, or the rest of them.

    Args:
      kind: of KINDS.
      config: the stage's, with the folders of other stages in it.
      folder: the stage's.

    Raises:
      InputError: raised by the stage's program.
    """
    outcome = KINDS[kind].run(config, folder)
    if outcome.code or not config.eval.suites:
        return outcome
    rest = f"{folder} has every item that was evaluated. The same command goes on from there."
    with exit_at_once(rest):
        measured = _evaluated(KINDS[kind].evaluated(config, folder), folder)
    before = outcome.result["forward_tokens"]
    return Outcome(
        0, outcome.result | measured | {"forward_tokens": before + measured["forward_tokens"]}
    )


def run_search(config, folder: Path) -> Outcome:
    """See search.py."""
    rest = f"{folder} has every batch that was finished. The same command goes on from there."
    with exit_at_once(rest):
        result = search.search(config, folder)
    if hosts.is_main():
        report.search_figure(
            result.generations, result.baselines, folder / "search.png", factors=result.factors
        )
        print(result.table, flush=True)
    content = result.content
    scored = f"{content['generations'][-1]['best']:.4g} ({content['unit']} of the search)"
    return Outcome(0, _result("search", config, content["forward_tokens"], 0, scored))


def run_train(config, folder: Path) -> Outcome:
    """See train.py; without evaluations on the way nothing is evaluated before the stage's end."""
    config = config.copy_and_resolve_references()
    if not config.train.eval_every:
        with config.unlocked():
            config.eval.suites = ()
    code = train.train(config, folder)
    if code:
        return Outcome(code, {})
    rows = hosts.from_main("metrics", lambda: _metrics(folder))
    if hosts.is_main():
        report.training_figure(rows, folder / "loss.png")
    tokens = sum(row["tokens"] for row in rows)
    return Outcome(0, _result("train", config, 0, tokens, ""))


def run_join(config, folder: Path) -> Outcome:
    """See recipe/join.py."""
    joined = join.run(config, folder)
    ends = ", ".join(f"{bucket.max_len:,}" for bucket in joined.buckets)
    print(f"rope.json: factors for up to {ends} tokens", flush=True)
    return Outcome(0, _result("join", config, 0, 0, ""))


def run_nothing(config, folder: Path) -> Outcome:
    """A stage that is its evaluation."""
    return Outcome(0, _result("evaluate", config, 0, 0, ""))


def _result(kind: str, config, forward: int, trained: int, perplexity: str) -> dict[str, Any]:
    return {
        "what": KINDS[kind].what(config),
        "forward_tokens": forward,
        "trained_tokens": trained,
        "perplexity": perplexity,
    }


def _metrics(folder: Path) -> list[dict]:
    rows = files.read_jsonl(folder / "metrics.jsonl", repair=False)
    return [row for row in rows if row.get("loss") is not None]


def _evaluated(config, folder: Path) -> dict[str, Any]:
    """Evaluates, unless that was done before; returns its tokens and its perplexity."""
    columns = evaluate.evaluate(config, folder)
    scores = {name.partition("/"): score for name, score in columns.items()}
    by_length = {int(n): score for (suite, _, n), score in scores.items() if suite == "perplexity"}
    summary = {"forward_tokens": columns["forward_tokens"]}
    if by_length:
        longest = max(by_length)
        score = by_length[longest]
        score_text = "not finite" if score is None else f"{score:.4g}"
        summary["perplexity"] = f"{score_text} at {longest:,}"
    return summary


def _of_folder(config, folder: Path):
    """Returns the config that evaluates the folder's model with its own rope."""
    shape = config.model.shape if config.model.source == "checkpoint" else ""
    eval_config = config.copy_and_resolve_references()
    with eval_config.unlocked():
        eval_config.model = dict(source="checkpoint", path=str(folder), shape=shape)
        eval_config.rope = dict(method="model")
        eval_config.eval.label = eval_config.eval.label or folder.name
    return eval_config.lock()


def _with_rope_of_folder(config, folder: Path):
    """Returns the config that evaluates the searched model with the folder's factors."""
    eval_config = config.copy_and_resolve_references()
    with eval_config.unlocked():
        eval_config.rope = dict(method="file", path=str(folder / "rope.json"))
        eval_config.eval.label = eval_config.eval.label or folder.name
    return eval_config.lock()


def _as_it_is(config, folder: Path):
    return config


def _search_tokens(config) -> tuple[int, int]:
    return search.planned_tokens(config), 0


def _train_tokens(config) -> tuple[int, int]:
    return 0, math.prod((config.train.steps, config.train.batch_size, config.train.seq_len))


def _train_what(config) -> str:
    section = config.train
    return f"{section.steps:,} steps of {section.batch_size:,} x {section.seq_len:,}"


KINDS = {
    "search": Kind(
        run=run_search,
        what=lambda config: f"search for {config.target_len:,}",
        tokens=_search_tokens,
        evaluated=_with_rope_of_folder,
    ),
    "train": Kind(run_train, what=_train_what, tokens=_train_tokens, evaluated=_of_folder),
    "join": Kind(
        run=run_join,
        what=lambda config: f"join of {len(config.join.ropes)} ropes",
        tokens=lambda config: (0, 0),
        evaluated=_of_folder,
    ),
    "evaluate": Kind(
        run=run_nothing,
        what=lambda config: f"evaluation of {len(config.eval.checkpoints) + 1} models",
        tokens=lambda config: (0, 0),
        evaluated=_as_it_is,
    ),
}
