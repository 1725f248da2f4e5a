"""Shows the results in workdirs on one page.

  python -m jaxrope.report WORKDIR... --out=report.html
  python -m jaxrope.report runs/search --published=128k_la2,runs/other/rope.json

A workdir is that of a search, a training, an evaluation, an analysis or a recipe, or a folder with
such folders in it; several are compared. The first screen says whether extending worked, against
the model's own sliding window, YaRN and NTK at the longest length; what was run, with its config,
comes last. The page needs nothing beside itself: it can be mailed, printed, and opened without a
network. Its figures also lie beside it, in report_files, as SVG, PNG and CSV. --picture=docs/demo
writes the verdict with the first figure, too: docs/demo-light.svg and docs/demo-dark.svg.
"""

from collections.abc import Sequence

from jaxrope.shell import Command, cli
from jaxrope.store import files


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line; see `cli.arguments`."""
    command = Command(arguments=add_arguments, run=run, dry_run=dry_run)
    cli.arguments(command, doc=__doc__, argv=argv)


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
        help="factors to draw for comparison: presets by name, or rope.json files",
    )
    parser.add_argument(
        "--picture", default="", metavar="STEM", help="pictures of the verdict, STEM-light.svg etc."
    )


def run(args) -> None:
    """Writes the page."""
    from jaxrope.report import assets, document, picture

    workdirs, out, published = _paths(args)
    document.write(workdirs, out, published=published)
    cli.print_line(f"wrote {out} and {assets.folder_of(out).name}")
    if args.picture:
        paths = picture.write(workdirs, files.as_path(args.picture))
        cli.print_line(f"wrote {' and '.join(map(str, paths))}")


def dry_run(args) -> str:
    """Returns what the page would show; every file of the workdirs is read."""
    from jaxrope.report import assets, document

    workdirs, out, published = _paths(args)
    lines = []
    for workdir in document.read(workdirs, out, published):
        lines += [f"{workdir.folder.path}: {line['What']}" for line in workdir.lines]
    return "\n".join([*lines, f"would write {out} and {assets.folder_of(out).name}"])


def _paths(args):
    """Returns (the workdirs, the page, published factors) of the arguments."""
    names = [name for name in args.published.split(",") if name]
    return [files.as_path(name) for name in args.workdirs], files.as_path(args.out), names


if __name__ == "__main__":
    main()
