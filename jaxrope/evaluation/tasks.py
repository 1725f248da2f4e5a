"""Every task that is answered by generation, by the name that eval.suites gives it.

Its settings are a section of config.eval: the one of its name (before a "/"), but for those in
`SECTIONS`. The section says how many items there are at each length.
"""

from jaxrope.evaluation import haystack, infinitebench, passkey_compat, retrieval, ruler
from jaxrope.evaluation.items import Request, Task

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

SECTIONS = {
    "passkey_longrope": "passkey_compat",
    "passkey_yarn": "passkey_compat",
    "passkey_infinitebench": "number_string",
}
_COUNTED_BY = {"ruler": "samples"}  # the key of a section that says how many items; else "trials"


def request(name: str, *, tokenizer, bench, length: int) -> Request:
    """Returns what the task `name` is asked for at a length.

    Args:
      name: of TASKS.
      tokenizer: of the model.
      bench: scoring.Bench.
      length: tokens.
    """
    section = _section(name)
    options = bench.options[section]
    return Request(
        tokenizer=tokenizer,
        length=length,
        count=options[_COUNTED_BY.get(section, "trials")],
        seed=bench.seed,
        documents=bench.documents,
        options=options,
    )


def needs_text(name: str, options) -> bool:
    """Returns whether a task reads data.eval_files: it may name a haystack of its own instead.

    Args:
      name: of TASKS.
      options: config.eval.
    """
    section = options[_section(name)]
    return TASKS[name].needs_text and not ("haystack" in section and section.haystack)


def _section(name: str) -> str:
    return SECTIONS.get(name, name.partition("/")[0])
