"""Generation: what is decoded with a cache is what the whole sequence would give."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrope import decoder, generate, rope
from jaxrope.generate import Model, Options, policy, program, run
from jaxrope.generate import state as states
from jaxrope.mesh import sharding

TOLERANCE = 2e-5
GEOMETRY = dict(head_dim=8, theta=10_000.0, original_len=24)
LONGEST = 112
BUCKETS = [
    dict(max_len=24, factors=[1.0] * 4, start_tokens=0, attention_factor=1.0),
    dict(max_len=40, factors=[1.0, 1.2, 1.6, 1.7], start_tokens=4, attention_factor=1.1),
    dict(max_len=96, factors=[1.1, 2.0, 3.5, 4.0], start_tokens=0, attention_factor=1.3),
]
LONGROPE = rope.make("longrope", **GEOMETRY, buckets=BUCKETS)
DYNAMIC = rope.make("dynamic_ntk", **GEOMETRY, factor=4.0)
full_logits = jax.jit(decoder.logits, static_argnums=0)


def tiny(tiny_config, **changes):
    """Returns (config, parameters) whose logits are about 1 apart: attention weights are far from
    equal.
    """
    config = dataclasses.replace(tiny_config, qkv_bias=True, **changes)
    leaves, tree = jax.tree.flatten(decoder.abstract_params(config))
    rng = np.random.default_rng(0)
    leaves = [jnp.asarray(0.35 * rng.normal(size=leaf.shape), jnp.float32) for leaf in leaves]
    return config, tree.unflatten(leaves)


def make_model(tiny_config, rope_fn=LONGROPE, *, block=32, mesh=None, **changes):
    config, params = tiny(tiny_config, **changes)
    settings = decoder.ForwardSettings(attention_block=block, mesh=mesh)
    if mesh is not None:
        params = sharding.put(params, decoder.param_shardings(config, mesh))
    return Model(config, params, rope_fn, settings)


@pytest.fixture(scope="module")
def model(tiny_config):
    return make_model(tiny_config)


def prompt(length, seed=0):
    return np.random.default_rng([seed, length]).integers(0, 264, length).tolist()


def batch(lengths, seed=0):
    return [prompt(n, seed + i) for i, n in enumerate(lengths)]


def options(max_new_tokens=8, chunk=16, **changes):
    return Options(max_new_tokens=max_new_tokens, chunk=chunk, **changes)


def whole(model, tokens, rope_len):
    """Returns logits [V] of the token after `tokens`, by the forward pass without a cache; filled
    up on the right, where causality hides it.
    """
    ids = jnp.asarray([[*tokens, *[0] * (LONGEST - len(tokens))]])
    params = jax.tree.map(np.asarray, model.params)
    return np.asarray(full_logits(model.config, params, ids, model.rope_fn(rope_len)))[
        0, len(tokens) - 1
    ]


@dataclasses.dataclass
class Record:
    """What a run had before each of its tokens: the state, and the tokens of each row."""

    states: list
    rows: list

    def moments(self):
        """Yields (row, its tokens, its logits) for each row that grew since."""
        for state, rows in zip(self.states, self.rows, strict=True):
            for i, tokens in enumerate(rows):
                if state.lengths_B[i] == len(tokens):
                    yield i, tokens, state.logits_BV[i]


@pytest.fixture
def record(monkeypatch):
    found, step = Record([], []), run._Batch.step

    def recording(self, state, advance):
        found.states.append(jax.tree.map(np.array, state))  # a copy: the step takes the memory
        found.rows.append([list(row.tokens) for row in self.rows])
        return step(self, state, advance)

    monkeypatch.setattr(run._Batch, "step", recording)
    return found


def assert_whole(model, record, rope_len):
    """Every logit of a run is that of the whole sequence, with the factors of rope_len(row, n)."""
    seen = set()
    for i, tokens, logits in record.moments():
        expected = whole(model, tokens, rope_len(i, len(tokens)))
        assert np.ptp(expected) > 1
        np.testing.assert_allclose(logits, expected, rtol=0, atol=TOLERANCE)
        seen.add(len(tokens))
    return seen


@pytest.mark.parametrize("lengths, met", [((21, 5, 36, 60), True), ((24, 25, 40, 60), False)])
def test_every_token_is_that_of_the_whole_sequence(model, record, lengths, met):
    """On both sides of every border, at the border and one beyond it, in one batch; borders are
    met on the way, or by the prompts.
    """
    new = generate.generate(model, batch(lengths), options(10))
    assert [len(tokens) for tokens in new] == [10] * 4
    seen = assert_whole(model, record, lambda row, now: now)
    assert {23, 24, 25, 26, 39, 40, 41, 42} <= seen if met else {24, 25, 40, 41} <= seen


def test_the_factors_differ_where_the_tests_look(model):
    tokens = prompt(30)
    apart = [whole(model, tokens, length) for length in (24, 40, 96)]
    assert all(np.abs(a - b).max() > 0.05 for a, b in zip(apart, apart[1:], strict=False))


@pytest.mark.parametrize("how", [{}, dict(temperature=2.0, top_k=50, top_p=0.9)], ids=str)
def test_a_row_does_not_depend_on_its_mates_or_its_place(model, how):
    prompts, others = batch((23, 7, 38, 60)), batch((9, 62, 30, 24), seed=1)
    new = generate.generate(model, prompts, options(6, **how))
    assert generate.generate(model, prompts[::-1], options(6, **how))[::-1] == new
    for i in range(3):
        mixed = [*others[: 3 - i], prompts[i], *others[3 - i :]][:4]
        assert generate.generate(model, mixed, options(6, **how))[3 - i] == new[i]
        if not how:
            alone = generate.generate(model, [prompts[i]], options(90 - len(prompts[i])))[0]
            assert alone[:6] == new[i]


def test_draws_follow_the_seed_and_the_prompt(model):
    same = [prompt(9), prompt(9), *batch((20, 60))]
    how = dict(temperature=2.0, top_k=50, top_p=0.9)
    drawn = generate.generate(model, same, options(12, **how))
    again = generate.generate(model, same, options(12, **how))
    other = generate.generate(model, same, options(12, seed=1, **how))
    assert drawn == again and drawn[0] != drawn[1]
    assert all(a != b for a, b in zip(drawn, other, strict=True))
    greedy = [generate.generate(model, same, options(6, seed=n)) for n in (0, 1)]
    assert greedy[0] == greedy[1] and greedy[0][0] == greedy[0][1]


def test_a_cache_made_again_has_the_bits_of_a_fresh_one(model, record):
    """Rows cross a border at different times; the one that has just crossed is compared with the
    same tokens read at another place of another batch.
    """
    generate.generate(model, batch((22, 38, 20, 60)), options(8))
    crossed = 0
    for state, rows in zip(record.states, record.rows, strict=True):
        for i, tokens in enumerate(rows):
            if len(tokens) not in (25, 41):
                continue
            fresh = run._Batch(model, [prompt(60), prompt(3), prompt(4), tokens], options(8))
            fresh = fresh.read(fresh.empty(), [3], generate.Timing())
            ours = jax.tree.map(lambda x, i=i: x[i], (state.lengths_B, state.rope, state.logits_BV))
            theirs = jax.tree.map(lambda x: x[3], (fresh.lengths_B, fresh.rope, fresh.logits_BV))
            kept = (state.caches["full"].keys_LBSKH[:, i], state.caches["full"].values_LBSKH[:, i])
            new = (fresh.caches["full"].keys_LBSKH[:, 3], fresh.caches["full"].values_LBSKH[:, 3])
            jax.tree.map(np.testing.assert_array_equal, (ours, kept), (theirs, new))
            assert np.abs(kept[0][:, : len(tokens)]).min() > 0
            assert not np.any(kept[0][:, len(tokens) :])
            crossed += 1
    assert crossed == 3


def test_chunks_do_not_change_what_is_read(model, record):
    """61 tokens end inside a chunk of 16; two of 48 read them in another way."""
    prompts = batch((61, 48, 15, 60))
    generate.generate(model, prompts, options(1))
    generate.generate(model, prompts, options(1, chunk=48))
    one, other = (state.logits_BV for state in record.states)
    assert not np.array_equal(one, other)
    np.testing.assert_allclose(one, other, rtol=0, atol=TOLERANCE)
    assert_whole(model, record, lambda row, now: now)


@pytest.mark.parametrize("name", ("fixed", "keep"))
def test_policies_that_read_once(model, record, name):
    lengths, timing = (20, 24, 38, 60), generate.Timing()
    generate.generate(model, batch(lengths), options(8, policy=name), timing=timing)
    wanted = {"fixed": lambda row, _: lengths[row] + 8, "keep": lambda row, _: lengths[row]}
    assert_whole(model, record, wanted[name])
    assert timing.prefill_tokens == sum(lengths)
    chunks = [n for n in lengths for _, n in generate.pieces(n, options(8).chunk, 16)]
    assert timing.padding_tokens == sum(chunks) - sum(lengths) > 0


def test_recompute_reads_again_at_borders_alone(model):
    timing = generate.Timing()
    generate.generate(model, batch((20, 38, 10, 60)), options(8), timing=timing)
    assert timing.prefill_tokens == 20 + 38 + 10 + 60 + 25 + 41
    assert timing.decode_tokens == 32


def test_no_row_is_read_again_that_needs_no_token_after_the_border(model):
    """25 tokens are planned, or the token that crosses ends the row."""
    prompts = batch((20, 3, 4, 61))
    timing = generate.Timing()
    new = generate.generate(model, prompts, options(5), timing=timing)
    assert timing.prefill_tokens == 88
    count = iter(range(100))

    def stop_fn(row, _):
        return row == 0 and next(count) == 4

    ended = generate.generate(model, prompts, options(8), stop_fn=stop_fn, timing=timing)
    assert ended[0] == new[0] and timing.prefill_tokens == 2 * 88


@pytest.mark.parametrize("name", ("fixed", "keep"))
def test_a_formula_in_the_length(tiny_config, record, name):
    model, lengths = make_model(tiny_config, DYNAMIC), (30, 25, 10, 70)
    generate.generate(model, batch(lengths), options(4, policy=name))
    assert_whole(model, record, lambda row, _: lengths[row] + 4 * (name == "fixed"))
    generate.stream(model, [prompt(20)], options(4))  # to original_len it does not change


@pytest.mark.parametrize("window", (1, 20))
def test_sliding_window(tiny_config, record, window):
    model = make_model(tiny_config, sliding_window=window, block=16)
    generate.generate(model, batch((5, 22, 38, 60)), options(5))
    assert_whole(model, record, lambda row, now: now)


@pytest.mark.parametrize("sizes", [{}, dict(data=2, context=2, tensor=2)], ids=str)
def test_factors_of_each_layer(tiny_config, record, sizes):
    """Leaves [layers, rows]; a bucket with one vector is given to every layer."""
    one = dict(data=1, fsdp=1, context=1, tensor=1)
    mesh = sharding.make_mesh(one | sizes) if sizes else None
    apart = [rope.build(BUCKETS[i]["factors"], theta=1e4, start_tokens=3 * i) for i in (1, 2)]
    layered = rope.stack(apart, per_layer=True)

    def rope_fn(length):
        return LONGROPE(length) if length <= 24 else layered

    rope_fn.buckets, rope_fn.bucket, rope_fn.max_len = LONGROPE.buckets[1:2], LONGROPE.bucket, 40
    model = make_model(tiny_config, rope_fn, mesh=mesh)
    generate.generate(model, batch((22, 10, 26, 35)), options(5, chunk=32))
    assert {24, 25} <= assert_whole(model, record, lambda row, now: now)
    assert policy.of_rows(rope_fn, [10, 30], 2).factors_R.shape == (2, 2, 4)


slow = pytest.mark.slow
MESHES = [
    dict(data=2, context=2, tensor=2),
    pytest.param(dict(context=8), marks=slow),
    pytest.param(dict(data=2, fsdp=2, context=2), marks=slow),
    pytest.param(dict(fsdp=4, tensor=2), marks=slow),
]


@pytest.mark.parametrize("changes", [{}, dict(vocab_size=265, sliding_window=20)], ids=str)
@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_a_mesh_gives_what_one_device_gives(tiny_config, record, sizes, changes):
    """Five rows on groups of devices that have several, one or none of them; 265 words divide by
    nothing.
    """
    mesh = sharding.make_mesh(dict(data=1, fsdp=1, context=1, tensor=1) | sizes)
    model = make_model(tiny_config, mesh=mesh, **changes)
    generate.generate(
        model, batch((23, 7, 40, 62, 24)), options(4, chunk=16 * mesh.shape["context"])
    )
    assert {23, 24, 25, 26, 40, 41} <= assert_whole(model, record, lambda row, now: now)


def test_nothing_is_compiled_twice(tiny_config, monkeypatch):
    """Every prompt length and every border runs what was compiled for the sizes before."""
    traced = []
    hidden = decoder.hidden_cached
    monkeypatch.setattr(
        decoder, "hidden_cached", lambda *args: traced.append(args[2].shape) or hidden(*args)
    )
    model = make_model(tiny_config, block=48)
    prompts = [prompt(n) for n in (33, 3, 70)]
    generate.warm_up(model, prompts, options(20, chunk=48))
    assert sorted(traced) == [(1, 16), (1, 32), (1, 48), (3, 1)]
    generate.generate(model, prompts, options(20, chunk=48))
    generate.generate(model, [prompt(n) for n in (50, 40, 9)], options(26, chunk=48, seed=3))
    assert len(traced) == 4


def test_reading_takes_memory_for_the_cache_and_a_chunk(tiny_config):
    """Eight times the slots: the cache grows with them, the rest of a chunk's memory does not; the
    memory of the cache is used again.
    """
    model = make_model(tiny_config)
    params = jax.eval_shape(lambda: model.params)

    def memory(slots):
        stack = rope.stack([rope.make("pi", **GEOMETRY, factor=4.0)(slots)] * 2)
        state = jax.eval_shape(
            lambda: states.empty(
                model.config, model.settings, (slots, 512), stack, np.zeros((2, 2), "u4")
            )
        )
        words = [jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((1, 512), (1,), (), ())]
        how = dict(config=model.config, settings=model.settings)
        lowered = program.read_chunk.lower(params, state, program.Chunk(*words), **how)
        return lowered.compile().memory_analysis()

    short, long = memory(4096), memory(32_768)
    cache = 2 * 2 * 2 * 4 * 2 * 8  # keys and values, layers, rows, bytes, heads, dims: of a slot
    assert long.alias_size_in_bytes - short.alias_size_in_bytes == cache * (32_768 - 4096)
    assert long.temp_size_in_bytes - short.temp_size_in_bytes <= 2 * 4 * (32_768 - 4096)
    assert short.temp_size_in_bytes < 4 * 4 * 512 * 512 * 4


def test_128k_tokens_of_a_model_of_seven_billion():
    """Shapes only: what one chunk of 131,072 tokens needs, on 8 devices."""
    mesh = sharding.make_mesh(dict(data=1, fsdp=1, context=8, tensor=1))
    config, settings = decoder.SHAPES["llama2_7b"], decoder.ForwardSettings("ring", mesh=mesh)
    stack = rope.stack([rope.preset("llama2-7b-2048k-ft256k")(131_072)])
    make = functools.partial(states.empty, config, settings, (131_072, 512), stack)
    state = jax.eval_shape(lambda: make(np.zeros((1, 2), "u4")))
    words = [jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((1, 2048), (1,), (), ())]
    after = jax.eval_shape(
        functools.partial(program.read_chunk, config=config, settings=settings),
        decoder.abstract_params(config),
        state,
        program.Chunk(*words),
    )
    assert after.caches["full"].keys_LBSKH.shape == (32, 1, 131_072, 32, 128)
    assert after.logits_BV.shape == (1, 32_000)


def test_stop_tokens_and_stop_functions(model, record):
    prompts, how = batch((9, 12, 13, 60)), dict(temperature=2.0, top_k=50, top_p=0.9)
    free = generate.generate(model, prompts, options(12, **how))
    stop = (free[0][4], free[1][7])
    ended = generate.generate(model, prompts, options(12, stop=stop, **how))
    for new, tokens in zip(free, ended, strict=True):
        first = next((i for i, token in enumerate(new) if token in stop), 12)
        assert tokens == new[: first + 1]
    assert len(ended[0]) <= 5 and len(ended[1]) <= 8
    calls = []

    def stop_fn(row, token):
        calls.append((row, token))
        return row in (1, 3)

    steps = list(generate.stream(model, prompts, options(3), stop_fn=stop_fn))
    assert [[row for row, _ in new] for new in steps] == [[0, 1, 2, 3], [0, 2], [0, 2]]
    assert calls == [pair for new in steps for pair in new]
    assert record.states[-1].lengths_B.tolist() == [11, 13, 15, 61]  # ended rows grow no more
