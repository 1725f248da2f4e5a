"""Shows what programs wrote into their workdirs on one page.

  python -m jaxrope.report WORKDIR... --out=report.html
  python -m jaxrope.report runs/search --published=128k_la2,runs/other/rope.json

A workdir is that of a search, a training, an evaluation, an analysis or a recipe, or a folder with
such folders in it; several are compared. The page needs nothing beside itself: it can be mailed,
printed, and opened without a network. Its figures also lie beside it, in report_files, as SVG, PNG
and CSV.
"""

from pathlib import Path

from jaxrope import cli, files
from jaxrope.errors import InputError
from jaxrope.report import assets, collect, comparison, page, ropes


def add_arguments(parser) -> None:
    """Declares the arguments of the program."""
    parser.add_argument(
        "workdirs", nargs="+", metavar="WORKDIR", help="folder of a program's results"
    )
    parser.add_argument("--out", default="report.html", help="file to write (report.html)")
    parser.add_argument(
        "--published",
        default="",
        metavar="NAME,...",
        help="factors to draw beside those found: presets by name, or rope.json files",
    )


def run(args) -> None:
    """Writes the page."""
    out = files.as_path(args.out)
    names = [name for name in args.published.split(",") if name]
    write([files.as_path(name) for name in args.workdirs], out, published=names)
    cli.print_line(f"wrote {out} and {assets.folder_of(out).name}")


def write(workdirs: list[Path], out: Path, *, published: list[str] | None = None) -> None:
    """Writes the page of `workdirs` to `out`, and the files beside it; or nothing at all.

    Args:
      workdirs: the folders.
      out: the page, .html.
      published: names of presets, or paths of rope.json, to be drawn beside factors.

    Raises:
      InputError: a folder has no results, or a file of it is broken; `out` is no page.
    """
    _check(out)
    beside = ropes.published(published or [])
    found = [collect.collect(workdir, beside) for workdir in workdirs]
    folders = [one.folder for one in found]
    if len(found) > 1:
        together = comparison.folder([one.folder.title for one in found], [o.part for o in found])
        folders = [together, *folders] if together else folders
    drawn, made = assets.make(folders, assets.folder_of(out).name)
    text = page.render(*_title(found), _summary(found, len(folders)), folders, drawn)
    assets.write(made, assets.folder_of(out))
    files.write_text_atomic(out, text)


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


def _title(found: list[collect.Workdir]) -> tuple[str, str]:
    """Returns the title of the page, and the line under it."""
    lines = [line for one in found for line in one.lines]
    models = dict.fromkeys(line["Model"] for line in lines if line.get("Model"))
    windows = dict.fromkeys(line["Window"] for line in lines if "→" in line.get("Window", ""))
    title = ", ".join(models) if 0 < len(models) < 4 else "jaxrope"
    if len(windows) == 1:
        title += f": {next(iter(windows))} tokens"
    count = f"{len(found)} workdirs" if len(found) > 1 else str(found[0].folder.path)
    return title, f"What jaxrope wrote into {count}"


def _summary(found: list[collect.Workdir], count: int) -> list[list[str]]:
    """Returns the cells of the table at the top, without columns that nobody fills.

    Args:
      found: the workdirs, which are the last of the page's folders.
      count: of the page's folders.
    """
    lines = [line for one in found for line in one.lines]
    columns = [name for name in collect.COLUMNS if any(line.get(name) for line in lines)]
    cells = [["Workdir", *columns]]
    for place, one in enumerate(found, start=count - len(found)):
        for line in one.lines:
            cells.append([f"#{place} {one.folder.title}", *(line.get(n, "") for n in columns)])
    return cells


if __name__ == "__main__":
    cli.arguments(add_arguments, run, doc=__doc__)
