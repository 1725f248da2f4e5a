"""The first screen: what it says of a result is what the losses say, and nothing more."""

import json

import numpy as np
import pytest

from jaxrope import report
from jaxrope.evaluate import statistics
from jaxrope.report import document, headline, names, paired
from tests import tiny_report

WINDOWS = 8
RESAMPLES = {"num_samples": 500, "seed": 3}
LEVELS = {"searched": 3.0, "none": 3.9, "pi": 4.0, "ntk": 3.2, "yarn": 3.1, "sliding": 3.05}


def losses(level, label, count=WINDOWS):
    noise_W = np.random.default_rng(len(label)).standard_normal(count)
    return level + np.linspace(-0.5, 0.5, count) + 0.002 * (noise_W - noise_W.mean())


def row(label, length, level, count=WINDOWS):
    nll_W = losses(level, label, count)
    score = float(np.exp(nll_W.mean()))
    made = tiny_report.row("perplexity", label, length, score, score - 1, score + 1)
    made["items"] = {**made["items"], "window_nll": nll_W.tolist()}
    return made | {"fingerprint": f"of {length}"}


def content(levels=LEVELS, *, count=WINDOWS, checkpoints=(), between=()):
    """An eval.json of a model of 64 tokens at 64 and 256, and at lengths `between`; `levels`:
    label -> loss at 256.
    """
    rows = [row(label, length, 3.4, count) for length in (64, *between) for label in levels]
    rows += [row(label, 256, level, count) for label, level in levels.items()]
    asked = {"methods": ["none", "pi", "ntk", "yarn", "sliding"], "checkpoints": checkpoints}
    asked["bootstrap_samples"] = RESAMPLES["num_samples"]
    config = {"seed": RESAMPLES["seed"], "eval": asked}
    model = {"source": "models/base", "original_len": 64}
    return {"rows": rows, "config": config, "model": model, "command": "evaluate"}


def test_a_control_that_slides_its_own_window_is_a_rival():
    levels = LEVELS | {"control at 64 tokens": 3.02}
    checkpoints = [["control at 64 tokens", "../control", "sliding"]]
    found = headline.of_evaluation(content(levels, checkpoints=checkpoints))
    assert found.kind == "better" and "the control at 64 tokens (-2.0% [" in found.sentence
    assert "the same, control at 64 tokens" in [line[0] for line in found.cells]
    levels["control at 64 tokens"] = 2.9
    found = headline.of_evaluation(content(levels, checkpoints=checkpoints))
    assert found.kind == "worse" and "worse than the control at 64 tokens" in found.sentence


def test_an_extension_that_beats_all_rivals_worked():
    found = headline.of_evaluation(content())
    assert found.kind == "better"
    assert found.sentence.startswith(
        "Extending worked: at 256 tokens searched is better than the model's own sliding window of "
        "64 tokens (perplexity -4.9% ["
    )
    assert "YaRN (-9." in found.sentence and found.sentence.endswith(
        "; loss at 64: 3.400, 3.400 before."
    )
    assert found.title == "Before and after, on 8 windows of text"
    first, window, sliding, yarn, ntk, retrieval, short = found.cells
    assert first[2] == "after: searched" and window[1:] == ["64", "256", "4×"]
    assert [line[0].rpartition(", ")[2] for line in (sliding, yarn, ntk)] == [
        "sliding",
        "yarn",
        "ntk",
    ]
    assert retrieval[1] == "not measured" and short[0] == "Loss at 64"


def test_the_interval_is_that_of_the_evaluation():
    ours, theirs = losses(3.0, "searched"), losses(3.05, "sliding")
    wanted = statistics.compare(ours[:, None], theirs[:, None], **RESAMPLES)
    found = paired.gap("", "sliding", ours, theirs, paired.bootstrap(*RESAMPLES.values()))
    assert found.ends == pytest.approx((wanted.low, wanted.high), abs=1e-12)
    assert found.mean == pytest.approx(wanted.mean) and found.windows == wanted.num_windows
    percent = [100 * np.expm1(value) for value in (wanted.mean, wanted.low, wanted.high)]
    told = "({}{:+.1f}% [{:+.1f}, {:+.1f}])".format("perplexity ", *percent)
    assert told in headline.of_evaluation(content()).sentence


