"""The evaluators by name; each has its items, its cost and whether it needs text.

An evaluator is a function (EvalModel, Bench) -> iterator of Result, one for each length. A
new evaluator is a file and a line of `EVALUATORS`; a new task that is answered by generation is a
line of `tasks.TASKS`.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator

from jaxrope.errors import InputError, TooShort, choose
from jaxrope.evaluate import (
    answering,
    harness_run,
    longppl,
    needle,
    passkey,
    perplexity,
    ruler,
    tasks,
)
from jaxrope.evaluate.scoring import Bench, EvalModel, Evaluate, Result, ignore


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """An evaluator and its cost.

    Attributes:
      evaluate: yields a Result for each length.
      items: (model, bench, length) -> its questions; raises InputError if they cannot be built.
      forward_tokens: (model, bench, length) -> tokens the model will read.
      needs_text: (bench) -> whether it uses bench.documents.
    """

    evaluate: Evaluate
    items: Callable[[EvalModel, Bench, int], object]
    forward_tokens: Callable[[EvalModel, Bench, int], int]
    needs_text: Callable[[Bench], bool]


EVALUATORS: dict[str, Evaluator] = {
    "perplexity": Evaluator(
        evaluate=perplexity.evaluate,
        items=perplexity.text_windows,
        forward_tokens=perplexity.forward_tokens,
        needs_text=lambda bench: True,
    ),
    "passkey": Evaluator(
        evaluate=passkey.evaluate,
        items=passkey.make_trials,
        forward_tokens=passkey.forward_tokens,
        needs_text=lambda bench: bench.passkey_filler == "text",
    ),
    "needle": Evaluator(
        evaluate=needle.evaluate,
        items=needle.make_trials,
        forward_tokens=needle.forward_tokens,
        needs_text=lambda bench: bench.needle_filler == "text",
    ),
    "harness": Evaluator(
        evaluate=harness_run.evaluate,
        items=harness_run.check,
        forward_tokens=harness_run.forward_tokens,
        needs_text=lambda bench: False,
    ),
    "longppl": Evaluator(
        evaluate=longppl.evaluate,
        items=longppl.passages,
        forward_tokens=longppl.forward_tokens,
        needs_text=lambda bench: True,
    ),
}


# name -> (its section of config.eval) -> names of its evaluators
GROUPS = {"ruler": ruler.chosen}


def bench(section, *, documents, seed: int, tick: Callable[[int], None] | None = None) -> Bench:
    """Returns the Bench that `config.eval` describes, checked.

    Args:
      section: config.eval.
      documents: held-out data.TokenDocuments, or None.
      seed: config.seed.
      tick: called with the number of tokens of each finished batch.

    Raises:
      InputError: a number is out of range.
    """
    counts = ("num_windows", "windows_per_doc", "batch_tokens", "stride")
    for key in (*counts, "passkey_trials", "needle_trials"):
        if section[key] < 1:
            raise InputError(f"eval.{key} is at least 1, got {section[key]}.")
    for key in ("offset_tokens", "window", "rope_len"):
        if section[key] < 0:
            raise InputError(f"eval.{key} is 0 or more, got {section[key]}.")
    if not section.lengths or min(section.lengths) < 1:
        raise InputError(
            "eval.lengths names one length at least, each of 1 token or more, got "
            f"{tuple(section.lengths)}."
        )
    if any(length < 1 for length in section.ruler.lengths):
        raise InputError(
            "eval.ruler.lengths holds lengths of 1 token or more, or none (eval.lengths), got "
            f"{tuple(section.ruler.lengths)}."
        )
    if section.bootstrap_samples < 100:
        raise InputError(
            "eval.bootstrap_samples is at least 100 (a 95% interval needs its tails), got "
            f"{section.bootstrap_samples}."
        )
    return Bench(
        documents=documents,
        lengths=tuple(section.lengths),
        num_windows=section.num_windows,
        windows_per_doc=section.windows_per_doc,
        offset_tokens=section.offset_tokens,
        batch_tokens=section.batch_tokens,
        stride=section.stride,
        bos_per_window=section.bos_per_window,
        aggregation=section.aggregation,
        passkey_trials=section.passkey_trials,
        passkey_filler=section.passkey_filler,
        passkey_zero_padded=section.passkey_zero_padded,
        needle_keys=tuple(section.needle_keys),
        needle_trials=section.needle_trials,
        needle_filler=section.needle_filler,
        bootstrap_samples=section.bootstrap_samples,
        seed=seed,
        tick=tick or ignore,
        options=section,
    )


def all_evaluators() -> dict[str, Evaluator]:
    """Returns every evaluator by its name in eval.suites."""
    return EVALUATORS | {
        name: Evaluator(
            evaluate=functools.partial(answering.evaluate, name),
            items=functools.partial(answering.check, name),
            forward_tokens=functools.partial(answering.forward_tokens, name),
            needs_text=lambda bench, name=name: tasks.needs_text(name, bench.options),
        )
        for name in tasks.TASKS
    }


def chosen(bench: Bench, suites) -> dict[str, Evaluator]:
    """Returns the evaluators that `suites` names, those of GROUPS one by one.

    Raises:
      InputError: an unknown name.
    """
    if not suites:
        raise InputError(f"eval.suites is empty. Known: {', '.join(all_evaluators())}.")
    evaluators, names = all_evaluators(), []
    for suite in suites:
        choose("eval.suites", suite, evaluators | GROUPS)
        names += GROUPS[suite](bench.options[suite]) if suite in GROUPS else [suite]
    return {name: evaluators[name] for name in names}


def bench_of(name: str, bench: Bench) -> Bench:
    """Returns the bench of a suite: those of RULER may have lengths of their own."""
    lengths = bench.options.ruler.lengths if name.startswith("ruler/") else ()
    return dataclasses.replace(bench, lengths=tuple(lengths)) if lengths else bench


def run(model: EvalModel, bench: Bench, suites) -> Iterator[Result]:
    """Yields the results of every evaluator named in `suites`.

    Raises:
      InputError: an unknown name, or whatever an evaluator refuses.
    """
    for name, evaluator in chosen(bench, suites).items():
        yield from evaluator.evaluate(model, bench_of(name, bench))


def check(model: EvalModel, bench: Bench, suites) -> None:
    """Does everything that `run` will do except running the model.

    Raises:
      InputError: whatever `run` would refuse: too little text, a length beyond the rope's last. Of
        all suites that do not fit into a length there is one message.
    """
    evaluators, tight = chosen(bench, suites), []
    for name, evaluator in evaluators.items():
        for length in bench_of(name, bench).lengths:
            model.rope_fn(min(model.window, length) or length)
            try:
                evaluator.items(model, bench, length)
            except TooShort as error:
                tight.append((name, length, error))
                continue
            evaluator.forward_tokens(model, bench, length)
    if len(tight) > 1:
        raise _no_room(tight, [name for name in evaluators if name not in {t[0] for t in tight}])
    if tight:
        raise tight[0][2]


def _no_room(tight: list[tuple[str, int, TooShort]], fitting: list[str]) -> TooShort:
    """Returns the error of several suites and lengths."""
    misfits, leasts = [], []
    for name in dict.fromkeys(name for name, _, _ in tight):
        lengths = [(length, error.least) for other, length, error in tight if other == name]
        least = max((least for _, least in lengths if least), default=None)
        needs = f"it takes {least:,}" if least else "it takes far more"
        misfits.append(
            f"{name} into {' and '.join(f'{length:,}' for length, _ in lengths)} ({needs})"
        )
        leasts.append(least)
    longer = f"of {max(leasts):,} tokens or more" if all(leasts) else "that are longer"
    remedy = f"; what fits: {', '.join(fitting)}" if fitting else ""
    return TooShort(
        f"eval.lengths: these do not fit: {'; '.join(misfits)}. Give lengths {longer}, or "
        f"leave them out of eval.suites or eval.ruler.tasks{remedy}.",
        least=max(leasts) if all(leasts) else None,
    )


def cost(model: EvalModel, bench: Bench, suites) -> int:
    """Returns the forward tokens that `run` will take, at most."""
    return sum(costs(model, bench, suites).values())


def costs(model: EvalModel, bench: Bench, suites) -> dict[str, int]:
    """Returns the forward tokens that `run` will take, at most, by suite."""
    return {
        name: sum(
            evaluator.forward_tokens(model, bench, length)
            for length in bench_of(name, bench).lengths
        )
        for name, evaluator in chosen(bench, suites).items()
    }


def needs_text(bench: Bench, suites) -> bool:
    """Returns whether any of `suites` uses documents."""
    return any(evaluator.needs_text(bench) for evaluator in chosen(bench, suites).values())


def scalars(results) -> dict[str, float]:
    """Returns results as {"perplexity/512": 32.9, ...}: each one's score, for a line of metrics."""
    return {f"{r.suite}/{r.length}": next(iter(r.metrics.values())) for r in results}
