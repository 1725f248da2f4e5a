"""What is wrong with a recipe is said before anything runs, or with the stage's name."""

from pathlib import Path

import pytest

from jaxrope import recipe
from jaxrope.errors import InputError
from jaxrope.recipe import record, work
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            first_stages(("a", "search")),
            r'recipe must hold stages like \("name", "train", .* got \(',
        ),
        (first_stages(("a", "search", ("seed", 1))), r"recipe must hold stages like"),
        (first_stages(("a/b", "search", ())), r"recipe: a stage's name is .* got 'a/b'"),
        (
            first_stages(("a", "search", ()), ("a", "train", ())),
            r"recipe: two stages are named 'a'",
        ),
        (
            first_stages(("a", "serach", ())),
            r"stage 'a' of recipe: unknown kind 'serach'\. Did you mean 'search'\?",
        ),
        (
            plus("second", "search.hihgest", 2.0),
            r"Unknown key 'search\.hihgest' in stage 'second' of recipe\. Did you mean "
            r"'search\.highest'\?",
        ),
        (
            plus("second", "search.highest", "2"),
            r"stage 'second' of recipe: search\.highest must be float or int, got '2'",
        ),
        (plus("second", "train", dict(steps=3)), r"train is a section; set its keys one at a time"),
        (plus("second", "hosts.timeout_seconds", 3), r"hosts\.timeout_seconds is of the whole"),
        (plus("second", "stages", ("a",)), r"stages is of the whole recipe"),
        (
            plus("finetune_2x", "rope.path", "{second}/rope.json"),
            r"'finetune_2x' of recipe: rope\.path names '\{second\}', which comes later\. Move",
        ),
        (
            plus("second", "model.path", "{second}"),
            r"stage 'second' of recipe: model\.path names '\{second\}', itself",
        ),
        (
            plus("second", "model.path", "{finetune_8x}"),
            r"model\.path names '\{finetune_8x\}', and no stage has that name\. Did you mean "
            r"'finetune_4x'\?",
        ),
        (
            plus("join", "join.ropes", ("{recover_1x}", "{compare}")),
            r"join\.ropes names '\{compare\}', which comes later",
        ),
        (
            lambda config: setattr(config, "stages", ("jion",)),
            r"Unknown config\.stages 'jion'\. Did",
        ),
        (
            plus("second", "model.path", "{search_4x}"),
            r"stage 'second' of recipe: model\.path: '\{search_4x\}' is of kind 'search', which "
            r"leaves no model\. Name a stage of kind train or join",
        ),
        (
            plus("second", "model.path", "nowhere"),
            r"stage 'second' of recipe: nowhere: there is no such folder",
        ),
        (
            plus("finetune_2x", "rope.path", "{search_2x}"),
            r"rope\.path must be a file, got '\{search_2x\}'\. Write '\{search_2x\}/rope\.json'",
        ),
        (
            plus("second", "search.seeds", ("nowhere/rope.json",)),
            r"stage 'second' of recipe: search\.seeds: 'nowhere/rope\.json' does not exist",
        ),
        (plus("join", "join.ropes", ()), r"stage 'join' of recipe: join\.ropes is empty"),
        (plus("finetune_4x", "train.steps", 0), r"'finetune_4x' of recipe: train\.steps must be"),
        (
            plus("finetune_4x", "optimizer.schedule.warmup_steps", 5),
            r"'finetune_4x' of recipe: optimizer\.schedule\.warmup_steps must be .* got 5",
        ),
        (
            plus("finetune_4x", "train.seq_len", 129),
            r"'finetune_4x' of recipe: train\.seq_len is 129 tokens, but its rope ends at 128",
        ),
        (
            plus("join", "eval.lengths", (32, 512)),
            r"'join' of recipe: eval\.lengths has 512 tokens, but its rope ends at 256",
        ),
        (
            plus("join", "eval.suites", ("perplexty",)),
            r"Unknown eval\.suites 'perplexty'\. Did you",
        ),
        (plus("join", "eval.methods", ("yarm",)), r"Unknown eval\.methods 'yarm'\. Did you mean"),
        (plus("compare", "eval.suites", ()), r"'compare' of recipe: eval\.suites is empty"),
        (
            plus("compare", "eval.checkpoints", (("x", "{join}", "no/rope.json"),)),
            r"eval\.checkpoints: 'no/rope\.json' does not exist\. Name a stage as '\{NAME\}'",
        ),
        (
            plus("compare", "eval.checkpoints", (("x", "{join}", "{compare}/rope.json"),)),
            r"stage 'compare' of recipe: eval\.checkpoints names '\{compare\}', itself",
        ),
        (
            plus("compare", "eval.checkpoints", (("x", "nowhere", "model"),)),
            r"'compare' of recipe: eval\.checkpoints: 'nowhere' does not exist",
        ),
        (plus("recover_2x", "target_len", 0), r"'recover_2x' of recipe: target_len must be"),
        (
            plus("search_4x", "search.algorithm.parents", 99),
            r"'search_4x' of recipe: search\.algor",
        ),
        (
            plus("search_4x", "data.train_files", ("nowhere/*.txt",)),
            r"'search_4x' of recipe: data\.train_files",
        ),
        (
            lambda config: setattr(config, "sweep", (("seed", (1, 2)),)),
            r"config\.sweep is of search\.py, config\.recipe of train\.py",
        ),
    ],
)
def test_messages_before_anything_runs(texts, tmp_path, change, message, monkeypatch):
    monkeypatch.setattr(work, "run", lambda *_: pytest.fail("run"))
    config = tiny_recipe.make_config(texts)
    change(config)
    with pytest.raises(InputError, match=message) as caught:
        recipe.run(config, tmp_path / "run", False)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "run").glob("*/*"))


def test_an_error_of_a_stage_names_it(texts, tmp_path, monkeypatch):
    def fail(*_):
        raise InputError("search.batch_size: too much.")

    monkeypatch.setattr(work, "run", fail)
    with pytest.raises(InputError, match=r"^stage 'search_2x' of recipe: search\.batch_size: too"):
        recipe.run(tiny_recipe.make_config(texts), tmp_path, False)


def test_the_exit_code_of_a_stage_ends_the_recipe(texts, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(work, "run", lambda *_: work.Outcome(143, {}))
    assert recipe.run(tiny_recipe.make_config(texts), tmp_path, False) == 143
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