@pytest.mark.parametrize(
    ("changed", "lead", "kind"),
    [
        ({"sliding": 2.9}, "Extending did not work: ", "worse"),
        ({"sliding": 2.9, "yarn": 2.8}, "Extending did not work: ", "worse"),
        ({"yarn": 2.9}, "Extending worked, but a known method does better: ", "worse"),
        ({"sliding": 3.0}, "Not decided whether extending worked: ", "open"),
        ({"yarn": 3.0}, "Extending worked: ", "open"),
        ({"sliding": None}, "Better than known methods: ", "better"),
        ({"sliding": None, "ntk": 2.9}, "A known method does better: ", "worse"),
        ({"sliding": None, "ntk": None, "yarn": None}, "Not decided whether", "open"),
    ],
)
def test_each_outcome_is_said_plainly(changed, lead, kind):
    levels = {label: level for label, level in (LEVELS | changed).items() if level is not None}
    found = headline.of_evaluation(content(levels))
    assert found.sentence.startswith(lead) and found.kind == kind
    if {"yarn", "ntk"} & levels.keys():
        unknown = "sliding window was not measured on this text" in found.sentence
        assert unknown == ("sliding" not in levels)
    words = {2.9: "worse than", 3.0: "not decided against"}
    assert all(words[level] in found.sentence for level in changed.values() if level in words)
    for name, label in (("YaRN", "yarn"), ("NTK", "ntk")):
        assert name in found.sentence
        assert label in levels or "not compared" in found.sentence


def test_other_text_inside_the_window_is_named():
    """Conversations, measured by a stage of that name, stand beside the text."""
    inside = content({"none": 0.0, "searched": 0.0})
    inside["rows"] = [row("none", 64, 2.0), row("searched", 64, 2.1)]
    found = headline.of_evaluation(content(), [inside | {"stage": "conversations"}])
    assert found.sentence.endswith("; loss of conversations at 64: 2.100, 2.000 before.")
    assert found.cells[-1][:3] == ["Loss of conversations at 64", "2.000", "2.100"]
    assert found.cells[-1][3].startswith("worse, +0.100")


def test_few_windows_decide_nothing():
    found = headline.of_evaluation(content(count=4))
    assert found.kind == "open" and "[" not in found.sentence
    assert "; 4 windows of text are too few for an interval; loss at 64" in found.sentence
    assert all("[" not in cell for line in found.cells for cell in line)


def test_the_best_of_what_was_made_is_the_result_and_a_control_is_none():
    levels = LEVELS | {"tuned": 2.8, "control": 2.9, "yarn@su": 3.08}
    checkpoints = [["tuned", "runs/tuned", "model"], ["control", "runs/base", "sliding"]]
    made = content(levels, checkpoints=checkpoints)
    made["config"]["eval"]["methods"].append("yarn@su")
    found = headline.of_evaluation(made)
    assert "tokens tuned is better" in found.sentence and "YaRN (yarn@su, " in found.sentence
    del made["config"]["eval"]["methods"]  # an older file: by the names
    assert headline.of_evaluation(made).cells[0][2] == "after: tuned"


def test_other_texts_are_not_compared():
    made = content()
    for one in made["rows"]:
        if one["label"] == "sliding":
            one["fingerprint"] = "of others"
    assert "own sliding window was not measured" in headline.of_evaluation(made).sentence


def test_what_is_not_measured_is_not_decided():
    methods = {label: LEVELS[label] for label in ("none", "yarn")}
    assert headline.of_evaluation(content(methods)).sentence == (
        "Not decided: only known methods were evaluated; the best at 256 tokens is yarn, with "
        f"perplexity {np.exp(losses(3.1, 'yarn').mean()):.2f}."
    )
    short = content()
    short["rows"] = short["rows"][: len(LEVELS)]
    assert "nothing beyond the model's own window of 64" in headline.of_evaluation(short).sentence
    broken = content()
    broken["rows"][len(LEVELS)]["metrics"]["perplexity"] = None
    assert headline.of_evaluation(broken).sentence.startswith("Extending did not work: at 256")
    only = {**content(), "rows": [tiny_report.row("passkey", "searched", 256, 1.0, 0.8, 1.0)]}
    assert headline.of_evaluation(only) is None


def test_retrieval_stands_beside_what_the_model_found():
    made = content()
    made["rows"] += [
        tiny_report.row("passkey", "none", 256, 0.0, 0.0, 0.2),
        tiny_report.row("passkey", "searched", 256, 1.0, 0.8, 1.0),
        tiny_report.row("needle-6", "searched", 128, 0.9, 0.7, 1.0),
    ]
    found = headline.of_evaluation(made)
    assert "; pass keys at 256: 1.00 found, 0.00 before; loss" in found.sentence
    keys, needles = found.cells[-3:-1]
    assert keys == ["Pass keys at 256", "0.00 [0.00, 0.20]", "1.00 [0.80, 1.00]", "better"]
    assert needles[:2] == ["One of 6 needles at 128", "not measured"]


