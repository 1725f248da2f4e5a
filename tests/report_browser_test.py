"""The page in a real browser: whole figures, nothing wider than the window, text that can be read.

Skips, and says so, where there is no Chromium; see browser.py for where one is looked for.
"""

import json
from pathlib import Path

import browser
import pytest
import report_attention_test
import report_headline_test
import tiny_report

from jaxrope import report

WIDTHS, THEMES = (390, 1280), ("light", "dark")
LEAST_PIXELS = 8.5  # of the height of the smallest letters
LEAST_CONTRAST = 4.5  # WCAG 2, level AA
SCREENS = {390: 844, 1280: 900}  # pixels of the first screen
MOST_PIXELS = 4000  # of the height of a usual extension
PROGRAM = browser.find()
pytestmark = pytest.mark.skipif(
    not PROGRAM, reason="no Chromium: install one, or say where it is in $CHROMIUM"
)

CHECK = (Path(__file__).parent / "report_check.js").read_text(encoding="utf-8")
CHECK = CHECK.replace("LEAST_PIXELS", str(LEAST_PIXELS))
CHECK = CHECK.replace("LEAST_CONTRAST", str(LEAST_CONTRAST))


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page of a search, a training, an evaluation with a map and a text at floor, attention."""
    folder = tmp_path_factory.mktemp("workdirs")
    for part in (workdirs := tiny_report.write_workdirs(folder)):
        assert part.is_dir()
    third = folder / "attention"
    third.mkdir()
    (third / "attention.json").write_text(json.dumps(report_attention_test.content()))
    report.write([*workdirs, third], folder / "report.html")
    return folder / "report.html"


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    """The page of a usual extension: search, training, evaluation."""
    folder = tmp_path_factory.mktemp("usual")
    report.write(report_headline_test.workdirs(folder), folder / "report.html")
    return folder / "report.html"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with browser.running(PROGRAM, tmp_path_factory.mktemp("profile")) as found:
        yield found


def opened(chromium, path, width, theme):
    """Opens a page in a window as high as itself, so that each point of it can be looked at."""
    chromium.open(path, width=width, dark=theme == "dark")
    chromium.grow()
    return chromium


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_is_whole_and_can_be_read(chromium, page, width, theme):
    shown = opened(chromium, page, width, theme)
    count, wrong = shown.evaluate(CHECK)
    assert wrong == []
    assert count > 300  # letters were looked at
    told = [
        e for e in shown.events if e.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown")
    ]
    assert told == []
    asked = [e for e in shown.events if e.get("method") == "Network.requestWillBeSent"]
    urls = {event["params"]["request"]["url"].partition(":")[0] for event in asked}
    assert urls <= {"file", "data"} and sum("html" in str(event) for event in asked) >= 1


@pytest.mark.parametrize("width", WIDTHS)
def test_a_usual_extension_is_told_on_the_first_screen_and_is_short(chromium, usual, width):
    shown = opened(chromium, usual, width, "light")
    assert shown.evaluate(CHECK)[1] == []
    verdict, table = shown.evaluate(
        "['.verdict', '.first table'].map(of => document.querySelector(of).getBoundingClientRect())"
        ".map(box => [box.top, box.bottom])"
    )
    assert 0 < verdict[0] < verdict[1] < table[0] < SCREENS[width]
    drawn = "document.querySelector('.first figure').getBoundingClientRect().bottom"
    if width == 1280:
        assert shown.evaluate(drawn) < SCREENS[width]
        assert shown.evaluate("document.documentElement.scrollHeight") < MOST_PIXELS
    else:
        assert table[1] < SCREENS[width]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["page", "usual"])
def test_no_table_is_cut_off(chromium, request, name, width):
    shown = opened(chromium, request.getfixturevalue(name), width, "light")
    shown.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    wide = "[...document.querySelectorAll('.wide')].map(e => [e.scrollWidth - e.clientWidth, e])"
    cut = f"{wide}.filter(([more]) => more > 1).map(([more, e]) => more + ' ' + e.innerText)"
    assert shown.evaluate(cut) == []


@pytest.mark.parametrize("name", ["page", "usual"])
def test_captions_are_sentences(chromium, request, name):
    shown = opened(chromium, request.getfixturevalue(name), 1280, "light")
    said = shown.evaluate(
        "[...document.querySelectorAll('figcaption, .verdict')].map(one => one.textContent)"
    )
    assert len(said) > 5
    for text in said:
        assert text.endswith(".") and "  " not in text
        for first, last in ("()", "[]"):
            depth = [
                text[: i + 1].count(first) - text[: i + 1].count(last) for i in range(len(text))
            ]
            assert min(depth) == 0 == depth[-1], text


def test_a_row_has_one_colour_in_all_tables_and_figures(chromium, usual):
    shown = opened(chromium, usual, 1280, "light")
    marks = shown.evaluate(
        "[...document.querySelectorAll('td i')].map(one => [one.closest('td').textContent,"
        " getComputedStyle(one).backgroundColor])"
    )
    colours: dict[str, set[str]] = {}
    for text, colour in marks:
        colours.setdefault(text.rpartition(", ")[2], set()).add(colour)
    assert {"searched", "tuned", "sliding", "yarn", "yarn@su", "ntk"} <= colours.keys()
    assert all(len(of) == 1 for of in colours.values())
    assert len(set.union(*colours.values())) == len(colours)
    strokes = (
        "[...document.querySelectorAll('figure svg path')].map(p => getComputedStyle(p).stroke)"
    )
    drawn = set(shown.evaluate(strokes))
    assert set.union(*colours.values()) <= drawn


@pytest.mark.parametrize("theme", THEMES)
def test_what_is_opened_can_be_read_too(chromium, page, theme):
    shown = opened(chromium, page, 390, theme)
    shown.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    shown.grow()
    count, wrong = shown.evaluate(CHECK)
    assert wrong == [] and count > 1000


def test_the_themes_differ_and_print_is_on_white(chromium, page):
    ground = "getComputedStyle(document.body).backgroundColor"
    found = [opened(chromium, page, 1280, theme).evaluate(ground) for theme in THEMES]
    assert found == ["rgb(244, 245, 247)", "rgb(17, 20, 23)"]
    chromium.open(page, width=1280, dark=True, media="print")
    assert chromium.evaluate(ground) == "rgba(0, 0, 0, 0)"
    ink = "getComputedStyle(document.querySelector('figure svg text')).fill"
    assert chromium.evaluate(ink) == "rgb(0, 0, 0)"
    assert chromium.pdf().startswith(b"%PDF")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("document.body.style.color = 'rgb(230, 230, 230)'", "contrast"),
        ("document.querySelector('h1').style.minWidth = '3000px'", "wider than the window"),
        ("document.querySelector('figure svg').style.width = '90px'", "figure of"),
        ("document.querySelector('figure svg text').style.fontSize = '5px'", "letters of"),
        ("document.querySelector('figure svg text').style.fill = '#cccccc'", "contrast"),
        ("document.querySelector('figure svg defs path').remove()", "shape that is not there"),
        ("document.querySelector('figure svg text').setAttribute('x', -50)", "text cut off"),
    ],
)
def test_the_check_sees_what_is_broken(chromium, page, change, told):
    shown = opened(chromium, page, 1280, "light")
    shown.evaluate(change)
    assert told in " ".join(shown.evaluate(CHECK)[1])
