"""One training step is the same on every mesh as on one device: loss, gradient norm, parameters."""

import dataclasses
import re

import jax
import numpy as np
import optax
import pytest

from jaxrope import decoder, rope
from jaxrope.mesh import sharding
from jaxrope.train import step as step_lib
from jaxrope.train.optimizer import Optimizer

LENGTH, ROWS = 32, 8
UNOPTIMIZED = {"xla_backend_optimization_level": 0}  # half the time to compile
DOCUMENTS = (11, 1, 7, 1, 12)  # tokens; 1 is a document all by itself


def mesh_of(**sizes):
    return sharding.make_mesh(dict(data=1, fsdp=1, context=1, tensor=1) | sizes)


def make_batch(parts=1):
    rng = np.random.default_rng(3)
    shape = (ROWS, LENGTH)
    segments = np.tile(np.repeat(np.arange(1, 6), DOCUMENTS), (ROWS, 1))
    positions = np.tile(np.concatenate([np.arange(n) for n in DOCUMENTS]), (ROWS, 1))
    segments[1], positions[1] = 1, np.arange(LENGTH)  # a row of one document
    segments[2, 20:], positions[2, 20:] = 0, 0  # a row that ends early
    batch = {
        "tokens_BT": rng.integers(0, 264, shape),
        "targets_BT": rng.integers(0, 264, shape),
        "positions_BT": positions,
        "segment_ids_BT": segments,
    }
    batch = {key: value.astype(np.int32) for key, value in batch.items()}
    weights = (rng.random(shape) < 0.7) & (segments > 0)
    batch["loss_weights_BT"] = weights.astype(np.float32)
    return {key: x.reshape(parts, -1, LENGTH) for key, x in batch.items()}


def tiny(tiny_config, **changes):
    """Returns (config, float64 parameters): 8 heads of 4 kv heads, biases, an MLP of whole rows of
    a TPU's tiles, and deviations of 0.3, so that attention weights are far from equal.
    """
    fields = dict(num_heads=8, num_kv_heads=4, head_dim=4, rotary_dim=4, qkv_bias=True, mlp_dim=512)
    config = dataclasses.replace(tiny_config, **fields | dict(out_bias=True, mlp_bias=True))
    config = dataclasses.replace(config, **changes)
    leaves, tree = jax.tree.flatten(decoder.abstract_params(config, "float64"))
    rng = np.random.default_rng(0)
    return config, tree.unflatten([0.3 * rng.normal(size=leaf.shape) for leaf in leaves])


SGD = Optimizer(optax.sgd(1.0), optax.constant_schedule(1.0))  # new = old - gradient


def one_step(config, params, settings, *, mesh=None, parts=1, optimizer=SGD):
    """Returns (parameters, metrics) after a step, as numpy arrays."""
    settings = dataclasses.replace(settings, mesh=mesh)
    step = step_lib.make_step(config, settings, optimizer, chunk_tokens=5)
    batch, r = make_batch(parts), rope.make("pi", factor=2.0, **geometry(config))(LENGTH)
    if mesh is not None:
        order = decoder.token_order(settings, LENGTH)
        if order is not None:
            batch = {key: x[..., order] for key, x in batch.items()}
        params = sharding.put(params, decoder.param_shardings(config, mesh))
        batch = sharding.put(batch, sharding.batch_sharding(mesh))
    state = step_lib.init_state(params, optimizer.transform)
    compiled = jax.jit(step).lower(state, batch, r).compile(UNOPTIMIZED)
    state, metrics = compiled(state, batch, r)
    return jax.tree.map(np.asarray, (state.params, metrics))


def geometry(config):
    names = ("head_dim", "rotary_dim", "theta", "original_len")
    return {name: getattr(config, name) for name in names}


def assert_same(found, wanted, tolerance=1e-10):
    for name in ("loss", "grad_norm", "tokens"):
        np.testing.assert_allclose(found[1][name], wanted[1][name], rtol=tolerance, err_msg=name)
    pairs = zip(*map(jax.tree_util.tree_leaves_with_path, (found[0], wanted[0])), strict=True)
    for (path, ours), (_, theirs) in pairs:
        assert ours.dtype == theirs.dtype
        error = np.abs(ours - theirs).max() / np.abs(theirs).max()
        assert error < tolerance, (jax.tree_util.keystr(path), error)


SETTINGS = decoder.ForwardSettings(attention_block=8, compute_dtype="float64", remat="full")


@pytest.fixture(autouse=True)
def doubles():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def wanted(tiny_config):
    with jax.enable_x64(True):
        reference = dataclasses.replace(SETTINGS, attention="reference", remat="none")
        return one_step(*tiny(tiny_config), reference)


def test_documents_fill_a_row():
    assert sum(DOCUMENTS) == LENGTH


