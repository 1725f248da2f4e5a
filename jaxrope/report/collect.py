"""From workdirs to the contents of the page; the only module that knows the names of files."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxrope.errors import InputError
from jaxrope.report import attention, evaluations, ropes, searches, tables, trainings
from jaxrope.report.page import Folder, Section
from jaxrope.shell import duration
from jaxrope.store import files, sealed

COLUMNS = ("What", "Model", "Window", "Perplexity", "Pass key", "Needle", "RULER", "Cost")
NAMES = ("result.json", "journal.jsonl", "metrics.jsonl", "eval.json", "attention.json")

Row = Mapping[str, Any]
Line = dict[str, str]  # of the summary, by COLUMNS


@dataclasses.dataclass(frozen=True)
class Part:
    """The results of one program, or of several together.

    Attributes:
      sections: of the page.
      lines: of the summary.
      scores: the lines of evaluations alone.
      rows: of evaluations.
      factors: the result of a search, by rotary pair, or None.
      steps: of trainings: name of a stage, or "" -> rows.
      generations: of searches, in the same way.
      original_len: tokens, or None.
      evaluation: of an analysis: the stage with the perplexity of its settings, else "".
    """

    sections: list[Section] = dataclasses.field(default_factory=list)
    lines: list[Line] = dataclasses.field(default_factory=list)
    scores: list[Line] = dataclasses.field(default_factory=list)
    rows: list[Row] = dataclasses.field(default_factory=list)
    factors: Any = None
    steps: dict[str, list[Row]] = dataclasses.field(default_factory=dict)
    generations: dict[str, list[Row]] = dataclasses.field(default_factory=dict)
    original_len: int | None = None
    evaluation: str = ""


@dataclasses.dataclass(frozen=True)
class Workdir:
    """A workdir: its part of the page, its lines of the summary, and what can be compared."""

    folder: Folder
    lines: list[Line]
    part: Part


def collect(path: Path, published: Mapping[str, Any] | None = None) -> Workdir:
    """Returns the results in a workdir, or in the folders in it.

    Args:
      path: of the workdir: of one program, of a recipe, or a folder of such folders.
      published: name -> factors to draw beside the results.

    Raises:
      InputError: there are no results, or a file is broken.
    """
    if not path.is_dir():
        raise InputError(f"{path}: no such folder. Give a workdir of search.py, train.py, ...")
    stages = _recipe(path)
    inside = sorted(p.name for p in path.iterdir() if p.is_dir() and _has_results(p))
    searched = any((path / name / "journal.jsonl").is_file() for name in (".", *inside))
    root_part = _read(path, published or {}, searched) if _has_results(path) else None
    names = [
        name for name in _order(stages, root_part.evaluation if root_part else "") if name in inside
    ]
    names += [name for name in inside if name not in names]
    parts = [root_part] if root_part else []
    parts += [
        _named(_read(path / name, published or {}, searched), name, stages.get(name, {}))
        for name in names
    ]
    if not parts:
        raise InputError(
            f"{path} has none of {', '.join(NAMES)}, nor has a folder in it. Give a workdir of "
            "search.py, train.py, `python -m jaxrope.evaluate` or `python -m jaxrope.analyse`."
        )
    part = _joined(parts)
    if root_part and root_part.original_len:
        part = dataclasses.replace(part, original_len=root_part.original_len)
    lines = _recipe_lines(part, list(stages.values())) if stages and part.scores else part.lines
    sections = _with_commands(part.sections)
    folder = Folder(path.name or str(path), str(path), _facts(lines), sections)
    return Workdir(folder, lines, part)


def _has_results(folder: Path) -> bool:
    return any((folder / name).is_file() for name in NAMES)


def _recipe(path: Path) -> dict[str, Row]:
    """Returns {stage: its row of recipe.json}, in order; {} if there is none."""
    recipe = path / "recipe.json"
    if not recipe.is_file():
        return {}
    return _parsed(recipe, lambda: {row["name"]: row for row in _json(recipe)["stages"]})


def _order(stages: Mapping[str, Row], first: str) -> list[str]:
    """Returns the stages in the order of the page: `first`, else the last one and those that it
    uses, come before the others."""
    if not stages:
        return []
    if first in stages:
        return list(dict.fromkeys([first, *stages]))
    last = list(stages)[-1]
    return list(dict.fromkeys([last, *stages[last].get("uses", ()), *stages]))


def _read(folder: Path, published: Row, searched: bool) -> Part:
    """Returns the part of one folder; `searched`: the page has searches, which show factors."""
    origin = _origin(folder)
    result, journal = folder / "result.json", folder / "journal.jsonl"
    makers: list[tuple[Path, Callable[[Path], Part]]] = []
    if result.is_file():
        makers.append((result, lambda path: _search(path, journal, origin, published)))
    elif journal.is_file():
        makers.append((journal, lambda path: _running(path, origin, published)))
    else:
        rope = folder / "rope.json"
        makers.append((rope, lambda path: _rope(path, origin, published, searched)))
    makers.append((folder / "metrics.jsonl", lambda path: _training(path, origin)))
    makers.append((folder / "eval.json", _evaluation))
    makers.append((folder / "attention.json", _attention))
    return _joined([_parsed(p, lambda p=p, f=f: f(p)) for p, f in makers if p.is_file()])


def _search(path: Path, journal: Path, origin, published: Row) -> Part:
    content = _json(path)
    progress = searches.of_journal(_rows(journal)) if journal.is_file() else None
    if progress is not None:
        content = {**content, "original_len": progress["original_len"]}
    rope = path.with_name("rope.json")
    if rope.is_file():
        published = {**ropes.matching(rope), **published}
    origin = origin[0], content["config"]
    return Part(
        sections=[searches.section(content, progress, origin=origin, published=published)],
        lines=[searches.line(content)],
        factors=content["best"]["factors"],
        generations={"": content["generations"]},
        original_len=searches.original_len(content) or None,
    )


def _running(path: Path, origin, published: Row) -> Part:
    progress = searches.of_journal(_rows(path))
    if progress is None:
        raise ValueError("its first line has no target_len")
    return Part(
        sections=[searches.running_section(progress, origin=origin, published=published)],
        lines=[searches.running_line(progress, origin[1])],
        factors=progress["best"] and progress["best"]["factors"],
        generations={"": progress["generations"]},
        original_len=progress["original_len"],
    )


def _rope(path: Path, origin, published: Row, searched: bool) -> Part:
    section, factors, buckets = ropes.section(path, origin=origin, published=published)
    if searched and buckets == 1:
        return Part()  # the section of the search has shown them
    return Part(sections=[section], factors=factors)


def _training(path: Path, origin) -> Part:
    rows = _rows(path)
    return Part(
        sections=[trainings.section(rows, origin=origin)],
        lines=[trainings.line(rows, origin[1])],
        steps={"": trainings.steps(rows)},
    )


def _evaluation(path: Path) -> Part:
    content = _json(path)
    lines = evaluations.lines(content)
    return Part(
        sections=[evaluations.section(content)],
        lines=lines,
        scores=lines,
        rows=evaluations.complete(content["rows"]),
        original_len=tables.trained_len(content["model"]),
    )


def _attention(path: Path) -> Part:
    content = attention.read(_json(path))
    return Part(
        sections=attention.sections(content),
        lines=[attention.line(content)],
        original_len=content.original_len,
        evaluation=content.evaluation,
    )


def _joined(parts: Sequence[Part]) -> Part:
    """Joins parts. The rows of a suite, and the factors, are those of the first part with any."""
    rows: list[Row] = []
    for part in parts:
        suites = {row["suite"] for row in rows}
        rows += [row for row in part.rows if row["suite"] not in suites]
    return Part(
        sections=[section for part in parts for section in part.sections],
        lines=[line for part in parts for line in part.lines],
        scores=[line for part in parts for line in part.scores],
        rows=rows,
        factors=next((part.factors for part in parts if part.factors is not None), None),
        steps={name: rows for part in parts for name, rows in part.steps.items()},
        generations={name: rows for part in parts for name, rows in part.generations.items()},
        original_len=min((part.original_len for part in parts if part.original_len), default=None),
        evaluation=next((part.evaluation for part in parts if part.evaluation), ""),
    )


def _named(part: Part, name: str, stage: Row) -> Part:
    """Returns a stage's part, with its name in each title and line."""
    lines = [{**line, "What": f"{name}: {line['What']}"} for line in part.lines]
    if lines and "seconds" in stage:
        lines[0] = {**lines[0], "Cost": _cost([stage])}
    return dataclasses.replace(
        part,
        sections=[dataclasses.replace(section, stage=name) for section in part.sections],
        lines=lines,
        steps={name + key: rows for key, rows in part.steps.items()},
        generations={name + key: rows for key, rows in part.generations.items()},
    )


