"""Adapters: gradients against those of the merged weights; meshes, resuming, merging, errors."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from mesh_test import LENGTH, SGD, UNOPTIMIZED, assert_same, geometry, make_batch, mesh_of, tiny
from tiny_run import differences, final_arrays, make_config, rows, write_texts

from jaxrope import decoder, rope, schema
from jaxrope.convert import exporting, pretrained
from jaxrope.decoder import adapters
from jaxrope.errors import InputError
from jaxrope.mesh import sharding
from jaxrope.schema import training
from jaxrope.train import dry_run, prepare, train
from jaxrope.train import lora as lora_lib
from jaxrope.train import program as program_lib
from jaxrope.train import step as step_lib

ALL = adapters.TARGETS
SECTION = dict(rank=3, alpha=6.0, targets=ALL, train_norms=True, train_embeddings=True)


def made(config, dtype="float32", **changes):
    section = training.Lora(**SECTION | changes)
    return lora_lib.make(section, config, param_dtype=dtype, compute_dtype=dtype)


def filled(config, params, lora, seed=1):
    """The parameters a training begins with, but with adapters that add something."""
    begun = lora_lib.begin(jax.tree.map(jnp.asarray, params), config, lora, jax.random.key(0))
    rng = np.random.default_rng(seed)

    def fill(path, leaf):
        is_b = "_b_" in path[-1].key
        return jnp.asarray(rng.normal(size=leaf.shape) * 0.3, leaf.dtype) if is_b else leaf

    return jax.tree_util.tree_map_with_path(fill, begun)


def one_step(model, lora, settings, *, mesh=None, parts=1, optimizer=SGD):
    """Returns (parameters, metrics) after a step, as that of mesh_test does, with adapters."""
    config, params = model
    settings = dataclasses.replace(settings, mesh=mesh)
    step = step_lib.make_step(config, settings, optimizer, chunk_tokens=5, lora=lora)
    batch, r = make_batch(parts), rope.make("pi", factor=2.0, **geometry(config))(LENGTH)
    if mesh is not None:
        order = decoder.token_order(settings, LENGTH)
        if order is not None:
            batch = {key: x[..., order] for key, x in batch.items()}
        params = sharding.put(params, lora_lib.param_shardings(config, lora, mesh))
        batch = sharding.put(batch, sharding.batch_sharding(mesh))
    state = step_lib.init_state(params, optimizer.transform, lora)
    compiled = jax.jit(step).lower(state, batch, r).compile(UNOPTIMIZED)
    state, metrics = compiled(state, batch, r)
    return jax.tree.map(np.asarray, (state.params, metrics))


SETTINGS = decoder.ForwardSettings(attention_block=8, compute_dtype="float64", remat="full")


@pytest.fixture(scope="module")
def wide(tiny_config):
    """(config, parameters with adapters everywhere, Lora, what a step makes of them), float64."""
    with jax.enable_x64(True):
        config, params = tiny(tiny_config)
        lora = made(config, "float64")
        params = filled(config, params, lora)
        yield config, params, lora, one_step((config, params), lora, SETTINGS)


def matrix(leaf, num_layers, rows):
    """A weight or adapter as matrices [L, rows, columns]."""
    return np.asarray(leaf).reshape(num_layers, rows, -1)


def test_gradients_are_those_of_the_merged_weights(wide):
    """dA = s dW B^T and dB = s A^T dW, where dW is that of a plain training of the merged model."""
    config, params, lora, (after, metrics) = wide
    plain = jax.tree.map(np.asarray, adapters.merged(params))
    whole_after, whole_metrics = one_step((config, plain), None, SETTINGS)
    assert metrics["loss"] == pytest.approx(whole_metrics["loss"], rel=1e-12)
    # SGD with rate 1: old - new = gradient
    dw = jax.tree.map(np.subtract, plain, whole_after)
    found = jax.tree.map(lambda old, new: np.asarray(old) - new, params, after)
    of_layers = dict.fromkeys(("q", "k", "v", "o", "gate", "up"), 32) | {"down": config.mlp_dim}
    names = {name.rsplit("_", 1)[0]: name for name in plain["layers"]}
    cases = [(2, ins, names[stem], "layers") for stem, ins in of_layers.items()]
    for num_layers, ins, name, place in [*cases, (1, 32, "head_DV", None)]:
        own, grads, full = (tree[place] if place else tree for tree in (params, found, dw))
        a_name, b_name = adapters.names(name)
        a, b = matrix(own[a_name], num_layers, ins), matrix(own[b_name], num_layers, 3)
        d = matrix(full[name], num_layers, ins)
        for key, height, wanted in (
            (a_name, ins, 2.0 * d @ b.swapaxes(1, 2)),
            (b_name, 3, 2.0 * a.swapaxes(1, 2) @ d),
        ):
            error = np.abs(matrix(grads[key], num_layers, height) - wanted).max()
            assert error < 1e-11 * np.abs(wanted).max(), key
        assert not np.any(grads[name])
    for name in ("attn_norm_LD", "mlp_norm_LD"):
        np.testing.assert_allclose(found["layers"][name], dw["layers"][name], atol=1e-12)
    for name in ("embed_VD", "final_norm_D"):
        np.testing.assert_allclose(found[name], dw[name], atol=1e-12)
    for name in ("q_bias_LNH", "o_bias_LD", "down_bias_LD", adapters.SCALE):
        assert not np.any(found["layers"][name])


slow = pytest.mark.slow
MESHES = [
    ("ring", dict(fsdp=2, context=2, tensor=2), {}),
    pytest.param("blockwise", dict(data=4, fsdp=2), {}, marks=slow),
    pytest.param("all_gather", dict(data=2, context=2, tensor=2), dict(mlp_chunk=7), marks=slow),
    pytest.param("ulysses", dict(context=4, data=2), {}, marks=slow),
]


@pytest.mark.parametrize("backend, sizes, how", MESHES, ids=str)
def test_a_step_is_the_same_on_every_mesh(wide, backend, sizes, how):
    config, params, lora, wanted = wide
    settings = dataclasses.replace(SETTINGS, attention=backend, **how)
    with jax.enable_x64(True):
        assert_same(one_step((config, params), lora, settings, mesh=mesh_of(**sizes)), wanted)


@slow
def test_parts_of_a_batch_give_the_step_of_the_whole(wide):
    config, params, lora, wanted = wide
    with jax.enable_x64(True):
        assert_same(one_step((config, params), lora, SETTINGS, parts=4), wanted)


@pytest.mark.parametrize("rank, alpha", ((3, 6.0), (2, 5.0)))
def test_merged_weights(tiny_model, rank, alpha):
    config, params = tiny_model
    lora = made(config, rank=rank, alpha=alpha, targets=("k", "o", "head"))
    begun = filled(config, params, lora)
    for tree in (begun, jax.tree.map(np.asarray, begun)):  # on devices, and of the host
        found = adapters.merged(tree)
        assert found.keys() == params.keys() and found["layers"].keys() == params["layers"].keys()
        layers, scale = begun["layers"], alpha / rank
        k = np.einsum("ldu,lukh->ldkh", layers["k_a_LDU"], layers["k_b_LUKH"])
        o = np.einsum("lnhu,lud->lnhd", layers["o_a_LNHU"], layers["o_b_LUD"])
        head = np.einsum("du,uv->dv", begun["head_a_DU"], begun["head_b_UV"])
        for name, delta in (("k_LDKH", k), ("o_LNHD", o)):
            wanted = np.asarray(params["layers"][name]) + scale * delta
            np.testing.assert_allclose(found["layers"][name], wanted, atol=1e-6)
            assert np.abs(delta).max() > 0.1
        np.testing.assert_allclose(found["head_DV"], params["head_DV"] + scale * head, atol=1e-6)
        np.testing.assert_array_equal(found["layers"]["q_LDNH"], params["layers"]["q_LDNH"])
    tokens = jnp.arange(24)[None]
    ours, merged = (
        decoder.logits(config, p, tokens, decoder.own_rope(config)(24)) for p in (begun, found)
    )
    np.testing.assert_allclose(ours, merged, atol=2e-5)
    assert (
        np.abs(ours - decoder.logits(config, params, tokens, decoder.own_rope(config)(24))).max()
        > 0.1
    )


def test_before_the_first_step_it_is_the_model_itself(tiny_model):
    config, params = tiny_model
    lora, key = made(config), jax.random.key(7)
    begun = lora_lib.begin(params, config, lora, key)
    tokens, r = jnp.arange(24)[None], decoder.own_rope(config)(24)
    logits = jax.jit(decoder.logits, static_argnums=0)
    ours, plain = (logits(config, p, tokens, r) for p in (begun, params))
    np.testing.assert_array_equal(ours, plain)
    jax.tree.map(np.testing.assert_array_equal, adapters.merged(begun), params)
    a = np.asarray(begun["layers"]["down_a_LFU"])  # 64 inputs: a deviation of 1/8
    assert a.std() == pytest.approx(1 / 8, rel=0.1) and abs(a.mean()) < 0.03
    assert np.asarray(begun["layers"]["o_a_LNHU"]).std() == pytest.approx(32**-0.5, rel=0.15)
    assert not np.any(begun["layers"]["down_b_LUD"])
    other = lora_lib.begin(params, config, lora, jax.random.key(8))
    assert not np.array_equal(a, other["layers"]["down_a_LFU"])
    assert not np.array_equal(a[0], a[1])


WHAT = {
    "all": (dict(), {"embed_VD", "final_norm_D", "attn_norm_LD", "mlp_norm_LD"}),
    "no norms": (dict(train_norms=False), {"embed_VD"}),
    "no embeddings": (
        dict(train_embeddings=False),
        {"final_norm_D", "attn_norm_LD", "mlp_norm_LD"},
    ),
}


@pytest.mark.parametrize("name", WHAT)
def test_what_is_trained(tiny_config, name):
    changes, beside = WHAT[name]
    lora = made(tiny_config, targets=("q", "down"), **changes)
    params = lora_lib.abstract_params(tiny_config, lora, "float32")
    trained, frozen = lora_lib.split(params, lora)
    own = {"q_a_LDU", "q_b_LUNH", "down_a_LFU", "down_b_LUD"}
    assert {*trained, *trained["layers"]} - {"layers"} == beside | own
    assert lora_lib.join(trained, frozen) == params
    state = jax.eval_shape(lambda p: step_lib.init_state(p, optax.adam(1.0), lora), params)
    moments = sum(leaf.size for leaf in jax.tree.leaves(state.opt_state)) - 1  # less the count
    assert moments == 2 * lora_lib.num_trained(tiny_config, lora)


def test_frozen_weights_lie_in_the_compute_dtype(tiny_config):
    section = training.Lora(**SECTION | dict(targets=("v",), train_norms=False))
    lora = lora_lib.make(section, tiny_config, param_dtype="float32", compute_dtype="bfloat16")
    params = lora_lib.abstract_params(tiny_config, lora, "float32")
    trained, frozen = lora_lib.split(params, lora)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(trained)} == {"float32"}
    scale = frozen["layers"].pop(adapters.SCALE)
    assert scale.dtype == "float32"
    assert {leaf.dtype.name for leaf in jax.tree.leaves(frozen)} == {"bfloat16"}


def test_seven_billion_fit_on_one_device(tmp_path):
    """14.9 GB of weights and moments, of which 13.2 are frozen; trained whole it is 80.9."""
    config = make_config(tmp_path)
    config.forward.compute_dtype = "bfloat16"
    mesh, model = sharding.make_mesh(config.mesh, jax.devices()[:1]), decoder.SHAPES["llama2_7b"]
    total = {}
    for rank in (0, 8):
        config.lora.rank = rank
        made_program = program_lib.make_program(schema.read(config), mesh, model)
        state, _ = program_lib.abstract_state(made_program)
        total[rank] = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    every, embed, norms = 6_738_415_616, 32_000 * 4096, 65 * 4096
    adapted = 32 * 4 * 2 * 4096 * 8
    trained = 12 * (embed + norms + adapted)
    assert total[8] == pytest.approx(2 * (every - embed - norms) + trained, abs=1000)
    assert total[8] < 14.9e9
    assert total[0] == pytest.approx(12 * every, abs=1000)


def test_arithmetic_of_a_token():
    """Llama-2-7B with rank 8 on all seven: PEFT counts 19,988,480 parameters that are trained."""
    model = decoder.SHAPES["llama2_7b"]
    changes = dict(rank=8, targets=ALL[:-1], train_norms=False, train_embeddings=False)
    lora = made(model, **changes)
    assert lora_lib.num_trained(model, lora) == 19_988_480
    products = 6_738_415_616 - 32_000 * 4096  # the embedding is looked up
    attention = 6 * 32 * 4096 * 4096
    found = step_lib.flops_per_token(model, 4096, lora)
    assert found == pytest.approx(4 * products + 6 * 19_988_480 + attention, rel=1e-8)
    assert step_lib.flops_per_token(model, 4096) == 6 * products + attention


@pytest.fixture(scope="module")
def run_of(tmp_path_factory):
    """(texts, config, workdir) of a finished run with adapters."""
    texts = tmp_path_factory.mktemp("texts")
    write_texts(texts)
    config = make_config(texts)
    config.lora = dict(rank=2, alpha=8.0, targets=("q", "o", "down"))
    config.lora.train_norms = config.lora.train_embeddings = True
    config.checkpoint.keep_last = 4
    config.optimizer.learning_rate = 1e-2
    workdir = tmp_path_factory.mktemp("run")
    assert train(config, workdir, devices=jax.devices()[:2]) == 0
    return texts, config, workdir


def test_it_learns_and_leaves_the_rest_as_it_was(run_of, tmp_path):
    _, config, workdir = run_of
    losses = [row["loss"] for row in rows(workdir) if "loss" in row]
    assert losses[-1] < losses[0] - 0.2
    arrays = final_arrays(workdir)
    first = {name: np.asarray(leaf) for name, leaf in named(drawn(config)).items()}
    for name, leaf in first.items():
        same = np.array_equal(arrays[name], leaf)
        assert same is not ("norm" in name or "embed" in name), name
    assert len(arrays) == len(first) + 7
    assert np.any(arrays["['layers']['q_b_LUNH']"])


def drawn(config):
    fields = {key: value for key, value in config.model.items() if key != "source"}
    return decoder.init_params(decoder.DecoderConfig(**fields), jax.random.key(config.seed))


def named(tree):
    return {
        jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def test_a_resumed_run_is_the_same_to_the_bit(run_of, tmp_path):
    _, config, workdir = run_of
    shutil.copytree(workdir, tmp_path / "again")
    for step in (9, 12):
        shutil.rmtree(tmp_path / "again" / "checkpoints" / f"{step:08d}")
    assert train(config, tmp_path / "again", devices=jax.devices()[:2]) == 0
    assert differences(tmp_path / "again", workdir) == []


def test_a_checkpoint_is_read_and_exported_merged(run_of, tmp_path):
    _, config, workdir = run_of
    arrays, model = final_arrays(workdir), pretrained.load(workdir, dtype=None)
    found = named(model.params)
    assert found.keys() == named(drawn(config)).keys()
    q = "['layers']['q_%s']"
    delta = np.einsum("ldu,lunh->ldnh", arrays[q % "a_LDU"], arrays[q % "b_LUNH"])
    wanted = arrays[q % "LDNH"] + 8.0 / 2 * delta
    np.testing.assert_allclose(found[q % "LDNH"], wanted, atol=1e-7)
    np.testing.assert_array_equal(
        found[q.replace("q", "k") % "LDKH"], arrays["['layers']['k_LDKH']"]
    )
    model = dataclasses.replace(model, tokenizer_dir=None)
    exporting.export_folder(model, tmp_path / "hf")
    jax.tree.map(
        np.testing.assert_array_equal, pretrained.load(tmp_path / "hf").params, model.params
    )


def test_what_may_not_change(run_of, tmp_path):
    _, config, workdir = run_of
    changed = config.copy_and_resolve_references()
    for key, value, message in (
        ("alpha", 16.0, r"the run in .* began otherwise: lora.alpha \(8.0, now 16.0\)"),
        ("rank", 0, r"the run in .* began otherwise: lora.alpha \(8.0, now null\); lora.rank \(2"),
    ):
        changed.lora[key] = value
        with pytest.raises(InputError, match=message):
            dry_run(changed, workdir)


def test_what_adapters_would_have_is_nothing_without_them(tmp_path):
    config = make_config(tmp_path)
    write_texts(tmp_path)
    plain = prepare(config)
    config.lora.alpha = 3.0
    assert plain.identity == prepare(config).identity
    config.lora.rank = 1
    assert plain.identity != prepare(config).identity


def test_a_rank_above_the_inputs_is_refused(tiny_config):
    with pytest.raises(InputError, match="lora.rank must be at most 32, the inputs of a target"):
        made(tiny_config, rank=33)


def test_a_tied_head_has_no_adapters(tiny_config):
    tied = dataclasses.replace(tiny_config, tie_embeddings=True)
    with pytest.raises(InputError, match="lora.targets must not name head: the head of this model"):
        made(tied)
    assert made(tied, rank=0) is None and made(tied, targets=("up",)).targets == ("up",)
