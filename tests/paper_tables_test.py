"""What benchmarks say about the paper's orderings, from intervals; and that they run."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import ablation, paper_stages, paper_tables, paper_verdicts, verdict
from benchmarks.verdict import PERPLEXITY, Pair, Scored
from jaxrope import rope
from jaxrope.errors import InputError
from tests import processes, tiny_twin

ROOT = Path(__file__).resolve().parent.parent
LENGTHS = (512, 1024, 2048, 4096, 8192)
METHODS = ("none", "pi", "ntk", "yarn", "sliding", "searched")
NOISE_WT = np.random.default_rng(0).normal(size=(8, 5))


def text(nll, spread=0.0):
    """Returns a row whose windows differ from others' by `spread` at random, about `nll`."""
    nll_WT = (nll + spread * NOISE_WT).astype(np.float32)
    mean = float(nll_WT.mean())
    return Scored({"perplexity": math.exp(mean), "nll": mean}, "items", nll_WT)


def needles(found):
    share = sum(found) / len(found)
    metrics = {"accuracy": share, "low": share - 0.1, "high": share + 0.1}
    return Scored(metrics, "items", None, tuple(found))


def of(**rows):
    """Returns a pool of rows at 1,024 tokens."""
    return {(PERPLEXITY, name, 1024): scored for name, scored in rows.items()}


def one(pool, better="a", worse="b", **more):
    (judged,) = verdict.judge(pool, [Pair(better, worse, 1024, **more)])
    return judged


def test_a_lower_perplexity_holds_and_its_difference_is_told():
    judged = one(of(a=text(3.0), b=text(3.1)))
    assert judged.verdict == "holds"
    share = f"{100 * math.expm1(-0.1):+.2f}%"
    assert judged.told == f"a against b at 1,024: {share} [{share}, {share}]"
    assert judged.distance == pytest.approx(0.1, rel=1e-5)


def test_a_higher_perplexity_does_not_hold():
    judged = one(of(a=text(3.2), b=text(3.1)))
    assert judged.verdict == "does not hold" and "+10.52%" in judged.told


def test_a_difference_that_windows_do_not_decide_is_not_decided():
    for nll in (2.99, 3.01):
        judged = one(of(a=text(nll, spread=0.5), b=text(3.0)))
        assert judged.verdict == "not decided"
        assert judged.distance < 0


def test_equal_rows_are_not_decided():
    assert one(of(a=text(3.0), b=text(3.0))).verdict == "not decided"


def test_other_items_cannot_be_compared():
    pool = of(a=text(3.0), b=Scored({}, "others", text(3.0).nll_WT))
    with pytest.raises(ValueError, match="answered other items"):
        one(pool)


@pytest.mark.parametrize(
    ("wins", "losses", "p"),
    [(0, 0, 1.0), (1, 1, 1.0), (5, 0, 2 / 32), (6, 0, 2 / 64), (0, 6, 2 / 64), (9, 1, 22 / 1024)],
)
def test_sign_test(wins, losses, p):
    assert verdict.sign_test(wins, losses) == pytest.approx(p, rel=1e-12)


def test_needles_are_compared_trial_by_trial():
    pool = {
        ("needle-6", "a", 1024): needles([True] * 10 + [False] * 2),
        ("needle-6", "b", 1024): needles([True] * 4 + [False] * 8),
        ("needle-6", "c", 1024): needles([True] * 5 + [False] * 7),
    }
    judged = one(pool, suite="needle-6")
    assert judged.verdict == "holds"
    assert judged.told == (
        "a finds 10 of 12 and b 4 at 1,024 (6 that the other does not against 0, p = 0.031)"
    )
    assert one(pool, "b", "a", suite="needle-6").verdict == "does not hold"
    assert one(pool, "a", "c", suite="needle-6").verdict == "not decided"  # 5 to 0: p = 0.0625


def judged(name, verdict_, distance=0.1):
    return verdict.Judged(Pair("a", "b", 1024), verdict_, name, distance)


def test_an_ordering_holds_when_all_of_it_does():
    found = verdict.sentence("a below b", [judged("x", "holds", 0.3), judged("y", "holds", 0.2)])
    assert found == "The paper's ordering (a below b) holds: the closest pair is y."
    assert verdict.sentence("o", [judged("x", "holds")]) == "The paper's ordering (o) holds: x."


