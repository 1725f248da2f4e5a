"""From workdirs to the contents of the page; the only module that knows the names of files."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxrope.errors import InputError
from jaxrope.report import attention, evaluations, ropes, searches, tables, trainings
from jaxrope.report.names import Names
from jaxrope.report.page import Folder, Origin, Section
from jaxrope.shell import duration
from jaxrope.store import files, sealed

COLUMNS = ("What", "Model", "Window", "Cost")
NAMES = ("result.json", "journal.jsonl", "metrics.jsonl", "eval.json", "attention.json")

Row = Mapping[str, Any]
Line = dict[str, str]  # of the inventory, by COLUMNS


@dataclasses.dataclass(frozen=True)
class Search:
    """What a finished search wrote, and the name of its result."""

    content: Row
    journal: Row | None
    name: str


@dataclasses.dataclass(frozen=True)
class Part:
    """The results of one program, or of several together.

    Attributes:
      sections: of the page.
      lines: of the inventory.
      evaluations: contents of eval.json, their rows complete.
      searches: those that are finished.
      factors: the results of searches: name -> factors by rotary pair.
      steps: of trainings: name of what they made -> rows.
      generations: of searches, in the same way.
      original_len: tokens, or None.
      evaluation: of an analysis: the stage with the perplexity of its settings, else "".
    """

    sections: list[Section] = dataclasses.field(default_factory=list)
    lines: list[Line] = dataclasses.field(default_factory=list)
    evaluations: list[Row] = dataclasses.field(default_factory=list)
    searches: list[Search] = dataclasses.field(default_factory=list)
    factors: dict[str, Any] = dataclasses.field(default_factory=dict)
    steps: dict[str, list[Row]] = dataclasses.field(default_factory=dict)
    generations: dict[str, list[Row]] = dataclasses.field(default_factory=dict)
    original_len: int | None = None
    evaluation: str = ""

    @property
    def rows(self) -> list[Row]:
        """Returns the rows of all evaluations."""
        return evaluations.joined(self.evaluations)["rows"] if self.evaluations else []


@dataclasses.dataclass(frozen=True)
class Workdir:
    """A workdir: its part of the page, its lines of the inventory, and what can be compared."""

    folder: Folder
    lines: list[Line]
    part: Part


def collect(
    path: Path, published: Mapping[str, Any] | None = None, names: Names | None = None
) -> Workdir:
    """Returns the results in a workdir, or in the folders in it.

    Args:
      path: of the workdir: of one program, of a recipe, or a folder of such folders.
      published: name -> factors to draw beside the results.
      names: of the rows of the page.

    Raises:
      InputError: there are no results, or a file is broken.
    """
    if not path.is_dir():
        raise InputError(f"{path}: no such folder. Give a workdir of search.py, train.py, ...")
    stages, page = _recipe(path), (published or {}, names or Names())
    inside = sorted(p.name for p in path.iterdir() if p.is_dir() and _has_results(p))
    root_part = _read(path, *page) if _has_results(path) else None
    order = [
        name for name in _order(stages, root_part.evaluation if root_part else "") if name in inside
    ]
    order += [name for name in inside if name not in order]
    parts = [root_part] if root_part else []
    parts += [_named(_read(path / name, *page), name, stages.get(name, {})) for name in order]
    if not parts:
        raise InputError(
            f"{path} has none of {', '.join(NAMES)}, nor has a folder in it. Give a workdir of "
            "search.py, train.py, `python -m jaxrope.evaluate` or `python -m jaxrope.analyse`."
        )
    part = _joined(parts)
    if root_part and root_part.original_len:
        part = dataclasses.replace(part, original_len=root_part.original_len)
    lines = [*_recipe_line(part, list(stages.values())), *part.lines]
    folder = Folder(path.name or str(path), str(path), _with_commands(part.sections))
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


def _read(folder: Path, published: Row, names: Names) -> Part:
    """Returns the part of one folder."""
    origin, where = _origin(folder), folder.resolve()
    result, journal = folder / "result.json", folder / "journal.jsonl"
    makers: list[tuple[Path, Callable[[Path], Part]]] = []
    searched, trained = names.of_search(where), names.of_training(where)
    if result.is_file():
        makers.append((result, lambda path: _search(path, journal, origin, searched, published)))
    elif journal.is_file():
        makers.append((journal, lambda path: _running(path, origin, searched, published)))
    else:
        rope = folder / "rope.json"
        makers.append((rope, lambda path: _rope(path, origin, trained, published)))
    makers.append((folder / "metrics.jsonl", lambda path: _training(path, origin, trained)))
    makers.append((folder / "eval.json", lambda path: _evaluation(path, origin)))
    makers.append((folder / "attention.json", _attention))
    return _joined([_parsed(p, lambda p=p, f=f: f(p)) for p, f in makers if p.is_file()])


def _search(path: Path, journal: Path, origin: Origin, name: str, published: Row) -> Part:
    content = _json(path)
    progress = searches.of_journal(_rows(journal)) if journal.is_file() else None
    if progress is not None:
        content = {**content, "original_len": progress["original_len"]}
    rope = path.with_name("rope.json")
    if rope.is_file():
        published = {**ropes.matching(rope), **published}
    about = {**origin.about, "versions": content.get("versions"), "model": content.get("model")}
    origin = Origin(origin.command, content["config"], about)
    return Part(
        sections=[
            searches.section(content, progress, name=name, origin=origin, published=published)
        ],
        lines=[searches.line(content)],
        searches=[Search(content, progress, name)],
        factors={name: content["best"]["factors"]},
        generations={name: content["generations"]},
        original_len=searches.original_len(content) or None,
    )


def _running(path: Path, origin: Origin, name: str, published: Row) -> Part:
    progress = searches.of_journal(_rows(path))
    if progress is None:
        raise ValueError("its first line has no target_len")
    best = progress["best"]
    return Part(
        sections=[
            searches.running_section(progress, name=name, origin=origin, published=published)
        ],
        lines=[searches.running_line(progress, origin.config)],
        factors={name: best["factors"]} if best else {},
        generations={name: progress["generations"]},
        original_len=progress["original_len"],
    )


def _rope(path: Path, origin: Origin, name: str, published: Row) -> Part:
    section, factors = ropes.section(path, name=name, origin=origin, published=published)
    return Part(sections=[section], factors={name: factors})


def _training(path: Path, origin: Origin, name: str) -> Part:
    rows = _rows(path)
    return Part(
        sections=[trainings.section(rows, name=name, origin=origin)],
        lines=[trainings.line(rows, origin.config)],
        steps={name: trainings.steps(rows)},
    )


def _evaluation(path: Path, origin: Origin) -> Part:
    content = _json(path)
    content = {**content, "rows": evaluations.complete(content["rows"])}
    about = {**origin.about, "model": content["model"]}
    origin = Origin(content["command"], content["config"], about)
    return Part(
        sections=evaluations.sections(content, origin),
        lines=evaluations.lines(content),
        evaluations=[content],
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
    """Joins parts."""
    return Part(
        sections=[section for part in parts for section in part.sections],
        lines=[line for part in parts for line in part.lines],
        evaluations=[content for part in parts for content in part.evaluations],
        searches=[search for part in parts for search in part.searches],
        factors={name: factors for part in parts for name, factors in part.factors.items()},
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
        evaluations=[{**content, "stage": name} for content in part.evaluations],
    )


def _recipe_line(part: Part, stages: Sequence[Row]) -> list[Line]:
    """Returns the line of the inventory with the total cost of a recipe; [] if there is none."""
    if not stages:
        return []
    done = [stage for stage in stages if "seconds" in stage]
    count = str(len(done)) if len(done) == len(stages) else f"{len(done)} of {len(stages)}"
    models = [line["Model"] for line in part.lines if line.get("Model")]
    base = next((name for name in models if name not in {stage["name"] for stage in stages}), "")
    lines = [line for content in part.evaluations for line in evaluations.lines(content)]
    windows = [line["Window"] for line in (*lines, *part.lines) if "→" in line.get("Window", "")]
    line = {"What": f"recipe of {count} stages", "Model": base, "Cost": _cost(done)}
    return [{**line, "Window": windows[0] if windows else ""}]


def _cost(stages: Sequence[Row]) -> str:
    seconds = duration(sum(stage["seconds"] for stage in stages))
    forward, trained = (
        sum(stage.get(name, 0) for stage in stages) for name in ("forward_tokens", "trained_tokens")
    )
    words = [seconds, f"{trained:,} trained tokens" if trained else ""]
    return ", ".join(filter(None, [*words, f"{forward:,} forward tokens" if forward else ""]))


def _with_commands(sections: Sequence[Section]) -> list[Section]:
    """Returns the sections; those of stages without a command have the recipe's."""
    commands = [s.origin.command for s in sections if " train.py " in s.origin.command]
    completed = []
    for section in sections:
        if commands and section.stage and not section.origin.command:
            command = f"{commands[0]} --config.stages={section.stage}"
            origin = dataclasses.replace(section.origin, command=command)
            section = dataclasses.replace(section, origin=origin)
        completed.append(section)
    return completed


def _origin(folder: Path) -> Origin:
    """Returns the command, the config and the files of a folder, as far as it has them."""
    command, config = folder / "command.txt", folder / "config.json"
    typed = command.read_text(encoding="utf-8").strip() if command.is_file() else ""
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    about = {"folder": str(folder), "files": ", ".join(names)}
    stated = _parsed(config, lambda: dict(_json(config))) if config.is_file() else {}
    return Origin(typed, stated, about)


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
