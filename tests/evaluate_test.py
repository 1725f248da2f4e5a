"""The program: rows, what it writes, and what it refuses before anything runs."""

import json
import re

import numpy as np
import pytest

from configs import base
from jaxrope import llama, rope, setup
from jaxrope.convert.pretrained import Pretrained
from jaxrope.errors import InputError
from jaxrope.evaluate import program
from jaxrope.shell import cli

BOOK = "It was a dark and stormy night; the rain fell in torrents. " * 40


@pytest.fixture
def config(tmp_path, tiny_config, tiny_params, monkeypatch):
    """A small model, a text, short lengths."""
    made = Pretrained(tiny_config, tiny_params, None, llama.own_rope(tiny_config), "tiny")
    monkeypatch.setattr(setup, "load_model", lambda config: made)  # drawing one takes seconds
    (tmp_path / "a.txt").write_text(BOOK)
    (tmp_path / "b.txt").write_text(BOOK[20:])
    config = base.get_config()
    with config.unlocked():
        config.model = dict(source="scratch", **tiny_config.to_json_dict())
        config.data.tokenizer = "bytes"
        config.data.eval_files = (str(tmp_path / "?.txt"),)
        config.data.cache_dir = str(tmp_path / "cache")
        config.eval.update(
            suites=("perplexity",),
            lengths=(64, 128),
            methods=("none", "pi", "yarn", "sliding"),
            num_windows=4,
            stride=32,
            bootstrap_samples=200,
        )
    return config


def change(config, **values):
    with config.unlocked():
        config.eval.update(values)
    return config


def test_the_program_writes_what_it_found(config, tmp_path, capsys):
    program.run(config, tmp_path, False)
    content = json.loads((tmp_path / "eval.json").read_text())
    assert content["format"] == "jaxrope.eval/1"
    assert content["config"]["eval"]["num_windows"] == 4
    assert content["model"]["original_len"] == 64
    found = {(row["label"], row["length"]): row for row in content["rows"]}
    assert len(found) == len(content["rows"]) == 8
    for length in (64, 128):
        column = [row for (_, n), row in found.items() if n == length]
        assert len({row["fingerprint"] for row in column}) == 1
    same = {found[label, 64]["metrics"]["perplexity"] for label in ("none", "pi", "yarn")}
    assert len(same) == 1  # at the original length no method changes anything
    arrays = np.load(tmp_path / "eval_nll.npz")
    for (label, length), row in found.items():
        nll_WT = arrays[f"{label}|{length}"]
        assert nll_WT.shape == (4, length) and nll_WT.dtype == np.float32
        np.testing.assert_allclose(nll_WT.mean(1), row["items"]["window_nll"], rtol=1e-5)
        assert np.log(row["metrics"]["perplexity"]) == pytest.approx(nll_WT.mean(), abs=1e-5)
        assert row["tokens_per_second"] > 0
        if label != "yarn":
            base_WT = arrays[f"yarn|{length}"]
            wanted = nll_WT.mean(1, dtype=float) - base_WT.mean(1, dtype=float)
            assert row["difference"]["mean"] == pytest.approx(wanted.mean(), abs=1e-9)
            assert row["difference"]["baseline"] == "yarn"
    printed = capsys.readouterr().out
    assert "4 rows x 2 lengths" in printed and "Mean NLL minus that of yarn" in printed
    assert (tmp_path / "eval.md").read_text().startswith("## Perplexity [95% interval]\n\n|")
    assert (tmp_path / "eval.png").stat().st_size > 10_000


