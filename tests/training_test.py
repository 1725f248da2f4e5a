"""Training: resumed bit for bit, refused before it compiles, and hard to kill."""

import errno
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxrope import decoder, rope, schema, train
from jaxrope.convert import exporting, pretrained
from jaxrope.data import TrainLoader
from jaxrope.errors import InputError
from jaxrope.mesh import chips, sharding
from jaxrope.store import files, steps
from jaxrope.train import loop, metrics, program
from tests import tiny_run
from tests.processes import environment

ROOT = Path(__file__).resolve().parent.parent
ONE = jax.devices()[:1]


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    tiny_run.write_texts(folder)
    return folder


@pytest.fixture
def config(texts):
    return tiny_run.make_config(texts)


@pytest.fixture(scope="module")
def undisturbed(texts, tmp_path_factory):
    """A run from beginning to end; tests read it and leave it as it is."""
    workdir = tmp_path_factory.mktemp("undisturbed")
    assert train.train(tiny_run.make_config(texts), workdir, devices=ONE) == 0
    return workdir


def call_at(monkeypatch, step, action):
    """Calls `action(batch)` when the batch of `step` is made."""
    original = TrainLoader.batch

    def batch(self, number, **kwargs):
        made = original(self, number, **kwargs)
        if number == step:
            action(made)
        return made

    monkeypatch.setattr(TrainLoader, "batch", batch)


def send(number):
    return lambda _batch: os.kill(os.getpid(), number)


def test_a_run_writes_what_it_is_and_what_it_did(undisturbed, texts):
    assert steps.whole_steps(undisturbed) == [9, 12]
    found = tiny_run.rows(undisturbed)
    assert [row["step"] for row in found if "loss" in row] == list(range(1, 13))
    assert [row["step"] for row in found if "eval" in row] == [6, 12]
    assert list(found[6]["eval"]) == ["perplexity/32"]
    assert found[11]["loss"] < found[0]["loss"] - 0.5
    assert found[0]["perplexity"] == pytest.approx(math.exp(found[0]["loss"]))
    np.testing.assert_allclose([row["lr"] for row in found[:3]], [1e-3, 2e-3, 3e-3], rtol=1e-6)
    loaded = pretrained.load(undisturbed)
    assert loaded.config.bos_id == 256 and loaded.config.original_len == 32
    assert not (undisturbed / "rope.json").exists()
    assert (undisturbed / "config.json").exists()


def test_an_export_says_that_the_training_has_not_ended(undisturbed, tmp_path):
    sentence = "the training is at step 9 of 12. Start it again to end it"
    for place, expected in (
        (undisturbed / "checkpoints" / "00000009", [sentence]),
        (undisturbed, []),
    ):
        out = tmp_path / place.name
        notes = exporting.export_folder(pretrained.load(place, dtype=None), out)
        assert [note for note in notes if "training" in note] == expected
        assert (sentence in (out / "README.md").read_text()) == bool(expected)


@pytest.mark.parametrize("step", (1, 4, 8, 11))
def test_a_run_that_is_stopped_and_resumed_equals_an_undisturbed_one(
    config, tmp_path, undisturbed, monkeypatch, step
):
    call_at(monkeypatch, step, send(signal.SIGTERM))
    assert train.train(config, tmp_path, devices=ONE) == 128 + signal.SIGTERM
    assert steps.whole_steps(tmp_path)[-1] == step
    monkeypatch.undo()
    assert train.train(config, tmp_path, devices=ONE) == 0
    assert tiny_run.final_arrays(tmp_path).keys() == tiny_run.final_arrays(undisturbed).keys()
    found = tiny_run.differences(tmp_path, undisturbed)
    assert not found or found == ["other steps are kept"]  # the step of the signal is one more


def test_ctrl_c_saves_and_stops_and_handlers_are_given_back(config, tmp_path, monkeypatch, capfd):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    call_at(monkeypatch, 5, send(signal.SIGINT))
    assert train.train(config, tmp_path, devices=ONE) == 130
    assert steps.whole_steps(tmp_path)[-1] == 5
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert "SIGINT: saving and stopping" in capfd.readouterr().err


def test_an_evaluation_that_a_kill_took_is_made_up_for(config, tmp_path, undisturbed, monkeypatch):
    real = loop.evaluate.run

    def stopped(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*args)

    monkeypatch.setattr(loop.evaluate, "run", stopped)
    assert train.train(config, tmp_path, devices=ONE) == 128 + signal.SIGTERM
    assert steps.whole_steps(tmp_path)[-1] == 6
    assert not [row for row in tiny_run.rows(tmp_path) if "eval" in row]
    monkeypatch.undo()
    assert train.train(config, tmp_path, devices=ONE) == 0
    assert not tiny_run.differences(tmp_path, undisturbed)