def test_what_does_not_hold_is_named():
    rows = [judged("x", "holds"), judged("y", "does not hold"), judged("z", "not decided")]
    assert verdict.sentence("o", rows) == (
        "The paper's ordering (o) does not hold: y; not decided: z; 1 of 3 pairs are as it says."
    )
    assert verdict.sentence("o", rows[2:]) == "The paper's ordering (o) is not decided: z."


def whole_pool():
    """Returns a pool in which everything is as the paper has it."""
    rising = {"pi": 0.5, "ntk": 0.4, "yarn": 0.2, "searched": 0.1, "none": 0.9, "sliding": 0.3}
    pool = {}

    def put(label, length, nll):
        pool[PERPLEXITY, label, length] = text(3 + nll)

    for i, length in enumerate(LENGTHS):
        for label in METHODS:
            put(label, length, rising[label] if i else 0.05)
        put("fine-tuned 2x", length, 0.2)
        put("fine-tuned 4x", length, 0.15)
        put("extended", length, 0.055)
    for label in ("without recovery",):
        for length in LENGTHS[:2]:
            put(label, length, 0.4)
    for n in paper_stages.STARTS:
        shift = {32: -0.02, 256: 0.1}.get(n, 0.0)
        for length in LENGTHS[1:3]:
            put(f"pi, first {n}", length, 0.5 + shift)
            put(f"dynamic_ntk, first {n}", length, 0.45 + shift)
    for scale, length in (("4x", 2048), ("8x", 4096)):
        put(f"per dim {scale}", length, 0.1)
        put(f"per dim and start {scale}", length, 0.09)
    for length in LENGTHS[:3]:
        for name, nll in (("pi", 0.2), ("yarn", 0.15), ("searched", 0.1)):
            put(f"{name}, fine-tuned", length, nll)
        put("progressive", length, 0.05)
    for length in LENGTHS[3:]:
        for name, nll in (("pi", 0.3), ("yarn", 0.2), ("searched", 0.1)):
            put(f"{name} on top", length, nll)
    return pool


NAMES = ["T1", "T2", "T3", "T5", "T9", "T10", "T11", "T12", "Figure 3"]


def test_every_table_says_that_the_paper_holds_where_it_does():
    made = paper_verdicts.make(whole_pool(), 512)
    assert [table.name for table in made] == NAMES
    for table in made:
        assert "holds:" in table.sentence, table
        assert len({len(row) for row in table.cells}) == 1, table.name
        assert all(cell for row in table.cells[1:] for cell in row[:1]), table.name
    assert made[5].sentence.endswith("At 512 it is +0.50% from the base, within 1%.")


@pytest.mark.parametrize(
    ("label", "length", "tables"),
    [
        ("searched", 1024, ("T1", "Figure 3")),
        ("searched", 8192, ("Figure 3",)),
        ("yarn, fine-tuned", 2048, ("T3",)),
        ("extended", 8192, ("T5",)),
        ("extended", 512, ("T10",)),
        ("searched on top", 4096, ("T9",)),
        ("per dim and start 8x", 4096, ("T11",)),
        ("progressive", 1024, ("T12",)),
        ("pi, first 0", 1024, ()),
        ("pi, first 256", 1024, ("T2",)),
    ],
)
def test_a_row_that_breaks_an_ordering_is_found(label, length, tables):
    """The row is made bad; PI's n̂ = 256 is made good."""
    pool = whole_pool()
    pool[PERPLEXITY, label, length] = text(2.0 if label.startswith("pi, first") else 6.0)
    if label == "pi, first 0":
        pool[PERPLEXITY, label, length] = text(3.5)
    made = paper_verdicts.make(pool, 512)
    broken = tuple(table.name for table in made if "does not hold" in table.sentence)
    assert broken == tables


def test_recovery_beyond_one_per_cent_is_said():
    pool = whole_pool()
    pool[PERPLEXITY, "extended", 512] = text(3.05 + 0.0101)
    found = paper_verdicts.table_10(pool, LENGTHS).sentence
    assert found.endswith("At 512 it is +1.02% from the base, not within 1%.")