def test_a_dry_run_says_the_cost_and_writes_nothing(config, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    program.run(config, tmp_path / "out", True)
    assert not list((tmp_path / "out").iterdir())
    # 3 rows x 4 windows x (64 + 128), and sliding: 64, then 128 in 3 windows of 64
    assert f"{3 * 4 * 192 + 4 * (64 + 3 * 64):,} forward tokens" in capsys.readouterr().out


def test_the_cost_is_what_is_read(config):
    plan = program.make_plan(config)
    told = []

    class Count:
        def update(self, done):
            told.append(done)

    list(program.measure(plan, Count()))
    assert told[-1] == program.forward_tokens(plan)


def test_factors_may_be_fixed_for_one_length(config):
    plan = program.make_plan(change(config, rope_len=256))
    model = program._model(plan, program.Spec("pi", "", "pi"), plan.base)
    assert model.rope_fn(64).factors_R.tolist() == [4.0] * 4


def test_the_configured_rope_is_the_first_row(config):
    with config.unlocked():
        config.rope = dict(method="ntk", factor=3.0)
    assert [spec.label for spec in program.make_plan(config).specs][:2] == ["ntk", "none"]
    change(config, label="mine")
    assert program.make_plan(config).specs[0].label == "mine"
    change(config, label="", methods=("ntk",))
    with pytest.raises(InputError, match="two rows are named 'ntk'. Set eval.label"):
        program.make_plan(config)


def test_the_models_own_rope_is_the_row_none(config):
    assert [spec.label for spec in program.make_plan(config).specs] == [
        "none",
        "pi",
        "yarn",
        "sliding",
    ]
    plan = program.make_plan(change(config, methods=("pi",)))
    assert [spec.label for spec in plan.specs] == ["none", "pi"]


@pytest.mark.parametrize(
    "values, message",
    [
        ({"lengths": (64, 5000)}, "(?s)5,000 tokens"),
        ({"suites": ("perplexity", "passkey"), "lengths": (128,)}, "a pass key prompt"),
        ({"methods": ("yarm",)}, "Unknown eval.methods 'yarm'"),
        ({"suites": ("perplexty",)}, "Unknown eval.suites 'perplexty'. Did you mean"),
        ({"checkpoints": (("a", "b"),)}, r"eval.checkpoints holds \(label, path, method\)"),
        ({"checkpoints": (("a", "no/such", "none"),)}, "'no/such' of row 'a' does not exist"),
    ],
)
def test_what_is_wrong_is_refused_before_anything_runs(config, monkeypatch, values, message):
    monkeypatch.setattr(program.suites, "run", lambda *_: pytest.fail("it ran"))
    with pytest.raises(InputError, match=message):
        program.make_plan(change(config, **values))


def ends_at_100():
    """A rope whose only bucket serves 100 tokens."""
    return rope.make(
        "longrope",
        head_dim=8,
        theta=10_000.0,
        original_len=64,
        factors=(1.0,) * 4,
        attention_factor=1.0,
        max_len=100,
    )


def test_a_length_beyond_the_ropes_last_bucket_is_refused_before_anything_runs(config, tmp_path):
    made = ends_at_100()
    rope.save(tmp_path / "rope.json", made, {})
    with config.unlocked():
        config.rope = dict(method="file", path=str(tmp_path / "rope.json"))
    with pytest.raises(InputError, match="128 tokens is longer than the last length bucket, 100"):
        program.make_plan(config)


def test_a_checkpoint_whose_rope_ends_early_is_refused_before_anything_runs(
    config, tmp_path, tiny_config, monkeypatch
):
    ends = ends_at_100()
    made, read = setup.load_model(config), []

    def load_model(config, weights=True):
        read.append(weights)
        if config.model.source == "scratch":
            return made
        return Pretrained(tiny_config, {}, None, ends, "other")

    monkeypatch.setattr(setup, "load_model", load_model)
    change(config, checkpoints=(("other", str(tmp_path), "model"),))
    with pytest.raises(InputError, match="128 tokens is longer than the last length bucket, 100"):
        program.make_plan(config)
    assert read == [True, False]  # its weights are not read for that


def test_all_that_does_not_fit_is_told_at_once(config):
    change(config, suites=("kv", "passkey", "ruler"), lengths=(300, 2048))
    config.eval.ruler.tasks = ("fwe", "niah_single_1")
    config.eval.kv.trials = config.eval.ruler.samples = 2
    with pytest.raises(InputError) as refused:
        program.make_plan(config)
    assert re.fullmatch(
        r"eval\.lengths: these do not fit: kv into 300 \(it takes 4\d\d\); ruler/fwe into 300 "
        r"\(it takes 576\); ruler/niah_single_1 into 300 \(it takes 9\d\d\)\. Give lengths of "
        r"9\d\d tokens or more, or leave them out of eval\.suites or eval\.ruler\.tasks; what "
        r"fits: passkey\.",
        str(refused.value),
    )


def test_ruler_may_have_lengths_of_its_own(config):
    change(config, suites=("passkey", "ruler"), lengths=(512, 600), methods=("none",))
    config.eval.ruler.update(tasks=("fwe",), samples=2, lengths=(700,))
    plan = program.make_plan(config)
    assert program.costs(plan)["passkey"] == 12 * (512 + 600)
    assert 2 * 600 < program.costs(plan)["ruler/fwe"] <= 2 * 701
    config.eval.ruler.lengths = (0,)
    with pytest.raises(InputError, match=r"eval.ruler.lengths holds .* got \(0,\)"):
        program.make_plan(config)


def test_text_is_read_only_if_an_evaluator_uses_it(config):
    with config.unlocked():
        config.data.eval_files = ()
    plan = program.make_plan(change(config, suites=("passkey",), lengths=(450,)))
    assert plan.bench.documents is None
    with pytest.raises(InputError, match="data.eval_files"):
        program.make_plan(change(config, suites=("perplexity",), lengths=(64,)))


def test_rows_of_another_checkpoint_answer_the_same_items(books_6m, shared, tmp_path, capsys):
    config = base.get_config()
    with config.unlocked():
        config.model.path = str(books_6m)
        config.mesh.data = 8
        config.data.eval_files = (str(sorted((shared / "books" / "val").glob("*.txt"))[0]),)
        config.data.cache_dir = str(tmp_path / "cache")
        config.original_len = 32
        config.eval.update(
            suites=("perplexity",),
            lengths=(64,),
            methods=("yarn",),
            checkpoints=(("base, sliding", str(books_6m) + "/", "sliding"),),
            num_windows=2,
            stride=16,
        )
    program.run(config, tmp_path, False)
    rows = json.loads((tmp_path / "eval.json").read_text())["rows"]
    assert [row["label"] for row in rows] == ["none", "yarn", "base, sliding"]
    assert len({row["fingerprint"] for row in rows}) == 1
    assert rows[2]["tokens"] == 2 * 3 * 32 and rows[2]["difference"]["baseline"] == "yarn"


def test_a_missing_plotting_library_costs_no_result(config, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    program.run(change(config, lengths=(64,), methods=("none",)), tmp_path, False)
    assert (tmp_path / "eval.json").is_file() and not (tmp_path / "eval.png").exists()
    assert "eval.png is left out: Figures need matplotlib" in capsys.readouterr().out


def test_the_command_line_refuses_in_one_line(tmp_path, capsys):
    argv = ["--config=configs/base.py", f"--workdir={tmp_path}", "--config.eval.lenghts=(1,)"]
    with pytest.raises(SystemExit) as stopped:
        cli.main(program.run, doc=program.__doc__, argv=argv)
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1 and "lengths" in error