def test_metrics_beyond_the_checkpoint_and_torn_lines_are_cut_off(
    config, tmp_path, undisturbed, monkeypatch
):
    call_at(monkeypatch, 3, send(signal.SIGTERM))
    train.train(config, tmp_path, devices=ONE)
    monkeypatch.undo()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "loss": 99.0}\n{"step": 5, "lo')
    assert train.train(config, tmp_path, devices=ONE) == 0
    assert tiny_run.rows(tmp_path) == tiny_run.rows(undisturbed)


@pytest.mark.parametrize("line", [b"\xff{}", b"[1]", b'{"step": "2"}', b"[" * 99_999])
def test_a_line_of_metrics_that_is_damaged_is_told_and_left_out(tmp_path, line):
    path, told = tmp_path / metrics.FILE, []
    rows = [{"step": n, "loss": 1.0, "tokens": 8} for n in (1, 2, 3)]
    files.append_jsonl(path, rows)
    first, _, third = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + line + b"\n" + third)
    metrics.MetricsLog(tmp_path, resumed_step=3, say=told.append).close()
    assert told == [f"{path}, line 2: damaged, left out"]
    assert path.read_bytes() == first + third
    metrics.MetricsLog(tmp_path, resumed_step=3, say=told.append).close()
    assert len(told) == 1


def test_a_run_that_is_done_is_left_as_it_is(config, tmp_path, capfd):
    config.train.steps = config.checkpoint.every = 3
    config.data.eval_files = ()
    assert train.train(config, tmp_path, devices=ONE) == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "checkpoints").rglob("*")}
    assert train.train(config, tmp_path, devices=ONE) == 0
    assert "going on from step 3 of 3" in capfd.readouterr().err
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "checkpoints").rglob("*")}


def test_more_steps_lengthen_a_run(config, tmp_path):
    config.data.eval_files = ()
    config.train.steps = 3
    train.train(config, tmp_path, devices=ONE)
    config.train.steps = 5
    assert train.train(config, tmp_path, devices=ONE) == 0
    assert [row["step"] for row in tiny_run.rows(tmp_path)] == [1, 2, 3, 4, 5]


def test_a_run_goes_on_with_other_devices_and_eight_equal_one(
    config, tmp_path, undisturbed, monkeypatch
):
    config.data.eval_files = ()
    call_at(monkeypatch, 4, send(signal.SIGTERM))
    train.train(config, tmp_path, devices=ONE)
    monkeypatch.undo()
    before = tiny_run.final_arrays(tmp_path)
    config.mesh.update(data=2, fsdp=4)
    assert train.train(config, tmp_path) == 0
    assert before.keys() == tiny_run.final_arrays(tmp_path).keys()
    ours = tiny_run.rows(tmp_path)
    one = [row for row in tiny_run.rows(undisturbed) if "loss" in row]
    assert ours[:4] == one[:4]
    for key in ("loss", "grad_norm"):
        np.testing.assert_allclose([r[key] for r in ours], [r[key] for r in one], rtol=2e-5)


def spoil(batch):
    batch["loss_weights_BT"][0, 0] = np.nan


def test_a_step_that_is_not_finite_is_passed_over_and_counted(config, tmp_path, monkeypatch, capfd):
    call_at(monkeypatch, 4, spoil)
    config.data.eval_files = ()
    assert train.train(config, tmp_path, devices=ONE) == 0
    found = tiny_run.rows(tmp_path)
    assert [row["bad_steps"] for row in found] == [0, 0, 0, 0] + [1] * 8
    assert found[4]["loss"] == "nan" and math.isfinite(found[5]["loss"])
    assert found[5]["lr"] == found[4]["lr"]  # the schedule did not move
    assert "not applied (1 in a row; batch 4)" in capfd.readouterr().err


def test_too_many_bad_steps_in_a_row_end_the_run_with_the_last_checkpoint_kept(
    config, tmp_path, monkeypatch, capfd
):
    original = TrainLoader.batch

    def batch(self, number, **kwargs):
        made = original(self, number, **kwargs)
        if number >= 4:
            spoil(made)
        return made

    monkeypatch.setattr(TrainLoader, "batch", batch)
    config.train.max_bad_steps = 3
    config.checkpoint.every = 4
    assert train.train(config, tmp_path, devices=ONE) == 1
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "stopped at step 7" in lines[0] and "batches 4 to 6" in lines[0]
    assert steps.whole_steps(tmp_path) == [4]


def test_metrics_that_cannot_be_written_do_not_end_the_training(
    config, tmp_path, undisturbed, monkeypatch, capfd
):
    real, calls = files.append_jsonl, []

    def full(path, rows, **kwargs):
        calls.append(len(rows))
        if len(calls) < 4:
            with open(path, "a") as file:
                file.write('{"step": 1, "lo')  # what a full disk leaves behind
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        real(path, rows, **kwargs)

    monkeypatch.setattr(files, "append_jsonl", full)
    assert train.train(config, tmp_path, devices=ONE) == 0
    assert tiny_run.rows(tmp_path) == tiny_run.rows(undisturbed)
    assert capfd.readouterr().err.count("metrics cannot be written (No space left") == 1


def test_a_checkpoint_that_cannot_be_written_ends_the_run_with_one_line(
    config, tmp_path, monkeypatch, capfd
):
    config.checkpoint.every = 6
    call_at(monkeypatch, 5, lambda _batch: (tmp_path / "checkpoints").rename(tmp_path / "lost"))
    assert train.train(config, tmp_path, devices=ONE) == 1
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "checkpoints is gone: step 6 was not saved" in lines[0]


