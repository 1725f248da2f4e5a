"""The page of several workdirs, and the files beside it: written whole, or not at all."""

from pathlib import Path

from jaxrope.errors import InputError
from jaxrope.report import assets, collect, comparison, page, ropes
from jaxrope.store import files


def write(workdirs: list[Path], out: Path, *, published: list[str] | None = None) -> None:
    """Writes the page of `workdirs` to `out`, and the files beside it; or nothing at all.

    Args:
      workdirs: the folders.
      out: the page, .html.
      published: names of presets, or paths of rope.json, to draw beside factors.

    Raises:
      InputError: a folder has no results, or a file of it is broken; `out` is not a page.
    """
    collected = read(workdirs, out, published or [])
    folders = [workdir.folder for workdir in collected]
    if len(collected) > 1:
        together = comparison.folder(
            [workdir.folder.title for workdir in collected], [workdir.part for workdir in collected]
        )
        folders = [together, *folders] if together else folders
    drawn, contents = assets.make(folders, assets.folder_of(out).name)
    text = page.render(*_title(collected), _summary(collected, len(folders)), folders, drawn)
    assets.write(contents, assets.folder_of(out))
    files.write_text_atomic(out, text)


def read(workdirs: list[Path], out: Path, published: list[str]) -> list[collect.Workdir]:
    """Returns what `write` would show.

    Raises:
      InputError: see write.
    """
    _check(out)
    beside = ropes.published(published)
    return [collect.collect(path, beside) for path in workdirs]


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


def _title(workdirs: list[collect.Workdir]) -> tuple[str, str]:
    """Returns the title of the page, and the line under it."""
    lines = [line for workdir in workdirs for line in workdir.lines]
    models = dict.fromkeys(line["Model"] for line in lines if line.get("Model"))
    windows = dict.fromkeys(line["Window"] for line in lines if "→" in line.get("Window", ""))
    title = ", ".join(models) if 0 < len(models) < 4 else "jaxrope"
    if len(windows) == 1:
        title += f": {next(iter(windows))} tokens"
    count = f"{len(workdirs)} workdirs" if len(workdirs) > 1 else str(workdirs[0].folder.path)
    return title, f"What jaxrope wrote into {count}"


def _summary(workdirs: list[collect.Workdir], count: int) -> list[list[str]]:
    """Returns the cells of the table at the top, without empty columns.

    Args:
      found: the workdirs, which are the last of the page's folders.
      count: of the page's folders.
    """
    lines = [line for workdir in workdirs for line in workdir.lines]
    columns = [name for name in collect.COLUMNS if any(line.get(name) for line in lines)]
    cells = [["Workdir", *columns]]
    for place, workdir in enumerate(workdirs, start=count - len(workdirs)):
        for line in workdir.lines:
            cells.append([f"#{place} {workdir.folder.title}", *(line.get(n, "") for n in columns)])
    return cells
