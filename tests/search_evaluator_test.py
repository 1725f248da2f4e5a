"""Candidates on devices: what is computed, that mates do not matter, one compilation, memory."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrope import decoder, rope
from jaxrope.errors import InputError
from jaxrope.mesh import sharding
from jaxrope.search import evaluator, judging, objective, plan

LENGTH = 96


SETTINGS = decoder.ForwardSettings(attention_block=32)


def judge_of(config, num_samples=3, length=LENGTH, settings=SETTINGS):
    tokens = np.random.default_rng(0).integers(0, 256, (num_samples, length + 1)).astype(np.int32)
    return objective.Objective(
        loss_fn=objective.mean_nll(config, settings),
        samples=tokens,
        lay_out=functools.partial(decoder.lay_out, settings),
        fitness_fn=np.exp,
        unit="perplexity",
        sample_tokens=length,
        scored_tokens=length,
    )


def ropes_of(config, count, seed=1):
    rng = np.random.default_rng(seed)
    return [
        rope.build(
            np.sort(rng.uniform(1, 8, config.rotary_dim // 2)),
            theta=config.theta,
            start_tokens=int(rng.integers(0, 20)),
            attention_factor=float(rng.uniform(1, 1.3)),
        )
        for _ in range(count)
    ]


def mesh_of(num_devices=8, **sizes):
    sizes = dict(data=-1, fsdp=1, context=1, tensor=1) | sizes
    return sharding.make_mesh(sizes, jax.devices()[:num_devices])


def make(judge, model, per_device, num_devices=1):
    return evaluator.make(judge, *model, per_device=per_device, mesh=mesh_of(num_devices))


def test_losses_are_those_of_the_plain_forward_pass(tiny_model):
    config, params = tiny_model
    judge, ropes = judge_of(config), ropes_of(config, 3)
    found = evaluator.evaluate(make(judge, tiny_model, 4), ropes)
    assert found.shape == (3, 3) and found.dtype == np.float64
    for p, r in enumerate(ropes):
        logits = np.asarray(decoder.logits(config, params, judge.samples[:, :-1], r), np.float64)
        logits -= logits.max(axis=-1, keepdims=True)
        log_prob = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        picked = np.take_along_axis(log_prob, judge.samples[:, 1:, None], axis=-1)
        np.testing.assert_allclose(found[p], -picked.mean(axis=(1, 2)), rtol=2e-6)


def test_a_part_of_samples_of_several_kinds(tiny_model):
    """Every sample has the loss of its kind, wherever a race cuts."""
    config, params = tiny_model
    plain, ropes = judge_of(config, 2), ropes_of(config, 2)

    def twice(*args):
        return 2 * plain.loss_fn(*args)

    parts = (plain, dataclasses.replace(judge_of(config, 2), loss_fn=twice))
    judge = judging.Combined(parts, (1.0, 3.0), np.exp, "mixed")
    whole = evaluator.evaluate(make(judge, tiny_model, 2), ropes)
    alone = evaluator.evaluate(make(plain, tiny_model, 2), ropes)
    np.testing.assert_allclose(whole, np.repeat(alone, 2, axis=1) * [1, 2, 1, 2], rtol=2e-6)
    for cut in range(1, 4):
        for chosen in (slice(cut), slice(cut, None)):
            part = evaluator.part(make(judge, tiny_model, 2), chosen)
            assert np.array_equal(evaluator.evaluate(part, ropes), whole[:, chosen])
    means = (alone + 3 * 2 * alone) / 4
    np.testing.assert_allclose(judge.draws(whole), means, rtol=2e-6)
    np.testing.assert_allclose(judge.mean(whole), means.mean(axis=1), rtol=2e-6)


@pytest.mark.parametrize("per_device", [1, 4])
def test_fitness_does_not_depend_on_batch_mates(tiny_model, per_device):
    """Bit-equal in any slot, beside any mates, and on any number of devices."""
    config, params = tiny_model
    judge, ropes, others = judge_of(config), ropes_of(config, 4), ropes_of(config, 8, seed=2)
    made = make(judge, tiny_model, per_device, num_devices=4)
    base = evaluator.evaluate(made, ropes)
    assert np.array_equal(evaluator.evaluate(made, ropes[::-1])[::-1], base)
    assert np.array_equal(evaluator.evaluate(made, ropes[2:3])[0], base[2])
    if made.batch_size >= 7:
        assert np.array_equal(evaluator.evaluate(made, others[:3] + ropes)[3:], base)
    single = make(judge, tiny_model, per_device)
    alone = [evaluator.evaluate(single, [r])[0] for r in ropes]
    assert np.array_equal(alone, base)


@pytest.mark.parametrize(
    "sizes, backend",
    [
        (dict(fsdp=2), "blockwise"),
        (dict(context=4), "ring"),
        pytest.param(dict(context=2, fsdp=2), "all_gather", marks=pytest.mark.slow),
        (dict(context=2, tensor=2), "ulysses"),
    ],
    ids=str,
)
def test_losses_are_the_same_on_every_mesh(tiny_model, sizes, backend):
    """101 tokens are no multiple of any mesh with context > 1: samples are filled up."""
    config, params = tiny_model
    ropes = ropes_of(config, 5)
    kernel = dataclasses.replace(SETTINGS, attention="blockwise")
    one = evaluator.evaluate(make(judge_of(config, 2, 101, kernel), tiny_model, 5), ropes)
    mesh = mesh_of(8, **sizes)
    settings = dataclasses.replace(SETTINGS, mesh=mesh, attention=backend)
    judge = judge_of(config, 2, 101, settings)
    made = evaluator.make(judge, config, params, per_device=2, mesh=mesh)
    batches = [ropes[i : i + made.batch_size] for i in range(0, len(ropes), made.batch_size)]
    found = np.concatenate([evaluator.evaluate(made, batch) for batch in batches])
    np.testing.assert_allclose(found, one, rtol=3e-6)
    gate_LDF = made.params["layers"]["gate_LDF"]
    parts = sharding.ways(mesh, "fsdp", "context", "tensor")
    assert made.batch_size == 2 * sharding.ways(mesh, "data", "fsdp")
    assert gate_LDF.addressable_shards[0].data.size * parts == gate_LDF.size


def test_a_batch_is_lowered_from_shapes(tiny_config):
    mesh = mesh_of(8, context=2)
    settings = dataclasses.replace(SETTINGS, mesh=mesh, attention="ring")
    judge, (plain,) = judge_of(tiny_config, 1, 62, settings), ropes_of(tiny_config, 1)
    how = dict(dtype="bfloat16", kind=0, per_device=2)
    lowered = evaluator.lower(judge, tiny_config, mesh, plain, **how)
    inputs = jax.tree.leaves(lowered.in_avals)
    assert {leaf.shape for leaf in inputs} >= {(64,), (8, 4), (8, 4, 2)}


def test_one_trace_for_a_whole_search(tiny_model):
    config, params = tiny_model
    judge, count = judge_of(config), [0]

    def counted(*args):
        count[0] += 1
        return judge.loss_fn(*args)

    made = make(dataclasses.replace(judge, loss_fn=counted), tiny_model, 2, num_devices=2)
    for size in (4, 1, 3, 4, 2):
        evaluator.evaluate(made, ropes_of(config, size, seed=size))
    assert count[0] == 1 and made.losses_fns[0]._cache_size() == 1


def test_half_a_batch_compiles_once_more(tiny_model):
    config, params = tiny_model
    made = make(judge_of(config), tiny_model, 4)
    ropes = ropes_of(config, 2)
    whole = evaluator.evaluate(made, ropes)
    half = evaluator.halve(made)
    assert half.per_device == 2 and half.batch_size == 2
    np.testing.assert_allclose(evaluator.evaluate(half, ropes), whole, rtol=1e-6)
    assert made.losses_fns[0]._cache_size() == 2


def test_only_resource_exhausted_is_out_of_memory(tiny_model):
    config, params = tiny_model
    made = make(judge_of(config), tiny_model, 1)

    def failing(text):
        def losses_fn(*_):
            raise jax.errors.JaxRuntimeError(text)

        return dataclasses.replace(made, losses_fns=(losses_fn,))

    ropes = ropes_of(config, 1)
    with pytest.raises(evaluator.OutOfMemory, match="RESOURCE_EXHAUSTED: 3 GiB"):
        evaluator.evaluate(failing("RESOURCE_EXHAUSTED: 3 GiB\nmore"), ropes)
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        evaluator.evaluate(failing("INTERNAL: broken"), ropes)


def test_objective_is_differentiable_in_the_rope(tiny_model):
    config, params = tiny_model
    judge = judge_of(config, 1, 32, decoder.ForwardSettings(attention="reference"))
    r = jax.tree.map(jnp.asarray, ropes_of(config, 1)[0])
    sample = jax.tree.map(lambda rows: rows[0], judge.lay_out(judge.samples))

    def loss(factors_R):
        return judge.loss_fn(params, dataclasses.replace(r, factors_R=factors_R), sample)

    slope = jax.grad(loss)(r.factors_R)
    assert np.all(np.isfinite(slope)) and np.any(np.abs(slope) > 0)


@pytest.mark.parametrize("attention", ["blockwise", "reference"])
@pytest.mark.parametrize("length", [256, 1024])
def test_memory_estimate_bounds_what_xla_allots(tiny_model, attention, length):
    config, params = tiny_model
    config = dataclasses.replace(config, embed_dim=64, mlp_dim=160, head_dim=16, rotary_dim=16)
    params = decoder.init_params(config, jax.random.key(0))
    settings = decoder.ForwardSettings(attention=attention, attention_block=128)
    judge = judge_of(config, 2, length, settings)
    made = make(judge, (config, params), 2)
    stacked = rope.stack(ropes_of(config, 2))
    compiled = made.losses_fns[0].lower(made.params, stacked, made.samples[0]).compile()
    allotted = compiled.memory_analysis().temp_size_in_bytes / 2
    needs = dict(sample_tokens=length, memory_gb=0.0, mesh=mesh_of(1))
    told = plan.memory(config, settings, **needs)
    assert allotted <= told.candidate <= 4 * allotted, (allotted, told.candidate)
    assert told.params == 4 * decoder.num_params(config)


def test_batch_size(tiny_config):
    mesh = mesh_of(2)
    space = plan.Memory(params=100, candidate=10, available=150)
    choose = dict(most=64, mesh=mesh)
    assert space.candidates == 5
    assert plan.per_device(7, space, sample_tokens=512, **choose) == 4  # 7 over 2 devices
    assert plan.per_device(0, space, sample_tokens=512, **choose) == 4  # of the 5 that fit
    assert plan.per_device(0, space, sample_tokens=4096, **choose) == 1  # no faster on a CPU
    tight = dataclasses.replace(space, available=90)
    assert plan.per_device(0, tight, sample_tokens=512, **choose) == 1
    assert plan.per_device(0, space, sample_tokens=512, most=2, mesh=mesh) == 1


def test_memory_messages(tiny_config):
    needs = dict(sample_tokens=4096, mesh=mesh_of(1))
    settings = decoder.ForwardSettings()
    with pytest.raises(InputError, match=r"search\.memory_gb must be at least .* got 1e-05"):
        plan.memory(tiny_config, settings, memory_gb=1e-5, **needs)


def test_forward_operations_count_the_matrix_products(tiny_config):
    """2 operations a weight and token, and causal attention over half the tokens on average."""
    config = dataclasses.replace(tiny_config, tie_embeddings=False)
    dim, heads, kv_heads, head, mlp = 32, 4, 2, 8, 64
    layer = dim * head * (2 * heads + 2 * kv_heads) + 3 * dim * mlp + 2 * dim  # and two norms
    weights = 2 * layer + 264 * dim + dim
    expected = 1000 * (2 * weights + 2 * 4 * heads * head * 500)
    assert decoder.forward_operations(config, 1000) == expected
