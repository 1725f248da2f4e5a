"""Norms of the residual stream, and of queries and keys; in float32 or wider.

Letters: B batch, T length, N heads, H head dim, D model dim, L layers.
"""

import jax
import jax.numpy as jnp

from jaxrope.mesh import collectives


def normed(config, weights, name, x_BTD):
    """Returns the norm of x with the weight of that name; x where the model has none there."""
    if name not in weights:
        return x_BTD
    if config.norm_type == "layer":
        bias_D = weights[name.replace("_norm_", "_norm_bias_")]
        return _layer_norm(config, x_BTD, weights[name], bias_D)
    return _rms_norm(config, x_BTD, weights[name])


def of_heads(config, x_BTNH, scale, num_heads, mesh):
    """RMSNorm of each head (scale_H) or of all heads together (scale_NH), of which on a mesh each
    device of `tensor` has some.
    """
    wide = _wide(x_BTNH)
    square = jnp.square(wide)
    if scale.ndim == 1:
        power = jnp.mean(square, axis=-1, keepdims=True)
    else:
        power = jnp.sum(square, axis=(-2, -1), keepdims=True) / (num_heads * config.head_dim)
        power = collectives.sum_over_tensor(power, mesh)
    return _scaled(config, wide * jax.lax.rsqrt(power + config.norm_eps), x_BTNH.dtype, scale)


def _layer_norm(config, x_BTD, scale_D, bias_D):
    """LayerNorm (arXiv 1607.06450), rounded once, at its end."""
    wide = _wide(x_BTD)
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    power = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    normed = centred * jax.lax.rsqrt(power + config.norm_eps)
    scaled = _scaled(config, normed, wide.dtype, scale_D)
    return (scaled + jnp.expand_dims(bias_D, (0, 1)).astype(wide.dtype)).astype(x_BTD.dtype)


def _rms_norm(config, x_BTD, scale_D):
    """RMSNorm (arXiv 1910.07467)."""
    wide = _wide(x_BTD)
    power = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
    return _scaled(config, wide * jax.lax.rsqrt(power + config.norm_eps), x_BTD.dtype, scale_D)


def _scaled(config, normed, dtype, scale):
    """Returns the normed values times their weight, rounded as the model was trained."""
    scale = jnp.expand_dims(scale, tuple(range(normed.ndim - scale.ndim)))
    if config.norm_offset == 0:
        return normed.astype(dtype) * scale.astype(dtype)
    return (normed * (config.norm_offset + scale.astype(normed.dtype))).astype(dtype)


def _wide(x):
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
