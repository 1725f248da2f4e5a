"""What tests of heads share: loud parameters, and their attention in float64."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxrope import decoder

SETTINGS = decoder.ForwardSettings()


def loud(params, times=6):
    """Random weights so large that attention is far from even."""
    return jax.tree.map(lambda x: times * x if x.ndim > 2 else x, params)


def attention_of(config, params, tokens_T, r):
    """Probabilities [L, N, T, S] in float64 numpy, from the queries and keys of each layer."""
    run = jax.jit(lambda p, t: decoder.probe(config, p, t, r, probe_fn=lambda seen: seen)[1])
    seen = run(params, jnp.asarray(tokens_T)[None])
    cos, sin = (np.asarray(x, np.float64)[:, 0, :, None] for x in seen.turn)

    def turn(x):
        one, two = np.split(np.asarray(x, np.float64)[:, 0], 2, axis=-1)
        return np.concatenate([one * cos - two * sin, two * cos + one * sin], axis=-1)

    q, k = turn(seen.q_BTNH), turn(seen.k_BTKH)
    k = np.repeat(k, q.shape[2] // k.shape[2], axis=2)
    logits = np.einsum("ltnh,lsnh->lnts", q, k) / np.sqrt(q.shape[-1])
    size = len(tokens_T)
    logits = np.where(np.tril(np.ones((size, size), bool)), logits, -np.inf)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def probed(config, params, tokens_T, r, probe_fn):
    tokens = jnp.asarray(tokens_T)[None]
    return jax.jit(lambda p: decoder.probe(config, p, tokens, r, probe_fn=probe_fn)[1])(params)


def read_text(config, params):
    """Returns (params, tokens, rope, attention) of a text of 33 tokens with repetitions."""
    tokens = np.random.default_rng(0).integers(0, 7, 33).astype(np.int32)
    params, r = loud(params), decoder.own_rope(config)(33)
    return params, tokens, r, attention_of(config, params, tokens, r)
