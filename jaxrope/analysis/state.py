"""The state of a walk over keys: sums that merge in any order.

A state holds sums of exp(s - m) over the keys seen so far, s the scaled logits (with the rope's
attention factor) and m their maximum. States of disjoint sets of keys are merged as the online
softmax merges its blocks (Milakov and Gimelshein, arXiv 1805.02867), with the sum of e^z z beside
the sum of e^z, z = s - m. All is float32 or wider, whatever the dtype of q and k.

Letters: B batch, T queries, S keys, N heads, K kv heads, G = N // K, C block of queries, X block of
keys, E bins of distance, Z sets of keys.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrope.analysis import blocks, spread
from jaxrope.attention import MASKED, Mask, allowed
from jaxrope.schema import Section
from jaxrope.schema.rules import Choice, Maybe, Number, Whole, field

FIRST_KEYS = 4  # as many does StreamingLLM (arXiv 2309.17453) keep
_NO_KEY = 2**31 - 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Section):
    """What is measured, and in which blocks.

    Attributes:
      block: tokens of a block of queries or keys, at most.
      local: keys nearer than this many tokens are local.
      bins: of distance: 0, 1, 2-3, 4-7, ...; the last one takes what is beyond. None: as many as
        the number of keys needs; 0: none.
      scale: of the logits; None: H^-0.5.
      spread: how keys of other devices are reached, a name in spread.WAYS; "alone": the keys of
        this device are all. The others are for the inside of a shard_map.
    """

    PATH = "analysis"

    block: int = field(Whole(1, unit="tokens"), default=512)
    local: int = field(Whole(1, unit="tokens"), default=64)
    bins: int | None = field(Maybe(Whole(0, unit="distances")), default=None)
    scale: float | None = field(Maybe(Number(above=0)), default=None)
    spread: str = field(Choice(tuple(spread.WAYS)), default="alone")

    def of(self, k_BSKH: jax.Array) -> "Options":
        """Returns the options with nothing left open, for keys like these on every device."""
        _, length, _, head_dim = k_BSKH.shape
        num_keys = length * spread.devices(self.spread)
        scale = head_dim**-0.5 if self.scale is None else self.scale
        bins = num_bins(num_keys) if self.bins is None else self.bins
        return dataclasses.replace(self, scale=scale, bins=bins)


def num_bins(num_keys: int) -> int:
    """Returns the bins that distances 0, ..., num_keys - 1 fall into."""
    return 1 + (num_keys - 1).bit_length()


class Keys(NamedTuple):
    """The keys, with what a Mask does not have: their numbers and sets.

    Attributes:
      k_BSKH: rotated.
      index_BS: int32, the number of the token in the whole sequence.
      sets_BSZ: bool: the key belongs to the set, such as a needle's span; Z may be 0.
    """

    k_BSKH: jax.Array
    index_BS: jax.Array
    sets_BSZ: jax.Array


class Softmax(NamedTuple):
    """Sums over some keys, [B, K, G, T].

    Attributes:
      m: maximum of the logits, -1e30 where there is no key.
      l: sum of e^(s - m).
      u: sum of e^(s - m) (s - m).
    """

    m: jax.Array
    l: jax.Array  # noqa: E741 (the letter of the formula)
    u: jax.Array

    @property
    def total(self) -> jax.Array:
        """l, but 1 where there is no key; what is not a number stays it."""
        return jnp.where(self.l == 0, 1, self.l)

    @property
    def entropy(self) -> jax.Array:
        """Of the probabilities, nats; 0 without a key."""
        return jnp.log(self.total) - self.u / self.total

    @property
    def lse(self) -> jax.Array:
        """Log-sum-exp of the logits; -1e30 without a key."""
        return self.m + jnp.log(self.total)


class State(NamedTuple):
    """Sums over the keys seen so far; masses are still to be divided by l.

    Attributes:
      m, l, u: of all keys, as in Softmax.
      l2: sum of e^(2 (s - m)), [B, K, G, T]; so are all without another shape.
      rest: of all keys but the first of the document.
      key: int32, the index of the most probable key; of equal ones the least.
      sink, first, local: masses of the first key, the first FIRST_KEYS keys and the local ones.
      distance: sum of mass times distance.
      sets: masses of the sets, [Z, B, K, G, T].
      bins: masses by distance, [E, B, K, G, T].
      visible: int32, number of keys, [B, 1, 1, T].
      pairs: int32, of them by distance, [E, B, 1, 1, T].
    """

    m: jax.Array
    l: jax.Array  # noqa: E741 (the letter of the formula)
    u: jax.Array
    l2: jax.Array
    rest: Softmax
    key: jax.Array
    sink: jax.Array
    first: jax.Array
    local: jax.Array
    distance: jax.Array
    sets: jax.Array
    bins: jax.Array
    visible: jax.Array
    pairs: jax.Array


def empty(q_BTNH: jax.Array, keys: Keys, options: Options) -> State:
    """Returns the state of queries that have seen no key; `options` of Options.of."""
    (batch, length, num_heads, _), kv_heads = q_BTNH.shape, keys.k_BSKH.shape[2]
    if num_heads % kv_heads or keys.k_BSKH.shape[0] != batch:
        raise ValueError(
            f"analysis: q_BTNH {q_BTNH.shape} and k_BSKH {keys.k_BSKH.shape} must agree in B, and "
            "N must be a multiple of K."
        )
    dtype = jnp.promote_types(q_BTNH.dtype, jnp.float32)
    rows = batch, kv_heads, num_heads // kv_heads, length
    per_query = batch, 1, 1, length
    zeros = jnp.zeros(rows, dtype)
    nothing = Softmax(jnp.full(rows, MASKED, dtype), zeros, zeros)
    return State(
        *nothing,
        l2=zeros,
        rest=nothing,
        key=jnp.full(rows, _NO_KEY, jnp.int32),
        sink=zeros,
        first=zeros,
        local=zeros,
        distance=zeros,
        sets=jnp.zeros((keys.sets_BSZ.shape[2], *rows), dtype),
        bins=jnp.zeros((options.bins, *rows), dtype),
        visible=jnp.zeros(per_query, jnp.int32),
        pairs=jnp.zeros((options.bins, *per_query), jnp.int32),
    )


def merge(state: State, other: State) -> State:
    """Returns the state of the keys of both, which are disjoint; associative and commutative."""
    m = jnp.maximum(state.m, other.m)
    share, other_share = jnp.exp(state.m - m), jnp.exp(other.m - m)

    def add(x, y):
        lead = (1,) * (x.ndim - m.ndim)
        return x * share.reshape(lead + m.shape) + y * other_share.reshape(lead + m.shape)

    both = merge_softmax(Softmax(*state[:3]), Softmax(*other[:3]))
    is_other = (other.m > state.m) | ((other.m == state.m) & (other.key < state.key))
    return State(
        *both,
        l2=state.l2 * share**2 + other.l2 * other_share**2,
        rest=merge_softmax(state.rest, other.rest),
        key=jnp.where(is_other, other.key, state.key),
        **{name: add(getattr(state, name), getattr(other, name)) for name in _MASSES},
        visible=state.visible + other.visible,
        pairs=state.pairs + other.pairs,
    )


_MASSES = ("sink", "first", "local", "distance", "sets", "bins")


def of_block(q_BCNH, keys: Keys, mask: Mask, options: Options) -> State:
    """Returns the state of one block of keys."""
    visible = allowed(mask)[:, None, None]
    logits = blocks.logits(q_BCNH, keys.k_BSKH, options.scale)
    whole, e = softmax_of(logits, visible)
    distance = jnp.where(visible, blocks.distances(mask)[:, None, None], 0)
    near = jnp.min(jnp.where(visible, distance, _NO_KEY))
    is_top = (logits == whole.m[..., None]) & visible
    index = keys.index_BS[:, None, None, None]
    sink, first, rest = _first_keys(logits, e, visible, whole, mask.kv_positions_BS)
    bins, pairs = _by_distance(e, visible, distance, near, options.bins)
    return State(
        *whole,
        l2=jnp.sum(e * e, axis=-1),
        rest=rest,
        key=jnp.min(jnp.where(is_top, index, _NO_KEY), axis=-1),
        sink=sink,
        first=first,
        local=jax.lax.cond(
            near < options.local,
            lambda: jnp.sum(jnp.where(distance < options.local, e, 0), axis=-1),
            lambda: jnp.zeros_like(whole.l),
        ),
        distance=jnp.sum(e * distance.astype(e.dtype), axis=-1),
        sets=_of_sets(e, keys.sets_BSZ),
        bins=bins,
        visible=jnp.sum(visible, axis=-1, dtype=jnp.int32),
        pairs=pairs,
    )


def merge_softmax(first: Softmax, other: Softmax) -> Softmax:
    """Returns the sums over the keys of both, which are disjoint."""
    m = jnp.maximum(first.m, other.m)
    # where nothing was seen m is -1e30 and l, u are 0: no product below is infinite
    moved = ((x.m - m, x) for x in (first, other))
    (l_first, u_first), (l_other, u_other) = (
        (jnp.exp(by) * x.l, jnp.exp(by) * (x.u + by * x.l)) for by, x in moved
    )
    return Softmax(m, l_first + l_other, u_first + u_other)


def softmax_of(logits, visible):
    """Returns (Softmax over the last axis, e^(s - m)); `visible` is broadcast to the logits."""
    m = jnp.max(jnp.where(visible, logits, MASKED), axis=-1)
    # the largest has exactly 0: scale * x - m as one instruction would leave what m was rounded by
    z = jnp.where(visible & (logits != m[..., None]), logits - m[..., None], 0)
    e = jnp.where(visible, jnp.exp(z), 0)
    return Softmax(m, jnp.sum(e, axis=-1), jnp.sum(e * z, axis=-1)), e


def _first_keys(logits, e, visible, whole: Softmax, kv_positions_BX):
    """Returns (masses of the first key and of the first FIRST_KEYS, Softmax of all but the first
    key); few blocks have any of them.
    """
    positions = kv_positions_BX[:, None, None, None]

    def with_first():
        is_first = positions == 0
        sink = jnp.sum(jnp.where(is_first, e, 0), axis=-1)
        first = jnp.sum(jnp.where(positions < FIRST_KEYS, e, 0), axis=-1)
        return sink, first, softmax_of(logits, visible & ~is_first)[0]

    def without_first():
        zeros = jnp.zeros_like(whole.l)
        return zeros, zeros, whole

    return jax.lax.cond(jnp.any(kv_positions_BX < FIRST_KEYS), with_first, without_first)


def _of_sets(e, sets_BXZ):
    if not sets_BXZ.shape[2]:
        return jnp.zeros((0, *e.shape[:-1]), e.dtype)

    def with_sets():
        chosen = sets_BXZ.astype(e.dtype)
        precision = jax.lax.Precision.HIGHEST
        return jnp.einsum("BKGCX,BXZ->ZBKGC", e, chosen, precision=precision)

    def without_sets():
        return jnp.zeros((sets_BXZ.shape[2], *e.shape[:-1]), e.dtype)

    return jax.lax.cond(jnp.any(sets_BXZ), with_sets, without_sets)


def _by_distance(e, visible, distance, near, bins: int):
    """Returns (masses [E, B, K, G, C], pairs [E, B, 1, 1, C]); only bins that the block has are
    gone through: one or two, where it lies far from the diagonal.
    """
    masses = jnp.zeros((bins, *e.shape[:-1]), e.dtype)
    pairs = jnp.zeros((bins, *distance.shape[:-1]), jnp.int32)
    if not bins:
        return masses, pairs

    def bin_of(tokens):  # 0, 1, 2-3, 4-7: the number of binary digits
        return jnp.minimum(32 - jax.lax.clz(tokens), bins - 1)

    bin_of_pair = jnp.where(visible, bin_of(distance), -1)

    def add(number, carry):
        masses, pairs = carry
        inside = bin_of_pair == number
        mass = jnp.sum(jnp.where(inside, e, 0), axis=-1)
        count = jnp.sum(inside, axis=-1, dtype=jnp.int32)
        return masses.at[number].set(mass), pairs.at[number].set(count)

    last = bin_of(jnp.max(distance))
    return jax.lax.fori_loop(bin_of(near), last + 1, add, (masses, pairs))
