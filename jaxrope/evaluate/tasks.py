"""Every task that is answered by generation, by its name in eval.suites.

Its settings are a section of config.eval, which `SECTIONS` names. The section says how many items
there are at each length.
"""

from collections.abc import Callable

from jaxrope.evaluate import haystack, infinitebench, passkey_compat, retrieval, ruler
from jaxrope.evaluate.items import Request, Task

TASKS: dict[str, Task] = {
    "niah": haystack.TASK,
    "kv": retrieval.KV,
    "lines": retrieval.LINES,
    "number_string": infinitebench.NUMBER_STRING_TASK,
    "passkey_infinitebench": infinitebench.PASSKEY_TASK,
    "passkey_longrope": passkey_compat.LONGROPE,
    "passkey_yarn": passkey_compat.YARN,
    **ruler.TASKS,
}

# a name, or what stands before its "/" -> its section of config.eval
SECTIONS: dict[str, Callable] = {
    "niah": lambda options: options.niah,
    "kv": lambda options: options.kv,
    "lines": lambda options: options.lines,
    "number_string": lambda options: options.number_string,
    "passkey_infinitebench": lambda options: options.number_string,
    "passkey_longrope": lambda options: options.passkey_compat,
    "passkey_yarn": lambda options: options.passkey_compat,
    "ruler": lambda options: options.ruler,
}
_COUNTED_BY = {"ruler": "samples"}  # the key of a section that says how many items; else "trials"


def request(name: str, *, tokenizer, bench, length: int) -> Request:
    """Returns the request to the task `name` at a length.

    Args:
      name: of TASKS.
      tokenizer: of the model.
      bench: scoring.Bench.
      length: tokens.
    """
    options = _section(name, bench.options)
    return Request(
        tokenizer=tokenizer,
        length=length,
        count=options[_COUNTED_BY.get(_family(name), "trials")],
        seed=bench.seed,
        documents=bench.documents,
        options=options,
        cache=bench.cache.setdefault("files", {}),
    )


def needs_text(name: str, options) -> bool:
    """Returns whether a task reads data.eval_files: it may name a haystack of its own instead.

    Args:
      name: of TASKS.
      options: config.eval.
    """
    section = _section(name, options)
    return TASKS[name].needs_text and not ("haystack" in section and section.haystack)


def _section(name: str, options):
    return SECTIONS[_family(name)](options)


def _family(name: str) -> str:
    return name.partition("/")[0]
