"""What a training depends on: whether it goes on, and whether its result is taken."""

import json
import shutil

import jax
import pytest

from jaxrope import data, train
from jaxrope.convert import importing, pretrained
from jaxrope.errors import InputError
from jaxrope.store import sealed
from tests import tiny_run

ONE = jax.devices()[:1]


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    tiny_run.write_texts(folder)
    return folder


@pytest.fixture
def config(texts):
    config = tiny_run.make_config(texts)
    config.train.update(steps=4, eval_every=2, log_every=2)
    config.checkpoint.every = 2
    return config


@pytest.fixture(scope="module")
def undisturbed(texts, tmp_path_factory):
    """A run from beginning to end; tests read it and leave it as it is."""
    workdir = tmp_path_factory.mktemp("undisturbed")
    config = tiny_run.make_config(texts)
    config.train.update(steps=4, eval_every=2, log_every=2)
    config.checkpoint.every = 2
    assert train.train(config, workdir, devices=ONE) == 0
    return workdir


CHANGED = {
    "seed": 1,
    "original_len": 16,
    "optimizer.learning_rate": 1e-3,
    "optimizer.b2": 0.95,
    "optimizer.weight_decay": 0.1,
    "train.batch_size": 16,
    "train.seq_len": 16,
    "train.accumulation": 2,
    "data.mode": "pack",
    "forward.compute_dtype": "bfloat16",
    "model.num_layers": 3,
}


@pytest.mark.parametrize("key", CHANGED)
def test_a_run_does_not_go_on_with_another_setting(config, undisturbed, key):
    section, _, name = key.rpartition(".")
    (config[section] if section else config)[name] = CHANGED[key]
    message = rf"^the run in .* began otherwise: {key} \(.*, now .*another --workdir\.$"
    with pytest.raises(InputError, match=message):
        train.dry_run(config, undisturbed, timing=False, devices=ONE)
    assert train.finished(config, undisturbed, devices=ONE) is None


def test_what_changes_no_number_may_change(config, undisturbed):
    config.train.update(log_every=1, eval_every=0, check_every=0, chunk_tokens=8, max_bad_steps=9)
    config.checkpoint.update(every=1, keep_last=5, asynchronous=False)
    config.forward.update(attention="reference", remat="none", mlp_chunk=8)
    config.data.update(cache_dir="", skip_bad_lines=3)
    config.mesh.update(data=1, fsdp=2)
    two = jax.devices()[:2]
    text = train.dry_run(config, undisturbed, timing=False, devices=two)
    assert "the run stands at step 4" in text
    assert train.finished(config, undisturbed, devices=two)


def test_a_run_does_not_go_on_with_other_text(config, undisturbed, tmp_path):
    tiny_run.write_texts(tmp_path)
    config.data.train_files = (f"{tmp_path}/train-*.txt",)
    config.data.eval_files = (f"{tmp_path}/held-out.txt",)
    assert train.finished(config, undisturbed)  # moved, not changed
    (tmp_path / "train-1.txt").write_text("other words " * 300)
    with pytest.raises(InputError, match=r"otherwise: the text of data\.train_files \(digest"):
        train.dry_run(config, undisturbed, timing=False, devices=ONE)
    assert train.finished(config, undisturbed) is None


def test_what_a_finished_run_came_to(config, undisturbed, tmp_path):
    found = train.finished(config, undisturbed)
    rows = tiny_run.rows(undisturbed)
    losses = [row["loss"] for row in rows if "loss" in row]
    assert found["loss"] == pytest.approx(sum(losses[-2:]) / 2)
    assert found["trained tokens"] == sum(row.get("tokens", 0) for row in rows)
    assert found["perplexity/32"] == rows[-1]["eval"]["perplexity/32"]
    config.eval.num_windows = 3  # the model is the same, what was measured is not
    assert train.finished(config, undisturbed).keys() == {"loss", "trained tokens"}
    config.train.steps = 5
    assert train.finished(config, undisturbed) is None
    assert train.finished(config, tmp_path) is None


def test_a_run_that_was_made_longer_is_not_one_that_was_as_long_from_the_beginning(
    config, undisturbed, tmp_path
):
    """Its learning rate fell otherwise."""
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed, workdir)
    config.train.steps = 5
    assert train.train(config, workdir, devices=ONE) == 0
    assert train.finished(config, workdir) is None
    text = train.dry_run(config, workdir, timing=False, devices=ONE)
    assert "the run stands at step 5" in text
    config.train.steps = 4
    assert train.finished(config, workdir) is None


