"""The next token of each row, from its logits.

What a row draws depends on the seed, its prompt, and how many tokens came before: not on its place
in the batch and not on its mates.

Letters: B batch, V vocabulary, K the most probable tokens.
"""

import hashlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxrope.generate.options import Sampling


def streams(prompts: Sequence[Sequence[int]], seed: int) -> np.ndarray:
    """Returns the key of each row's random stream, uint32 [B, 2]; equal prompts get different
    ones.
    """
    counts: dict[bytes, int] = {}
    keys = []
    for prompt in prompts:
        tokens = np.asarray(prompt, "<i4").tobytes()
        counts[tokens] = counts.get(tokens, 0) + 1
        digest = hashlib.sha256(f"{seed} {counts[tokens]} ".encode() + tokens).digest()
        keys.append(np.frombuffer(digest[:8], "<u4"))
    return np.stack(keys)


def draw(
    logits_BV: jax.Array, streams_B2: jax.Array, lengths_B: jax.Array, sampling: Sampling
) -> jax.Array:
    """Returns tokens_B, int32.

    Args:
      logits_BV: of the next token.
      streams_B2: see `streams`.
      lengths_B: int32, tokens before the next one.
      sampling: how.
    """
    if sampling.temperature == 0:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    top_BK, ids_BK = candidates(logits_BV, sampling)

    def draw_row(stream, length, logits_K):
        key = jax.random.wrap_key_data(stream, impl="threefry2x32")
        return jax.random.categorical(jax.random.fold_in(key, length), logits_K)

    drawn_B = jax.vmap(draw_row)(streams_B2, lengths_B, top_BK)
    return jnp.take_along_axis(ids_BK, drawn_B[:, None], axis=1)[:, 0].astype(jnp.int32)


def candidates(logits_BV: jax.Array, sampling: Sampling) -> tuple[jax.Array, jax.Array]:
    """Returns (logits_BK, ids_BK) of the tokens that may be drawn, the most probable first; -inf:
    may not. Of equal logits the lower id comes first.
    """
    size = logits_BV.shape[-1]
    top_BK, ids_BK = jax.lax.top_k(
        logits_BV / sampling.temperature, min(sampling.top_k or size, size)
    )
    if sampling.top_p < 1:
        probs_BK = jax.nn.softmax(top_BK, axis=-1)
        before_BK = jnp.cumsum(probs_BK, axis=-1) - probs_BK
        first = jnp.arange(top_BK.shape[1])[None] == 0
        top_BK = jnp.where((before_BK < sampling.top_p) | first, top_BK, -jnp.inf)
    return top_BK, ids_BK
