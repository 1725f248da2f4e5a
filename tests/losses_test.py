"""Chunked cross entropy against float64 numpy, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxrope.decoder import losses
from jaxrope.mesh import cache, sharding


def example(length=13, dim=6, vocab=11):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, length, dim)).astype(np.float32)
    head = rng.normal(size=(dim, vocab)).astype(np.float32)
    return x, head, rng.integers(0, vocab, (2, length)).astype(np.int32)


def by_numpy(x, head, targets):
    logits = np.float64(x) @ np.float64(head)
    log_total = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)) + logits.max(-1)
    return log_total - np.take_along_axis(logits, targets[..., None], -1)[..., 0], logits


@pytest.mark.parametrize("chunk", [1, 4, 13, 100])
def test_values(chunk):
    x, head, targets = example()
    expected, logits = by_numpy(x, head, targets)
    nll, _ = losses.nll_and_hits(x, head, targets, chunk=chunk)
    assert nll.dtype == jnp.float32 and np.abs(nll - expected).max() < 1e-5
    weights = np.random.default_rng(1).normal(size=targets.shape).astype(np.float32)
    total = losses.nll_sum(x, head, losses.Targets(targets, weights), chunk=chunk)
    assert total.dtype == jnp.float32 and np.abs(total - np.sum(weights * expected)) < 1e-4
    nll, hits = losses.nll_and_hits(x, head, logits.argmax(-1), chunk=chunk)
    assert hits.all() and np.all(nll < np.log(11))
    assert not losses.nll_and_hits(x, head, logits.argmin(-1), chunk=chunk)[1].any()


@pytest.mark.parametrize("tensor", [1, 2])
def test_the_first_of_equal_words_is_the_hit(tensor):
    """Words 1, 4 and 7 of 8 have the largest logit; with tensor=2 each device has four."""
    x = np.ones((1, 3, 1), np.float32)
    head = np.float32([[0, 2, 1, 0, 2, 1, 0, 2]])
    mesh = sharding.make_mesh(
        dict(data=1, fsdp=1, context=1, tensor=tensor), jax.devices()[:tensor]
    )
    words = np.arange(8, dtype=np.int32).repeat(3).reshape(8, 1, 3)

    def hits(x, head, targets):
        return losses.nll_and_hits(x, head, targets, chunk=2, mesh=mesh, vocab_size=8)[1]

    specs = PartitionSpec(), PartitionSpec(None, "tensor"), PartitionSpec()
    spread = jax.shard_map(
        hits, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=False
    )
    found = [np.asarray(jax.jit(spread)(x, head, targets)) for targets in words]
    assert [hit.all() for hit in found] == [hit.any() for hit in found]
    assert [i for i, hit in enumerate(found) if hit.all()] == [1]


def test_what_is_cut_is_what_a_cpu_writes_at_one_time():
    """Whatever the chunk, logits of no more than 8 MiB or 128 positions; a TPU is asked for all."""
    cut = dict(bytes_fn=lambda size: size * 100, limit=1000, least=2)
    assert [cache.cut(size, **cut, mesh=None) for size in (10, 11, 64, 3)] == [10, 5, 8, 3]
    assert cache.cut(1024, **dict(cut, least=64), mesh=None) == 64
    tpu = jax.sharding.AbstractMesh((1,), ("data",))
    assert cache.cut(1024, **cut, mesh=tpu) == 1024
    x, head = jnp.ones((1, 4096, 8)), jnp.ones((8, 16_384))
    targets = jnp.zeros((1, 4096), jnp.int32)

    def total(x, head, targets, chunk):
        return losses.nll_sum(x, head, losses.Targets(targets, targets + 1.0), chunk=chunk)

    for fn in (total, jax.value_and_grad(total), losses.nll_and_hits):
        lowered = jax.jit(lambda *given, fn=fn: fn(*given, chunk=4096)).lower(x, head, targets)
        assert lowered.compile().memory_analysis().temp_size_in_bytes < 40 * 2**20


@pytest.mark.parametrize("chunk", [4, 2])
def test_gradients(chunk):
    """With more positions in a chunk than dims, and with fewer: products in the other order."""
    x, head, targets = example()
    weights = np.random.default_rng(1).normal(size=targets.shape)
    goals = losses.Targets(targets, weights)
    by_x, by_head = jax.grad(
        lambda x, h: 3 * losses.nll_sum(x, h, goals, chunk=chunk), argnums=(0, 1)
    )(x, head)
    logits = by_numpy(x, head, targets)[1]
    soft = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    dlogits = 3 * weights[..., None] * (soft - np.eye(11)[targets])
    assert np.allclose(by_x, dlogits @ head.T, atol=1e-5)
    assert np.allclose(by_head, np.einsum("btd,btv->dv", x, dlogits), atol=1e-5)


def test_logits_of_the_whole_sequence_never_exist():
    """32,768 x 32,000 logits would be 3.9 GiB, and as much again in the backward pass."""
    x = jax.ShapeDtypeStruct((1, 32_768, 64), jnp.float32)
    head = jax.ShapeDtypeStruct((64, 32_000), jnp.float32)
    targets = jax.ShapeDtypeStruct((1, 32_768), jnp.int32)

    def loss(x, head, targets):
        return losses.nll_sum(x, head, losses.Targets(targets, targets + 1.0), chunk=256)

    compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(x, head, targets).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 200 * 2**20
