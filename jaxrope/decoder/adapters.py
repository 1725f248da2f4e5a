"""Low-rank adapters (LoRA, arXiv 2106.09685): parameters beside those that they adapt.

The weight q_LDNH with the adapters q_a_LDU and q_b_LUNH is used as q + scale * (a b). The sum is
made of one layer's weights at a time, inside what the remat policy recomputes, before they are
gathered: a and b are cut over the devices as the two sides of the weight are, so that it needs no
communication. What `merged` writes out is therefore what was trained, up to rounding. Gradients of
a and b come from the tokens (layers.adapted), never from one of the whole weight.

Letters: those of forward.py, and U the rank.
"""

import jax
import jax.numpy as jnp
import numpy as np

SCALE = "adapter_scale_L"  # alpha / rank, in each layer, so that a checkpoint holds it
TARGETS = ("q", "k", "v", "o", "gate", "up", "down", "head")


def names(name: str) -> tuple[str, str]:
    """Returns the names of the two adapters of a weight: ("q_a_LDU", "q_b_LUNH") for "q_LDNH"."""
    stem, letters = name.rsplit("_", 1)
    layers = "L" if letters.startswith("L") else ""
    letters = letters.removeprefix("L")
    num_in = 2 if stem == "o" else 1  # all heads' dims go into o
    return f"{stem}_a_{layers}{letters[:num_in]}U", f"{stem}_b_{layers}U{letters[num_in:]}"


def is_adapter(name: str) -> bool:
    """Returns whether a parameter is part of an adapter, by its name."""
    return name == SCALE or "_a_" in name or "_b_" in name


def in_layer(weights: dict) -> dict:
    """Returns the weights of one layer with its adapters added to them, and the adapters, a scaled,
    through which alone they have gradients.

    Without adapters they are returned as they are.
    """
    if SCALE not in weights:
        return weights
    scale, result = weights[SCALE], dict(weights)
    for name in weights:
        a_name, b_name = names(name)
        if a_name in weights:
            added = _add(weights[name], weights[a_name], weights[b_name], scale)
            result[name] = jax.lax.stop_gradient(added)
            result[a_name] = weights[a_name] * scale
    return result


def head_DV(params: dict) -> jax.Array:
    """Returns the head with its adapters added."""
    a, b = (params.get(adapter) for adapter in names("head_DV"))
    if a is None:
        return params["head_DV"]
    return _add(params["head_DV"], a, b, params["layers"][SCALE][0])


def merged(params: dict) -> dict:
    """Returns the parameters of a plain model, numpy or jax as they are, each in its own dtype.

    What has no adapters is not copied.
    """
    if SCALE not in params["layers"]:
        return params
    scales_L = params["layers"][SCALE]

    def merged_leaf(name, weight, tree):
        a, b = (tree.get(adapter) for adapter in names(name))
        if a is None:
            return weight
        if "L" not in name.rsplit("_", 1)[1]:
            return _add_as_stored(weight, a, b, scales_L[0])
        if isinstance(weight, np.ndarray):
            rows = zip(weight, a, b, scales_L[: len(weight)], strict=True)
            return np.stack([np.asarray(_add_as_stored(*row)) for row in rows])
        return jax.jit(jax.vmap(_add_as_stored))(weight, a, b, scales_L[: len(weight)])

    def plain(tree):
        return {
            n: merged_leaf(n, w, tree)
            for n, w in tree.items()
            if not is_adapter(n) and n != "layers"
        }

    return plain(params) | {"layers": plain(params["layers"])}


def _add(weight, a, b, scale):
    """Returns weight + scale * a b, float32 or wider, summed over the last of a and first of b."""
    wide = jnp.promote_types(weight.dtype, jnp.float32)
    delta = jnp.tensordot(
        jnp.asarray(a, wide), jnp.asarray(b, wide), axes=1, precision=jax.lax.Precision.HIGHEST
    )
    return jnp.asarray(weight, wide) + jnp.asarray(scale, wide) * delta


@jax.jit
def _add_as_stored(weight, a, b, scale):
    return _add(weight, a, b, scale).astype(weight.dtype)
