"""A digest of an array, computed on the devices that hold it."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec


def digest(leaf) -> str:
    """Returns 64 bits, in hex, that depend on every bit of an array and on its position.

    They do not depend on the sharding: a sum of integers is the same in any order, and an array
    spread over many hosts needs no gathering. A change of one word always changes the digest, since
    the mixing is one to one; any other change is missed with probability 2^-64. All processes
    that hold parts of the array must call this.
    """
    if isinstance(leaf, np.ndarray) and leaf.dtype.itemsize == 8:
        leaf = np.atleast_1d(leaf).view(np.uint32)  # jax would make 32 bits of it
    x = jnp.asarray(leaf)
    if x.sharding.memory_kind == "pinned_host":  # optimizer.offload
        x = jax.device_put(x, x.sharding.with_memory_kind("device"))
    everywhere = None
    if isinstance(x.sharding, NamedSharding) and not x.is_fully_addressable:
        everywhere = NamedSharding(x.sharding.mesh, PartitionSpec())
    low, high = np.asarray(_mixed_sums(x, everywhere))
    return f"{int(high):08x}{int(low):08x}"


@functools.partial(jax.jit, static_argnames="everywhere")
def _mixed_sums(x, everywhere):
    sums = mixed_sums(x)
    return sums if everywhere is None else jax.lax.with_sharding_constraint(sums, everywhere)


def mixed_sums(x: jax.Array) -> jax.Array:
    """Returns the two words of `digest`, uint32 [2], low and high."""
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    words = jax.lax.bitcast_convert_type(
        x, jnp.dtype(f"uint{min(x.dtype.itemsize, 4) * 8}")
    ).astype(jnp.uint32)
    index = jnp.zeros((), jnp.uint32)
    for dim in range(words.ndim):
        stride = math.prod(words.shape[dim + 1 :]) & 0xFFFFFFFF
        index = index + jax.lax.broadcasted_iota(jnp.uint32, words.shape, dim) * jnp.uint32(stride)
    seeds = (0x9E3779B9, 0x7F4A7C15)
    return jnp.stack(
        [jnp.sum(_mix(words ^ _mix(index + jnp.uint32(seed))), dtype=jnp.uint32) for seed in seeds]
    )


def _mix(words):
    """MurmurHash3's finalizer: one to one on 32 bits, each input bit moves each output bit."""
    words = (words ^ (words >> 16)) * jnp.uint32(0x85EBCA6B)
    words = (words ^ (words >> 13)) * jnp.uint32(0xC2B2AE35)
    return words ^ (words >> 16)
