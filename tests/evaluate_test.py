"""The program: rows, what it writes, and what it refuses before anything runs."""

import dataclasses
import re

import numpy as np
import pytest

from configs import base
from jaxrope import decoder, evaluate, rope, schema, setup
from jaxrope.convert.pretrained import Pretrained
from jaxrope.errors import InputError
from jaxrope.evaluate import cost, program, protocols
from jaxrope.evaluate.__main__ import main
from jaxrope.store import sealed

BOOK = "It was a dark and stormy night; the rain fell in torrents. " * 40


@pytest.fixture
def config(tmp_path, tiny_config, tiny_params, monkeypatch):
    """A small model, a text, short lengths."""
    made = Pretrained(tiny_config, tiny_params, None, decoder.own_rope(tiny_config), "tiny")
    monkeypatch.setattr(setup, "load_model", lambda *_, **__: made)  # drawing one takes seconds
    (tmp_path / "a.txt").write_text(BOOK)
    (tmp_path / "b.txt").write_text(BOOK[20:])
    model = {k: v for k, v in tiny_config.to_json_dict().items() if k != "sliding_window"}
    changes = {
        "model": dict(source="scratch", **model),
        "data.tokenizer": "bytes",
        "data.eval_files": (str(tmp_path / "?.txt"),),
        "data.cache_dir": str(tmp_path / "cache"),
        "eval.suites": ("perplexity",),
        "eval.lengths": (64, 128),
        "eval.methods": ("none", "pi", "yarn", "sliding"),
        "eval.num_windows": 4,
        "eval.stride": 32,
        "eval.bootstrap_samples": 200,
    }
    return schema.replace(schema.read(base.get_config()), changes)


def change(config, **values):
    """Returns the config with keys of eval changed; of its sections as RULER__samples."""
    return schema.replace(config, {f"eval.{k.replace('__', '.')}": v for k, v in values.items()})


def test_the_program_writes_what_it_found(config, tmp_path, capsys):
    columns = evaluate.evaluate(config, tmp_path)
    content = sealed.read_json(tmp_path / "eval.json", form="jaxrope.eval/2")
    assert content["config"]["eval"]["num_windows"] == 4
    assert content["model"]["original_len"] == 64
    found = {(row["label"], row["length"]): row for row in content["rows"]}
    assert len(found) == len(content["rows"]) == 8
    for length in (64, 128):
        column = [row for (_, n), row in found.items() if n == length]
        assert len({row["fingerprint"] for row in column}) == 1
    same = {found[label, 64]["metrics"]["perplexity"] for label in ("none", "pi", "yarn")}
    assert len(same) == 1  # at the original length no method changes anything
    tokens = sum(row["tokens"] for row in content["rows"])
    scores = {f"perplexity at {n}": found["none", n]["metrics"]["perplexity"] for n in (64, 128)}
    assert columns == scores | {"forward tokens": tokens}
    arrays = sealed.read_arrays(tmp_path / "eval_nll.npz", content["arrays"])
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
    title = "## Perplexity; no interval, for there are fewer than 5 windows"
    assert (tmp_path / "eval.md").read_text().startswith(f"{title}\n\n|")
    assert (tmp_path / "eval.png").stat().st_size > 10_000


def test_a_dry_run_says_the_cost(config):
    text = evaluate.dry_run(config, timing=False)
    # 3 rows x 4 windows x (64 + 128), and sliding: 64, then 128 in 3 windows of 64
    assert f"4 rows x 2 lengths: {3 * 4 * 192 + 4 * (64 + 3 * 64):,} forward tokens" in text
    assert "rows: none, pi, yarn, sliding" in text and "time: not measured" in text
    assert "padding" not in text
    # the second half of the mesh needs as many tokens as the first
    uneven = schema.replace(change(config, lengths=(61,), methods=("none",)), {"mesh.context": 2})
    text = evaluate.dry_run(uneven, timing=False)
    assert "244 forward tokens" in text and "padding: 4.7% of the 256 tokens" in text


def test_a_dry_run_says_how_much_is_padding(config):
    """Of a protocol: documents end anywhere."""
    options = {"documents": 2, "stride": 100}
    changes = {"eval.protocol": "pg19_sliding_256", "eval.lengths": (128,)}
    changes |= {f"eval.protocol_options.{key}": value for key, value in options.items()}
    changed = schema.replace(change(config, methods=("none",)), changes)
    plan = evaluate.prepare(changed)
    (part,) = plan.costs
    model = plan.model(part.spec)
    read = protocols.texts(model, plan.bench, 128)
    has_bos = model.tokenizer.bos_id is not None
    real = sum(w.end - w.begin + has_bos for text in read for w in text.windows)
    computed, padding = part.filled
    assert computed == part.tokens and computed - padding == real < computed
    line = f"padding: {padding / computed:.1%} of the {computed:,} tokens that are computed"
    assert line in evaluate.dry_run(changed, timing=False)


