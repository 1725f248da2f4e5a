"""attention.json on the page: what is read, drawn, said and refused. All numbers are made up."""

import json
import math

import numpy as np
import pytest

from jaxrope.errors import InputError
from jaxrope.report import attention, attention_panels, collect

LABELS, LENGTHS, DEPTHS = ("none", "yarn"), (512, 1024, 2048), (0.0, 0.5, 1.0)


def entropy(label, length):
    return math.log(length) - (2.0 if label == "yarn" else 1.0)


def curve(label, length, axis="distance"):
    edges = [0, *(2**i for i in range(int(math.log2(length)) + 1))]
    middles = np.array(edges[:-1]) + 0.5
    mass = 0.4 / (1 + middles) ** (1.1 if label == "yarn" else 0.9)
    heads = [(mass * scale).tolist() for scale in (0.5, 1.5)]
    row = {"label": label, "length": length, "axis": axis, "edges": edges, "mass": mass.tolist()}
    return row | ({"heads": heads} if label == "yarn" else {})


def content():
    """An attention.json of two settings of a model with 2 layers of 3 heads."""
    places = [(label, length) for label in LABELS for length in LENGTHS]
    needles = [
        {
            "label": label,
            "length": length,
            "depth": depth,
            "score": 1.0 if label == "yarn" or length == 512 else 0.25,
            "entropy": entropy(label, length) + depth,
        }
        for label, length in places
        for depth in DEPTHS
    ]
    interval = {"low": 0.6, "high": 0.9}
    return {
        "format": attention.FORMAT,
        "command": "python -m jaxrope.analysis --config='<a>.py'",
        "config": {"seed": 3},
        "model": {"source": "models/tiny", "original_len": 512},
        "trained_lens": {"yarn": 1024},
        "findings": [
            {"finding": "Patterns are kept", "holds": True, "evidence": "JS 0.01 < 0.2"},
            {"finding": "Longer training helps", "holds": None, "evidence": "+0.1 [-0.2, +0.4]"}
            | {"why": "the interval includes 0"},
        ],
        "statistics": [
            {"label": label, "length": n, "name": name, "value": value, "low": value - 0.1}
            | {"high": value + 0.1}
            for label, n in places
            for name, value in (
                ("entropy", entropy(label, n)),
                ("normalised_entropy", entropy(label, n) / math.log(n)),
                ("sink", 0.2),
                ("of my own", 3.0),
            )
        ],
        "curves": [curve(label, 2048) for label in LABELS] + [curve("none", 2048, "interpolated")],
        "similarities": [
            {"label": "yarn", "length": 2048, "reference": "none at 512", "kind": "relative"}
            | {"js": 0.01234, "root_js": 0.11109}
        ],
        "maps": [
            {"label": "yarn", "length": 2048, "name": name, "values_LN": values}
            for name, values in (
                ("entropy", [[1.0, 2.0, 3.0], [4.0, 5.0, 6.5]]),
                ("shift", [[-0.5, 0.0, 0.25], [0.1, 0.2, 0.3]]),
            )
        ],
        "needles": needles,
        "predictions": [
            {"name": "normalised_entropy", "auroc": 0.75, "partial": -0.2} | interval,
            {"name": "js", "auroc": 0.55, "low": None, "high": None, "partial": None},
        ],
        "objectives": [
            {"objective": "perplexity", "forward_tokens": 123456, "score": 0.7} | interval
        ],
    }


@pytest.fixture
def workdir(tmp_path):
    folder = tmp_path / "explained"
    folder.mkdir()
    (folder / "attention.json").write_text(json.dumps(content()))
    return folder


def sections():
    return {one.title: one for one in attention.sections(attention.read(content()))}


def figure(section, name):
    (found,) = (one for one in section.figures if one.name == name)
    return found


def lines(figure):
    return [
        np.asarray(line.get_ydata(), float) for ax in figure.drawing.axes for line in ax.get_lines()
    ]


def lines_x(figure):
    return [line.get_xdata() for ax in figure.drawing.axes for line in ax.get_lines()]


def test_the_summary_says_what_holds(workdir):
    (line,) = collect.collect(workdir).lines
    assert line["What"] == "attention, 1 of 2 findings hold, 1 not decided"
    assert (line["Model"], line["Window"]) == ("tiny", "512 → 2,048")