def test_cells_are_perplexities_in_their_places():
    found = paper_verdicts.table_1(whole_pool(), LENGTHS).cells
    assert found[0] == ["", "1,024", "2,048"]
    assert [row[0] for row in found[1:]] == ["none", "pi", "dynamic_ntk", "yarn", "searched"]
    assert found[3] == ["dynamic_ntk", f"{math.exp(3.45):.2f}", f"{math.exp(3.45):.2f}"]
    starts = paper_verdicts.table_2(whole_pool(), LENGTHS).cells
    assert starts[0] == ["", *(f"n̂ {n}" for n in (0, 2, 4, 8, 16, 32, 64, 128, 256))]
    assert starts[2][6] == f"{math.exp(3.48):.2f}"


def test_a_report_is_printed_and_written(tmp_path, capsys):
    made = paper_verdicts.make(whole_pool(), 512)
    verdict.report(made, {"title": "Tables", "what": "Of a test."}, tmp_path, "tables")
    printed, marked = capsys.readouterr().out, (tmp_path / "tables.md").read_text()
    content = json.loads((tmp_path / "tables.json").read_text())
    assert [table["name"] for table in content["tables"]] == NAMES
    for table in made:
        assert table.sentence in printed and table.sentence in marked
    assert marked.startswith("# Tables\n\nOf a test.\n")
    assert content["tables"][0]["judged"][0]["pair"]["better"] == "searched"


def ablation_pool(found):
    """Returns a pool of the ablation; `found` is how many of 40 each row finds, else 20."""
    pool, labels = {}, ["none", "ntk", "yarn", *ablation.SEARCHED]
    trained = [f"{row}{more}" for row in ("long rows", "mixed") for more in ("", ", original rope")]
    for label in (*labels, *trained):
        for length in (512, 2048, 4096):
            count = found.get(label, 20)
            nll = 4.0 if label == "ntk" else 3.4 if label == "all, needles" else 3.0
            nll += 0.2 * label.startswith("long rows") * (length == 512)
            pool[PERPLEXITY, label, length] = text(nll)
            trials = [True] * count + [False] * (40 - count)
            pool["needle-6", label, length] = needles(trials)
    return pool


def test_the_ablation_says_what_needles_decide():
    better = {"all, needles": 30, "all, both": 29, "critical, needles": 38, "critical alone": 27}
    pool = ablation_pool(better | {"ntk": 2, "mixed, original rope": 35})
    asked = pool, 512, "needle-6"
    assert "holds:" in ablation.objectives(*asked).sentence
    assert "holds:" in ablation.dimensions(*asked).sentence
    mixed = ablation.mixed_window(*asked)
    assert "holds:" in mixed.sentence
    assert "The long length is neither better nor worse: mixed against long rows" in mixed.sentence
    cells = ablation.objectives(*asked).cells
    assert cells[0][1:] == ["perplexity, 512", "perplexity, 4,096", "needle-6, 512"] + [
        "needle-6, 4,096"
    ]
    assert cells[-1][-1] == "0.72 [0.62, 0.82]"
    pool = ablation_pool(better | {"critical, needles": 31})
    assert (
        "critical, needles finds 31 of 40 and all, needles 30"
        in ablation.dimensions(pool, 512, "needle-6").sentence
    )


def test_a_recipe_that_is_not_finished_is_refused(tmp_path):
    for name in paper_tables.NEEDED[:3]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "stage.json").write_text(json.dumps({"finished": name[-2] != "2"}))
    with pytest.raises(InputError, match="stage 'search_2x' is not finished there. Run train.py"):
        paper_tables._check_source(tmp_path, tmp_path / "tables")


def test_another_recipe_than_at_first_is_refused(tmp_path):
    for name in paper_tables.NEEDED:
        (tmp_path / name).mkdir()
        (tmp_path / name / "stage.json").write_text(json.dumps({"finished": True}))
    paper_tables._check_source(tmp_path, tmp_path / "tables")
    paper_tables._check_source(tmp_path, tmp_path / "tables")
    (tmp_path / "second" / "stage.json").write_text(json.dumps({"finished": True, "seconds": 2}))
    with pytest.raises(InputError, match="was begun with another 'second' than that of"):
        paper_tables._check_source(tmp_path, tmp_path / "tables")


