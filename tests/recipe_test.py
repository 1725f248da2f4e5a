"""A whole recipe of a tiny random model: what each stage leaves, going on, one stage, messages."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from jaxrope import recipe, rope, schema
from jaxrope.convert import pretrained
from jaxrope.errors import InputError
from jaxrope.recipe import join, kinds, record
from jaxrope.recipe.stages import parse
from jaxrope.shell.program import Program
from jaxrope.store import sealed, steps
from jaxrope.store.journal import read_rows
from tests import tiny_recipe, tiny_run

ROOT = Path(__file__).resolve().parent.parent
JOURNAL = "jaxrope.journal/2"


@pytest.fixture
def nothing_runs(monkeypatch):
    monkeypatch.setattr(Program, "start", lambda *_: pytest.fail("run again"))


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts") / "texts"
    tiny_recipe.make_config(folder)
    return folder


@pytest.fixture(scope="module")
def whole(texts, tmp_path_factory):
    """The workdir of a recipe that nobody disturbed."""
    workdir = tmp_path_factory.mktemp("recipe") / "run"
    assert recipe.run(tiny_recipe.make_config(texts), workdir) == 0
    return workdir


def changed(texts, name, key, value):
    """Returns the config of the recipe with one more change at the end of a stage."""
    config = tiny_recipe.make_config(texts)
    config.recipe = tuple(
        (n, kind, (*pairs, (key, value)) if n == name else pairs)
        for n, kind, pairs in config.recipe
    )
    return config


def own_rope(workdir, name):
    return rope.load(workdir / name / "rope.json")


def test_every_stage_leaves_its_files(whole):
    trained = {"config.json", "identity.json", "model.json", "rope.json", "metrics.jsonl"}
    trained |= {"checkpoints", "loss.png"}
    searched = {"config.json", "journal.jsonl", "result.json", "rope.json", "search.png"}
    measured = {"eval.json", "eval.md", "eval.png", "eval_nll.npz", "items.jsonl", "items"}
    wanted = dict.fromkeys(
        ("search_2x", "search_4x", "second", "recover_1x", "recover_2x"), searched
    )
    wanted |= {"recover_1x": searched | measured}
    wanted |= {"finetune_2x": trained, "finetune_4x": trained | measured}
    wanted |= {"join": {"config.json", "model.json", "rope.json", "checkpoints"} | measured}
    wanted |= {"compare": measured}
    for name in tiny_recipe.NAMES:
        found = {path.name for path in (whole / name).iterdir() if path.name[0] != "."}
        found.discard("tensorboard")  # if its package is there
        assert found == wanted[name] | {"stage.json"}, name


def test_recipe_json_tells_of_every_stage(whole):
    rows = json.loads((whole / "recipe.json").read_text())["stages"]
    assert [row["name"] for row in rows] == list(tiny_recipe.NAMES)
    by_name = {row["name"]: row for row in rows}
    assert by_name["finetune_4x"]["trained_tokens"] == 3 * 8 * 128
    assert by_name["finetune_4x"]["uses"] == ["search_4x", "finetune_2x"]
    result = json.loads((whole / "second" / "result.json").read_text())
    assert by_name["second"]["forward_tokens"] == result["forward_tokens"]
    result = json.loads((whole / "recover_1x" / "result.json").read_text())
    content = json.loads((whole / "recover_1x" / "eval.json").read_text())
    measured = sum(row["tokens"] for row in content["rows"])
    assert measured and content["config"]["rope"]["path"].endswith("recover_1x/rope.json")
    assert by_name["recover_1x"]["forward_tokens"] == result["forward_tokens"] + measured
    content = json.loads((whole / "join" / "eval.json").read_text())
    last = next(row for row in content["rows"] if row["length"] == 256)
    assert by_name["join"]["columns"]["perplexity at 256"] == last["metrics"]["perplexity"]
    assert by_name["join"]["forward_tokens"] == sum(row["tokens"] for row in content["rows"])


def test_stages_start_from_earlier_ones(whole):
    """The second fine-tuning has the weights of the first and the factors of the second search."""
    for name, searched in (("finetune_2x", "search_2x"), ("finetune_4x", "search_4x")):
        (found,), (wanted,) = own_rope(whole, name).buckets, own_rope(whole, searched).buckets
        assert found.factors == wanted.factors
    config = json.loads((whole / "finetune_4x" / "config.json").read_text())
    assert config["model"]["path"] == str(whole / "finetune_2x")
    first, second = (tiny_run.rows(whole / f"finetune_{n}x") for n in (2, 4))
    assert second[0]["loss"] < first[0]["loss"] - 0.1  # it goes on from weights that have learnt


def test_second_search_multiplies(whole):
    """LongRoPE, section 3.3: total = fine-tuned x lambda_2, to the bit."""
    (tuned,), (total,) = (own_rope(whole, n).buckets for n in ("finetune_4x", "second"))
    told = rope.provenance(whole / "second" / "rope.json")["multiplied"]
    rows = read_rows(whole / "second" / "journal.jsonl", JOURNAL)
    lambda_2 = np.array(told["lambda_2"])
    assert told["fine_tuned"] == list(tuned.factors) and told["fine_tuned_len"] == 128
    assert total.factors == tuple((np.array(tuned.factors) * lambda_2).tolist())
    for row in (row for row in rows if "genome" in row):
        own = np.array(row["factors"]) / np.array(tuned.factors)
        np.testing.assert_allclose(own * 100, np.rint(own * 100), atol=1e-9)  # on the grid
        assert 1 <= own.min() and own.max() <= 1.25 * 256 / 128
        # su of the total
        assert row["attention_factor"] == np.sqrt(1 + np.log(256 / 32) / np.log(32))
    assert total.max_len == 256 and np.max(lambda_2) > 1.25  # it has left where it started from
    best = min((row for row in rows if "judged" in row), key=lambda row: row["fitness"])
    assert tuple(best["factors"]) == total.factors  # what the model saw


def test_seeds_of_a_second_search_are_the_methods_on_top(whole):
    rows = read_rows(whole / "second" / "journal.jsonl", JOURNAL)
    tuned = np.array(own_rope(whole, "finetune_4x").buckets[0].factors)
    compared = {row["baseline"]: row for row in rows if "baseline" in row}
    assert list(compared) == ["none", "pi", "ntk", "dynamic_ntk", "yarn"]
    assert np.array_equal(compared["none"]["factors"], tuned)
    assert np.array_equal(compared["pi"]["factors"], 2.0 * tuned)
    ntk = 2.0 ** (np.arange(4) / 3)
    np.testing.assert_allclose(compared["ntk"]["factors"], ntk * tuned, rtol=1e-12)
    first = [row["genome"][:4] for row in rows if row.get("generation") == 0][:3]
    assert first[0] == [100] * 4 and first[1] == [200] * 4  # none, PI
    assert first[2] == np.rint(100 * ntk).tolist()


@pytest.mark.parametrize(("name", "length"), [("recover_1x", 32), ("recover_2x", 64)])
def test_recovery_keeps_to_its_bound(whole, name, length):
    (bucket,) = own_rope(whole, name).buckets
    tuned = own_rope(whole, "finetune_4x").buckets[0]
    told = rope.provenance(whole / name / "rope.json")["verdict"]
    assert bucket.max_len == length
    if told["is_baseline"]:  # what there was before has no bound
        assert told["result"] == "configured" and bucket.factors == tuned.factors
    else:
        assert max(bucket.factors) <= 1.5
    assert bucket.attention_factor == tuned.attention_factor  # search.attention_factor "rope"
    rows = read_rows(whole / name / "journal.jsonl", JOURNAL)
    assert all(max(row["factors"]) <= 1.5 for row in rows if "genome" in row)
    genomes = [row["genome"][:4] for row in rows if "genome" in row]
    assert [100] * 4 in genomes  # none
    clipped = np.minimum(np.rint(100 * np.array(tuned.factors)), 150).tolist()
    assert clipped in genomes  # the extended model's own
    compared = list(dict.fromkeys(row["baseline"] for row in rows if "baseline" in row))
    methods = (
        [] if length == 32 else ["pi", "ntk", "dynamic_ntk", "yarn"]
    )  # at L0 all of them change nothing
    assert compared == ["none", *methods, "configured"]


def test_join_has_every_bucket(whole):
    joined = own_rope(whole, "join")
    owners = ("recover_1x", "recover_2x", "finetune_4x", "second")
    for length, owner in zip((32, 64, 128, 256), owners, strict=True):
        wanted = own_rope(whole, owner).buckets[0]
        previous = length // 2
        for tokens in (previous + 1, length):
            same = dict(max_len=joined.bucket(tokens).max_len)
            assert joined.bucket(tokens) == dataclasses.replace(wanted, **same)
        assert wanted.max_len == length
    assert joined.bucket(1) == joined.bucket(32)
    with pytest.raises(InputError, match="257 tokens is longer than the last length bucket"):
        joined.bucket(257)
    told = rope.provenance(whole / "join" / "rope.json")["joined"]
    assert [row["file"] for row in told] == [f"{owner}/rope.json" for owner in owners]


def test_join_is_a_model(whole):
    loaded = pretrained.load(whole / "join")
    assert loaded.config.max_len == 256 and loaded.config.original_len == 32
    # a sample decides nothing, so that short lengths keep what the model was fine-tuned with
    assert [bucket.max_len for bucket in loaded.rope_fn.buckets] == [128, 256]
    ours, theirs = (tiny_run.final_arrays(whole / name) for name in ("join", "finetune_4x"))
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    labels = {row["label"] for row in json.loads((whole / "compare/eval.json").read_text())["rows"]}
    assert labels == {"longrope", "base", "4x"}


def test_a_join_without_weights_is_a_rope_alone(whole, texts, tmp_path):
    """And lengths with the same factors have one bucket, the rope of the longest as it is."""
    config = schema.replace(
        schema.read(tiny_recipe.make_config(texts)),
        {
            "model": dict(source="checkpoint", path=str(whole / "finetune_4x")),
            "join.ropes": (str(whole / "recover_1x"), str(whole / "finetune_4x")),
            "join.weights": False,
            "recipe": (),
        },
    )
    tuned, model = own_rope(whole, "finetune_4x"), join.prepare(config).model.config
    (tmp_path / "join").mkdir()
    assert join.finished(config, tmp_path / "join") is None
    join.run(config, tmp_path / "join")
    assert own_rope(tmp_path, "join").buckets == tuned.buckets
    assert {path.name for path in (tmp_path / "join").iterdir()} >= {"rope.json", "config.json"}
    assert not (tmp_path / "join" / "checkpoints").exists()
    assert join.finished(config, tmp_path / "join") == {"buckets": 1}
    (long,) = tuned.buckets
    shorter = dataclasses.replace(long, max_len=32, factors=tuple(np.array(long.factors) * 0.9))
    short = rope.make("longrope", **model.geometry, buckets=[dataclasses.asdict(shorter)])
    assert join.merge([("a", tuned), ("b", short)], model).buckets == (shorter, long)


def test_a_model_is_evaluated_with_its_own_rope(texts, tmp_path):
    """Whatever config.rope was for the stage that made it."""
    config = schema.read(tiny_recipe.make_config(texts))
    config = schema.replace(config, {"rope": dict(method="file", path="other/rope.json")})
    for kind in ("train", "join"):
        measured = kinds.KINDS[kind].evaluated(config, tmp_path / "stage")
        assert measured.rope.to_dict() == {"method": "model"} and measured.eval.label == "stage"
        place = measured.model.source, measured.model.path
        assert place == ("checkpoint", str(tmp_path / "stage"))
    measured = kinds.KINDS["search"].evaluated(config, tmp_path / "stage")
    assert measured.rope.path == str(tmp_path / "stage" / "rope.json")
    assert measured.model == config.model


def test_a_finished_recipe_is_not_run_again(whole, texts, nothing_runs, capsys):
    before = {path: path.read_bytes() for path in whole.rglob("*.json")}
    assert recipe.run(tiny_recipe.make_config(texts), whole) == 0
    assert {path: path.read_bytes() for path in whole.rglob("*.json")} == before
    out = capsys.readouterr().out
    assert out.count("finished before") == len(tiny_recipe.NAMES)
    assert "stage 3 of 9: finetune_2x (train)" in out
    assert out.splitlines()[-1] == f"wrote recipe.json into {whole}"


def test_a_finished_workdir_may_be_moved(whole, texts, tmp_path, nothing_runs):
    shutil.copytree(whole, tmp_path / "moved")
    assert recipe.run(tiny_recipe.make_config(texts), tmp_path / "moved") == 0


def interrupt(folder, kind):
    """Leaves of a stage what a kill in its midst would have left."""
    content = sealed.read_json(folder / "stage.json")
    left = {k: v for k, v in content.items() if k not in ("seconds", "columns")}
    sealed.write_json(folder / "stage.json", left | {"finished": False})
    gone = ["eval.json", "eval.md", "eval.png", "eval_nll.npz", "loss.png", "search.png"]
    if kind == "search":
        lines = (folder / "journal.jsonl").read_text().splitlines(keepends=True)
        (folder / "journal.jsonl").write_text("".join(lines[:-4]) + lines[-4][:20])
        gone += ["rope.json", "result.json"]
    if kind == "train":
        shutil.rmtree(steps.step_folder(folder, 3))
    if kind == "join":
        (steps.step_folder(folder, 0) / "commit_success.txt").unlink()
        gone += ["rope.json", "model.json"]
    for name in gone:
        (folder / name).unlink(missing_ok=True)


@pytest.mark.parametrize(
    "name", ["search_2x", "finetune_4x", "second", "recover_1x", "join", "compare"]
)
def test_a_stage_that_was_killed_goes_on_to_the_same(whole, texts, name, monkeypatch):
    before = tiny_recipe.left(whole / name)
    kinds = {n: kind for n, kind, _ in tiny_recipe.stages()}
    interrupt(whole / name, kinds[name])
    assert not record.read(whole / name)["finished"]
    ran, real = [], Program.start

    def start(program, config, folder):
        ran.append(folder.name)
        return real(program, config, folder)

    monkeypatch.setattr(Program, "start", start)
    assert recipe.run(tiny_recipe.make_config(texts), whole) == 0
    assert set(ran) == {name}
    assert tiny_recipe.left(whole / name) == before


def test_one_stage_alone(texts, tmp_path, capsys):
    config = tiny_recipe.make_config(texts)
    config.stages = ("recover_1x",)
    with pytest.raises(
        InputError,
        match=r"stage 'recover_1x' of recipe: it starts from 'finetune_4x', which is not finished "
        r"in .*\. Run that first, or both: --config\.stages=finetune_4x,recover_1x",
    ):
        recipe.run(config, tmp_path)
    config.stages = ("search_4x",)
    assert recipe.run(config, tmp_path) == 0
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == ["search_4x"]
    out = capsys.readouterr().out
    assert "stage 2 of 9: search_4x (search)" in out and "stage 1 of" not in out
    assert sum("not run" in line for line in out.splitlines()) == 8


def test_dry_run_says_what_there_is_to_do(texts, whole, tmp_path):
    """Of all stages, although none has left what later ones start from."""
    config = tiny_recipe.make_config(texts)
    table, *costs = recipe.dry_run(config, tmp_path / "new", timing=False).split("\n\n")
    lines = table.splitlines()
    assert not (tmp_path / "new").exists()
    assert [line.split()[0] for line in lines[1:]] == list(tiny_recipe.NAMES)
    assert all("to do" in line for line in lines[1:])
    assert "3 steps of 8 x 128" in lines[4]
    parts = [text.partition("\n")[0] for text in costs]
    assert parts[:4] == [
        *("search_2x (search)", "search_4x (search)"),
        *("finetune_2x (train)", "finetune_4x (train)"),
    ]
    assert parts[4] == "finetune_4x (evaluate)" and parts[-1] == "compare (evaluate)"
    assert "parameters: 35,488" in costs[2] and "to serve 64\n" in costs[2]
    assert "factors for up to 32, 64, 128, 256 tokens" in costs[parts.index("join (join)")]
    done = recipe.dry_run(config, whole, timing=False).splitlines()
    assert all("finished" in line for line in done[1:]) and len(done) == 10


# --- what is refused


@pytest.mark.parametrize(
    ("name", "key", "value", "message"),
    [
        (
            "finetune_2x",
            "train.steps",
            4,
            r"'finetune_2x' of recipe: it was finished with another train\.steps \(3, now 4\)\. "
            r"Set it back, give another --workdir, or delete .*/finetune_2x, .*/finetune_4x, "
            r".*/second, .*/recover_1x, .*/recover_2x, .*/join, .*/compare\.",
        ),
        (
            "second",
            "search.algorithm.iterations",
            3,
            r"'second' of recipe: it was finished with another search\.algorithm\.iterations "
            r"\(2, now 3\)\. .* or delete .*/second, .*/join, .*/compare\.",
        ),
        (
            "join",
            "eval.lengths",
            (32, 64),
            r"'join' of recipe: it was finished with another eval\.lengths \(\[32, 64, 256\], now "
            r"\[32, 64\]\)\. .* delete .*/join/stage\.json: then only its evaluation is done anew",
        ),
        (
            "compare",
            "eval.lengths",
            (64,),
            r"'compare' of recipe: it was finished with another eval\.lengths .* or delete "
            r".*/compare\.",
        ),
        ("join", "join.ropes", ("{second}",), r"'join' of recipe: it was finished with another"),
        ("search_2x", "data.needle_weight", 3.0, None),  # no search reads it
        ("finetune_4x", "train.log_every", 2, None),
        ("second", "search.batch_size", 1, None),
        ("join", "mesh.data", 8, None),
    ],
)
def test_only_what_changes_a_result_is_refused(
    whole, texts, nothing_runs, name, key, value, message
):
    config = changed(texts, name, key, value)
    if message is None:
        assert recipe.run(config, whole) == 0
        return
    with pytest.raises(InputError, match=message) as caught:
        recipe.run(config, whole)
    assert "\n" not in str(caught.value)


def test_other_text_under_the_same_name_is_refused(whole, texts, nothing_runs):
    """It once was not: the recipe went on telling the perplexity of the text before."""
    file = texts / "train-0.txt"
    before = file.read_text()
    file.write_text(before[::-1])
    try:
        with pytest.raises(InputError) as caught:
            recipe.run(tiny_recipe.make_config(texts), whole)
    finally:
        file.write_text(before)
    line = str(caught.value)
    assert line.startswith("stage 'search_2x' of recipe: it was finished with another ")
    assert "the text (" in line
    assert "or delete " in line and f"{whole / 'compare'}." in line


def test_other_weights_under_the_same_name_are_refused(whole, texts, tmp_path, nothing_runs):
    workdir = shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(workdir / "finetune_2x" / "checkpoints")
    shutil.copytree(
        workdir / "finetune_4x" / "checkpoints", workdir / "finetune_2x" / "checkpoints"
    )
    with pytest.raises(InputError, match=r"stage 'finetune_4x' .* another the weights \(digest"):
        recipe.run(tiny_recipe.make_config(texts), workdir)


def test_a_model_that_was_deleted_since_is_no_reason_to_begin_again(
    whole, texts, tmp_path, nothing_runs
):
    workdir = shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(workdir / "finetune_2x" / "checkpoints")
    assert recipe.run(tiny_recipe.make_config(texts), workdir) == 0


def test_a_stage_made_from_another_run_is_refused(whole, texts, tmp_path):
    """Its own config is the same, that of a stage before it is not."""
    shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "search_4x")
    config = changed(texts, "search_4x", "search.algorithm.iterations", 3)
    with pytest.raises(
        InputError,
        match=r"stage 'finetune_4x' of recipe: it was made from a 'search_4x' with other",
    ):
        recipe.run(config, tmp_path / "run")


@pytest.mark.parametrize("change", [lambda text: "{}", lambda text: text.replace("train", "trian")])
def test_a_damaged_record_is_refused(whole, texts, tmp_path, change):
    shutil.copytree(whole, tmp_path / "run")
    path = tmp_path / "run" / "finetune_2x" / "stage.json"
    path.write_text(change(path.read_text()))
    with pytest.raises(InputError, match=r"finetune_2x/stage\.json .* Or delete .*finetune_2x, or"):
        recipe.run(tiny_recipe.make_config(texts), tmp_path / "run")


def test_two_buckets_for_one_length_cannot_be_joined(whole, texts):
    config = changed(texts, "join", "join.ropes", ("{finetune_4x}", "{search_4x}"))
    stage = next(stage for stage in parse(schema.read(config)) if stage.name == "join")
    with pytest.raises(
        InputError,
        match=r"join\.ropes: finetune_4x/rope\.json and search_4x/rope\.json both have factors up "
        r"to 128 tokens\. Leave one of them out",
    ):
        join.prepare(stage.resolved(whole))
