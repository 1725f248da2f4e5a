"""One training step is the same on every mesh as on one device: loss, gradient norm, parameters."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

from jaxrope import attention, llama, rope, sharding
from jaxrope.optimizer import Optimizer
from jaxrope.training import step as step_lib

LENGTH, ROWS = 32, 8
DOCUMENTS = (11, 1, 7, 1, 12)  # tokens; 1 is a document all by itself
MESHES = [
    dict(data=8),
    dict(fsdp=8),
    dict(context=2, data=2, fsdp=2),
    dict(context=4, fsdp=2),
    dict(context=8),
    dict(tensor=2, data=4),
    dict(tensor=2, context=4),
    dict(tensor=2, context=2, fsdp=2),
]


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
    """Returns (config, float64 parameters): 8 heads of 4 kv heads, biases, and deviations of 0.3,
    so that attention weights are far from equal.
    """
    fields = dict(num_heads=8, num_kv_heads=4, head_dim=4, rotary_dim=4, qkv_bias=True)
    config = dataclasses.replace(tiny_config, **fields | dict(out_bias=True, mlp_bias=True))
    config = dataclasses.replace(config, **changes)
    leaves, tree = jax.tree.flatten(llama.abstract_params(config, "float64"))
    rng = np.random.default_rng(0)
    return config, tree.unflatten([0.3 * rng.normal(size=leaf.shape) for leaf in leaves])


def one_step(config, params, settings, *, mesh=None, parts=1, optimizer=None):
    """Returns (parameters, metrics) after a step, as numpy arrays."""
    settings = dataclasses.replace(settings, mesh=mesh)
    transform = optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(1e-2, eps=1e-3))
    optimizer = optimizer or Optimizer(transform, optax.constant_schedule(1e-2))
    step = step_lib.make_step(config, settings, optimizer, chunk_tokens=5)
    batch, r = make_batch(parts), rope.make("pi", factor=2.0, **geometry(config))(LENGTH)
    if mesh is not None:
        order = attention.order(settings.attention, LENGTH, mesh.shape["context"], settings.ulysses)
        if order is not None:
            batch = {key: x[..., order] for key, x in batch.items()}
        axes, abstract = llama.logical_axes(config), llama.abstract_params(config)
        params = sharding.put(params, sharding.param_shardings(mesh, axes, abstract))
        batch = sharding.put(batch, sharding.batch_sharding(mesh))
    state = step_lib.init_state(params, optimizer.transform)
    state, metrics = jax.jit(step)(state, batch, r)
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


SETTINGS = llama.ForwardSettings(attention_block=8, compute_dtype="float64", remat="full")


@pytest.fixture
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


@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_a_step_is_the_same_on_every_mesh(doubles, tiny_config, wanted, sizes):
    backend = "blockwise" if "context" in sizes else "blockwise"
    settings = dataclasses.replace(SETTINGS, attention=backend)
    found = one_step(*tiny(tiny_config), settings, mesh=mesh_of(**sizes))
    assert_same(found, wanted)