@pytest.mark.parametrize("text_", ["16", "a,b", "16,18,20"])
def test_wrong_critical_pairs_are_refused(text_):
    with pytest.raises(InputError, match="--critical is two whole numbers, such as 16,20"):
        ablation._critical(text_)


def run(name, *arguments):
    """Returns (what it printed, exit code)."""
    command = [sys.executable, "-m", f"benchmarks.{name}", "--quick", *arguments]
    environment = processes.environment(devices=1)  # the tiny batches divide by it
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=1500, env=environment
    )
    return done.stdout + done.stderr, done.returncode


@pytest.mark.slow
def test_paper_tables_run_and_go_on(tmp_path):
    texts, base, source = (tmp_path / name for name in ("texts", "base", "twin"))
    tiny_twin.write_texts(texts)
    tiny_twin.make_base(texts, base)
    tiny_twin.run(texts, base, source)
    arguments = f"--recipe={source}", f"--workdir={tmp_path / 'tables'}"
    printed, code = run("paper_tables", *arguments)
    assert code == 0, printed
    content = json.loads((tmp_path / "tables" / "paper_tables.json").read_text())
    assert [table["name"] for table in content["tables"]] == NAMES
    again, code = run("paper_tables", *arguments)
    assert code == 0 and again.count("finished before") == 21
    ropes = tmp_path / "tables" / "ropes"
    tuned = rope.load(source / "finetune_4x" / "rope.json").buckets[-1]
    on_top = rope.load(ropes / "pi_on_top.json").buckets
    assert [bucket.max_len for bucket in on_top] == [256, 512]
    for bucket, scale in zip(on_top, (2, 4), strict=True):
        np.testing.assert_allclose(bucket.factors, scale * np.array(tuned.factors), rtol=1e-12)
    stretched = rope.load(ropes / "finetune_4x.json").buckets
    assert [(b.max_len, b.factors) for b in stretched] == [(512, tuned.factors)]
    start = rope.load(ropes / "pi_16.json").buckets
    assert [(b.max_len, b.start_tokens, set(b.factors)) for b in start] == [
        (64, 16, {2.0}),
        (128, 16, {4.0}),
    ]


@pytest.mark.slow
def test_the_ablation_runs(tmp_path):
    texts, base = tmp_path / "texts", tmp_path / "base"
    tiny_twin.write_texts(texts, words=2500)
    tiny_twin.make_base(texts, base, original_len=512)
    printed, code = run(
        "ablation",
        f"--model={base}",
        f"--train={texts}/train-*.txt",
        f"--held_out={texts}/held-out*.txt",
        "--tokenizer=bytes",
        "--offset=0",
        "--critical=1,2",
        "--keys=1",
        f"--workdir={tmp_path / 'ablation'}",
    )
    assert code == 0, printed
    content = json.loads((tmp_path / "ablation" / "ablation.json").read_text())
    assert [t["name"] for t in content["tables"]] == ["Objective", "Dimensions", "Mixed window"]


@pytest.mark.slow
def test_the_ablation_of_rows_runs_and_goes_on(tmp_path):
    texts, base = tmp_path / "texts", tmp_path / "base"
    tiny_twin.write_texts(texts, words=2500)
    for text in texts.glob("*.txt"):  # with paragraphs
        text.write_text(text.read_text().replace(" a", "\n\na"))
    tiny_twin.make_base(texts, base, original_len=64)
    arguments = (
        f"--model={base}",
        f"--train={texts}/train-*.txt",
        f"--held_out={texts}/held-out*.txt",
        "--tokenizer=bytes",
        "--offset=0",
        f"--workdir={tmp_path / 'modes'}",
    )
    printed, code = run("data_modes", *arguments)
    assert code == 0, printed
    content = json.loads((tmp_path / "modes" / "data_modes.json").read_text())
    (table,) = content["tables"]
    assert [row[0] for row in table["cells"]] == ["", "yarn", "chunk", "concat", "mix"]
    assert table["cells"][0][1:] == ["64", "512"] and all(all(row) for row in table["cells"][1:])
    assert "rows (concat): 99." in printed and "rows of long documents: 60.0%" in printed
    again, code = run("data_modes", *arguments)
    assert code == 0 and again.count("finished before") == 4
