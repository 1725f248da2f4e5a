"""The gated delta rule against a loop over tokens in float64, and against transformers'."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrope import decoder
from jaxrope.decoder import delta

LENGTH, KEYS, VALUES, KEY_DIM, VALUE_DIM = 150, 2, 6, 8, 5
SIZES = dict(num_layers=2, delta_key_heads=2, delta_value_heads=2)
SIZES |= dict(delta_key_dim=4, delta_value_dim=4)
DOCUMENTS = np.repeat(np.arange(4, dtype=np.int32), (70, 1, 9, 70))[None]


@pytest.fixture(autouse=True)
def doubles():
    with jax.enable_x64(True):
        yield


def inputs(batch=2, length=LENGTH, seed=0):
    """Returns (q, k, v), (decay, rate), the state before; some tokens decay to almost nothing."""
    rng = np.random.default_rng(seed)
    q, k = (rng.normal(size=(batch, length, KEYS, KEY_DIM)) for _ in range(2))
    k[:, 20:40] = k[:, 20:21]  # the same key again and again
    v = rng.normal(size=(batch, length, VALUES, VALUE_DIM))
    decay = -np.exp(3 * rng.normal(size=(batch, length, VALUES)) - 2)
    rate = rng.random((batch, length, VALUES))
    return (q, k, v), (decay, rate), rng.normal(size=(batch, VALUES, KEY_DIM, VALUE_DIM))


def looped(qkv, gates, document_BT, memory):
    """The rule as the docstring of delta.py states it, a token at a time."""
    (q, k, v), (decay, rate), state = qkv, gates, memory.copy()
    q, k = (x / np.sqrt(np.square(x).sum(-1, keepdims=True) + 1e-6) for x in (q, k))
    out = np.zeros_like(v)
    for b in range(len(v)):
        for t in range(v.shape[1]):
            before = document_BT[b, t - 1] if t else 0
            for n in range(VALUES):
                key, query = (x[b, t, n // (VALUES // KEYS)] for x in (k, q))
                memory = state[b, n] if document_BT[b, t] == before else 0 * state[b, n]
                memory = memory * np.exp(decay[b, t, n])
                error = v[b, t, n] - memory.T @ key
                state[b, n] = memory + np.outer(key, rate[b, t, n] * error)
                out[b, t, n] = state[b, n].T @ query / np.sqrt(KEY_DIM)
    return out, state


@pytest.mark.parametrize("chunk", (1, 7, 64, 512))
@pytest.mark.parametrize("packed", (False, True))
def test_chunks_equal_a_loop(chunk, packed):
    qkv, gates, memory = inputs()
    document_BT = np.broadcast_to(DOCUMENTS if packed else 0 * DOCUMENTS, (2, LENGTH))
    out, state = jax.jit(functools.partial(delta.rule, chunk=chunk))(
        qkv, gates, document_BT, memory
    )
    wanted, last = looped(qkv, gates, document_BT, memory)
    np.testing.assert_allclose(out, wanted, rtol=0, atol=1e-11)
    np.testing.assert_allclose(state, last, rtol=0, atol=1e-11)


def test_gradients_do_not_depend_on_the_chunk():
    """Each against the step by step form, whose gradient is that of the loop."""
    qkv, gates, memory = inputs(batch=1)

    def loss(chunk, *given):
        out, state = delta.rule(*given[:2], DOCUMENTS, given[2], chunk=chunk)
        return jnp.sum(jnp.sin(out)) + jnp.sum(jnp.cos(state))

    found, wanted = (
        jax.jit(jax.grad(functools.partial(loss, chunk), argnums=(0, 1, 2)))(qkv, gates, memory)
        for chunk in (64, 1)
    )
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-10), found, wanted)
    assert all(np.abs(leaf).max() > 0.01 for leaf in jax.tree.leaves(found[:2]))


def test_a_cpu_does_without_lapack():
    """Its batches wait for threads, which the devices of a mesh on few cores can all be holding."""
    qkv, gates, memory = inputs(batch=1)
    gradients = jax.grad(lambda qkv: jnp.sum(delta.rule(qkv, gates, DOCUMENTS, memory)[0]))
    assert "lapack" not in jax.jit(gradients).lower(qkv).as_text()


def test_transformers_rule():
    torch = pytest.importorskip("torch", reason="needs torch (Python 3.11)")
    qwen = pytest.importorskip("transformers.models.qwen3_next.modeling_qwen3_next")
    (q, k, v), (decay, rate), memory = (jax.tree.map(np.float32, x) for x in inputs())
    how = dict(g=decay, beta=rate, initial_state=memory)
    how = {name: torch.as_tensor(x) for name, x in how.items()}
    how |= dict(output_final_state=True, use_qk_l2norm_in_kernel=True)
    document_BT = np.zeros((2, LENGTH), np.int32)
    out, state = delta.rule((q, k, v), (decay, rate), document_BT, memory)
    assert out.dtype == state.dtype == np.float32
    # transformers' chunks subtract sums of decays: 2e-5 from float64
    fns = {qwen.torch_recurrent_gated_delta_rule: 2e-6, qwen.torch_chunk_gated_delta_rule: 5e-5}
    for fn, tolerance in fns.items():
        wanted, last = fn(*map(torch.as_tensor, (q, k, v)), **how)
        np.testing.assert_allclose(out, wanted, rtol=0, atol=tolerance)
        np.testing.assert_allclose(state, last, rtol=0, atol=tolerance)


def test_memory_of_a_gradient_is_linear_in_length():
    """Twice the tokens keep twice the bytes; a token keeps less than it would beside all others."""

    def kept(length):
        qkv, gates, memory = jax.tree.map(np.float32, inputs(batch=1, length=length))
        document_BT = np.zeros((1, length), np.int32)

        def loss(qkv):
            return jnp.sum(delta.rule(qkv, gates, document_BT, memory)[0])

        compiled = jax.jit(jax.grad(loss)).lower(qkv).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert kept(4096) < 2.2 * kept(2048)


@pytest.mark.parametrize("packed", (False, True))
def test_a_piece_is_affine_in_the_state_before_it(packed):
    """What `_rule_of_pieces` has of a scan of (0, 1), composed with a state that comes later."""
    qkv, gates, memory = inputs()
    document_BT = np.broadcast_to(DOCUMENTS if packed else 0 * DOCUMENTS, (2, LENGTH))
    ones = np.broadcast_to(np.eye(KEY_DIM), (2, VALUES, KEY_DIM, KEY_DIM))
    start = np.concatenate([np.zeros_like(memory), ones], axis=-1)
    both = jax.jit(delta.rule)(qkv, gates, document_BT, start)
    (read, queries), (added, kept) = (np.split(x, [VALUE_DIM], axis=-1) for x in both)
    wanted, last = looped(qkv, gates, document_BT, memory)
    read += np.einsum("btnh,bnhj->btnj", queries, memory)
    np.testing.assert_allclose(read, wanted, rtol=0, atol=1e-11)
    np.testing.assert_allclose(kept @ memory + added, last, rtol=0, atol=1e-11)
    assert not packed or not kept.any() and not queries[:, 70:].any() and queries[:, :70].any()


def test_documents_are_counted(tiny_config):
    """From the last token before the row on, after which each of these begins a document."""
    config = dataclasses.replace(tiny_config, delta_conv=3, layers=("delta", "full"), **SIZES)
    segments = np.array([[5, 5, 0, 0, 3], [1, 2, 2, 3, 3]])
    found = delta.documents(config, decoder.ForwardSettings(), (2, 5), jnp.asarray(segments))
    np.testing.assert_array_equal(found, [[0, 0, 1, 1, 2, 2, 3], [0, 0, 1, 2, 2, 3, 3]])