def test_findings_come_first():
    found = sections()
    assert list(found) == [
        "Findings",
        "Attention: uncertainty",
        "Attention: patterns",
        "Attention: heads",
        "Attention: needle",
        "Attention as an objective",
    ]
    ((_, cells),) = found["Findings"].tables
    told = "not decided: the interval includes 0"
    assert [row[1] for row in cells] == ["Here", "holds", told]
    assert cells[2][2] == "+0.1 [-0.2, +0.4]"
    assert all(
        "<a>" in one.origin.command and one.origin.config == {"seed": 3} for one in found.values()
    )


def test_a_statistic_is_drawn_against_length_with_its_interval():
    section = sections()["Attention: uncertainty"]
    assert [one.name for one in section.figures] == [
        "entropy",
        "normalised_entropy",
        "sink",
        "of my own",
    ]
    shown = figure(section, "entropy")
    wanted = [entropy("yarn", n) for n in LENGTHS]
    assert any(len(y) == 3 and np.allclose(y, wanted) for y in lines(shown))
    (ax,) = shown.drawing.axes
    assert ax.get_title(loc="left") == "Attention entropy" and ax.get_ylabel() == "nats"
    assert "At 2,048 tokens: none 6.62, yarn 5.62." in shown.alt
    assert shown.numbers[1] == ["none", 512, *(entropy("none", 512) + d for d in (0, -0.1, 0.1))]
    assert figure(section, "of my own").drawing.axes[0].get_title(loc="left") == "of my own"


def test_patterns_are_drawn_by_axis_and_each_head_beside_the_mean():
    section = sections()["Attention: patterns"]
    names = ["distance-2048", "distance-2048-yarn-heads", "interpolated-2048"]
    assert [one.name for one in section.figures] == names
    both, heads, _ = section.figures
    none, yarn = (np.array(curve(label, 2048)["mass"]) for label in LABELS)
    assert [y.tolist() for y in lines(both)[:2]] == [none.tolist(), yarn.tolist()]
    assert [y.tolist() for y in lines(heads)] == [
        (yarn * 0.5).tolist(),
        (yarn * 1.5).tolist(),
        yarn.tolist(),
    ]
    assert both.numbers[2][:4] == ["none", 2048, 1, 2]
    ((title, cells),) = section.tables
    assert "from none at 512" in title and "relative" in title and "nats" in title
    assert cells == [["", "2,048"], ["yarn", "0.0123 [0.1111]"]]


def test_a_map_has_a_cell_for_each_layer_and_head():
    section = sections()["Attention: heads"]
    level, shift = section.figures
    image = level.drawing.axes[0].get_images()[0]
    np.testing.assert_array_equal(image.get_array(), [[1, 2, 3], [4, 5, 6.5]])
    assert image.get_clim() == (1.0, 6.5) and image.get_cmap().name == "viridis"
    image = shift.drawing.axes[0].get_images()[0]
    assert image.get_clim() == (-0.5, 0.5) and image.get_cmap().name == "PuOr_r"  # 0 is neutral
    assert "from 1 to 6.5" in level.alt
    assert level.numbers[:2] == [["layer", "head 0", "head 1", "head 2"], [0, 1.0, 2.0, 3.0]]


@pytest.mark.parametrize("value", [0.0, 2.0, -2.0])
def test_a_map_of_equal_values_is_drawn(value):
    row = {"label": "yarn", "length": 2048, "name": "retrieval", "values_LN": [[value] * 3] * 2}
    shown = attention.sections(attention.read(content() | {"maps": [row]}))
    (found,) = next(one for one in shown if one.title == "Attention: heads").figures
    low, high = found.drawing.axes[0].get_images()[0].get_clim()
    assert low == value < high and np.isfinite(high)


def test_a_needle_map_has_the_entropy_in_each_cell_and_a_line_at_the_trained_length():
    none, yarn, _ = sections()["Attention: needle"].figures
    ax = none.drawing.axes[0]
    cells = np.asarray(ax.collections[0].get_array()).reshape(3, 3)
    assert cells.tolist() == [[1.0, 0.25, 0.25]] * 3
    texts = {t.get_position(): t.get_text() for t in ax.texts}
    assert texts[2.5, 1.5] == f"{entropy('none', 2048) + 0.5:.2f}" and len(texts) == 9
    assert ax.yaxis_inverted() and not ax.get_lines()  # depth 0 is at the top
    (line,) = yarn.drawing.axes[0].get_lines()
    assert line.get_xdata()[0] == 2  # behind 512 and 1,024
    assert "1,024 tokens of its training" in yarn.caption and yarn.is_broad


