"""RULER: 13 tasks of retrieving, tracing, counting and answering at a length (arXiv 2404.06654).

For the same tokenizer, length, seed and words the prompts are NVIDIA's to the byte, where their
scripts need no download (niah_single_1, niah_multikey_2, niah_multikey_3, vt, fwe) and, given the
same files, in cwe, qa_1 and qa_2. The essay tasks differ by where a sentence ends (sources.py).
NVIDIA's length counts the prompt and the answer but not bos. With bos there may be one token more;
as the last token of an answer is not read, no place that is read lies beyond the length.

    prompts    templates, what is asked for, random numbers
    fit        how large a haystack may be
    niah, variables, counts, qa    the tasks
    words, sources    frozen words, files of the user's
    metrics    scores, effective length, weighted averages
"""

import dataclasses
import functools
from collections.abc import Iterable

from jaxrope.errors import TooShort
from jaxrope.evaluate.items import Item, Request, Task
from jaxrope.evaluate.ruler import counts, fit, metrics, niah, prompts, qa, sources, variables
from jaxrope.evaluate.ruler.metrics import summary
from jaxrope.evaluate.ruler.niah import Needles
from jaxrope.evaluate.ruler.prompts import Order, Sample, Template

__all__ = ["NAMES", "TASKS", "chosen", "files_of", "generate", "summary"]

NEEDLES = {
    "niah_single_1": Needles("noise"),
    "niah_single_2": Needles("essay"),
    "niah_single_3": Needles("essay", value_kind="uuids"),
    "niah_multikey_1": Needles("essay", keys=4),
    "niah_multikey_2": Needles("needle"),
    "niah_multikey_3": Needles("needle", key_kind="uuids", value_kind="uuids"),
    "niah_multivalue": Needles("essay", values=4),
    "niah_multiquery": Needles("essay", queries=4),
}
TEMPLATES: dict[str, Template] = {
    **dict.fromkeys(NEEDLES, prompts.NIAH),
    "vt": prompts.VARIABLES,
    "cwe": prompts.COMMON_WORDS,
    "fwe": prompts.FREQUENT_WORDS,
    "qa_1": prompts.QA,
    "qa_2": prompts.QA,
}
NAMES = tuple(TEMPLATES)

# Task -> the key of config.eval.ruler that names its files; all others need none.
FILES = {
    **dict.fromkeys(metrics.ESSAY_TASKS, "essays"),
    "qa_1": "squad",
    "qa_2": "hotpotqa",
}


def chosen(options) -> tuple[str, ...]:
    """Returns the names, in suites.TASKS, of the tasks that the suite "ruler" means.

    Args:
      options: config.eval.ruler. Its `tasks` are taken; () = all whose files are named.
    """
    available = [name for name in NAMES if name not in FILES or getattr(options, FILES[name])]
    return tuple(f"ruler/{name}" for name in options.tasks or available)


def files_of(suites: Iterable[str]) -> list[str]:
    """Returns the keys of config.eval.ruler that name files which these suites read."""
    names = {suite.removeprefix("ruler/") for suite in suites if suite.startswith("ruler/")}
    keys = {FILES[name] for name in names if name in FILES}
    return sorted(keys | ({"english_words"} if "cwe" in names else set()))


def generate(order: Order, options, cache: dict | None = None) -> list[Sample]:
    """Returns what NVIDIA's script writes for the task order.name.

    Args:
      order: which task, how many questions, how long, which seed.
      options: config.eval.ruler, for the files it names.
      cache: contents of files that were read before; new ones are added.

    Raises:
      TooShort: it does not fit.
      InputError: a file is missing.
    """
    name, cache = order.name, {} if cache is None else cache

    def once(read_fn, paths, *more):
        key = read_fn.__name__, paths
        if key not in cache:
            cache[key] = read_fn(paths, *more)
        return cache[key]

    if name in NEEDLES:
        is_essay = NEEDLES[name].haystack == "essay"
        essay = once(sources.read_essay, options.essays, name) if is_essay else None
        return niah.samples(NEEDLES[name], order, essay)
    if name == "vt":
        return variables.samples(order)
    if name == "cwe":
        return counts.common_words(order, once(sources.read_words, options.english_words))
    if name == "fwe":
        return counts.frequent_words(order)
    if name == "qa_1":
        return qa.samples(order, once(sources.read_squad, options.squad, name), "eval.ruler.squad")
    read = once(sources.read_hotpotqa, options.hotpotqa, name)
    return qa.samples(order, read, "eval.ruler.hotpotqa")


def make_items(name: str, request: Request) -> list[Item]:
    """Returns the questions of a task, as the runner asks them.

    Raises:
      TooShort: it does not fit; it says which length does.
      InputError: as `generate`.
    """
    tokenizer = request.tokenizer
    order = Order(
        name=name,
        count_tokens=lambda text: len(tokenizer.encode(text)),
        length=request.length,
        count=request.count,
        seed=request.options.seed,
    )
    return [
        Item(
            prompt=sample.prompt,
            answers=sample.outputs,
            max_new_tokens=TEMPLATES[name].new_tokens,
            about=_about(name, index, sample),
        )
        for index, sample in enumerate(_generated(order, request))
    ]


def _generated(order: Order, request: Request) -> list[Sample]:
    def at(length: int) -> list[Sample]:
        sized_order = dataclasses.replace(order, length=length)
        return generate(sized_order, request.options, request.cache)

    try:
        return at(order.length)
    except TooShort:
        key = "ruler least", order.name, order.length, order.count
        if key not in request.cache:
            request.cache[key] = fit.least_length(at, order.length)
        new_tokens, least = TEMPLATES[order.name].new_tokens, request.cache[key]
        raise fit.refusal(order, None, new_tokens, least=least) from None


def _about(name: str, index: int, sample: Sample) -> dict[str, float | int | str]:
    """Returns what tables group by. `index` is the question's number in every task.

    NVIDIA's needle files have the place of the answer under that name, in characters; here it is
    `depth`, the tenth of the prompt in which the answer begins, from 0.0 to 0.9.
    """
    about: dict[str, float | int | str] = {"task": name, "index": index}
    if _has_depth(name):
        place = sample.input.index(sample.outputs[0])
        about["depth"] = place * 10 // len(sample.input) / 10
    if name in metrics.ESSAY_TASKS:
        about["haystack"] = "own text"  # not NVIDIA's essays
    return about


def _has_depth(name: str) -> bool:
    """Returns whether one needle is asked for, so that it has one place."""
    return name in NEEDLES and NEEDLES[name].queries * NEEDLES[name].values == 1


TASKS = tuple(
    Task(
        name=f"ruler/{name}",
        section="ruler",
        make=functools.partial(make_items, name),
        score=metrics.match_part if template is prompts.QA else metrics.match_all,
        columns=("depth",) if _has_depth(name) else (),
        copying_scores=template in (prompts.COMMON_WORDS, prompts.FREQUENT_WORDS),
        counted_by="samples",
        exceeds=True,  # by bos
    )
    for name, template in TEMPLATES.items()
)
