"""Training refuses what fits nothing before it compiles."""

import math

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
        train.train(config, tmp_path, True, devices=ONE)


def test_a_model_is_not_trained_over(config, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(InputError, match="has a config.json that train.py did not write"):
        train.train(config, tmp_path, True, devices=ONE)


def test_an_import_is_not_a_run(config, tmp_path, tiny_params):
    checkpoint.save_params(tmp_path, 0, tiny_params, {})
    with pytest.raises(InputError, match="holds a model without an optimizer's state"):
        train.train(config, tmp_path, devices=ONE)


REFUSED = {
    "train.seq_len": (0, "train.seq_len must be a whole number, 1 or more, got 0"),
    "train.batch_size": (0, "train.batch_size must be a whole number, 1 or more"),
    "train.accumulation": (3, r"multiple of train.accumulation .* got 8\. Nearest: 6 or 9"),
    "train.steps": (-1, "train.steps must be a whole number, 1 or more, got -1"),
    "train.log_every": (0, "train.log_every must be a whole number, 1 or more"),
    "train.eval_every": (-1, "train.eval_every must be a whole number, 0 or more"),
    "train.param_dtype": ("float8", "Unknown train.param_dtype 'float8'"),
    "train.chunk_tokens": (0, "train.chunk_tokens must be a whole number, 1 or more"),
    "checkpoint.every": (0, "checkpoint.every must be a whole number, 1 or more"),
    "checkpoint.keep_last": (0, "checkpoint.keep_last must be a whole number, 1 or more"),
    "optimizer.learning_rate": (math.nan, "optimizer.learning_rate must be a number above 0"),
    "optimizer.b1": (2.0, "optimizer.b1 must be a number"),
    "forward.attention": ("fast", "Unknown forward.attention 'fast'"),
    "data.tokenizer": ("", "data.tokenizer is not set"),
    "data.train_files": ((), "data.train_files"),
    "data.mode": ("pieces", "Unknown data.mode 'pieces'"),
    "mesh.data": (2, r"mesh .* needs 2 devices, there are 1"),
    "mesh.tensor": (2, r"tensor=2\) needs a multiple of 2 devices, there are 1"),
    "target_len": (-1, "target_len must be 0 or a number of tokens"),
    "original_len": (-1, "original_len must be 0 or a number of tokens"),
    "seed": (-1, "seed must be a whole number, 0 or more"),
    "rope.method": ("yaarn", "Unknown rope.method 'yaarn'"),
    "rope": (dict(method="dynamic_ntk", factor=2.0), "'dynamic_ntk' chooses its factors anew"),
    "rope.factor": (2.0, "Unknown rope.factor: 'model' takes nothing more"),
    "model": (dict(source="none"), "Unknown model.source 'none'"),
    "eval.lengths": ((4096,), "4096|4,096|4097|4,097"),
    "eval.suites": (("perplexty",), "Unknown eval.suites 'perplexty'. Did you mean 'perplexity'"),
}


@pytest.mark.parametrize("key", REFUSED)
def test_a_config_that_fits_nothing_is_refused_before_it_compiles(
    config, tmp_path, key, monkeypatch
):
    def compiled(*_):
        raise AssertionError("it came as far as compiling")

    monkeypatch.setattr(train, "compile_step", compiled)
    value, message = REFUSED[key]
    section, _, name = key.rpartition(".")
    (config[section] if section else config)[name] = value
    with pytest.raises(InputError, match=message) as caught:
        train.train(config, tmp_path / "run", True, devices=ONE)
    assert "\n" not in str(caught.value)


def test_a_row_longer_than_the_model_needs_a_target(config, tmp_path):
    config.train.seq_len = 64
    with pytest.raises(
        InputError, match="train.seq_len is 64 tokens, but the model serves 32. Set"
    ):
        train.train(config, tmp_path, True, devices=ONE)
