"""The page of several workdirs, and the files beside it: written whole, or not at all."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from jaxrope.errors import InputError
from jaxrope.report import (
    assets,
    axes,
    collect,
    comparison,
    evaluations,
    headline,
    names,
    page,
    ropes,
    tables,
    theme,
)
from jaxrope.report.collect import Row, Workdir
from jaxrope.report.headline import Headline
from jaxrope.report.page import Figure, Folder, Origin, Section
from jaxrope.store import files

NOTHING_YET = "Not decided whether extending worked: no perplexity was evaluated yet."
UNTRAINED = "Factors were searched; no weights were trained (jaxrope-extend --finetune=full does)."
# kind of a section -> title of its chapter, in the order of the page
CHAPTERS = {
    "evaluation": "Evaluation",
    "retrieval": "Retrieval",
    "search": "Factors and search",
    "factors": "Factors of other lengths",
    "training": "Training",
    "attention": "Attention",
}


def write(workdirs: list[Path], out: Path, *, published: list[str] | None = None) -> str:
    """Writes the page of `workdirs` to `out`, and the files beside it; or nothing at all. Returns
    the verdict that it begins with; "": nothing on it extends a model.

    Args:
      workdirs: the folders.
      out: the page, .html.
      published: names of presets, or paths of rope.json, to draw beside factors.

    Raises:
      InputError: a folder has no results, or a file of it is broken; `out` is not a page.
    """
    with axes.one_look() as looks:
        collected = read(workdirs, out, published or [])
        folders = _folders(collected)
        drawn, contents = assets.make(folders, assets.folder_of(out).name)
    art = page.Art(drawn, {label: theme.variable(colour) for label, (colour, *_) in looks.items()})
    text = page.render(_title(collected), _inventory(collected), folders, art)
    assets.write(contents, assets.folder_of(out))
    files.write_text_atomic(out, text)
    opens = folders and not folders[0].title
    return folders[0].sections[0].lead if opens else ""


def read(workdirs: list[Path], out: Path, published: list[str]) -> list[collect.Workdir]:
    """Returns what `write` would show.

    Raises:
      InputError: see write.
    """
    _check(out)
    beside, called = ropes.published(published), names.read(workdirs)
    return [collect.collect(path, beside, called) for path in workdirs]


def _check(out: Path) -> None:
    if out.suffix not in (".html", ".htm"):
        raise InputError(
            f"--out={out}: must end in .html, for the page would take its place. "
            f"Write --out={out.name}.html."
        )
    if out.is_dir() or assets.folder_of(out).is_file():
        raise InputError(
            f"--out={out}: the page is a file, and {assets.folder_of(out).name} a folder beside "
            "it. Give another name."
        )


def _title(workdirs: Sequence[Workdir]) -> str:
    """Returns the title of the page."""
    lines = [line for workdir in workdirs for line in workdir.lines]
    models = dict.fromkeys(line["Model"] for line in lines if line.get("Model"))
    windows = dict.fromkeys(line["Window"] for line in lines if "→" in line.get("Window", ""))
    title = ", ".join(models) if 0 < len(models) < 4 else "jaxrope"
    if len(windows) == 1:
        title += f": {next(iter(windows))} tokens"
    return title


def _inventory(workdirs: Sequence[Workdir]) -> list[list[str]]:
    """Returns the cells of the table of what the page is made from, without empty columns; the only
    model is the title.
    """
    lines = [line for workdir in workdirs for line in workdir.lines]
    values = {name: {line[name] for line in lines if line.get(name)} for name in collect.COLUMNS}
    columns = [name for name in collect.COLUMNS if len(values[name]) > (name == "Model")]
    cells = [["Workdir", *columns]]
    for workdir in workdirs:
        for line in workdir.lines:
            cells.append([workdir.folder.path, *(line.get(name, "") for name in columns)])
    return cells


def _folders(workdirs: Sequence[Workdir]) -> list[Folder]:
    """Returns the first screen and the chapters, each with the sections of its kind."""
    opening = first(workdirs)
    sections = []
    if len(workdirs) > 1:
        titles = [workdir.folder.title for workdir in workdirs]
        sections += comparison.sections(titles, [workdir.part for workdir in workdirs])
    for workdir in workdirs:
        for section in workdir.folder.sections:
            if len(workdirs) > 1:
                stage = "/".join(filter(None, (workdir.folder.title, section.stage)))
                section = dataclasses.replace(section, stage=stage)
            sections.append(section)
    shown = [(c.name, n) for c in opening.figures for n in _numbers(c)] if opening else []
    chapters = [Folder("", "", [opening])] if opening else []
    for kind, title in CHAPTERS.items():
        of_kind = [_without(section, shown) for section in sections if section.kind == kind]
        of_kind = [section for section in of_kind if section.tables or section.figures]
        if of_kind:
            chapters.append(Folder(title, "", of_kind))
    return chapters


def _without(section: Section, shown: list) -> Section:
    """Returns a section without figures that show what was drawn before; the factors of a training
    are mostly those of its search.
    """
    is_rope, is_one = section.kind == "factors", section.origin != Origin()
    is_result = is_one and (not is_rope or len(section.tables[0][1]) == 2)
    charts = []
    for figure in section.figures:
        whole, result = _numbers(figure)
        drawn = (figure.name, result if is_result and figure.name == "factors" else whole)
        if drawn not in shown:
            charts.append(figure)
            shown.append(drawn)
    tables = [] if is_rope and not charts else section.tables
    return dataclasses.replace(section, figures=charts, tables=tables)


def _numbers(figure: Figure) -> tuple[list, list]:
    """Returns the numbers of a figure, and those of its last column alone."""
    return list(figure.numbers), [row[-1] for row in figure.numbers[1:]]


def first(workdirs: Sequence[Workdir]) -> Section | None:
    """Returns the first screen; None if nothing on the page extends a model."""
    headlines = _headlines(workdirs)
    if not headlines:
        return None
    (name, best), *others = headlines
    if best.evaluation:
        rows = [row for row in best.evaluation["rows"] if row["suite"] == "perplexity"]
        trained = tables.trained_len(best.evaluation["model"])
        charts = [c for c in evaluations.charts(rows, trained) if c.name == "perplexity"]
    else:  # of a search, its factors
        drawn = [c for w in workdirs for section in w.folder.sections for c in section.figures]
        charts = [chart for chart in drawn if chart.name == "factors"][:1]
    costs = [
        f"{line['What'].partition(' of ')[0].partition(',')[0]} {line['Cost']}"
        for workdir in workdirs
        for line in workdir.lines[: 1 if "recipe" in workdir.lines[0]["What"] else None]
        if line.get("Cost")
    ]
    notes = [f"{of}: {other.sentence}" if of else other.sentence for of, other in others]
    notes += [f"Cost: {'; '.join(costs)}."] if costs else []
    shown = [(best.title, best.cells)] if best.cells else []
    lead = f"{name}: {best.sentence}" if others and name else best.sentence
    parts = [workdir.part for workdir in workdirs]
    is_searched = any(part.searches for part in parts) and not any(part.steps for part in parts)
    if best.evaluation and best.kind == "worse" and is_searched:
        lead += f" {UNTRAINED}"
    return Section("", shown, charts, Origin(), kind=best.kind, lead=lead, notes=notes)


def _headlines(workdirs: Sequence[Workdir]) -> list[tuple[str, Headline]]:
    """Returns (workdir, headline) of the evaluations, or of the searches, which name themselves,
    where there are none.
    """
    evaluated = [
        (workdir.folder.title, sorted(workdir.part.evaluations, key=_rank))
        for workdir in workdirs
        if workdir.part.evaluations
    ]
    tasks = [content for _, contents in evaluated for content in contents if _is_task(contents[0])]
    headlines = []
    for name, (content, *others) in evaluated:
        if not _is_task(content):  # what others have found with the same model belongs to it
            others += [task for task in tasks if task["model"] == content["model"]]
            inside = [other for other in others if _rank(other) == 1]
            whole = evaluations.joined([content, *others])
            headlines.append((name, headline.of_evaluation(whole, inside)))
    if headlines:
        return headlines
    searched = [
        ("", headline.of_search(search.content, search.journal, search.name))
        for workdir in workdirs
        for search in workdir.part.searches
    ]
    parts = [workdir.part for workdir in workdirs]
    extends = any(part.generations or part.steps or part.evaluations for part in parts)
    undecided = Headline(NOTHING_YET, "open")
    return searched or ([("", undecided)] if extends else [])


def _rank(content: Row) -> int:
    """Returns 0 where perplexity beyond the model's own window was measured, 1 where inside alone,
    2 where none.
    """
    if _is_task(content):
        return 2
    trained = tables.trained_len(content["model"]) or 0
    return int(all(row["length"] <= trained for row in content["rows"]))


def _is_task(content: Row) -> bool:
    """Returns whether an evaluation has no perplexity."""
    return all(row["suite"] != "perplexity" for row in content["rows"])
