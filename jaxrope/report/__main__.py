"""Shows what programs wrote into their workdirs on one page.

  python -m jaxrope.report WORKDIR... --out=report.html

The page needs nothing beside itself: it can be mailed, printed, and opened without a network.
"""

from pathlib import Path

from jaxrope import cli, files
from jaxrope.report import collect, page


def add_arguments(parser) -> None:
    """Declares the arguments of the program."""
    parser.add_argument(
        "workdirs", nargs="+", metavar="WORKDIR", help="folder of a program's results"
    )
    parser.add_argument("--out", default="report.html", help="file to write (report.html)")


def run(args) -> None:
    """Writes the page."""
    out = Path(args.out)
    write([Path(name) for name in args.workdirs], out)
    cli.print_line(f"wrote {out}")


def write(workdirs: list[Path], out: Path) -> None:
    """Writes the page of `workdirs` to `out`, atomically.

    Raises:
      InputError: a folder has no results, or a file of it is broken.
    """
    summary, folders = [collect.SUMMARY_HEADER], {}
    for workdir in workdirs:
        lines, sections = collect.collect(workdir)
        summary += lines
        folders[str(workdir)] = sections
    files.write_text_atomic(out, page.render("jaxrope", summary, folders))


if __name__ == "__main__":
    cli.arguments(add_arguments, run, doc=__doc__)
