"""The product of listed values, one search after another, each in a folder of its own."""

import functools
import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxrope.errors import InputError, nearest
from jaxrope.mesh import hosts
from jaxrope.shell import experiment
from jaxrope.store import files

FORMAT = "jaxrope.sweep/1"
_SELECTORS = ("name", "method", "source")  # the key that names a section that is swept as a whole


def members(config) -> dict[str, Any]:
    """Returns {folder name: config} of every combination that `config.sweep` lists.

    Raises:
      InputError: a key is unknown or listed twice, or a value is not of its type.
    """
    keys = [_checked(config, entry)[0] for entry in config.sweep]
    if len(set(keys)) < len(keys):
        raise InputError(f"sweep lists a key twice: {', '.join(keys)}. Join their values.")
    lists = [entry[1] for entry in config.sweep]
    configs: dict[str, Any] = {}
    for values in itertools.product(*lists):
        name = ",".join(f"{_word(key)}={_text(v)}" for key, v in zip(keys, values, strict=True))
        name = re.sub(r"[^\w.,=+-]", "_", name)[:120]
        if name in configs:
            name = f"{name},{len(configs)}"
        configs[name] = _member(config, keys, values)
    return configs


def run(config, workdir: Path, search_fn: Callable[[Any, Path], Any]) -> str:
    """Runs every member that is not finished; writes sweep.json.

    Args:
      config: with a sweep.
      workdir: each member has a folder in it.
      search_fn: (config, workdir) runs one, and is not called for a finished one.

    Returns:
      The table of all members.
    """
    rows = []
    for name, member in members(config).items():
        folder = workdir / name
        content = hosts.from_main(
            name, functools.partial(_finished, folder / "result.json", member)
        )
        if content is None:
            try:
                content = search_fn(member, folder).content
            except InputError as error:
                raise InputError(f"sweep member {name}: {error}") from None
        rows.append(_row(name, member, content, config.sweep))
        if hosts.is_main():
            files.write_json_atomic(workdir / "sweep.json", {"format": FORMAT, "rows": rows})
    return _table(rows)


def _checked(config, entry) -> tuple[str, tuple]:
    is_pair = isinstance(entry, tuple | list) and len(entry) == 2 and isinstance(entry[0], str)
    if not is_pair or not isinstance(entry[1], tuple | list) or not entry[1]:
        raise InputError(
            f'sweep must hold pairs like ("target_len", (2048, 4096)), got {entry!r}. In a tuple '
            "of one pair the comma after it is easily lost."
        )
    keys = experiment.dotted_keys(config)
    if entry[0] not in keys or entry[0] == "sweep":
        raise InputError(f"Unknown key '{entry[0]}' in sweep. {nearest(entry[0], keys)}")
    return entry[0], tuple(entry[1])


def _member(config, keys: list[str], values: tuple) -> ConfigDict:
    member = config.copy_and_resolve_references()
    member.sweep = ()
    for key, value in zip(keys, values, strict=True):
        experiment.assign(member, key, value, setting="sweep")
    return member.lock()


def _finished(path: Path, member) -> dict | None:
    """Returns the result of a member that was run with exactly this config."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    same = content.get("config") == json.loads(json.dumps(member.to_dict()))
    return content if same else None


def _row(name: str, member, content: dict, sweep) -> dict:
    baselines = [row["fitness"] for row in content["baselines"] if row["fitness"] is not None]
    return {
        "folder": name,
        "values": {key: _plain(experiment.dotted_keys(member)[key]) for key, _ in sweep},
        "unit": content["unit"],
        "fitness": content[content["unit"]],
        "best_baseline": min(baselines, default=None),
        "start_tokens": content["best"]["start_tokens"],
        "evaluations": content["evaluations"],
        "forward_tokens": content["forward_tokens"],
        "seconds": content["seconds"],
    }


def _table(rows: list[dict]) -> str:
    width = max(len(row["folder"]) for row in rows)
    lines = [f"{'member':<{width}}{'fitness':>12}{'baseline':>12}{'gain':>8}{'tokens':>16}"]
    for row in rows:
        base = row["best_baseline"]
        gain = "" if base is None else f"{100 * (1 - row['fitness'] / base):.1f}%"
        baseline_text = "" if base is None else f"{base:.4f}"
        lines.append(
            f"{row['folder']:<{width}}{row['fitness']:>12.4f}{baseline_text:>12}{gain:>8}"
            f"{row['forward_tokens']:>16,}"
        )
    return "\n".join(lines)


def _word(key: str) -> str:
    return key.rpartition(".")[2]


def _text(value: Any) -> str:
    """Returns a value as part of a folder name; a section is named by what it selects."""
    if isinstance(value, dict):
        return str(next((value[name] for name in _SELECTORS if name in value), "section"))
    return str(value)


def _plain(value: Any) -> Any:
    return value.to_dict() if isinstance(value, ConfigDict) else value
