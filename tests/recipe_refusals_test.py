"""What is wrong with a recipe is said before anything runs, or with the stage's name."""

from pathlib import Path

import pytest

from jaxrope import recipe
from jaxrope.errors import InputError
from jaxrope.recipe import record
from jaxrope.shell.program import Program
from tests import tiny_recipe

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts") / "texts"
    tiny_recipe.make_config(folder)
    return folder


def first_stages(*stages):
    return lambda config: setattr(config, "recipe", stages)


def plus(name, key, value):
    return lambda config: setattr(
        config,
        "recipe",
        tuple((n, k, (*p, (key, value)) if n == name else p) for n, k, p in config.recipe),
    )


def in_stage(name, key, value, message):
    """One change of a stage, and what is said of it."""
    return pytest.param(plus(name, key, value), f"stage '{name}' of recipe: {message}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (first_stages(("a", "search")), r"recipe\[0\] must be like \(\"name\", \"train\", .* got"),
        (first_stages(("a", "search", ("seed", 1))), r"recipe\[0\]\[2\]\[0\] must be like"),
        (first_stages(("a/b", "search", ())), r"recipe: a stage's name is .* got 'a/b'"),
        (
            first_stages(("a", "search", ()), ("a", "train", ())),
            r"recipe: two stages are named 'a'",
        ),
        (
            first_stages(("a", "serach", ())),
            r"Unknown recipe\[0\]\[1\] 'serach'\. Did you mean 'search'\?",
        ),
        in_stage(
            "second",
            "search.hihgest",
            2.0,
            r"Unknown key 'search\.hihgest'\. Did you mean search\.highest\?",
        ),
        in_stage("second", "search.highest", "2", r"search\.highest must be a number .* got '2'"),
        in_stage("second", "train", dict(steps=3), r"train is a section; set its keys one at a"),
        in_stage("second", "hosts.timeout_seconds", 3, r"hosts\.timeout_seconds is of the whole"),
        in_stage("second", "stages", ("a",), r"stages is of the whole recipe"),
        in_stage(
            "finetune_2x",
            "rope.path",
            "{second}/rope.json",
            r"rope\.path names '\{second\}', which comes later\. Move",
        ),
        in_stage("second", "model.path", "{second}", r"model\.path names '\{second\}', itself"),
        in_stage(
            "second",
            "model.path",
            "{finetune_8x}",
            r"model\.path names '\{finetune_8x\}', and no stage has that name\. Did you mean "
            r"'finetune_4x'\?",
        ),
        in_stage(
            "join",
            "join.ropes",
            ("{recover_1x}", "{compare}"),
            r"join\.ropes names '\{compare\}', which comes later",
        ),
        (
            lambda config: setattr(config, "stages", ("jion",)),
            r"Unknown config\.stages 'jion'\. Did",
        ),
        in_stage(
            "second",
            "model.path",
            "{search_4x}",
            r"model\.path: '\{search_4x\}' is of kind 'search', which leaves no model\. Name a "
            "stage of kind train or join",
        ),
        in_stage("second", "model.path", "nowhere", r"nowhere: there is no such folder"),
        in_stage(
            "finetune_2x",
            "rope.path",
            "{search_2x}",
            r"rope\.path must be a file, got '\{search_2x\}'\. Write '\{search_2x\}/rope\.json'",
        ),
        in_stage(
            "second",
            "search.seeds",
            ("nowhere/rope.json",),
            r".*nowhere/rope\.json.*(no such|cannot)",
        ),
        in_stage("join", "join.ropes", (), r"join\.ropes is empty"),
        in_stage("finetune_4x", "train.steps", 0, r"train\.steps must be"),
        in_stage(
            "finetune_4x",
            "optimizer.schedule.warmup_steps",
            5,
            r"optimizer\.schedule\.warmup_steps must be .* got 5",
        ),
        in_stage(
            "finetune_4x", "train.seq_len", 129, r"train\.seq_len is 129 tokens, but the rope ends"
        ),
        in_stage(
            "join",
            "eval.lengths",
            (32, 512),
            r"A sequence of 512 tokens is longer than the last length bucket, 256",
        ),
        in_stage("join", "eval.suites", ("perplexty",), r"Unknown eval\.suites\[0\] 'perplexty'"),
        in_stage("join", "eval.methods", ("yarm",), r"Unknown eval\.methods 'yarm'\. Did you mean"),
        in_stage("compare", "eval.suites", (), r"eval\.suites is empty"),
        in_stage(
            "compare",
            "eval.checkpoints",
            (("x", "{join}", "no/rope.json"),),
            r".*no/rope\.json.*(no such|cannot)",
        ),
        in_stage(
            "compare",
            "eval.checkpoints",
            (("x", "{join}", "{compare}/rope.json"),),
            r"eval\.checkpoints names '\{compare\}', itself",
        ),
        in_stage(
            "compare",
            "eval.checkpoints",
            (("x", "nowhere", "model"),),
            r"eval\.checkpoints: 'nowhere' of row 'x' does not exist",
        ),
        in_stage("recover_2x", "target_len", 0, r"target_len must"),
        in_stage(
            "search_4x", "search.algorithm.parents", 99, r"search\.algorithm\.parents must be"
        ),
        in_stage(
            "search_4x", "data.train_files", ("nowhere/*.txt",), r"data\.train_files: .*nowhere"
        ),
        in_stage("search_4x", "mesh.tensor", 3, r"mesh"),
        # values that once were accepted in a late stage, and failed hours later
        in_stage("recover_2x", "search.objective.name", "perplexty", "Unknown search.objective.n"),
        in_stage("recover_2x", "search.prefilter", dict(name="decy"), "Unknown search.prefilter"),
        in_stage("recover_2x", "search.attention_factor", "sue", "Unknown search.attention_factor"),
        in_stage("finetune_4x", "data.mode", "chnk", "Unknown data.mode 'chnk'"),
        in_stage("compare", "rope", dict(method="yarm", factor=2.0), "Unknown rope.method 'yarm'"),
        in_stage("compare", "eval.aggregation", "mean", "Unknown eval.aggregation 'mean'"),
        in_stage("compare", "eval.needle_filler", "gras", "Unknown eval.needle_filler 'gras'"),
        in_stage("recover_2x", "search.objective.num_samples", 0, "search.objective.num_samples m"),
        in_stage("recover_2x", "search.racing.risk", 7, "search.racing.risk must be a number"),
        in_stage("recover_2x", "search.start_tokens", (-3,), r"search.start_tokens\[0\] must be"),
        in_stage("compare", "train.batch_size", -4, "train.batch_size must be a whole number"),
        in_stage("compare", "seed", -1, "seed must be a whole number, 0 or more, got -1"),
        in_stage("compare", "data.needle_share", 3, "data.needle_share must be a number"),
    ],
)
def test_a_mistake_is_told_before_any_stage_runs(texts, tmp_path, monkeypatch, change, message):
    monkeypatch.setattr(Program, "start", lambda *_: pytest.fail("run"))
    config = tiny_recipe.make_config(texts)
    change(config)
    with pytest.raises(InputError, match=message) as caught:
        recipe.run(config, tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "run").glob("*/*"))


