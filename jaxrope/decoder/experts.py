"""An MLP of experts (arXiv 2101.03961, 2401.04088): a router chooses some of them for each token.

No token is dropped, whatever an expert's load: pairs of a token and an expert are sorted by expert,
and each expert multiplies as many rows as it has pairs. On a mesh with tensor > 1 each device has a
part of F of every expert.

Letters: B batch, T length, D model dim, F dim of an expert, E experts, K experts of a token, P
pairs.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxrope.decoder import grouped
from jaxrope.decoder.config import DecoderConfig


def shares(config: DecoderConfig, logits_BTE: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns (probabilities_BTE of the router, float32 or wider; the shares_BTK of the chosen
    experts; which they are, int32_BTK).
    """
    wide = jnp.promote_types(logits_BTE.dtype, jnp.float32)
    probs_BTE = jax.nn.softmax(logits_BTE.astype(wide), axis=-1)
    shares_BTK, chosen_BTK = jax.lax.top_k(probs_BTE, config.experts_per_token)
    if config.shares_sum_to_one:
        shares_BTK = shares_BTK / jnp.sum(shares_BTK, axis=-1, keepdims=True)
    return probs_BTE, shares_BTK, chosen_BTK


def mixed(
    shares_BTK: jax.Array, chosen_BTK: jax.Array, x_BTD: jax.Array, weights: dict, gate_fn: Callable
) -> jax.Array:
    """Returns what the chosen experts make of x, added up by their shares, [B, T, D].

    Args:
      shares_BTK, chosen_BTK: of `shares`.
      x_BTD: normed.
      weights: expert_gate_LEDF, expert_up_LEDF and expert_down_LEFD of a layer, in x's dtype.
      gate_fn: of the gated unit.
    """
    num_experts, per_token = weights["expert_gate_LEDF"].shape[0], chosen_BTK.shape[-1]
    expert_P = chosen_BTK.reshape(-1)
    order_P = jnp.argsort(expert_P)
    sizes_E = jnp.zeros(num_experts, jnp.int32).at[expert_P].add(1)
    x_PD = _permuted(jnp.repeat(x_BTD.reshape(-1, x_BTD.shape[-1]), per_token, axis=0), order_P)
    gate_PF = grouped.product(x_PD, weights["expert_gate_LEDF"], sizes_E)
    up_PF = grouped.product(x_PD, weights["expert_up_LEDF"], sizes_E)
    y_PD = grouped.product(gate_fn(gate_PF) * up_PF, weights["expert_down_LEFD"], sizes_E)
    y_BTKD = _permuted(y_PD, jnp.argsort(order_P)).reshape(*chosen_BTK.shape, -1)
    return jnp.sum(y_BTKD * shares_BTK[..., None].astype(y_BTKD.dtype), axis=-2)


def _permuted(x_PD, order_P):
    return x_PD.at[order_P].get(unique_indices=True, mode="promise_in_bounds")


def load(
    config: DecoderConfig, probs_BTE: jax.Array | None, counted_BT: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns (how many tokens chose each expert, the sum of their probabilities), both [E], of the
    tokens that are counted.

    Args:
      config: of the model.
      probs_BTE: of a layer's router; None: the layer has no experts.
      counted_BT: bool.
    """
    if probs_BTE is None:
        return jnp.zeros(config.num_experts), jnp.zeros(config.num_experts)
    weights_BT = counted_BT.astype(probs_BTE.dtype)
    _, chosen_BTK = jax.lax.top_k(jax.lax.stop_gradient(probs_BTE), config.experts_per_token)
    counts_E = jnp.zeros(config.num_experts, probs_BTE.dtype)
    counts_E = counts_E.at[chosen_BTK].add(weights_BT[..., None])
    return counts_E, jnp.einsum("BTE,BT->E", probs_BTE, weights_BT)


def imbalance(
    config: DecoderConfig, counts_E: jax.Array, probs_E: jax.Array, num_tokens: jax.Array
) -> jax.Array:
    """Returns the loss that spreads tokens over experts (arXiv 2101.03961, equations 4 to 6), as
    transformers' load_balancing_loss_func has it: experts * sum of (share of the tokens that chose
    an expert * its mean probability), K where they are spread evenly.

    Args:
      config: of the model.
      counts_E, probs_E: of `load`, summed over layers and devices.
      num_tokens: that were counted, over all devices.
    """
    rows = jnp.maximum(num_tokens * config.num_expert_layers, 1)
    return config.num_experts * jnp.sum((counts_E / rows) * (probs_E / rows))
