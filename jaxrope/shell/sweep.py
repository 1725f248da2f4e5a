"""A sweep: the product of listed values, one run of a program after another, each in a folder.

`config.sweep = (("target_len", (2048, 4096)), ("seed", (0, 1)))` is four members. All of them are
prepared before the first one runs; one that is finished with this very identity is not run again.
sweep.json has a row for each.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxrope import schema
from jaxrope.errors import InputError
from jaxrope.schema import Config, rules
from jaxrope.shell import program as program_lib

FORMAT = "jaxrope.sweep/2"
_NOT_SWEPT = ("sweep", "recipe", "stages", "hosts")  # of the whole job
_LONGEST = 40  # characters of a value in a folder's name
_MEMBER = 200  # characters of a folder's name


def program(swept: program_lib.Program) -> program_lib.Program:
    """Returns the program that runs every member of `config.sweep`."""

    def compile_all(config: Config, topology: str, workdir: Path | None) -> None:
        for name, member in members(config).items():
            print(f"\n{name}", flush=True)
            swept.compile(member, topology, workdir)

    return dataclasses.replace(
        swept,
        run=lambda config, workdir: run(swept, config, workdir),
        dry_run=lambda config, workdir, timing: dry_run(swept, config, workdir, timing),
        compile=compile_all if swept.compile else None,
        check=lambda config: [swept.check(member) for member in members(config).values()],
        survives="",
    )


def members(config: Config) -> dict[str, Config]:
    """Returns {folder name: config} of every combination that `config.sweep` lists.

    A folder's name depends on its own values alone: it stays when a sweep gets more of them.

    Raises:
      InputError: a key is unknown or listed twice, a value breaks its rule or is listed twice.
    """
    keys = [key for key, _ in config.sweep]
    for key in keys:
        if key.partition(".")[0] in _NOT_SWEPT:
            raise InputError(f"sweep: {key} is of the whole job. Leave it out of the sweep.")
        if keys.count(key) > 1:
            raise InputError(f"sweep lists a key twice: {', '.join(keys)}. Join their values.")
    words = {key: _word(key, keys) for key in keys}
    base, configs = dataclasses.replace(config, sweep=()), {}
    for values in itertools.product(*(listed for _, listed in config.sweep)):
        pairs = list(zip(keys, values, strict=True))
        member = schema.replace(base, pairs, setting="sweep")
        name = _cut(",".join(f"{words[key]}={_text(value)}" for key, value in pairs), _MEMBER)
        if name in configs:
            raise InputError(f"sweep lists {name} twice. Leave one out.")
        configs[name] = member
    return configs


def run(swept: program_lib.Program, config: Config, workdir: Path) -> int:
    """Runs every member that is not finished, writes sweep.json and prints the table.

    Args:
      swept: the program.
      config: with a sweep.
      workdir: each member has a folder in it.

    Returns:
      0, or the exit code of the member that did not end with 0.

    Raises:
      InputError: a member cannot run; it is named. If that shows before, none has run.
    """
    from jaxrope.mesh import hosts

    configs = members(config)
    rows = {name: _finished(swept, member, workdir / name) for name, member in configs.items()}
    for name, member in configs.items():
        if rows[name] is None:
            with _naming(name):
                swept.door.prepare(member)
    for number, (name, member) in enumerate(configs.items(), start=1):
        print(f"\nmember {number} of {len(configs)}: {name}", flush=True)
        if rows[name] is not None:
            print(f"finished before, in {workdir / name}", flush=True)
            continue
        with _naming(name):
            code = swept.start(member, workdir / name)
        if code:
            print(f"stopped in member {name}; the same command goes on from there", flush=True)
            return code
        rows[name] = _finished(swept, member, workdir / name)
        hosts.from_main("sweep.json", lambda: _write(config, configs, rows, workdir))
    hosts.from_main("sweep.json", lambda: _write(config, configs, rows, workdir))
    print("\n" + _table(rows), flush=True)
    print(f"wrote sweep.json into {workdir}", flush=True)
    return 0


def dry_run(swept: program_lib.Program, config: Config, workdir: Path, timing: bool) -> str:
    """Returns what every member would do; the first one that is to run is measured, if any."""
    texts = []
    for name, member in members(config).items():
        row = _finished(swept, member, workdir / name)
        if row is not None:
            texts.append(f"{name}: finished, in {workdir / name}")
            continue
        with _naming(name):
            text = swept.describe(member, workdir / name, timing=timing)
        texts.append(f"{name}\n{text}")
        timing = False
    return "\n\n".join(texts)


def _finished(swept: program_lib.Program, member: Config, folder: Path) -> dict | None:
    """Returns the columns of a member that was run with exactly this identity.

    All processes ask, for there is text to be read together; process 0's answer counts.
    """
    from jaxrope.mesh import hosts

    columns = swept.door.finished(member, folder)
    return hosts.from_main(f"finished {folder.name}", lambda: columns)


@contextlib.contextmanager
def _naming(name: str) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        raise InputError(f"sweep member {name}: {error}") from None


def _write(config: Config, configs: Mapping, rows: Mapping, workdir: Path) -> None:
    from jaxrope.store import sealed

    content = [
        {
            "folder": name,
            "values": {key: _plain(schema.get(member, key)) for key, _ in config.sweep},
            "columns": rows[name],
        }
        for name, member in configs.items()
        if rows[name] is not None
    ]
    sealed.write_json(workdir / "sweep.json", {"format": FORMAT, "rows": content})


def _table(rows: Mapping[str, dict]) -> str:
    """Returns the members with all their columns as text."""
    names = list(dict.fromkeys(column for row in rows.values() for column in row))
    cells = [["member", *names]]
    for folder, row in rows.items():
        cells.append([folder, *(cell(row.get(name, "")) for name in names)])
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines = []
    for first, *rest in cells:
        numbers = (cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))
        lines.append("  ".join([first.ljust(widths[0]), *numbers]).rstrip())
    return "\n".join(lines)


def cell(value: Any) -> str:
    """Returns a value of a table as text."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) < 1e4 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _word(key: str, keys: list[str]) -> str:
    """Returns the last word of a key; all of it where another key ends with the same."""
    word = key.rpartition(".")[2]
    return word if [other.rpartition(".")[2] for other in keys].count(word) == 1 else key


def _text(value: Any) -> str:
    """Returns a value as part of a folder's name: readable, and another one for another value."""
    text, is_plain = str(value), not isinstance(value, dict | tuple)
    if isinstance(value, dict):  # a section, named by what it selects
        selected = [value[name] for name in ("name", "method", "source") if name in value]
        text, is_plain = str((selected or ["section"])[0]), len(value) == 1
    elif isinstance(value, tuple):
        text = "+".join(map(str, value)) or "none"
        is_plain = all(isinstance(item, int | float) for item in value)
    safe = re.sub(r"[^\w.+-]", "_", text)
    if is_plain and safe == text:
        return _cut(text, _LONGEST)
    return f"{safe[:_LONGEST]}-{_digest(value)}"


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[:longest]}-{_digest(text)}"


def _digest(value: Any) -> str:
    text = json.dumps(_plain(value), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _plain(value: Any) -> Any:
    return value.to_dict() if isinstance(value, rules.Section) else value
