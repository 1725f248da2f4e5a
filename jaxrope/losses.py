"""Cross entropy without the [T, V] logits: cut along the sequence, in float32 or wider, recomputed
in the backward pass.

Letters: B batch, T length, D model dim, V vocabulary, C chunk.
"""

import jax
import jax.numpy as jnp


def token_nll(
    x_BTD: jax.Array, head_DV: jax.Array, targets_BT: jax.Array, *, chunk: int
) -> jax.Array:
    """Returns nll_BT, float32: -log softmax(x head)[target], nats. At most `chunk` positions of
    each row have logits at one time.
    """
    return _over_chunks(
        lambda logits, targets: _nll(logits, targets), x_BTD, head_DV, targets_BT, chunk
    )


def nll_and_hits(
    x_BTD: jax.Array, head_DV: jax.Array, targets_BT: jax.Array, *, chunk: int
) -> tuple[jax.Array, jax.Array]:
    """Returns (nll_BT float32 nats, hits_BT bool: the target is the argmax)."""

    def both(logits, targets):
        return _nll(logits, targets), jnp.argmax(logits, axis=-1) == targets

    return _over_chunks(both, x_BTD, head_DV, targets_BT, chunk)


def _nll(logits_BCV, targets_BC):
    picked = jnp.take_along_axis(logits_BCV, targets_BC[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits_BCV, axis=-1) - picked


def _over_chunks(fn, x_BTD, head_DV, targets_BT, chunk):
    batch, length, dim = x_BTD.shape
    chunk = min(chunk, length)
    pad = -length % chunk
    x_nBCD = (
        jnp.pad(x_BTD, ((0, 0), (0, pad), (0, 0))).reshape(batch, -1, chunk, dim).swapaxes(0, 1)
    )
    targets_nBC = jnp.pad(targets_BT, ((0, 0), (0, pad))).reshape(batch, -1, chunk).swapaxes(0, 1)
    precision = jax.lax.Precision.HIGHEST if x_BTD.dtype == jnp.float32 else None
    dtype = jnp.promote_types(x_BTD.dtype, jnp.float32)

    @jax.checkpoint
    def body(x_BCD, targets_BC):
        logits = jnp.einsum(
            "BCD,DV->BCV",
            x_BCD,
            head_DV.astype(x_BCD.dtype),
            preferred_element_type=dtype,
            precision=precision,
        )
        return fn(logits, targets_BC)

    _, values = jax.lax.scan(lambda _, part: (None, body(*part)), None, (x_nBCD, targets_nBC))
    return jax.tree.map(lambda v: v.swapaxes(0, 1).reshape(batch, -1)[:, :length], values)