def _recipe_lines(part: Part, stages: Sequence[Row]) -> list[Line]:
    """Returns the lines of the summary for a recipe: its last evaluation, and the total cost.

    A score that is missing there is the first one that a stage has, in the order of the page.
    """
    starts = [i for i, line in enumerate(part.scores) if line["Cost"]]
    stop = starts[1] if len(starts) > 1 else None
    lines = [dict(line) for line in part.scores[:stop]]
    for column in ("Perplexity", "Pass key", "Needle", "RULER"):
        scores = [part.scores[i][column] for i in starts if part.scores[i][column]]
        lines[0][column] = lines[0][column] or (scores[0] if scores else "")
    done = [stage for stage in stages if "seconds" in stage]
    count = str(len(done)) if len(done) == len(stages) else f"{len(done)} of {len(stages)}"
    models = [line["Model"] for line in part.lines if line.get("Model")]
    base = next((name for name in models if name not in {stage["name"] for stage in stages}), "")
    for line in lines:
        line |= {"What": line["What"].removeprefix("evaluation, "), "Model": base, "Cost": ""}
    lines[0]["What"] = f"recipe of {count} stages, {lines[0]['What']}"
    lines[0]["Cost"] = _cost(done)
    return lines


def _cost(stages: Sequence[Row]) -> str:
    seconds = duration(sum(stage["seconds"] for stage in stages))
    forward, trained = (
        sum(stage.get(name, 0) for stage in stages) for name in ("forward_tokens", "trained_tokens")
    )
    words = [seconds, f"{trained:,} trained tokens" if trained else ""]
    return ", ".join(filter(None, [*words, f"{forward:,} forward tokens" if forward else ""]))


