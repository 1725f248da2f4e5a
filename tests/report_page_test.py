"""The page and its program: whole, by itself, with its files beside it; nothing after an error."""

import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import pytest

from jaxrope import report
from jaxrope.report import (
    assets,
    axes,
    document,
    figures,
    theme,
)
from jaxrope.report.__main__ import main
from tests.tiny_report import ROWS, write_workdirs


def test_an_svg_follows_the_theme_and_its_column():
    made = figures.svg_file(figures.evaluation_figures(ROWS)["passkey"])
    svg = theme.paint(figures.svg_element(made))
    root = ElementTree.fromstring(svg)
    assert "width" not in root.attrib and "height" not in root.attrib and "viewBox" in root.attrib
    assert "currentColor" in svg and axes.FOREGROUND not in svg
    assert "#ffffff" not in svg  # no white ground on a dark page
    assert "var(--grey)" in svg and "font-family" not in svg
    assert "#ffffff" in made and axes.FOREGROUND in made and "<text" in made  # for itself
    assert made == figures.svg_file(figures.evaluation_figures(ROWS)["passkey"])


@pytest.fixture
def workdirs(tmp_path):
    return write_workdirs(tmp_path)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folder of a page of both workdirs, which tests only read."""
    folder = tmp_path_factory.mktemp("written")
    workdirs = write_workdirs(folder)
    (workdirs[0] / "command.txt").write_text("python search.py --config=a.py\n")
    report.write(workdirs, folder / "report.html")
    return folder


class Checker(HTMLParser):
    """Collects what a page has, and sees to it that every element is closed."""

    VOID = {"meta", "br", "wbr", "hr", "img", "link", "input"}

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.tags, self.loads, self.links = [], [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        values = dict(attrs)
        self.ids += [values["id"]] if "id" in values else []
        found = [v for k, v in attrs if k in ("src", "href", "xlink:href", "srcset")]
        if tag == "a":
            self.links += found
        else:
            self.loads += found
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_by_itself(written):
    html = (written / "report.html").read_text(encoding="utf-8")
    checker = Checker()
    checker.feed(html)
    assert checker.open == []
    assert len(checker.ids) == len(set(checker.ids)), "two figures would share shapes"
    assert all(load.startswith(("#", "data:image")) for load in checker.loads), "nothing is fetched"
    used = set(re.findall(r"url\(#([^)]+)\)", html))
    used |= {load[1:] for load in checker.loads if load.startswith("#")}
    assert used <= set(checker.ids)
    assert all((written / link).is_file() for link in checker.links if link[0] != "#")
    assert {link[1:] for link in checker.links if link[0] == "#"} <= set(checker.ids)
    assert checker.tags.count("figure") == 2 + 2 + 2 == html.count('role="img" aria-label="')
    assert "<b>" not in html and "&lt;b&gt;" in html and "mine &amp; &lt;co&gt;" in html
    assert "prefers-color-scheme: dark" in html and "@media print" in html
    assert 'name="viewport"' in html and "<script" not in html
    assert "#e69f00" not in html and "DejaVu" not in html  # colours and type are the page's


def test_every_figure_lies_beside_the_page_with_its_numbers(written):
    made = sorted(path.name for path in (written / "report_files").iterdir())
    assert {Path(name).suffix for name in made} == {".svg", ".png", ".csv", ".json"}
    assert len(made) == 3 * 6 + 1
    (csv,) = (written / "report_files").glob("0-*-perplexity.csv")
    assert csv.read_text().splitlines()[:3] == [
        "label,length,perplexity,low,high",
        "none,512,32.9,30.0,36.0",
        "none,4096,107.1,90.0,126.0",
    ]
    (factors,) = (written / "report_files").glob("*-first-factors.csv")
    assert factors.read_text() == "rotary pair,yarn,searched\n0,1.0,1.0\n1,8.0,2.0\n"
    (png,) = (written / "report_files").glob("*-rate.png")
    assert png.read_bytes().startswith(b"\x89PNG")
    (svg,) = (written / "report_files").glob("*-rate.svg")
    assert ElementTree.parse(svg).getroot().get("width") == "295.2pt"


def test_every_figure_leads_to_the_command_and_the_config_behind_it(written):
    html = (written / "report.html").read_text(encoding="utf-8")
    _, *parts = html.split("<figure")
    figures_of = [part.partition("</figure>")[0] for part in parts]
    assert all("<table" in one for one in figures_of)
    found = [re.findall(r'href="#(o\d+)"', one) for one in figures_of]
    assert found[0] == [] and all(len(links) == 1 for links in found[1:])
    inventory = html.partition('id="inventory"')[2]
    pieces = {piece[:2]: piece for piece in inventory.split('<div id="')[1:]}
    told = [("search.py" in pieces[of[0]], "jaxrope.evaluate" in pieces[of[0]]) for of in found[1:]]
    assert sorted(told) == [(False, True)] + [(True, False)] * 4
    assert (
        "&quot;files&quot;: &quot;command.txt" in inventory
        and "<pre>" not in html.split('id="inv')[0]
    )


def test_files_that_are_no_longer_made_are_removed_and_others_stay(tmp_path):
    folder = tmp_path / "report_files"
    assets.write({"a.svg": b"1", "b.svg": b"2"}, folder)
    (folder / "mine.txt").write_text("kept")
    assets.write({"b.svg": b"3"}, folder)
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert found.keys() == {"b.svg", "files.json", "mine.txt"} and found["b.svg"] == b"3"
    (folder / "files.json").write_text('["../page.html", "mine.txt", 3]')
    (tmp_path / "page.html").write_text("kept")
    assets.write({}, folder)
    assert (tmp_path / "page.html").exists() and not (folder / "mine.txt").exists()


def run_program(*argv):

    argv = list(map(str, argv))
    main(argv)


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--ouf=x", "a"], "Unknown flag '--ouf'. Did you mean '--out'"),
        (["a", "--out=eval.json"], "--out=eval.json: must end in .html"),
        (["a"], "a: no such folder"),
        ([], "the following arguments are required: WORKDIR"),
        (["a", "--published=yarm"], "Unknown rope preset 'yarm'"),
        (["a", "--published=no/rope.json"], "--published=no/rope.json: no such file"),
    ],
)
def test_wrong_arguments_are_one_line_and_leave_nothing(tmp_path, monkeypatch, capsys, argv, told):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        run_program(*argv)
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line and list(tmp_path.iterdir()) == []


def test_the_program_writes_the_page_or_nothing(workdirs, tmp_path, capsys):
    out = tmp_path / "made" / "page.html"
    (workdirs[0] / "metrics.jsonl").unlink()
    run_program(workdirs[0], f"--out={out}")
    assert out.is_file() and "page.html and page_files" in capsys.readouterr().out
    before = out.read_bytes()
    (workdirs[1] / "eval.json").write_text("{")
    for other in (out, tmp_path / "other.html"):
        with pytest.raises(SystemExit):
            run_program(*workdirs, f"--out={other}")
    assert out.read_bytes() == before and not list(tmp_path.glob("other*"))


@pytest.mark.parametrize("theme_", [0, 1], ids=["light", "dark"])
def test_every_colour_stands_out_on_its_card(theme_):
    card = theme.SURFACES["card"][theme_]
    for colour, (name, *shades) in theme.SHADES.items():
        assert contrast(shades[theme_], card) >= 3, name
        assert colour in {c for c, *_ in [*axes.STYLES.values(), *axes.SPARE]}
    for name, least in (("ink", 7), ("soft", 4.5), ("link", 4.5)):
        for under in ("card", "page", "code"):
            shades = theme.SURFACES[name][theme_], theme.SURFACES[under][theme_]
            assert contrast(*shades) >= least, (name, under)


def contrast(one: str, other: str) -> float:
    """WCAG 2's ratio of two colours "#rrggbb"."""

    def luminance(colour):
        parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
        linear = (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts)
        return sum(w * v for w, v in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_pictures_of_the_verdict_are_light_and_dark(workdirs, tmp_path, capsys):
    """Each is whole by itself: the words, a figure, and the colours of its theme alone."""
    main([*map(str, workdirs), f"--out={tmp_path / 'r.html'}", f"--picture={tmp_path / 'v'}"])
    assert (
        f"wrote {tmp_path / 'v-light.svg'} and {tmp_path / 'v-dark.svg'}" in capsys.readouterr().out
    )
    lead = document.first(document.read(workdirs, tmp_path / "r.html", [])).lead
    for number, name in enumerate(theme.THEMES):
        text = (tmp_path / f"v-{name}.svg").read_text()
        root = ElementTree.fromstring(text)
        words = " ".join(element.text or "" for element in root.iter() if "text" in element.tag)
        assert lead.split()[0] in words and len(text) < 150_000
        ink, ground = theme.SURFACES["ink"], theme.SURFACES["card"]
        assert ink[number] in text and ground[number] in text
        assert ink[1 - number] not in text and axes.FOREGROUND not in text


def test_a_picture_needs_something_to_draw(tmp_path):
    with pytest.raises(SystemExit):
        main([str(tmp_path), f"--picture={tmp_path / 'v'}"])
    assert not (tmp_path / "v-light.svg").exists()