def test_a_dry_run_measures_what_is_read_and_written(config):
    suites_ = ("perplexity", "kv")
    changes = dict(suites=suites_, lengths=(512,), kv__trials=2, kv__max_new_tokens=5)
    text = evaluate.dry_run(change(config, methods=("none",), **changes))
    pattern = (
        r"time: about \d+s \([\d,]+ tokens/s at 512 tokens, [\d.e-]+ s a token that is written"
    )
    assert re.search(pattern, text)


def test_a_mesh_of_more_devices_than_there_are_is_only_planned(config):
    planned = schema.replace(config, {"mesh.data": 16, "mesh.fsdp": 4})
    text = evaluate.dry_run(planned)
    assert "of parameters on each of 64 devices" in text
    assert "time: only the 64 devices of the mesh can tell it" in text
    with pytest.raises(InputError, match="needs 64 devices, there are 8"):
        evaluate.evaluate(planned, None)
    wrong = schema.replace(config, {"mesh.tensor": 64, "mesh.data": 1})
    with pytest.raises(InputError, match="mesh.tensor = 64 must divide the axis 'kv_heads'"):
        evaluate.prepare(wrong)


def test_the_cost_is_what_is_read(config):
    plan = evaluate.prepare(config)
    told = []

    class Count:
        def update(self, done):
            told.append(done)

    list(program.measure(plan, Count()))
    assert told[-1] == cost.forward_tokens(plan)


def test_factors_may_be_fixed_for_one_length(config):
    plan = evaluate.prepare(change(config, rope_len=256))
    model = plan.model(next(spec for spec in plan.specs if spec.label == "pi"))
    assert model.rope_fn(64).factors_R.tolist() == [4.0] * 4


def test_the_configured_rope_is_the_first_row(config):
    config = schema.replace(config, {"rope": dict(method="ntk", factor=3.0)})
    assert [spec.label for spec in evaluate.prepare(config).specs][:2] == ["ntk", "none"]
    assert evaluate.prepare(change(config, label="mine")).specs[0].label == "mine"
    with pytest.raises(InputError, match="two rows are named 'ntk'. Set eval.label"):
        evaluate.prepare(change(config, methods=("ntk",)))


def test_the_models_own_rope_is_the_row_none(config):
    labels = [spec.label for spec in evaluate.prepare(config).specs]
    assert labels == ["none", "pi", "yarn", "sliding"]
    plan = evaluate.prepare(change(config, methods=("pi",)))
    assert [spec.label for spec in plan.specs] == ["none", "pi"]


@pytest.mark.parametrize(
    "values, message",
    [
        ({"lengths": (64, 5000)}, "(?s)5,000 tokens"),
        ({"suites": ("perplexity", "passkey"), "lengths": (128,)}, "a pass key prompt"),
        ({"suites": ()}, "eval.suites is empty, so that an evaluation has nothing to do"),
        ({"checkpoints": (("a", "no/such", "none"),)}, "'no/such' of row 'a' does not exist"),
    ],
)
def test_what_is_wrong_is_refused_before_weights_are_read(config, values, message):
    with pytest.raises(InputError, match=message):
        evaluate.prepare(change(config, **values))


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
    path = str(tmp_path / "rope.json")
    with pytest.raises(InputError, match="128 tokens is longer than the last length bucket, 100"):
        evaluate.prepare(schema.replace(config, {"rope": dict(method="file", path=path)}))


def test_a_checkpoint_whose_rope_ends_early_is_refused_before_anything_runs(
    config, tmp_path, tiny_config, monkeypatch
):
    ends = ends_at_100()
    made, read = setup.load_model(config), []

    def load_model(config, weights=True, **_):
        read.append(weights)
        if config.model.source == "scratch":
            return made
        return Pretrained(tiny_config, {}, None, ends, "other")

    monkeypatch.setattr(setup, "load_model", load_model)
    config = change(config, checkpoints=(("other", str(tmp_path), "model"),))
    with pytest.raises(InputError, match="128 tokens is longer than the last length bucket, 100"):
        evaluate.prepare(config)
    assert read == [False, False]  # no weights are read for that


