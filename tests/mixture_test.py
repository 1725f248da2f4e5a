"""Mixtures: which kind a row is, what is in it, and that a step sees each row as if alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrope import data, decoder, rope, train
from jaxrope.data import BytesTokenizer, MixtureLoader, Shares, TrainLoader, needles
from jaxrope.data.mixture import LONG, SHORT
from jaxrope.data.words import NOUNS
from jaxrope.errors import InputError
from jaxrope.mesh import sharding
from jaxrope.schema.model import MOST_KEYS
from jaxrope.train import plan as plan_lib
from jaxrope.train import program as program_lib
from jaxrope.train import step as step_lib
from jaxrope.train.optimizer import Optimizer
from tests import tiny_run

NONE = Shares(needle=0.0, needle_keys=1, needle_weight=1.0, short=0.0, short_len=64)
SEQ_LEN = 512


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    rng = np.random.default_rng(0)
    for i, size in enumerate((2000, 1500, 700, 40, 25)):
        text = "".join(rng.choice(list("abcdef "), size))
        (folder / f"{i}.txt").write_text(text)
    return data.load_documents([f"{folder}/*.txt"], BytesTokenizer(), cache_dir=folder / "cache")


def make_text(documents, **changes):
    chosen = dict(seq_len=SEQ_LEN, batch_size=8, seed=5, mode="chunk", bos_id=256, eos_id=257)
    return TrainLoader(documents, **chosen | changes)


def make(documents, text=None, **changes):
    shares = dataclasses.replace(NONE, **changes)
    tokenizer = BytesTokenizer()
    text = text or make_text(documents)
    return MixtureLoader(text, documents, shares, tokenizer=tokenizer, bos_id=256, eos_id=257)


@pytest.mark.parametrize(
    "needle, short", [(0.25, 0.0), (0.0, 0.3), (0.25, 0.3), (0.1, 0.9), (1.0, 0.0), (0.125, 0.125)]
)
def test_kinds_lie_evenly(documents, needle, short):
    loader = make(documents, needle=needle, short=short)
    kinds = [loader.kind(number) for number in range(400)]
    shares = {"needle": needle, "short": short, "text": 1 - needle - short}
    for kind, share in shares.items():
        found = [index for name, index in kinds if name == kind]
        assert found == list(range(len(found)))  # each is used once, in order
        assert len(found) == round(400 * share)
        counts = np.cumsum([name == kind for name, _ in kinds])
        assert np.all(np.abs(counts - share * np.arange(1, 401)) < 2.0), kind


def test_rows_of_text_are_those_of_the_loader_alone(documents):
    text = make_text(documents)
    loader = make(documents, needle=0.25, short=0.25)
    alone = [text.batch(step) for step in range(3)]
    alone = {key: np.concatenate([part[key] for part in alone]) for key in alone[0]}
    batches = [loader.batch(step) for step in range(4)]
    mixed = {key: np.concatenate([part[key] for part in batches]) for key in batches[0]}
    rows = [number for number in range(32) if loader.kind(number)[0] == "text"]
    assert len(rows) == 16
    for key in alone:
        assert np.array_equal(mixed[key][rows], alone[key][:16])


def test_a_row_of_needles_by_hand(documents):
    loader = make(documents, needle=0.5, needle_keys=1, needle_weight=4.0)
    batch = loader.batch(0)
    assert "rope_ids_BT" not in batch
    row = [number for number in range(8) if loader.kind(number)[0] == "needle"][1]
    tokens = np.append(batch["tokens_BT"][row], batch["targets_BT"][row][-1])
    assert np.array_equal(tokens[1:], batch["targets_BT"][row])
    source = needles.Source(BytesTokenizer(), needles.text(documents), "training", "x")
    wanted = needles.make_document(
        source, length=SEQ_LEN + 1, num_keys=1, seed=5, index=1, depth=needles.spread_depth(1)
    )
    assert np.array_equal(tokens, wanted.tokens)
    weights = batch["loss_weights_BT"][row]
    counted = BytesTokenizer().decode(batch["targets_BT"][row][weights == 4.0])
    assert counted == wanted.numbers[0] and np.all(np.isin(weights, (1.0, 4.0)))
    assert np.array_equal(batch["positions_BT"][row], np.arange(SEQ_LEN))
    assert np.all(batch["segment_ids_BT"][row] == 1)


def test_all_keys_are_asked_in_turn(documents):
    loader = make(documents, make_text(documents, seq_len=1200), needle=1.0, needle_keys=3)
    texts = [BytesTokenizer().decode(row) for row in loader.batch(0)["tokens_BT"][:6]]
    assert [text.count("One of the special magic") for text in texts] == [1, 2, 3, 1, 2, 3]
    assert [text.count("\nWhat is the special") for text in texts] == [1, 2, 3, 1, 2, 3]


def test_short_rows_hold_whole_pieces_of_the_original_length(documents):
    loader = make(documents, short=0.5, short_len=100)
    batches = [loader.batch(step) for step in range(6)]
    batch = {key: np.concatenate([part[key] for part in batches]) for key in batches[0]}
    is_short = np.array([loader.kind(number)[0] == "short" for number in range(48)])
    ids = np.where(is_short, SHORT, LONG)
    assert np.array_equal(batch["rope_ids_BT"], np.tile(ids[:, None], (1, SEQ_LEN)))
    assert batch["rope_ids_BT"].dtype == np.int32
    assert batch["positions_BT"][is_short].max() == 99 < batch["positions_BT"][~is_short].max()
    assert batch["segment_ids_BT"][is_short].max() >= 5
    for row in np.flatnonzero(is_short)[:5]:
        segments, positions = batch["segment_ids_BT"][row], batch["positions_BT"][row]
        for segment in range(1, segments.max() + 1):
            piece = batch["tokens_BT"][row][segments == segment]
            assert piece[0] == 256 and 256 not in piece[1:]
            assert np.array_equal(positions[segments == segment], np.arange(len(piece)))
    # an epoch of short rows has every token of every document as a target once
    first = np.flatnonzero(is_short)[: loader._short.num_rows]
    weights = batch["loss_weights_BT"][first]
    assert weights.sum() == documents.lengths.sum() + len(documents) == loader._short.num_targets


@pytest.mark.parametrize("rows", [slice(0, 3), slice(3, 8)])
def test_a_batch_is_a_function_of_the_step(documents, rows):
    shares = dict(needle=0.25, short=0.25)
    whole, part = make(documents, **shares).batch(7), make(documents, **shares).batch(7, rows=rows)
    assert whole.keys() == part.keys()
    for key, values in part.items():
        assert np.array_equal(values, whole[key][rows])
    other = make(documents, make_text(documents, seed=6), **shares).batch(7)
    assert not np.array_equal(other["tokens_BT"], whole["tokens_BT"])


def test_the_fingerprint_names_all_that_a_batch_depends_on(documents):
    base = dict(needle=0.25, short=0.25)
    changes = [dict(needle=0.5), dict(short=0.5), dict(needle_keys=2), dict(needle_weight=2.0)]
    changes += [dict(short_len=50), {}]
    long = make_text(documents, seq_len=900)
    prints = [make(documents, long, **base | change).fingerprint for change in changes]
    prints += [long.fingerprint, make(documents, **base).fingerprint]
    assert len(set(prints)) == len(prints)
    assert make(documents, long, **base).fingerprint == prints[5]


def test_short_rows_are_shorter_than_others():
    shares = dataclasses.replace(NONE, short=0.5, short_len=SEQ_LEN)
    with pytest.raises(InputError, match="rows of train.seq_len 512 .* original length 512. Set"):
        data.check_shares(shares, SEQ_LEN)
    data.check_shares(shares, SEQ_LEN + 1)


def test_there_are_words_for_as_many_needles_as_the_schema_allows():
    assert MOST_KEYS == len(NOUNS) // 2


def test_needles_need_room(documents):
    with pytest.raises(
        InputError, match=r"data.needle_keys: 6 needles, .* up to 1,\d+ tokens, rows"
    ):
        make(documents, needle=0.5, needle_keys=6)
    text = make_text(documents, seq_len=2000, mode="pack")
    with pytest.raises(InputError, match="data.train_files: needles are to be hidden in 2,001 tok"):
        make(documents, text, needle=0.5)


# ---- the step ----


def mixed_batch(parts=1, length=64):
    """Rows of one long document, and rows of three short ones; [A, B, T]."""
    rng = np.random.default_rng(3)
    ids = np.array([LONG, SHORT, LONG, SHORT, SHORT, LONG, LONG, SHORT])
    segments = np.repeat([1, 2, 3], [20, 24, 20])
    restart = np.concatenate([np.arange(20), np.arange(24), np.arange(20)])
    batch = {
        "tokens_BT": rng.integers(0, 258, (8, length)),
        "targets_BT": rng.integers(0, 258, (8, length)),
        "positions_BT": np.where(ids[:, None] == SHORT, restart, np.arange(length)),
        "segment_ids_BT": np.where(ids[:, None] == SHORT, segments, 1),
        "rope_ids_BT": np.tile(ids[:, None], (1, length)),
    }
    batch = {key: value.astype(np.int32) for key, value in batch.items()}
    batch["loss_weights_BT"] = rng.choice([0.0, 1.0, 5.0], (8, length)).astype(np.float32)
    return {key: x.reshape(parts, -1, length) for key, x in batch.items()}


def ropes(config, per_layer=False):
    factors = np.array([[1.0, 3.0, 4.0, 9.0], [2.0, 2.0, 5.0, 8.0]])
    made = [
        rope.build(row, theta=config.theta, start_tokens=3, attention_factor=1.2) for row in factors
    ]
    long = rope.stack(made, per_layer=True) if per_layer else made[0]
    return long, decoder.own_rope(config)(config.original_len)


@pytest.fixture(scope="module")
def sharp_model(tiny_model):
    """The tiny model with attention that is not uniform: in it the rope matters."""
    config, params = tiny_model
    sharp = {name: params["layers"][name] * 25 for name in ("q_LDNH", "k_LDKH")}
    return config, params | {"layers": params["layers"] | sharp}


def separately(model, batch, long, short):
    """The loss and its gradient, each row's sums computed alone with its own rope; float64."""
    config, params = model
    settings = decoder.ForwardSettings(attention="reference", compute_dtype="float64")
    rows = {key: x.reshape(-1, x.shape[-1]) for key, x in batch.items()}
    total = np.sum(rows["loss_weights_BT"], dtype=np.float64)

    def row_sum(params, one, r):
        logits = decoder.logits(
            config,
            params,
            one["tokens_BT"],
            r,
            positions_BT=one["positions_BT"],
            segment_ids_BT=one["segment_ids_BT"],
            settings=settings,
        )
        logp = jax.nn.log_softmax(logits)
        nll = -jnp.take_along_axis(logp, one["targets_BT"][..., None], axis=-1)[..., 0]
        return jnp.sum(nll * one["loss_weights_BT"])

    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), params)
        found = jax.jit(jax.value_and_grad(row_sum))
        sums = []
        for i, ids in enumerate(rows["rope_ids_BT"][:, 0]):
            one = {key: x[i : i + 1] for key, x in rows.items()}
            sums.append(found(params, one, short if ids == SHORT else long))
        loss = sum(float(value) for value, _ in sums) / total
        grads = jax.tree.map(lambda *leaves: sum(leaves) / total, *(grads for _, grads in sums))
        return loss, jax.tree.map(np.asarray, grads)