def _facts(lines: Sequence[Line]) -> list[tuple[str, str, str]]:
    """Returns the numbers at the top of a folder: those of the first line that has scores."""
    first = next((line for line in lines if line.get("Perplexity")), lines[0] if lines else {})
    facts = []
    for column in COLUMNS[2:]:
        value = first.get(column, "")
        if column == "Cost" and not value:
            value = next((line["Cost"] for line in lines if line.get("Cost")), "")
        if not value:
            continue
        mark = next((mark for mark in (" at ", " (", ", ") if mark in value), "")
        number, _, rest = value.partition(mark) if mark else (value, "", "")
        remark = rest.removesuffix(")") if mark == " (" else f"{mark.strip(' ,')} {rest}".strip()
        if column == "Perplexity":
            remark = "; ".join([remark, *_others(first, lines)])
        facts.append((column, number, remark))
    return facts


def _others(first: Line, lines: Sequence[Line]) -> list[str]:
    """Returns the perplexities of the other labels of an evaluation, if they are few."""
    other_lines = [
        line for line in lines if line is not first and " at " in line.get("Perplexity", "")
    ]
    if len(other_lines) > 3:
        return []
    return [f"{_label(line)} {line['Perplexity'].partition(' at ')[0]}" for line in other_lines]


def _label(line: Line) -> str:
    return line["What"].partition("evaluation, ")[2] or line["What"]


def _with_commands(sections: Sequence[Section]) -> list[Section]:
    """Returns the sections; those of stages without a command have the recipe's."""
    commands = [section.command for section in sections if " train.py " in section.command]
    completed = []
    for section in sections:
        if commands and section.stage and not section.command:
            command = f"{commands[0]} --config.stages={section.stage}"
            section = dataclasses.replace(section, command=command)
        completed.append(section)
    return completed


def _origin(folder: Path) -> tuple[str, Row]:
    """Returns the command, or "", and the config, or {}, of a folder."""
    command, config = folder / "command.txt", folder / "config.json"
    typed = command.read_text(encoding="utf-8").strip() if command.is_file() else ""
    return typed, _parsed(config, lambda: dict(_json(config))) if config.is_file() else {}


def _parsed(path: Path, make_fn: Callable[[], Any]) -> Any:
    try:
        return make_fn()
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        raise InputError(
            f"{path} is not what its program writes ({type(error).__name__}: {error}). "
            "Run the program again, or leave the folder out."
        ) from None


def _json(path: Path) -> Any:
    return sealed.read_json(path, sealed=False)


def _rows(path: Path) -> list[dict]:
    return files.read_jsonl(path, repair=False)