def test_models_and_ropes_that_are_expected_need_not_be_there(config, tiny_config, monkeypatch):
    made, ends = setup.load_model(config), ends_at_100()
    monkeypatch.undo()
    expected = setup.Expected({"{tuned}": made}, {"{search}/rope.json": ends})
    config = schema.replace(config, {"model": dict(source="checkpoint", path="{tuned}")})
    config = change(config, lengths=(64,), checkpoints=(("other", "{tuned}", "none"),))
    text = evaluate.dry_run(config, expected=expected)
    assert "rows: none, pi, yarn, sliding, other" in text
    assert "time: not known: the model is not there yet" in text
    with pytest.raises(InputError, match="128 tokens is longer than the last length bucket, 100"):
        evaluate.prepare(change(config, methods=("{search}/rope.json",), lengths=(128,)), expected)


def test_all_that_does_not_fit_is_told_at_once(config):
    config = change(config, suites=("kv", "passkey", "ruler"), lengths=(300, 2048))
    asked = dict(ruler__tasks=("fwe", "niah_single_1"), ruler__samples=2, kv__trials=2)
    with pytest.raises(InputError) as refused:
        evaluate.prepare(change(config, **asked))
    assert re.fullmatch(
        r"eval\.lengths: these do not fit: kv into 300 \(it takes 4\d\d\); ruler/fwe into 300 "
        r"\(it takes 576\); ruler/niah_single_1 into 300 \(it takes 9\d\d\)\. Give lengths of "
        r"9\d\d tokens or more, or leave them out of eval\.suites or eval\.ruler\.tasks; what "
        r"fits: passkey\.",
        str(refused.value),
    )


def test_ruler_may_have_lengths_of_its_own(config):
    config = change(config, suites=("passkey", "ruler"), lengths=(512, 600), methods=("none",))
    asked = dict(ruler__tasks=("fwe",), ruler__samples=2, ruler__lengths=(700,))
    costs = {(c.suite, c.length): c.tokens for c in evaluate.prepare(change(config, **asked)).costs}
    assert costs["passkey", 512] + costs["passkey", 600] == 12 * (512 + 600)
    assert 2 * 600 < costs["ruler/fwe", 700] <= 2 * 701 and len(costs) == 3


def test_text_is_read_only_if_an_evaluator_uses_it(config):
    config = schema.replace(config, {"data.eval_files": ()})
    plan = evaluate.prepare(change(config, suites=("passkey",), lengths=(450,)))
    assert plan.bench.documents is None
    with pytest.raises(InputError, match="data.eval_files"):
        evaluate.prepare(change(config, suites=("perplexity",), lengths=(64,)))


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
    evaluate.evaluate(config, tmp_path)
    rows = sealed.read_json(tmp_path / "eval.json")["rows"]
    assert [row["label"] for row in rows] == ["none", "yarn", "base, sliding"]
    assert len({row["fingerprint"] for row in rows}) == 1
    assert rows[2]["tokens"] == 2 * 3 * 32 and rows[2]["difference"]["baseline"] == "yarn"


def test_a_missing_plotting_library_costs_no_result(config, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    evaluate.evaluate(change(config, lengths=(64,), methods=("none",)), tmp_path)
    assert (tmp_path / "eval.json").is_file() and not (tmp_path / "eval.png").exists()
    assert "eval.png is left out: Figures need matplotlib" in capsys.readouterr().out


def test_weights_that_are_no_numbers_are_refused_and_not_measured(config, tmp_path, monkeypatch):
    made = setup.load_model(config)
    name = "final_norm_D"
    params = made.params | {name: made.params[name].at[3].set(np.nan)}
    broken = dataclasses.replace(made, params=params)
    monkeypatch.setattr(setup, "load_model", lambda *_, **__: broken)
    message = f"tiny: {name} has values that are NaN or infinite. Use a checkpoint from before"
    with pytest.raises(InputError, match=message):
        evaluate.evaluate(config, tmp_path)
    assert not (tmp_path / "eval.json").exists()


def test_losses_that_are_no_numbers_are_refused_and_not_kept(config, tmp_path, monkeypatch):
    made = setup.load_model(config)
    scaled = made.params["final_norm_D"] * 1e30  # finite, but not what is made of it
    broken = dataclasses.replace(made, params=made.params | {"final_norm_D": scaled})
    monkeypatch.setattr(setup, "load_model", lambda *_, **__: broken)
    config = schema.replace(config, {"forward.compute_dtype": "float16"})
    message = "row 'none' at 64 tokens: the loss of 256 of 256 tokens is not finite"
    with pytest.raises(InputError, match=message):
        evaluate.evaluate(config, tmp_path)
    assert (tmp_path / "items.jsonl").read_bytes().count(b"\n") == 1


def test_the_command_line_refuses_in_one_line(tmp_path, capsys):
    argv = ["--config=configs/base.py", f"--workdir={tmp_path}", "--config.eval.lenghts=(1,)"]
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1 and "lengths" in error