def test_an_error_of_a_stage_names_it(texts, tmp_path, monkeypatch):
    def fail(*_):
        raise InputError("search.batch_size: too much.")

    monkeypatch.setattr(Program, "start", fail)
    with pytest.raises(InputError, match=r"^stage 'search_2x' of recipe: search\.batch_size: too"):
        recipe.run(tiny_recipe.make_config(texts), tmp_path)


def test_the_exit_code_of_a_stage_ends_the_recipe(texts, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Program, "start", lambda *_: 143)
    assert recipe.run(tiny_recipe.make_config(texts), tmp_path) == 143
    assert "stopped in stage search_2x" in capsys.readouterr().out
    assert not record.read(tmp_path / "search_2x")["finished"]
    assert not (tmp_path / "search_4x").exists()


def test_compile_only_compiles_the_stages_that_compute(texts, tmp_path, capsys):
    config = tiny_recipe.make_config(texts)
    config.stages = ("finetune_2x",)
    recipe.compile_stages(config, "", tmp_path)
    out = capsys.readouterr().out
    assert "finetune_2x (train)" in out and "35,488 parameters" in out
    assert (tmp_path / "finetune_2x" / "compile.jsonl").exists()
    config.stages = ("join", "compare")
    recipe.compile_stages(config, "", None)
    assert capsys.readouterr().out == ""