def test_a_rope_of_the_config_is_written_and_comes_back(config, tmp_path):
    config.rope = dict(method="yarn", factor=2.0, beta_fast=32.0, beta_slow=1.0)
    config.target_len = config.train.seq_len = 64
    config.eval.lengths = (64,)
    config.train.steps = config.train.eval_every = 3
    assert train.train(config, tmp_path, devices=ONE) == 0
    loaded = pretrained.load(tmp_path)
    made = rope.make(
        **config.rope.to_dict(), head_dim=8, theta=10_000.0, original_len=32, rotary_dim=8
    )
    assert loaded.rope_fn.bucket(64).factors == made.bucket(64).factors
    assert loaded.rope_fn.max_len == loaded.config.max_len == 64
    config.train.steps = 4
    assert train.train(config, tmp_path, devices=ONE) == 0
    config.rope.factor = 3.0
    with pytest.raises(InputError, match=r"^the run in .* began otherwise: rope.factor \(2.0, now"):
        train.train(config, tmp_path, devices=ONE)


def test_a_run_may_start_from_a_run_and_a_rope_file(config, tmp_path, undisturbed):
    own = decoder.own_rope(pretrained.read_config(undisturbed))
    wider = rope.make(
        "longrope",
        head_dim=8,
        theta=10_000.0,
        original_len=32,
        rotary_dim=8,
        buckets=[
            dict(max_len=64, factors=[1.0, 1.2, 1.7, 2.0], start_tokens=0, attention_factor=1.1)
        ],
    )
    assert own.max_len is None
    rope.save(tmp_path / "found.json", wider, {})
    config.model = dict(source="checkpoint", path=str(undisturbed))
    config.rope = dict(method="file", path=str(tmp_path / "found.json"))
    config.train.seq_len, config.train.steps = 64, 2
    config.optimizer.schedule = dict(name="constant", warmup_steps=0)
    config.optimizer.learning_rate = 1e-12
    config.data.eval_files = ()
    assert train.train(config, tmp_path / "run", devices=ONE) == 0
    for name, value in tiny_run.final_arrays(undisturbed).items():
        np.testing.assert_allclose(tiny_run.final_arrays(tmp_path / "run")[name], value, atol=1e-9)
    config.train.seq_len = 65
    with pytest.raises(InputError, match="train.seq_len is 65 tokens, but the rope ends at 64"):
        train.prepare(config, devices=ONE)


def test_moments_lie_where_their_parameters_do(tiny_config, config):
    mesh = sharding.make_mesh(dict(data=1, fsdp=8, context=1, tensor=1))
    made = program.make_program(schema.read(config), mesh, tiny_config)
    abstract, shardings = program.abstract_state(made)
    assert all(
        math.prod(where.shard_shape(leaf.shape)) * (8 if leaf.ndim else 1) == leaf.size
        for leaf, where in zip(jax.tree.leaves(abstract), jax.tree.leaves(shardings), strict=True)
    )
    assert len(jax.tree.leaves(abstract)) > 3 * len(jax.tree.leaves(abstract.params))


def test_the_step_line_has_the_share_of_the_peak_where_it_is_known(monkeypatch, config, tmp_path):
    class Chip:
        device_kind = "TPU v5 lite"

    assert chips.peak_flops(Chip()) == 197e12
    assert chips.peak_flops(jax.devices()[0]) is None
    row = dict(step=7, loss=2.0, perplexity=7.4, lr=1e-3, grad_norm=0.5)
    timing = dict(tokens_per_s=1e4, data_wait_s=0.002, eta_s=65, durable_step=5, mfu=0.4)
    line = loop._line(row | {"timing": timing}, 10)
    for words in ("step 7/10", "MFU 40.0%", "data wait 2 ms", "durable step 5", "ETA 1m05s"):
        assert words in line


def test_sigterm_to_the_program_saves_and_exits_with_143(texts, tmp_path):
    experiment = tmp_path / "experiment.py"
    experiment.write_text(
        "from pathlib import Path\nfrom tests import tiny_run\n\n\ndef get_config():\n"
        f"    config = tiny_run.make_config(Path({str(texts)!r}))\n"
        "    config.train.steps = 100_000\n    config.train.eval_every = 0\n    return config\n"
    )
    (tmp_path / "out").mkdir()
    command = [
        sys.executable,
        str(ROOT / "train.py"),
        f"--config={experiment}",
        "--workdir=~/out/run",
    ]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment(HOME=str(tmp_path)),
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.time() + 120
    while time.time() < deadline and not steps.whole_steps(tmp_path / "out" / "run"):
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143, said
    newest = steps.whole_steps(tmp_path / "out" / "run")[-1]
    assert tiny_run.rows(tmp_path / "out" / "run")[-1]["step"] == newest
    assert "SIGTERM: saving and stopping" in said
    assert (tmp_path / "out" / "run" / "loss.png").stat().st_size > 10_000  # of what was done


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_as_an_undisturbed_run():
    command = [sys.executable, str(ROOT / "tests" / "kill_train.py"), "--kills", "2", "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