slow = pytest.mark.slow
CASES = [
    ("blockwise", dict(data=4, fsdp=2), {}),
    ("ring", dict(context=4, fsdp=2), {}),
    ("usp", dict(context=4, tensor=2), dict(ulysses=2, mlp_chunk=7)),
    pytest.param("blockwise", dict(data=8), {}, marks=slow),
    pytest.param("blockwise", dict(fsdp=8), {}, marks=slow),
    pytest.param("blockwise", dict(data=2, tensor=4), {}, marks=slow),
    pytest.param("ring", dict(context=8), {}, marks=slow),
    pytest.param("ring", dict(context=2, data=2, fsdp=2), dict(mlp_chunk=16), marks=slow),
    pytest.param("ring", dict(context=2, data=2, tensor=2), {}, marks=slow),
    pytest.param("all_gather", dict(context=2, fsdp=2, tensor=2), {}, marks=slow),
    pytest.param("all_gather", dict(context=8), {}, marks=slow),
    pytest.param("ulysses", dict(context=4, data=2), {}, marks=slow),
    pytest.param("ulysses", dict(context=2, tensor=4), {}, marks=slow),
    pytest.param("usp", dict(context=8), dict(ulysses=4), marks=slow),
    pytest.param("usp", dict(context=4, fsdp=2), dict(ulysses=2), marks=slow),
]


@pytest.mark.parametrize("backend, sizes, how", CASES, ids=str)
def test_a_step_is_the_same_on_every_mesh(tiny_config, wanted, backend, sizes, how):
    settings = dataclasses.replace(SETTINGS, attention=backend, **how)
    assert_same(one_step(*tiny(tiny_config), settings, mesh=mesh_of(**sizes)), wanted)


@pytest.mark.slow
def test_parts_of_a_batch_give_the_step_of_the_whole(tiny_config, wanted):
    mesh = mesh_of(data=2, context=2, tensor=2)
    settings = dataclasses.replace(SETTINGS, attention="ring")
    assert_same(one_step(*tiny(tiny_config), settings, mesh=mesh, parts=4), wanted)


ODD = dict(  # everything in which families differ from a Llama
    num_layers=5,
    layers=("sliding", "full", "nope", "sliding", "full"),
    sliding_window=5,
    sliding_theta=300.0,
    norm_type="layer",
    mlp_dim=60,
    norms="both",
    norm_offset=1.0,
    qk_norm="all",
    gate="gelu_tanh",
    embed_scale=3.0,
    residual_scale=0.8,
    logit_scale=0.9,
    attention_scale=0.5,
    attention_cap=2.0,
    logit_cap=1.5,
    query_growth=0.2,
    query_growth_len=8,
    out_bias=True,
)


@pytest.mark.parametrize(
    "backend, sizes, how",
    [
        ("ring", dict(context=2, fsdp=2, tensor=2), dict(mlp_chunk=7)),
        pytest.param("usp", dict(context=4, tensor=2), dict(ulysses=2), marks=slow),
        pytest.param("blockwise", dict(fsdp=4, tensor=2), {}, marks=slow),
    ],
    ids=str,
)
def test_a_step_of_an_odd_decoder(tiny_config, backend, sizes, how):
    model = tiny(tiny_config, **ODD)
    settings = dataclasses.replace(SETTINGS, attention=backend, **how)
    reference = dataclasses.replace(SETTINGS, attention="reference", remat="none")
    found = one_step(*model, settings, mesh=mesh_of(**sizes))
    assert_same(found, one_step(*model, reference))


EXPERTS = dict(num_layers=2, dense_layers=(0,), mlp_bias=False, router_loss=0.7)
EXPERTS |= dict(num_experts=5, experts_per_token=2, expert_dim=8, shares_sum_to_one=False)


@pytest.mark.parametrize(
    "backend, sizes, how",
    [
        ("ring", dict(context=2, fsdp=2, tensor=2), dict(mlp_chunk=7)),
        pytest.param("blockwise", dict(data=4, tensor=2), {}, marks=slow),
        pytest.param("ring", dict(context=4, data=2), {}, marks=slow),
    ],
    ids=str,
)
def test_a_step_of_experts(tiny_config, backend, sizes, how):
    model = tiny(tiny_config, **EXPERTS)
    settings = dataclasses.replace(SETTINGS, attention=backend, **how)
    reference = dataclasses.replace(SETTINGS, attention="reference", remat="none")
    found = one_step(*model, settings, mesh=mesh_of(**sizes))
    assert_same(found, one_step(*model, reference))


