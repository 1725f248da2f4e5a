"""Arithmetic and traffic by formula, against XLA's own count and against published numbers."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from jaxrope import decoder, rope, train
from jaxrope.decoder import losses
from jaxrope.topology import CHIPS, roofline, schedule

ONE = {"data": 1, "fsdp": 1, "context": 1, "tensor": 1}
NOTHING = schedule.Schedule((), ())
LAYER = dict(num_layers=1, embed_dim=1024, num_heads=8, num_kv_heads=4, head_dim=128)
T = 128


def settings(**changes):
    return decoder.ForwardSettings(attention="reference", **changes)


@pytest.fixture(scope="module")
def wide(tiny_config):
    """One layer so wide that all but its matrix products is small."""
    sizes = LAYER | dict(mlp_dim=4096, rotary_dim=128, vocab_size=2048, max_len=T)
    return dataclasses.replace(tiny_config, **sizes)


def xla_flops(model, remat, *, grad, mlp_chunk=0, of_rope=False):
    """Returns XLA's count for a forward pass with loss, or for its gradient in the parameters or
    in the rope, of T tokens and one layer: of two in a loop, whose body it counts once. One alone
    would be no loop, and XLA would see that what is recomputed is there already.
    """
    model = dataclasses.replace(model, num_layers=2)
    chunk = T // 2 if grad else T
    run = settings(remat=remat, mlp_chunk=mlp_chunk)
    r = rope.make("none", head_dim=128, rotary_dim=128, theta=1e4, original_len=T)(T)

    def loss(params, factors_R, tokens_BT):
        turned = dataclasses.replace(r, factors_R=factors_R)
        x_BTD = decoder.hidden(model, params, tokens_BT, turned, settings=run)
        targets = losses.Targets(tokens_BT, jnp.ones(tokens_BT.shape))
        return losses.nll_sum(x_BTD, decoder.head_DV(model, params), targets, chunk=chunk)

    tokens_BT = jax.ShapeDtypeStruct((1, T), jnp.int32)
    fn = jax.value_and_grad(loss, argnums=int(of_rope)) if grad else loss
    arguments = decoder.abstract_params(model), jnp.asarray(r.factors_R), tokens_BT
    compiled = jax.jit(fn).lower(*arguments).compile()
    return compiled.cost_analysis()["flops"]


def dense_flops(model, remat, **changes):
    found = roofline.train_work(model, settings(remat=remat, **changes), ONE, rows=1, seq_len=T)
    return found.dense_flops


def test_the_forward_pass_is_what_xla_counts(wide):
    ours = roofline.forward_work(wide, ONE, rows=1, seq_len=T)
    whole_square = 4 * 8 * 128 * T**2  # `reference` computes masked pairs as well
    assert xla_flops(wide, "none", grad=False) == pytest.approx(
        ours.dense_flops + whole_square, rel=0.01
    )


@pytest.mark.parametrize("remat", ["none", "full", "save_mlp"])
def test_recomputation_is_what_xla_counts(wide, remat):
    attention = (6 if remat == "none" else 8) * 2 * 8 * 128 * T**2  # whole squares; none is kept
    half_the_head = 3 * 1024 * 2048 * T  # two chunks in a loop
    assert xla_flops(wide, remat, grad=True) == pytest.approx(
        dense_flops(wide, remat) - half_the_head + attention, rel=0.004
    )


@pytest.mark.parametrize("remat", ["none", "full"])
def test_a_gradient_in_the_rope_is_what_xla_counts(wide, remat):
    found = roofline.gradient_work(wide, settings(remat=remat), ONE, seq_len=T)
    attention = (6 if remat == "none" else 8) * 2 * 8 * 128 * T**2  # whole squares
    half_the_head = 2 * 1024 * 2048 * T  # two chunks in a loop; no gradient of the head
    assert xla_flops(wide, remat, grad=True, of_rope=True) == pytest.approx(
        found.dense_flops - half_the_head + attention, rel=0.004
    )


def test_groups_of_devices_take_the_same_gradient(wide):
    one = roofline.gradient_work(wide, settings(), ONE, seq_len=T)
    eight = roofline.gradient_work(wide, settings(), ONE | dict(fsdp=4, data=2), seq_len=T)
    assert (eight.tokens, eight.model_flops) == (T, one.model_flops)
    assert eight.flops == 8 * one.flops


def test_a_chunked_mlp_is_computed_again(wide):
    more = dense_flops(wide, "none", mlp_chunk=T) - dense_flops(wide, "none")
    assert more == 2 * 2 * 1024 * 4096 * T
    assert dense_flops(wide, "full", mlp_chunk=T) == dense_flops(wide, "full")


# Llama-2-7B and Llama-3-8B: 6 P S + 6 L d S^2, computed apart from this code. Qwen3-Next: a token
# meets 3.562e9 weights and 36 states of 32 heads, 18 * 128^2 each; 12 layers attend.
@pytest.mark.parametrize(
    ("name", "seq_len", "flops"),
    [
        ("llama2_7b", 2**17, 1.87e16),
        ("llama2_7b", 2**18, 6.44e16),
        ("llama2_7b", 2**21, 3.54e18),
        ("llama3_8b", 2**18, 6.58e16),
        ("llama3_8b", 2**20, 9.12e17),
        ("qwen3_next_80b_a3b", 2**18, 2.596e16),
    ],
)
def test_model_flops_of_known_models(name, seq_len, flops):
    model = decoder.SHAPES[name]
    work = roofline.train_work(model, settings(), ONE, rows=1, seq_len=seq_len)
    assert work.model_flops == pytest.approx(flops, rel=0.006)
    per_token = train.flops_per_token(model, seq_len)
    assert work.model_flops == pytest.approx(per_token * seq_len, rel=1e-3)
    assert work.tokens == seq_len


@pytest.mark.parametrize(
    ("remat", "units"),
    [("none", 7), ("full", 9), ("minimal", 9), ("save_attention", 7)]
    + [("save_mlp", 7), ("offload", 9)],
)
def test_units_of_attention(wide, remat, units):
    work = roofline.train_work(wide, settings(remat=remat), ONE, rows=3, seq_len=T)
    assert work.attention_flops == units * 3 * 8 * 128 * T**2
    assert work.model_flops - 6 * 3 * 8 * 128 * T**2 == pytest.approx(dense_flops(wide, "none") * 3)


def test_every_remat_policy_is_known():
    assert roofline._RECOMPUTED.keys() == decoder.REMAT.keys()


@pytest.mark.parametrize("context", [1, 2])
def test_the_recurrence_is_what_xla_counts(context, monkeypatch):
    """Without the triangular system, which it does not count, and with each number of a pair."""
    monkeypatch.setattr(decoder.delta, "_by_halves", decoder.delta._by_rows)  # as on a TPU
    sizes = dict(delta_key_heads=1, delta_value_heads=2, delta_key_dim=128, delta_value_dim=128)
    sizes |= dict(num_layers=2, layers=("delta", "full"))
    model = dataclasses.replace(decoder.SHAPES["qwen3_next_80b_a3b"], **sizes)
    key, value, gate = ((1, 64, *heads) for heads in ((1, 128), (2, 128), (2,)))
    given = [[key, key, value], [gate, gate], (1, 2, 128, 128 * context)]
    given = jax.tree.map(jnp.ones, given, is_leaf=lambda shape: isinstance(shape, tuple))
    given.insert(2, jnp.zeros((1, 64), jnp.int32))
    xla = jax.jit(decoder.delta.rule).lower(*given).compile().cost_analysis()["flops"]
    work = roofline.forward_work(model, ONE | dict(context=context), rows=1, seq_len=64)
    system = 2 * 64 * 64 * (128 + 128)
    states_to_come = (context - 1) * 2 * 2 * 64 * 128 * 128
    assert xla == pytest.approx(work.recurrence_flops - system - states_to_come, rel=0.03)
    one = dataclasses.replace(settings(), remat="full")
    step = roofline.train_work(model, one, ONE | dict(context=context), rows=1, seq_len=64)
    assert step.recurrence_flops == 5 * work.recurrence_flops


def test_a_window_bounds_attention(wide):
    slid = dataclasses.replace(wide, sliding_window=32)
    full, short = (
        roofline.forward_work(model, ONE, rows=1, seq_len=T).attention_flops
        for model in (wide, slid)
    )
    assert full / short == (T / 2) / 32


def test_traffic_is_shared_by_the_devices(wide):
    sizes = {"data": 2, "fsdp": 2, "context": 4, "tensor": 2}
    one = roofline.train_work(wide, settings(), ONE, rows=32, seq_len=T)
    many = roofline.train_work(wide, settings(), sizes, rows=32, seq_len=T)
    assert one.update_bytes == 28 * decoder.num_params(wide)
    assert many.update_bytes == one.update_bytes / 32
    # output, dq, dk and dv pass the memory once a hop, of which there are 4
    assert one.attention_bytes == 8 * 32 * T * (8 + 8 + 2 * 4) * 128
    assert many.attention_bytes == one.attention_bytes / 32 * 4
    # each device has half of each weight, gathered
    weights = (4 * 3 + 8) * (2 * 1024 * 128 * 12 + 3 * 1024 * 4096 + 1024 * 2048)
    assert one.dense_bytes > weights
    assert weights / 2 < many.dense_bytes < one.dense_bytes / 2


def collective(kind, num_bytes, overlapped):
    return schedule.Collective(kind, "a", "b", "", 2, num_bytes / 2, 2, overlapped)


def test_prediction_by_hand():
    chip = dataclasses.replace(
        CHIPS["v5p"], peak_flops=100.0, memory_bandwidth=10.0, link_bandwidth=4.0
    )
    work = roofline.Work(
        1000, 700.0, 280.0, 100.0, 30.0, 10.0, update_bytes=20.0, least_flops=1400.0
    )
    found = roofline.predict(work, NOTHING, chip, 2)
    # dense: 280 / (2 * 100 * 0.7) = 2 s, its bytes 3 s; attention: 100 / (200 * 0.5) = 1 s
    assert (found.dense, found.attention, found.update) == (3.0, 1.0, 2.0)
    assert found.step == 6.0
    assert found.mfu == pytest.approx(700 / (200 * 6)) and found.ceiling == 0.5
    assert found.tokens_per_day == pytest.approx(1000 * 86_400 / 6)
    sent = [
        collective("collective-permute", 8.0, True),  # 2 s on one link
        collective("all-gather", 32.0, True),  # 4 s on two
        collective("reduce-scatter", 8.0, False),  # 1 s
        collective("collective-permute", 2.0, False),  # 0.5 s
    ]
    found = roofline.predict(work, schedule.Schedule(tuple(sent), ()), chip, 2)
    assert (found.hops, found.gathers, found.exposed) == (2.0, 4.0, 1.5)
    assert found.step == 2.0 + 4.0 + 1.5 + 2.0


def test_256k_on_64_v5p_is_within_what_is_published():
    """MaxText takes 9.34 to 10.78 s for a row of Llama-3-8B of 256k tokens on 64 v5p."""
    sizes = {"data": 1, "fsdp": 1, "context": 64, "tensor": 1}
    work = roofline.train_work(
        decoder.SHAPES["llama3_8b"], settings(remat="full"), sizes, rows=1, seq_len=2**18
    )
    found = roofline.predict(work, NOTHING, CHIPS["v5p"], 64)
    assert 5.0 < found.step < 9.34  # a lower bound: nothing on the wire
    assert 0.24 < found.mfu < 0.45
    kept = roofline.train_work(
        decoder.SHAPES["llama3_8b"], settings(remat="none"), sizes, rows=1, seq_len=2**18
    )
    at_best = roofline.predict(kept, NOTHING, CHIPS["v5p"], 64)
    assert at_best.mfu == pytest.approx(found.ceiling, rel=1e-3) and found.mfu < 0.9 * found.ceiling
