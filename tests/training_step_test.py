"""One step of training: parts of a batch, weights of the loss, bad steps, and its arithmetic."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrope import decoder
from jaxrope.train import step as step_lib
from jaxrope.train.optimizer import Optimizer


def make_batch(parts, rows=8, length=16):
    rng = np.random.default_rng(3)
    batch = {
        "tokens_BT": rng.integers(0, 258, (rows, length)),
        "targets_BT": rng.integers(0, 258, (rows, length)),
        "positions_BT": np.tile(np.arange(length), (rows, 1)),
        "segment_ids_BT": np.ones((rows, length)),
    }
    batch = {key: value.astype(np.int32) for key, value in batch.items()}
    batch["loss_weights_BT"] = (rng.random((rows, length)) < 0.7).astype(np.float32)
    return {key: jnp.asarray(x.reshape(parts, -1, length)) for key, x in batch.items()}


def make_step_of(config, transform=None, packed=True):
    transform = transform or optax.sgd(1.0)
    made = Optimizer(transform, optax.constant_schedule(1.0))
    settings = decoder.ForwardSettings()
    step = step_lib.make_step(config, settings, made, chunk_tokens=8, packed=packed)
    return jax.jit(step), transform


def test_parts_give_the_step_of_the_whole_batch(tiny_model):
    config, params = tiny_model
    step, transform = make_step_of(config)
    r = decoder.own_rope(config)(16)
    whole, metrics = step(step_lib.init_state(params, transform), make_batch(1), r)
    for parts in (4,):
        cut, ours = step(step_lib.init_state(params, transform), make_batch(parts), r)
        np.testing.assert_allclose(ours["loss"], metrics["loss"], rtol=1e-6)
        np.testing.assert_allclose(ours["grad_norm"], metrics["grad_norm"], rtol=1e-5)
        for a, b in zip(jax.tree.leaves(cut.params), jax.tree.leaves(whole.params), strict=True):
            np.testing.assert_allclose(a, b, atol=3e-7)


def test_the_loss_is_the_mean_over_the_tokens_that_count(tiny_model):
    config, params = tiny_model
    step, transform = make_step_of(config)
    batch, r = make_batch(1), decoder.own_rope(config)(16)
    _, metrics = step(step_lib.init_state(params, transform), batch, r)
    logits = decoder.logits(config, params, batch["tokens_BT"][0], r)
    logp = jax.nn.log_softmax(logits)
    nll = -jnp.take_along_axis(logp, batch["targets_BT"][0][..., None], axis=-1)[..., 0]
    weights = batch["loss_weights_BT"][0]
    np.testing.assert_allclose(metrics["loss"], (nll * weights).sum() / weights.sum(), rtol=1e-5)
    assert metrics["tokens"] == weights.sum()


def test_rows_of_one_document_need_no_segment_ids(tiny_model):
    """What fills a row up at its end is seen by no token that counts."""
    config, params = tiny_model
    batch = make_batch(1)
    for key in batch:
        batch[key] = batch[key].at[:, ::3, 10:].set(0)  # as the loader fills a short row up
    found = []
    for packed in (True, False):
        step, transform = make_step_of(config, packed=packed)
        state, _ = step(step_lib.init_state(params, transform), batch, decoder.own_rope(config)(16))
        found.append(state.params)
    for ours, theirs in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-7)


@pytest.mark.parametrize("poison", ("weight", "parameter"))
def test_a_bad_step_changes_nothing_but_the_counters(tiny_model, poison):
    config, params = tiny_model
    step, transform = make_step_of(config, optax.adamw(1e-2))
    r, batch = decoder.own_rope(config)(16), make_batch(2)
    state, _ = step(step_lib.init_state(params, transform), batch, r)
    if poison == "weight":
        batch["loss_weights_BT"] = batch["loss_weights_BT"].at[1, 0, 0].set(jnp.inf)
    else:
        norm = state.params["final_norm_D"].at[3].set(jnp.nan)
        state = step_lib.dataclasses.replace(state, params=state.params | {"final_norm_D": norm})
    for count in (1, 2):
        after, metrics = step(state, batch, r)
        assert metrics["bad_in_row"] == metrics["bad_total"] == count
        for part in ("params", "opt_state", "updates"):
            old, new = (jax.tree.leaves(getattr(s, part)) for s in (state, after))
            assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(old, new, strict=True))
        state = after
    if poison == "weight":
        after, metrics = step(state, make_batch(2), r)
        assert metrics["bad_in_row"] == 0 and metrics["bad_total"] == 2 and after.updates == 2


@pytest.mark.parametrize(
    "heads, mlp, vocab, seq_len, wanted",
    [(32, 11_008, 32_000, 131_072, 1.87e16), (8, 14_336, 128_256, 262_144, 6.58e16)],
)
def test_arithmetic_of_a_sequence_is_that_of_the_cost_model(heads, mlp, vocab, seq_len, wanted):
    config = decoder.DecoderConfig(
        vocab_size=vocab,
        num_layers=32,
        embed_dim=4096,
        num_heads=32,
        num_kv_heads=heads,
        head_dim=128,
        mlp_dim=mlp,
        norm_eps=1e-5,
        theta=10_000.0,
        original_len=4096,
        max_len=4096,
        rotary_dim=128,
        tie_embeddings=False,
    )
    assert step_lib.flops_per_token(config, seq_len) * seq_len == pytest.approx(wanted, rel=0.004)