HYBRID = dict(num_layers=4, layers=("delta", "delta", "full", "delta"), qk_norm="head")
HYBRID |= dict(delta_key_heads=2, delta_value_heads=4, delta_key_dim=6, delta_value_dim=4)
HYBRID |= dict(delta_conv=3, output_gate=True, norm_offset=1.0, rotary_dim=2, mlp_bias=False)
HYBRID |= dict(num_experts=5, experts_per_token=2, expert_dim=8, shared_dim=6)
HYBRID |= dict(dense_layers=(1,), router_loss=0.7)


@pytest.fixture(scope="module")
def wanted_of_hybrid(tiny_config):
    with jax.enable_x64(True):
        reference = dataclasses.replace(SETTINGS, attention="reference", remat="none")
        return one_step(*tiny(tiny_config, **HYBRID), reference)


@pytest.mark.parametrize(
    "backend, sizes, how",
    [
        ("ring", dict(fsdp=2, context=2, tensor=2), dict(mlp_chunk=7)),
        pytest.param("blockwise", dict(data=2, fsdp=2, tensor=2), {}, marks=slow),
        pytest.param("blockwise", dict(fsdp=4, tensor=2), dict(remat="minimal"), marks=slow),
        pytest.param("ring", dict(context=4, data=2), dict(remat="save_attention"), marks=slow),
        pytest.param("all_gather", dict(context=8), dict(remat="none"), marks=slow),
        pytest.param("ulysses", dict(context=4, tensor=2), {}, marks=slow),
        pytest.param("usp", dict(context=4, fsdp=2), dict(ulysses=2), marks=slow),
        pytest.param("usp", dict(context=8), dict(ulysses=4), marks=slow),
    ],
    ids=str,
)
def test_a_step_of_a_hybrid(tiny_config, wanted_of_hybrid, backend, sizes, how):
    model, settings = tiny(tiny_config, **HYBRID), dataclasses.replace(SETTINGS, attention=backend)
    settings = dataclasses.replace(settings, **how)
    assert_same(one_step(*model, settings, mesh=mesh_of(**sizes)), wanted_of_hybrid)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [dict(tie_embeddings=True), dict(vocab_size=265)], ids=["tied", "odd vocabulary"]
)
def test_heads_of_all_kinds(tiny_config, changes):
    """265 words do not divide by 2: every device of `tensor` has them all."""
    model = tiny(tiny_config, **changes)
    settings = dataclasses.replace(SETTINGS, attention="all_gather")
    found = one_step(*model, settings, mesh=mesh_of(data=2, context=2, tensor=2))
    assert_same(found, one_step(*model, dataclasses.replace(SETTINGS, attention="reference")))


@pytest.mark.slow
def test_adamw_and_clipping_on_a_mesh(tiny_config):
    """The update sees the gradient of all devices; with host memory it is the same."""
    transform = optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(1e-2, eps=1e-3))
    adamw = Optimizer(transform, optax.constant_schedule(1e-2))
    model, mesh = tiny(tiny_config), mesh_of(data=2, fsdp=4)
    wanted = one_step(*model, SETTINGS, optimizer=adamw)
    assert_same(one_step(*model, SETTINGS, mesh=mesh, optimizer=adamw), wanted)
    offloaded = dataclasses.replace(adamw, offload=True)
    assert_same(one_step(*model, SETTINGS, mesh=mesh, optimizer=offloaded), wanted)


@pytest.mark.parametrize(
    "remat",
    [
        pytest.param("none", marks=slow),
        "minimal",
        pytest.param("save_attention", marks=slow),
        pytest.param("save_mlp", marks=slow),
        pytest.param("offload", marks=slow),
    ],
)
def test_what_is_kept_does_not_change_the_step(tiny_config, wanted, remat):
    settings = dataclasses.replace(SETTINGS, attention="ring", remat=remat)
    assert_same(one_step(*tiny(tiny_config), settings, mesh=mesh_of(context=2, data=4)), wanted)


def test_gradients_of_bfloat16_weights_are_summed_in_float32(tiny_config):
    """What is reduced over the devices is float32, though weights travel as bfloat16."""
    config, mesh = tiny_config, mesh_of(fsdp=4, tensor=2)
    settings = decoder.ForwardSettings(
        compute_dtype="bfloat16", mesh=mesh, remat="full", mlp_chunk=8
    )
    step = step_lib.make_step(config, settings, SGD, chunk_tokens=8)
    state = jax.eval_shape(
        lambda params: step_lib.init_state(params, SGD.transform), decoder.abstract_params(config)
    )
    batch, r = make_batch(), decoder.own_rope(config)(LENGTH)
    text = str(jax.jit(step).trace(state, batch, r).jaxpr)
    reduced = re.findall(r":(\w+)\[[\d,]*\] = reduce_scatter", text)
    gathered = re.findall(r":(\w+)\[[\d,]*\] = all_gather", text)
    assert set(reduced) == {"f32"} and set(gathered) == {"bf16", "i32"}
    assert len(reduced) >= 10  # 9 weights of a layer and the head
