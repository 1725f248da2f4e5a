"""Every suite by its name in eval.suites; each has its items, its cost and whether it needs text.

A new suite is a file and a line here, and its name and options in schema.evaluation.
"""

import dataclasses
from collections.abc import Iterator

from jaxrope.errors import TooShort
from jaxrope.evaluate import (
    answering,
    harness_run,
    haystack,
    infinitebench,
    longppl,
    needle,
    passkey,
    passkey_compat,
    perplexity,
    retrieval,
    ruler,
)
from jaxrope.evaluate.items import Task
from jaxrope.evaluate.scoring import Bench, EvalModel, Result, Suite
from jaxrope.schema.evaluation import Evaluation

# what is answered by generation
TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        haystack.TASK,
        retrieval.KV,
        retrieval.LINES,
        infinitebench.NUMBER_STRING_TASK,
        infinitebench.PASSKEY_TASK,
        passkey_compat.LONGROPE,
        passkey_compat.YARN,
        *ruler.TASKS,
    )
}
SUITES: dict[str, Suite] = {
    "perplexity": Suite(
        evaluate=perplexity.evaluate,
        items=perplexity.text_windows,
        forward_tokens=perplexity.forward_tokens,
        filled=perplexity.filled,
        needs_text=lambda options: True,
    ),
    "passkey": passkey.FORCED.suite(),
    "needle": needle.FORCED.suite(),
    "harness": Suite(
        evaluate=harness_run.evaluate,
        items=harness_run.check,
        forward_tokens=harness_run.forward_tokens,
        filled=harness_run.filled,
    ),
    "longppl": Suite(
        evaluate=longppl.evaluate,
        items=longppl.passages,
        forward_tokens=longppl.forward_tokens,
        filled=longppl.filled,
        needs_text=lambda options: True,
    ),
    **{name: answering.suite(task) for name, task in TASKS.items()},
}
# name in eval.suites -> (config.eval) -> names of its suites
GROUPS = {"ruler": lambda options: ruler.chosen(options.ruler)}


def chosen(options: Evaluation) -> dict[str, Suite]:
    """Returns the suites that config.eval names, those of GROUPS one by one."""
    names = [
        name
        for suite in options.suites
        for name in (GROUPS[suite](options) if suite in GROUPS else [suite])
    ]
    return {name: SUITES[name] for name in names}


def bench_of(name: str, bench: Bench) -> Bench:
    """Returns the bench of a suite: those of RULER may have lengths of their own."""
    lengths = bench.options.ruler.lengths if name.startswith("ruler/") else ()
    if not lengths:
        return bench
    return dataclasses.replace(bench, options=dataclasses.replace(bench.options, lengths=lengths))


def run(model: EvalModel, bench: Bench) -> Iterator[Result]:
    """Yields the results of every suite of the bench.

    Raises:
      InputError: whatever a suite refuses.
    """
    for name, suite in chosen(bench.options).items():
        yield from suite.evaluate(model, bench_of(name, bench))


def check(model: EvalModel, bench: Bench) -> None:
    """Does everything that `run` will do except running the model.

    Raises:
      InputError: whatever `run` would refuse: too little text, a length beyond the rope's last. Of
        all suites that do not fit into a length there is one message.
    """
    suites, tight = chosen(bench.options), []
    for name, suite in suites.items():
        suite_bench = bench_of(name, bench)
        for length in suite_bench.options.lengths:
            model.rope_fn(min(model.window, length) or length)
            try:
                suite.items(model, suite_bench, length)
            except TooShort as error:
                tight.append((name, length, error))
                continue
            suite.forward_tokens(model, suite_bench, length)
    if len(tight) > 1:
        raise _no_room(tight, [name for name in suites if name not in {t[0] for t in tight}])
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


def needs_text(options: Evaluation) -> bool:
    """Returns whether any suite of config.eval uses documents."""
    return any(suite.needs_text(options) for suite in chosen(options).values())


def forward_tokens(model: EvalModel, bench: Bench) -> int:
    """Returns the tokens that `run` reads and writes, at most."""
    total = 0
    for name, suite in chosen(bench.options).items():
        of_suite = bench_of(name, bench)
        lengths = of_suite.options.lengths
        total += sum(suite.forward_tokens(model, of_suite, length) for length in lengths)
    return total


def scalars(results) -> dict[str, float]:
    """Returns results as {"perplexity/512": 32.9, ...}: each one's score, for a line of metrics."""
    return {f"{r.suite}/{r.length}": next(iter(r.metrics.values())) for r in results}
