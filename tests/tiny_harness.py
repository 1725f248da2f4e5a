"""Models as lm-evaluation-harness asks them, for tests."""

import importlib.util

import jax
import numpy as np
import pytest

from jaxrope import data, decoder
from jaxrope.convert import pretrained
from jaxrope.data import BytesTokenizer
from jaxrope.evaluate.harness import Reader
from jaxrope.evaluate.scoring import EvalModel
from tests import benches

has_lm_eval = importlib.util.find_spec("lm_eval") is not None
needs_lm_eval = pytest.mark.skipif(not has_lm_eval, reason="needs lm-eval (extra `harness`)")


def eval_model(tiny_model):
    """Returns an EvalModel of (config, params)."""
    config, params = tiny_model
    return EvalModel(
        config=config,
        params=params,
        rope_fn=decoder.own_rope(config),
        tokenizer=BytesTokenizer(),
        settings=decoder.ForwardSettings(attention_block=16),
        label="none",
    )


def books_model(folder):
    """Returns books-6m as an EvalModel."""
    loaded = pretrained.load(folder)
    return EvalModel(
        config=loaded.config,
        params=jax.device_put(loaded.params),
        rope_fn=loaded.rope_fn,
        tokenizer=data.load_tokenizer(folder),
        settings=decoder.ForwardSettings(attention_block=64),
        label="none",
    )


def make_bench(**changes):
    usual = dict(bootstrap_samples=100, batch_tokens=512, chunk_tokens=16)
    if "harness" in changes:
        usual |= dict(suites=("harness",))
    return benches.make_bench(**usual | changes)


def make_reader(model, max_length=64, **changes):
    return Reader(model, make_bench(), max_length, **changes)


def ids(*tokens):
    return np.array(tokens, np.int32)