@pytest.fixture
def from_checkpoint(config, undisturbed, tmp_path):
    """(config, its base, workdir) of a finished run that starts from a checkpoint."""
    base, workdir = tmp_path / "base", tmp_path / "run"
    shutil.copytree(undisturbed, base)
    config.model = dict(source="checkpoint", path=str(base), shape="")
    config.train.steps = config.checkpoint.every = 3
    assert train.train(config, workdir, devices=ONE) == 0
    return config, base, workdir


def test_weights_that_changed_under_the_same_name_are_seen(from_checkpoint, undisturbed, tmp_path):
    config, base, workdir = from_checkpoint
    assert train.finished(config, workdir)
    base.rename(tmp_path / "moved")
    train.train(config, workdir, devices=ONE)  # it has what it needs of them
    config.model.path = str(tmp_path / "moved")
    assert train.finished(config, workdir)
    shutil.rmtree(tmp_path / "moved" / "checkpoints" / "00000004")  # now its newest step is 2
    assert train.finished(config, workdir) is None
    with pytest.raises(InputError, match="began otherwise: the weights of model.path .digest"):
        train.train(config, workdir, devices=ONE)


def test_a_record_that_is_damaged_is_told(config, undisturbed, tmp_path):
    for name in ("identity.json", "config.json"):
        workdir = tmp_path / name
        shutil.copytree(undisturbed, workdir)
        text = (workdir / name).read_text()
        (workdir / name).write_text(text.replace('"float32"', '"float64"', 1))
        with pytest.raises(InputError, match=f"{name} is damaged or was edited") as caught:
            train.train(config, workdir, devices=ONE)
        assert "\n" not in str(caught.value)
    shutil.copytree(undisturbed, tmp_path / "model")
    path = tmp_path / "model" / "model.json"
    path.write_text(path.read_text().replace("10000.0", "10001.0"))
    with pytest.raises(InputError, match="model.json is damaged or was edited"):
        pretrained.load(tmp_path / "model")
    assert sealed.read_json(undisturbed / "model.json")["theta"] == 10_000.0


def test_all_that_comes_with_a_tokenizer_comes_with_the_trained_model(config, tmp_path):
    vocab = {letter: number for number, letter in enumerate("abcdefgh </s>")}
    spec = {"model": {"type": "BPE", "vocab": vocab, "merges": []}, "added_tokens": []}
    place = tmp_path / "tokenizer"
    place.mkdir()
    for name in importing.TOKENIZER_FILES:
        (place / name).write_text(json.dumps({"of": name}))
    (place / "letters.json").write_text(json.dumps(spec))
    (place / "tokenizer.json").write_text("another one")
    config.data.tokenizer = str(place / "letters.json")
    config.train.steps, config.eval.suites = 1, ()
    config.optimizer.schedule.warmup_steps = 0
    assert train.train(config, tmp_path / "run", devices=ONE) == 0
    for name in importing.TOKENIZER_FILES:
        source = "letters.json" if name == "tokenizer.json" else name
        assert (tmp_path / "run" / name).read_bytes() == (place / source).read_bytes()
    loaded = pretrained.load(tmp_path / "run", weights=False)
    assert data.load_tokenizer(loaded.tokenizer_dir).vocab_size == len(vocab)


def test_dry_run_says_what_it_takes_and_writes_nothing(config, tmp_path, undisturbed):
    text = train.dry_run(config, tmp_path / "run", devices=ONE)
    for words in (
        "parameters: 35,488 (float32)",
        "memory on each device: 0.4 MiB",
        "memory while a step runs: ",
        "memory of the process: about ",
        "epochs",
        "evaluated on the way: 2 times",
        "a new run",
        "data.train_files: 3 files (3 plain text), 3 documents, ",
        "rows (chunk): 9",
        "data.eval_files: 1 file (1 plain text), 1 document, ",
    ):
        assert words in text
    assert "time: " in text and "for 4 steps, evaluations aside" in text and "tokens/s" in text
    assert len(text.splitlines()) < 19 and not (tmp_path / "run").exists()
    quick = train.dry_run(config, devices=ONE, timing=False)
    assert "time: " not in quick and "while a step runs" not in quick
