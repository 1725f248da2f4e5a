"""Training refuses what fits nothing before weights are read or anything is compiled."""

import jax
import pytest

from jaxrope import train
from jaxrope.errors import InputError
from jaxrope.store import checkpoint
from jaxrope.store.lock import run_lock
from tests import tiny_run

ONE = jax.devices()[:1]


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    tiny_run.write_texts(folder)
    return folder


@pytest.fixture
def config(texts):
    return tiny_run.make_config(texts)


def test_a_second_process_is_refused(config, tmp_path):
    with run_lock(tmp_path):
        with pytest.raises(InputError, match="in use by another process"):
            train.train(config, tmp_path, devices=ONE)


def test_a_folder_that_cannot_be_written_is_refused_before_anything(config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written to: Not a directory"):
        train.train(config, tmp_path / "file" / "run", devices=ONE)


def test_a_search_is_not_trained_over(config, tmp_path):
    (tmp_path / "journal.jsonl").write_text("")
    with pytest.raises(InputError, match="holds a search"):
        train.dry_run(config, tmp_path, devices=ONE)


def test_a_model_is_not_trained_over(config, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(InputError, match="has a config.json that train.py did not write"):
        train.dry_run(config, tmp_path, devices=ONE)


def test_an_import_is_not_a_run(config, tmp_path, tiny_params):
    checkpoint.save_params(tmp_path, 0, tiny_params, {})
    with pytest.raises(InputError, match="holds a model without an optimizer's state"):
        train.train(config, tmp_path, devices=ONE)


# beside what breaks the rule of a key, which tests of the schema refuse
YARN = dict(method="yarn", factor=2.0)
REFUSED = {
    "train.seq_len": ({"train.seq_len": 64}, "64 tokens, but the model serves 32. Set target_len"),
    "the rope ends": (
        {"rope": YARN, "target_len": 64, "train.seq_len": 65},
        "train.seq_len is 65 tokens, but the model serves 64",
    ),
    "train.accumulation": (
        {"train.accumulation": 3},
        r"multiple of train.accumulation .* got 8\. Nearest: 6 or 9",
    ),
    "warm-up": ({"train.steps": 2}, "warmup_steps must be from 0 to train.steps, 2, got 3"),
    "data.tokenizer": ({"data.tokenizer": ""}, "data.tokenizer is not set"),
    "no text": ({"data.train_files": ()}, "data.train_files: no files are given"),
    "rope": ({"rope": dict(method="dynamic_ntk", factor=2.0)}, "chooses its factors anew for each"),
    "rank": ({"lora.rank": 33}, "lora.rank must be at most 32"),
    "short rows": ({"data.short_share": 0.5}, "data.short_share: rows of train.seq_len 32 tokens"),
    "needles": ({"data.needle_share": 0.5}, "data.needle_keys: 6 needles, all asked for, have"),
    "eval.lengths": ({"eval.lengths": (4096,)}, "4,096|4,097"),
    "a key": ({"train.batch_size": 0}, "train.batch_size must be a whole number of rows, 1 or"),
    "a section": ({"optimizer.schedule": dict(name="cosine")}, "schedule.warmup_steps is missing"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("num_devices", [1, 64])
def test_what_fits_nothing_is_refused(config, name, num_devices):
    """On the devices of this machine, and where the mesh is only planned."""
    changes, message = REFUSED[name]
    config.mesh.context = num_devices if num_devices == 1 else 1
    for key, value in changes.items():
        section, _, leaf = key.rpartition(".")
        (config[section] if section else config)[leaf] = value
    if num_devices > 1:
        config.mesh.data = -1
        config.mesh.tensor = 2
    with pytest.raises(InputError, match=message) as caught:
        train.prepare(config, devices=ONE)
    assert "\n" not in str(caught.value)


def test_preparing_reads_no_weights_and_compiles_nothing(config, tmp_path, monkeypatch):
    config.train.steps, config.checkpoint.every = 3, 3
    assert train.train(config, tmp_path, devices=ONE) == 0
    config.model = dict(source="checkpoint", path=str(tmp_path), shape="")

    def fails(*_, **__):
        raise AssertionError("it reads the weights, or compiles")

    monkeypatch.setattr(checkpoint, "restore_params", fails)
    monkeypatch.setattr(jax.stages.Lowered, "compile", fails)
    plan = train.prepare(config, devices=ONE)
    assert plan.identity.content["weights"] and plan.outcome.config == plan.model


def test_a_mesh_that_is_not_here_is_planned_and_does_not_run(config, tmp_path):
    config.mesh = dict(data=2, fsdp=8, context=4, tensor=1)
    config.train.batch_size = 16
    config.train.seq_len = config.target_len = config.model.max_len = 1024
    config.data.mode = "pack"
    text = train.dry_run(config, tmp_path / "run", devices=ONE)
    assert "mesh: data 2, fsdp 8, context 4, tensor 1" in text
    assert "not on this machine: 64 devices alone can tell what a step needs" in text
    assert "forward.attention: auto is ring" in text
    with pytest.raises(InputError, match=r"mesh .* needs 64 devices, there are 1"):
        train.train(config, tmp_path / "run", devices=ONE)
    assert not (tmp_path / "run").exists()