def test_a_search_is_compared_by_the_losses_of_its_journal(tmp_path):
    best = {"max_len": 4096, "factors": [1.0, 2.0], "start_tokens": 4, "attention_factor": 1.15}
    result = {"unit": "perplexity", "perplexity": 56.0, "best": best, **tiny_report.judged(best)}
    result["verdict"] |= {"difference": -0.07}
    found = headline.of_search(result, None, "mine")
    assert found.sentence.startswith("Better than known methods: without training, at 4,096 tokens")
    sliding, mine = losses(4.0, "a"), losses(4.1, "b")
    result["beside"][0] = {"sliding": 512, "losses": sliding.tolist(), "fitness": 57.4}
    journal = {"judged": [{"judged": "evolution", "losses": mine.tolist()}]}
    found = headline.of_search(result, journal, "mine")
    assert found.kind == "worse" and "mine is worse than the model's own sliding" in found.sentence
    ends = paired.students(mine - sliding)
    assert "[{:+.1f}, {:+.1f}]".format(*(100 * np.expm1(end) for end in ends)) in found.sentence


def workdirs(folder):
    """A search, a training and an evaluation of both, as a usual extension leaves them, at four
    lengths and with pass keys."""
    first, _ = tiny_report.write_workdirs(folder)
    tuned = folder / "tuned"
    tuned.mkdir()
    for name in ("metrics.jsonl", "config.json"):
        (first / name).rename(tuned / name)
    levels = LEVELS | {"yarn@su": 3.08, "tuned": 2.8}
    made = content(levels, checkpoints=[["tuned", "../tuned", "model"]], between=(128, 192))
    keys = ((label, n) for label in ("none", "searched", "tuned") for n in (64, 256))
    items = {"items": {"depth": [0.1, 0.5, 0.9], "found": [True, True, False]}}
    made["rows"] += [tiny_report.row("passkey", *key, 0.7, 0.5, 0.9, **items) for key in keys]
    made["config"] |= {"rope": {"method": "file", "path": "first/rope.json"}}
    (folder / "measured").mkdir()
    (folder / "measured" / "eval.json").write_text(json.dumps(made))
    return [first, tuned, folder / "measured"]


def test_rows_have_one_name_on_the_page(tmp_path):
    paths = workdirs(tmp_path)
    called = names.read(paths)
    assert called.of_search(paths[0].resolve()) == "searched"
    assert called.of_training(paths[1].resolve()) == "tuned"
    moved = names.Names([("/a/search/rope.json", "mine"), ("/a/tuned", "best")])
    assert moved.of_search(tmp_path / "search") == "mine"
    assert moved.of_training(tmp_path / "tuned") == "best"
    assert moved.of_search(tmp_path / "other") == "searched"
    assert names.Names().of_search(paths[0]) == "searched"
    assert names.Names((), 2).of_search(tmp_path / "s") == f"searched, {tmp_path.name}/s"


def test_chapters_have_the_order_of_a_reader(tmp_path):
    paths = workdirs(tmp_path)
    report.write(paths, tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text()
    first = html.index('class="verdict better"')
    titles = ("Evaluation of", "Retrieval and", "Search to", "Training of tuned, 40 steps")
    places = [html.index(f"{title}", first) for title in (*titles, "<h2>Inventory")]
    assert places == sorted(places)
    assert "tokens tuned is better" in html[first : places[0]]
    assert "Cost: search 1m30s" in html[first : places[0]]


def test_a_page_without_an_evaluation_says_what_the_search_says(tmp_path):
    paths = workdirs(tmp_path)
    collected = document.read(paths[:2], tmp_path / "page.html", [])
    ((name, one),) = document._headlines(collected)
    assert name == "" and "without training" in one.sentence
    ((_, one),) = document._headlines(collected[1:])
    assert one.sentence == document.NOTHING_YET


def test_a_verdict_on_factors_alone_says_that_nothing_was_trained(tmp_path):
    """Where it is a bad one."""
    first, tuned, measured = workdirs(tmp_path)

    def lead(*folders):
        return document.first(document.read([*folders, measured], tmp_path / "page.html", [])).lead

    assert document.UNTRAINED not in lead(first)
    settings = json.loads((measured / "eval.json").read_text())["config"]
    made = content(LEVELS | {"searched": 3.08, "sliding": 2.9})
    made["config"] |= {"rope": settings["rope"]}
    (measured / "eval.json").write_text(json.dumps(made))
    assert lead(first).endswith(document.UNTRAINED)
    assert document.UNTRAINED not in lead(first, tuned)


def test_a_training_without_a_label_is_named_after_its_folder(tmp_path):
    _, tuned, _ = workdirs(tmp_path)
    (tmp_path / "again").mkdir()
    for name in ("metrics.jsonl", "config.json"):
        (tmp_path / "again" / name).write_bytes((tuned / name).read_bytes())
    collected = document.read([tmp_path / "again", tuned], tmp_path / "page.html", [])
    titles = [section.title for workdir in collected for section in workdir.folder.sections]
    assert titles[0] == f"Training, {tmp_path.name}/again, 40 steps"
