"""A whole recipe of a tiny random model: what each stage leaves, going on, one stage, messages."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from jaxrope import recipe, rope
from jaxrope.convert import pretrained
from jaxrope.errors import InputError
from jaxrope.recipe import record, work
from jaxrope.recipe.stages import parse
from jaxrope.store import files, steps
from tests import tiny_recipe, tiny_run

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts") / "texts"
    tiny_recipe.make_config(folder)
    return folder


@pytest.fixture(scope="module")
def whole(texts, tmp_path_factory):
    """The workdir of a recipe that nobody disturbed."""
    workdir = tmp_path_factory.mktemp("recipe") / "run"
    assert recipe.run(tiny_recipe.make_config(texts), workdir, False) == 0
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
    trained = {"config.json", "model.json", "rope.json", "metrics.jsonl", "checkpoints", "loss.png"}
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
    shown = f"{last['metrics']['perplexity']:.4g} at 256"
    assert by_name["join"]["perplexity"] == shown
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
    lambda_2 = np.array(told["lambda_2"])
    assert told["fine_tuned"] == list(tuned.factors) and told["fine_tuned_len"] == 128
    assert total.factors == tuple((np.array(tuned.factors) * lambda_2).tolist())
    assert np.array_equal(lambda_2, np.rint(lambda_2 * 100) / 100)  # on the grid
    assert 1 <= lambda_2.min() and lambda_2.max() <= 1.25 * 256 / 128
    assert np.max(lambda_2) > 1.25  # it has left where it started from
    assert total.max_len == 256
    assert total.attention_factor == np.sqrt(1 + np.log(256 / 32) / np.log(32))  # su of the total
    rows = files.read_jsonl(whole / "second" / "journal.jsonl")
    best = min((r for r in rows if "genome" in r), key=lambda row: row["fitness"])
    assert tuple(best["factors"]) == total.factors  # what the model saw


def test_seeds_of_a_second_search_are_the_methods_on_top(whole):
    rows = files.read_jsonl(whole / "second" / "journal.jsonl")
    tuned = np.array(own_rope(whole, "finetune_4x").buckets[0].factors)
    compared = {row["baseline"]: row for row in rows if "baseline" in row}
    assert list(compared) == ["none", "pi", "ntk", "yarn"]
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
    assert bucket.max_len == length and max(bucket.factors) <= 1.5
    tuned = own_rope(whole, "finetune_4x").buckets[0]
    assert bucket.attention_factor == tuned.attention_factor  # search.attention_factor "rope"
    rows = files.read_jsonl(whole / name / "journal.jsonl")
    assert all(max(row["factors"]) <= 1.5 for row in rows if "genome" in row)
    genomes = [row["genome"][:4] for row in rows if "genome" in row]
    assert [100] * 4 in genomes  # none
    clipped = np.minimum(np.rint(100 * np.array(tuned.factors)), 150).tolist()
    assert clipped in genomes  # the extended model's own
    compared = list(dict.fromkeys(row["baseline"] for row in rows if "baseline" in row))
    methods = [] if length == 32 else ["pi", "ntk", "yarn"]  # at L0 all of them change nothing
    assert compared == ["none", *methods, "configured"]


def test_join_has_every_bucket(whole):
    joined = own_rope(whole, "join")
    owners = ("recover_1x", "recover_2x", "finetune_4x", "second")
    for length, owner in zip((32, 64, 128, 256), owners, strict=True):
        wanted = own_rope(whole, owner).buckets[0]
        previous = length // 2
        for tokens in (previous + 1, length):
            assert joined.bucket(tokens) == wanted
        assert wanted.max_len == length
    assert joined.bucket(1) == own_rope(whole, "recover_1x").buckets[0]
    with pytest.raises(InputError, match="257 tokens is longer than the last length bucket"):
        joined.bucket(257)
    told = rope.provenance(whole / "join" / "rope.json")["joined"]
    assert [row["file"] for row in told] == [f"{owner}/rope.json" for owner in owners]


def test_join_is_a_model(whole):
    loaded = pretrained.load(whole / "join")
    assert loaded.config.max_len == 256 and loaded.config.original_len == 32
    assert [bucket.max_len for bucket in loaded.rope_fn.buckets] == [32, 64, 128, 256]
    ours, theirs = (tiny_run.final_arrays(whole / name) for name in ("join", "finetune_4x"))
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    labels = {row["label"] for row in json.loads((whole / "compare/eval.json").read_text())["rows"]}
    assert labels == {"longrope", "base", "4x"}


def test_a_model_is_evaluated_with_its_own_rope(texts, tmp_path):
    """Whatever config.rope was for the stage that made it."""
    config = tiny_recipe.make_config(texts)
    config.rope = dict(method="file", path="other/rope.json")
    for kind in ("train", "join"):
        made = work.KINDS[kind].evaluated(config, tmp_path / "stage")
        assert made.rope.to_dict() == {"method": "model"} and made.eval.label == "stage"
        assert (made.model.source, made.model.path) == ("checkpoint", str(tmp_path / "stage"))
    made = work.KINDS["search"].evaluated(config, tmp_path / "stage")
    assert made.rope.path == str(tmp_path / "stage" / "rope.json")
    assert made.model.to_dict() == config.model.to_dict()


def test_a_finished_recipe_is_not_run_again(whole, texts, monkeypatch, capsys):
    before = {path: path.read_bytes() for path in whole.rglob("*.json")}
    monkeypatch.setattr(work, "run", lambda *_: pytest.fail("run again"))
    assert recipe.run(tiny_recipe.make_config(texts), whole, False) == 0
    assert {path: path.read_bytes() for path in whole.rglob("*.json")} == before
    out = capsys.readouterr().out
    assert out.count("finished before") == len(tiny_recipe.NAMES)
    assert "stage 3 of 9: finetune_2x (train)" in out


def test_a_finished_workdir_may_be_moved(whole, texts, tmp_path, monkeypatch):
    shutil.copytree(whole, tmp_path / "moved")
    monkeypatch.setattr(work, "run", lambda *_: pytest.fail("run again"))
    assert recipe.run(tiny_recipe.make_config(texts), tmp_path / "moved", False) == 0


def interrupt(folder, kind):
    """Leaves of a stage what a kill in its midst would have left."""
    said = json.loads((folder / "stage.json").read_text())
    said = {k: v for k, v in said.items() if k not in ("seconds", "result")} | {"finished": False}
    (folder / "stage.json").write_text(json.dumps(said))
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
    ran, real = [], work.run
    monkeypatch.setattr(work, "run", lambda *args: ran.append(args[2].name) or real(*args))
    assert recipe.run(tiny_recipe.make_config(texts), whole, False) == 0
    assert ran == [name]
    assert tiny_recipe.left(whole / name) == before


def test_one_stage_alone(texts, tmp_path, capsys):
    config = tiny_recipe.make_config(texts)
    config.stages = ("recover_1x",)
    with pytest.raises(
        InputError,
        match=r"stage 'recover_1x' of recipe: it starts from 'finetune_4x', which is not finished "
        r"in .*\. Run that first, or both: --config\.stages=finetune_4x,recover_1x",
    ):
        recipe.run(config, tmp_path, False)
    config.stages = ("search_4x",)
    assert recipe.run(config, tmp_path, False) == 0
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == ["search_4x"]
    out = capsys.readouterr().out
    assert "stage 2 of 9: search_4x (search)" in out and "stage 1 of" not in out
    assert sum("not run" in line for line in out.splitlines()) == 8


def test_dry_run_says_what_there_is_to_do(texts, whole, tmp_path, capsys):
    config = tiny_recipe.make_config(texts)
    assert recipe.run(config, tmp_path / "new", True) == 0
    lines = capsys.readouterr().out.splitlines()
    assert not (tmp_path / "new").exists()
    assert [line.split()[0] for line in lines[1:-1]] == list(tiny_recipe.NAMES)
    assert all("to do" in line for line in lines[1:-1])
    assert "3 steps of 8 x 128" in lines[4] and f"{3 * 8 * 128:,}" in lines[4]
    assert lines[-1].split()[-1] == f"{3 * 8 * (64 + 128):,}"
    recipe.run(config, whole, True)
    lines = capsys.readouterr().out.splitlines()
    assert all("finished" in line for line in lines[1:-1]) and lines[-1].split() == ["to", "do"]


# --- what is refused


@pytest.mark.parametrize(
    ("name", "key", "value", "message"),
    [
        (
            "finetune_2x",
            "train.steps",
            4,
            r"'finetune_2x' of recipe: it was finished with train\.steps 3, the config has 4\. "
            r"Set it back, give another --workdir, or delete .*/finetune_2x, .*/finetune_4x, "
            r".*/second, .*/recover_1x, .*/recover_2x, .*/join, .*/compare\.",
        ),
        (
            "second",
            "search.algorithm.iterations",
            3,
            r"'second' of recipe: it was finished with search\.algorithm\.iterations 2, the config "
            r"has 3\. .* or delete .*/second, .*/join, .*/compare\.",
        ),
        (
            "join",
            "eval.lengths",
            (32, 64),
            r"'join' of recipe: it was finished with eval\.lengths \[32, 64, 256\], the config has "
            r"\[32, 64\]\. .* or delete .*/join/stage\.json: then only its evaluation is done anew",
        ),
        (
            "compare",
            "eval.lengths",
            (64,),
            r"'compare' of recipe: it was finished with eval\.lengths .* or delete .*/compare\.",
        ),
        (
            "join",
            "join.ropes",
            ("{second}",),
            r"'join' of recipe: it was finished with join\.ropes",
        ),
    ],
)
def test_another_config_of_a_finished_stage_is_refused(whole, texts, name, key, value, message):
    with pytest.raises(InputError, match=message):
        recipe.run(changed(texts, name, key, value), whole, False)


def edit_record(folder, change):
    path = folder / "stage.json"
    content = json.loads(path.read_text())
    change(content["config"])
    path.write_text(json.dumps(content))


def test_keys_of_a_newer_version_change_nothing(whole, texts, monkeypatch):
    """A stage that was finished before a key was there had what is its default now."""
    monkeypatch.setattr(work, "run", lambda *_: pytest.fail("run again"))
    config = tiny_recipe.make_config(texts)
    with config.unlocked():
        config.data.a_new_key = 3
        config.train.another = 4
    assert recipe.run(config, whole, False) == 0


def test_what_rows_of_training_are_made_of_changes_no_search(whole, texts, tmp_path):
    workdir = shutil.copytree(whole, tmp_path / "run")
    edit_record(workdir / "search_2x", lambda found: found.update({"data.needle_weight": 1.0}))
    config = tiny_recipe.make_config(texts)
    config.data.needle_weight = 3.0
    with pytest.raises(
        InputError, match=r"'finetune_2x' of recipe: .* data\.needle_weight 1\.0, the config has 3"
    ):
        recipe.run(config, workdir, False)


def test_an_argument_that_a_section_has_got_is_a_change(whole, texts, tmp_path):
    workdir = shutil.copytree(whole, tmp_path / "run")
    edit_record(workdir / "search_2x", lambda told: told.pop("search.algorithm.parents"))
    with pytest.raises(InputError, match=r"with search\.algorithm\.parents None, the config has 3"):
        recipe.run(tiny_recipe.make_config(texts), workdir, False)


def test_what_changes_no_result_may_change(whole, texts, monkeypatch):
    monkeypatch.setattr(work, "run", lambda *_: pytest.fail("run again"))
    config = changed(texts, "finetune_4x", "train.log_every", 2)
    config.search.batch_size, config.checkpoint.every = 1, 1
    config.mesh.data = 8
    assert recipe.run(config, whole, False) == 0


def test_a_stage_made_from_another_run_is_refused(whole, texts, tmp_path):
    """Its own config is the same, that of a stage before it is not."""
    shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "search_4x")
    config = changed(texts, "search_4x", "search.algorithm.iterations", 3)
    with pytest.raises(
        InputError,
        match=r"stage 'finetune_4x' of recipe: it was made from a 'search_4x' with other",
    ):
        recipe.run(config, tmp_path / "run", False)
    (tmp_path / "run" / "search_2x" / "stage.json").write_text("{}")
    with pytest.raises(InputError, match=r"search_2x/stage\.json is not what train\.py writes"):
        recipe.run(tiny_recipe.make_config(texts), tmp_path / "run", False)


def test_two_buckets_for_one_length_cannot_be_joined(whole, texts):
    from jaxrope.recipe import join

    made = parse(changed(texts, "join", "join.ropes", ("{finetune_4x}", "{search_4x}")))
    config = next(stage for stage in made if stage.name == "join").resolved(whole)
    with pytest.raises(
        InputError,
        match=r"join\.ropes: finetune_4x/rope\.json and search_4x/rope\.json both have factors up "
        r"to 128 tokens\. Leave one of them out",
    ):
        join.run(config, whole / "never")


# --- as a process