def stepped(model, batch, r, mesh=None, backend="blockwise"):
    """(metrics, params before minus after: the gradient) of a step of plain SGD."""
    config, params = model
    settings = decoder.ForwardSettings(attention=backend, attention_block=16, mesh=mesh)
    made = Optimizer(optax.sgd(1.0), optax.constant_schedule(1.0))
    step = step_lib.make_step(config, settings, made, chunk_tokens=32)
    state = step_lib.init_state(params, made.transform)
    if mesh is not None:
        order = decoder.token_order(settings, batch["tokens_BT"].shape[-1])
        batch = {key: x if order is None else x[..., order] for key, x in batch.items()}
        batch = sharding.put(batch, sharding.batch_sharding(mesh))
        where = decoder.param_shardings(config, mesh)
        state = dataclasses.replace(state, params=sharding.put(params, where))
    else:
        batch = jax.tree.map(jnp.asarray, batch)
    after, metrics = jax.jit(step)(state, batch, r)
    grads = jax.tree.map(lambda old, new: np.asarray(old) - np.asarray(new), params, after.params)
    return metrics, grads


MESHES = [
    (None, "blockwise", False),
    (None, "blockwise", True),
    (dict(data=2, fsdp=2, tensor=2), "blockwise", False),
    (dict(data=2, context=4), "ring", True),
    pytest.param(dict(fsdp=2, context=4), "all_gather", False, marks=pytest.mark.slow),
    pytest.param(dict(data=2, context=2, tensor=2), "ulysses", False, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("sizes, backend, per_layer", MESHES, ids=str)
def test_a_mixed_batch_is_the_weighted_mean_of_its_rows(sharp_model, sizes, backend, per_layer):
    long, short = ropes(sharp_model[0], per_layer)
    batch = mixed_batch(parts=2)
    wanted, gradient = separately(sharp_model, batch, long, short)
    mesh = None
    if sizes is not None:
        mesh = sharding.make_mesh(dict(data=1, fsdp=1, context=1, tensor=1) | sizes)
    r = program_lib.two_ropes(long, short)
    metrics, found = stepped(sharp_model, batch, r, mesh, backend)
    assert float(metrics["loss"]) == pytest.approx(wanted, rel=1e-6)
    assert metrics["tokens"] == np.sum(batch["loss_weights_BT"] > 0)
    for ours, theirs in zip(*map(jax.tree.leaves, (found, gradient)), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-6)


def test_each_rope_matters(sharp_model):
    long, short = ropes(sharp_model[0])
    losses = {
        float(stepped(sharp_model, mixed_batch(), program_lib.two_ropes(a, b))[0]["loss"])
        for a, b in ((long, short), (long, long), (short, short), (short, long))
    }
    assert len(losses) == 4 and min(np.diff(sorted(losses))) > 5e-4


# ---- a run ----


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run-texts")
    tiny_run.write_texts(folder)
    return folder


def run_config(texts, **changes):
    """8 rows of 480 tokens a step, original length 32: a quarter needles, a quarter short."""
    config = tiny_run.make_config(texts)
    config.target_len, config.train.seq_len, config.eval.suites = 480, 480, ()
    config.rope = dict(method="yarn", factor=15.0, beta_fast=32.0, beta_slow=1.0)
    config.train.steps, config.checkpoint.every, config.train.log_every = 4, 2, 1
    config.optimizer.schedule.warmup_steps = 1
    config.data.update(needle_share=0.25, needle_keys=1, needle_weight=3.0, short_share=0.25)
    config.data.update(changes)
    return config


@pytest.fixture(scope="module")
def undisturbed(texts, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("mixed-run") / "run"
    assert train.train(run_config(texts), workdir, devices=jax.devices()[:1]) == 0
    return workdir


def test_a_mixed_run_is_resumed_to_the_bit(texts, undisturbed, tmp_path, monkeypatch):
    real = plan_lib.Plan.put_batch

    def put_batch(plan, step):
        if step == 3:
            raise KeyboardInterrupt
        return real(plan, step)

    monkeypatch.setattr(plan_lib.Plan, "put_batch", put_batch)
    with pytest.raises(KeyboardInterrupt):
        train.train(run_config(texts), tmp_path, devices=jax.devices()[:1])
    monkeypatch.undo()
    assert train.train(run_config(texts), tmp_path, devices=jax.devices()[:1]) == 0
    assert tiny_run.differences(tmp_path, undisturbed) == []
    rows = tiny_run.rows(undisturbed)
    assert all(row["tokens"] <= 8 * 480 for row in rows)  # tokens are counted, not their weights


@pytest.mark.slow
def test_a_mixed_run_on_eight_devices_is_that_of_one(texts, undisturbed, tmp_path):
    config = run_config(texts)
    config.mesh = dict(data=2, fsdp=2, context=2, tensor=1)
    assert train.train(config, tmp_path) == 0
    for ours, theirs in zip(*map(tiny_run.rows, (tmp_path, undisturbed)), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert ours["tokens"] == theirs["tokens"]


@pytest.mark.parametrize("key, value", [("needle_share", 0.5), ("needle_weight", 1.0)])
def test_a_mixture_does_not_change_on_the_way(texts, undisturbed, key, value):
    with pytest.raises(InputError, match=rf"began otherwise: data\.{key} \(.*, now {value}\)"):
        train.train(run_config(texts, **{key: value}), undisturbed)


def test_without_shares_a_run_is_as_it_was(texts):
    """Neither another loader nor another input of the step."""
    config = run_config(texts, needle_share=0.0, short_share=0.0)
    one = jax.devices()[:1]
    plan = train.prepare(config, devices=one)
    assert type(plan.loader) is TrainLoader and not (plan.program.mixed or plan.program.packed)
    mixed = train.prepare(run_config(texts), devices=one)
    assert type(mixed.loader) is MixtureLoader and mixed.program.mixed and mixed.program.packed
    needle = train.prepare(run_config(texts, short_share=0.0), devices=one)
    assert not (needle.program.mixed or needle.program.packed)
    r = mixed.rope_fn(480)
    assert program_lib.rope_argument(plan.program, r) is r
    both = program_lib.rope_argument(mixed.program, r)
    np.testing.assert_array_equal(both.factors_R[LONG], r.factors_R)
    np.testing.assert_array_equal(both.factors_R[SHORT], np.ones(4))


def test_short_rows_are_refused_where_they_are_not_shorter(texts, tmp_path):
    config = run_config(texts, needle_share=0.0)
    config.train.seq_len = 32
    with pytest.raises(InputError, match="rows of train.seq_len 32 tokens are no longer than"):
        train.train(config, tmp_path)
