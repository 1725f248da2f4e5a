"""The verdict of a page with its first figure, as pictures for light and for dark surroundings."""

import textwrap
from pathlib import Path

from jaxrope.errors import InputError
from jaxrope.report import axes, document, figures, theme
from jaxrope.store import files

_SIZE = (8.0, 4.4)  # inches
_WIDTH = 100  # characters of a line of the verdict


def write(workdirs: list[Path], stem: Path) -> list[Path]:
    """Writes STEM-light.svg and STEM-dark.svg; returns their paths.

    Args:
      workdirs: the folders of the page.
      stem: path of the files without what is different.

    Raises:
      InputError: a folder has no results, or nothing that a page would begin with.
    """
    with axes.one_look():
        first = document.first(document.read(workdirs, Path("report.html"), []))
        if first is None or not first.figures:
            raise InputError(
                f"--picture={stem}: there is no perplexity by length to draw. Name the workdir of "
                "an evaluation or of a search."
            )
        drawing = first.figures[0].drawing
        drawing.set_size_inches(_SIZE)
        verdict = textwrap.fill(first.lead, _WIDTH)
        look = dict(fontsize=10, color=axes.FOREGROUND)
        drawing.suptitle(verdict, x=0.01, horizontalalignment="left", **look)
        svg = figures.svg_file(drawing)
    paths = [stem.with_name(f"{stem.name}-{name}.svg") for name in theme.THEMES]
    for number, path in enumerate(paths):
        files.write_text_atomic(path, theme.fixed(svg, number))
    return paths