def test_predictions_have_their_intervals():
    section = sections()["Attention: needle"]
    ((_, cells),) = section.tables
    assert cells[1:] == [
        ["Entropy / ln(keys)", "0.750", "[0.600, 0.900]", "-0.200"],
        ["JS from the trained pattern", "0.550", "", ""],
    ]
    ax = figure(section, "prediction").drawing.axes[0]
    drawn = [list(line.get_xdata()) for line in ax.get_lines()]
    assert [0.6, 0.9] in drawn and [0.55, 0.55] in drawn and [0.5, 0.5] in drawn
    assert ax.yaxis_inverted()


def test_objectives_are_shown_with_their_cost():
    section = sections()["Attention as an objective"]
    ((_, cells),) = section.tables
    assert cells[1] == ["perplexity", "123,456", "0.70", "[0.600, 0.900]"]
    assert any([0.6, 0.9] == list(line) for line in lines_x(section.figures[0]))
    assert any([0.7] == list(line) for line in lines_x(section.figures[0]))


def test_what_is_not_there_is_not_shown():
    few = {key: content()[key] for key in ("format", "model", "maps")} | {"new": 1}
    assert [one.title for one in attention.sections(attention.read(few))] == ["Attention: heads"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"format": "jaxrope.attention/2"}, "format must be jaxrope.attention/1, got"),
        ({"maps": "none"}, "maps must be a list of mappings"),
        ({"maps": [1]}, "maps must be a list of mappings"),
        ({"model": {}}, "KeyError: 'source'"),
        ({"needles": [{"label": "a", "score": 1.0}]}, "KeyError: 'length'"),
        ({"statistics": [{"label": "a", "length": 8, "name": "x", "value": None}]}, "TypeError"),
        ({"maps": [content()["maps"][0] | {"values_LN": [[1.0], [1.0, 2.0]]}]}, "ValueError"),
    ],
)
def test_another_format_and_broken_rows_are_refused(workdir, change, told):
    (workdir / "attention.json").write_text(json.dumps(content() | change))
    with pytest.raises(InputError, match="attention.json is not what its program writes") as raised:
        collect.collect(workdir)
    assert told in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "mass", [[0.1, 0.11, 0.105], [0.0123, 0.0124, 0.0123], [0.4, 0.01, 1e-6], [0.3, 0.2, 0.1]]
)
def test_curves_have_a_label_and_two_ticks_in_the_narrowest_range(mass):
    row = {"label": "yarn", "length": 4, "axis": "distance", "edges": [0, 1, 2, 4], "mass": mass}
    changed = content() | {"curves": [row | {"heads": [mass, mass]}]}
    section = attention.sections(attention.read(changed))[2]
    for one in section.figures:
        (ax,) = one.drawing.axes
        assert ax.get_ylabel() == "attention to one key"
        one.drawing.draw_without_rendering()
        low, high = ax.get_ylim()
        ticks = zip(ax.get_yticks(), ax.get_yticklabels(), strict=True)
        shown = [label.get_text() for tick, label in ticks if low <= tick <= high]
        assert 2 <= len(set(shown)) == len(shown) <= 14 and all(map(float, shown))


def test_a_statistic_without_a_unit_has_its_name_at_the_axis():
    section = sections()["Attention: uncertainty"]
    labels = [one.drawing.axes[0].get_ylabel() for one in section.figures]
    assert labels == ["nats", "0 to 1", "share", "of my own"]
    for name, wanted in (
        ("normalised_entropy", ("Entropy / ln(keys)", "0 to 1")),
        ("needle_mass at the answer", ("Mass on the needle at the answer", "share")),
        ("mine at the answer", ("mine at the answer", "")),
    ):
        assert attention_panels.title_and_unit(name) == wanted


def test_a_statistic_in_a_narrow_range_has_plain_numbers():
    rows = [
        {"label": label, "length": n, "name": "sink", "value": 0.9 + i * 1e-6}
        for i, (label, n) in enumerate((label, n) for label in LABELS for n in LENGTHS)
    ]
    section = attention.sections(attention.read(content() | {"statistics": rows}))[1]
    (ax,) = section.figures[0].drawing.axes
    section.figures[0].drawing.draw_without_rendering()
    assert ax.yaxis.get_offset_text().get_text() == ""
    assert len({label.get_text() for label in ax.get_yticklabels()}) >= 3
