"""Kinds of heads: retrieval heads (Wu et al., arXiv 2404.15574), attention sinks (Gu et al., arXiv
2410.10781), and positional heads (previous token, duplicate, induction; arXiv 2209.11895).

A retrieval head puts its greatest weight on the token of the needle that the model writes next. All
steps of an answer are read in one forward pass: attention at the token before is that of decoding.

Letters: B batch, T queries, S keys, L layers, N heads, K kv heads, G = N // K, C block of queries,
X block of keys, W trials, M steps of an answer, E first keys.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrope import decoder, rope
from jaxrope.analysis import blocks, rows, sweep
from jaxrope.errors import InputError, choose

Head = tuple[int, int]  # (layer, head), from 0
_HANDED_ON = ("o_LNHD", "o_a_LNHU")  # what a head adds to a token goes through it; its adapter


class Trial(NamedTuple):
    """A document with an answer.

    Attributes:
      tokens: int32 [T].
      steps: places of the answer's tokens in it, ascending: written by the model or given.
      span: (begin, end) of the needle's tokens, those that an answer copies.
    """

    tokens: np.ndarray
    steps: tuple[int, ...]
    span: tuple[int, int]


class Retrieval(NamedTuple):
    """The scores of each head in each trial.

    Attributes:
      scores_WLN: hits / length of the needle, 0 to 1; see `hits`.
      mass_WLN: probability of the needle, mean over the steps.
      recall_W: share of the answer's tokens that the model itself would have written.
    """

    scores_WLN: np.ndarray
    mass_WLN: np.ndarray
    recall_W: np.ndarray

    def mean(self, *, least_recall: float = 0.5) -> np.ndarray:
        """Returns scores_LN over the trials with a recall above `least_recall` (Wu et al. take
        0.5).

        Raises:
          InputError: there are none.
        """
        counted = self.recall_W > least_recall
        if not counted.any():
            raise InputError(
                f"heads.retrieval: no trial of {len(counted)} has a recall above {least_recall}, "
                f"the best has {self.recall_W.max():.2f}. Take shorter or easier ones."
            )
        return self.scores_WLN[counted].mean(axis=0)


def number_trial(tokenizer: Any, document: Any, question: int = 0) -> Trial:
    """Returns a needle document as a trial: what is copied are the digits of the number.

    Args:
      tokenizer: of the document.
      document: data.needles.NeedleDocument.
      question: which of its questions; tokens after the answer are cut off.

    Raises:
      InputError: none of the needle's tokens has digits alone.
    """
    begin, end = document.spans[question]
    digits = [
        i for i in range(begin, end) if tokenizer.decode([document.tokens[i]]).strip().isdigit()
    ]
    if not digits:
        raise InputError(
            f"heads.number_trial: of the tokens {begin} to {end - 1}, where the number "
            f"{document.numbers[question]} stands, none has digits alone. Take a tokenizer that "
            "splits digits from letters."
        )
    steps = document.answers[question]
    return Trial(document.tokens[: steps[-1] + 1], tuple(steps), (digits[0], digits[-1] + 1))


def hits(top_keys, tokens, steps: Sequence[int], span: tuple[int, int]) -> np.ndarray:
    """Returns how many steps each head fetched: its greatest weight is on a key of the span with
    the token that is written.

    Args:
      top_keys: int [..., M, N]: the key of the greatest weight, of the query before each step.
      tokens: [T].
      steps: places of what is written.
      span: of the needle.
    """
    tokens, top_keys = np.asarray(tokens), np.asarray(top_keys)
    inside = (top_keys >= span[0]) & (top_keys < span[1])
    written = tokens[np.asarray(steps)][:, None]
    return np.sum(inside & (tokens[top_keys] == written), axis=-2)


def retrieval(
    config: decoder.DecoderConfig,
    params: Any,
    rope_fn: Callable[[int], rope.Rope],
    trials: Sequence[Trial],
    *,
    settings: decoder.ForwardSettings,
    tick: Callable[[int], None] = lambda tokens: None,
) -> Retrieval:
    """Returns the scores of heads at the steps of each answer; one forward pass for each trial.

    Trials of equal length and number of steps share a compiled program.

    Args:
      config, params, settings: the model, on one device.
      rope_fn: gives the rope for a length.
      trials: at least one.
      tick: called with the number of tokens of each trial when it is done.

    Raises:
      InputError: a step or a span lies outside its document.
    """
    for i, trial in enumerate(trials):
        _check(i, trial)
    scores, masses, recalls = [], [], []
    for trial in trials:
        length, steps = len(trial.tokens), np.asarray(trial.steps)
        picks, needle = np.zeros((1, length), np.int32), np.zeros((1, length), bool)
        picks[0, steps - 1] = 1 + np.arange(len(steps))
        needle[0, slice(*trial.span)] = True
        arrays = np.asarray(trial.tokens, np.int32)[None], picks, needle
        top, mass, written = _probe_answer(
            params, rope_fn(length), arrays, config=config, settings=settings, count=len(steps)
        )
        num_hits = hits(np.asarray(top)[:, 0], trial.tokens, steps, trial.span)
        scores.append(num_hits / (trial.span[1] - trial.span[0]))
        masses.append(np.asarray(mass, np.float64)[:, 0].mean(axis=1))
        recalls.append(np.mean(np.asarray(written)[0] == trial.tokens[steps]))
        tick(length)
    return Retrieval(np.stack(scores), np.stack(masses), np.array(recalls))


@functools.partial(jax.jit, static_argnames=("config", "settings", "count"))
def _probe_answer(params, r, arrays, *, config, settings, count):
    """(top keys [L, B, M, N], needle mass [L, B, M, N], first choices [B, M]) at the chosen
    queries."""
    tokens_BT, picks_BT, needle_BT = arrays

    def probe_fn(layer):
        def row_fn(row):
            return rows.top_key(row), rows.mass(row, needle_BT)

        return rows.over_rows(layer, picks_BT, count, row_fn)

    x_BTD, (top, mass) = decoder.probe(
        config, params, tokens_BT, r, probe_fn=probe_fn, settings=settings
    )
    place_M = jnp.argsort(jnp.where(picks_BT[0] > 0, picks_BT[0], 1 << 30))[:count]
    logits_MV = decoder.next_logits(config, params, x_BTD[0, place_M], settings)
    return top, mass, jnp.argmax(logits_MV, axis=-1)[None]


def _check(i: int, trial: Trial) -> None:
    length, (begin, end) = len(trial.tokens), trial.span
    if not trial.steps or not all(1 <= step < length for step in trial.steps):
        raise InputError(
            f"heads.retrieval: trial {i} has {length} tokens, and its answer must be some of them "
            f"after the first, got places {tuple(trial.steps)}."
        )
    if not 0 <= begin < end <= min(trial.steps):
        raise InputError(
            f"heads.retrieval: the needle of trial {i} must stand before its answer, which begins "
            f"at {min(trial.steps)}, got the span {trial.span}."
        )


def detect(scores_LN, *, above: float) -> list[Head]:
    """Returns the heads whose score is above a threshold, the highest first; of equal ones the
    first. Wu et al. call those above 0.1 retrieval heads, Gu et al. those above 0.3 sinks.
    """
    return [head for head in ranked(scores_LN) if scores_LN[head] > above]


def ranked(scores_LN) -> list[Head]:
    """Returns all heads, the one with the highest score first; of equal ones the first."""
    scores_LN = np.asarray(scores_LN)
    order = np.argsort(-scores_LN, axis=None, kind="stable")
    return [tuple(map(int, np.unravel_index(i, scores_LN.shape))) for i in order]


def first_masses(layer: decoder.Seen, *, first: int, block: int) -> jax.Array:
    """Returns the mass of each of the first keys of a row over all its queries, [B, N, E].

    Args:
      layer: a layer, as `decoder.probe` shows it; one document in each row.
      first: E.
      block: tokens in a block.
    """
    arrays = _rotated(layer)
    places = jnp.arange(first)[None, None]

    def visit(mass, part):
        is_key = (part.mask.kv_positions_BS[:, :, None] == places).astype(mass.dtype)
        return mass + sweep.dot("BKGCX,BXE->EBKGC", part.weights_BKGCX, is_key)

    level, start = sweep.level(*arrays, block=block), sweep.zeros(*arrays[:2], first)
    mass = sweep.second_look(arrays, level, visit, start, block=block)
    return jnp.sum(blocks.by_head(mass, arrays[0].shape[2]), axis=1)


def _rotated(layer: decoder.Seen):
    """(q, k, mask) of a layer as attention reads them, float32 or wider."""
    q, k = (rope.rotate(x, *layer.turn) for x in (layer.q_BTNH, layer.k_BTKH))
    dtype = jnp.promote_types(q.dtype, jnp.float32)
    return q.astype(dtype), k.astype(dtype), layer.mask.of_batch(len(q))


def sink_scores(masses, length: int, *, above: float = 0.3) -> np.ndarray:
    """Returns, for each of the first keys, the share of samples in which it is a sink of a head:
    [L, N, E].

    Key k (from 0) is one if alpha_k = (its mass over all queries) / (length - k), its mean over the
    queries that see it, is above the threshold; their code judges each sample alone, as here.

    Args:
      masses: [W, L, N, E], of `first_masses`.
      length: tokens of a sample; Gu et al. take 64.
      above: their epsilon.
    """
    masses = np.asarray(masses, np.float64)
    alpha = masses / (length - np.arange(masses.shape[-1]))
    return np.mean(alpha > above, axis=0)


def _previous_token(part):
    return blocks.steps_back(part.mask) == 1


def _duplicate_token(part):
    same = part.queries[:, :, None] == part.keys["token"][:, None]
    return same & (blocks.steps_back(part.mask) != 0)


def _induction(part):
    same = part.queries[:, :, None] == part.keys["previous"][:, None]
    return same & (part.mask.kv_positions_BS[:, None] > 0)


# where a head of that kind looks: sweep.Part -> bool [B, C, X]
PATTERNS = {
    "previous_token": _previous_token,
    "duplicate_token": _duplicate_token,
    "induction": _induction,
}


def positional_masses(
    layer: decoder.Seen,
    tokens_BT: jax.Array,
    pattern: str,
    *,
    block: int,
    exclude_first: bool = False,
    exclude_current: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Returns (mass where such a head looks, mass that counts), [B, N], summed over queries.

    Their ratio is the score ("mul" of TransformerLens, whose exclusions zero its cached weights in
    place; here nothing is changed). Pool both over rows before dividing.

    Args:
      layer: a layer, as `decoder.probe` shows it.
      tokens_BT: what was read.
      pattern: a name in PATTERNS. An induction head looks at the token after an earlier one like
        the query's.
      block: tokens in a block.
      exclude_first: the first key of a document does not count.
      exclude_current: the query's own key does not count.

    Raises:
      InputError: an unknown pattern.
    """
    looks_fn = choose("heads.pattern", pattern, PATTERNS)
    arrays = _rotated(layer)
    before_BT = jnp.pad(tokens_BT, ((0, 0), (1, 0)))[:, :-1]

    def visit(carry, part):
        counts = part.seen_BCX
        if exclude_first:
            counts &= part.mask.kv_positions_BS[:, None] > 0
        if exclude_current:
            counts &= blocks.steps_back(part.mask) != 0
        looks = counts & looks_fn(part)
        sums = [jnp.sum(part.weights_BKGCX * x[:, None, None], axis=-1) for x in (looks, counts)]
        return jax.tree.map(jnp.add, carry, tuple(sums))

    extra = tokens_BT, {"token": tokens_BT, "previous": before_BT}
    level, start = sweep.level(*arrays, block=block), (sweep.zeros(*arrays[:2]),) * 2
    masses = sweep.second_look(arrays, level, visit, start, block=block, extra=extra)
    return tuple(jnp.sum(blocks.by_head(x, arrays[0].shape[2]), axis=1) for x in masses)


def without_heads(params: dict, heads: Sequence[Head]) -> dict:
    """Returns the parameters of a model in which these heads add nothing to any token.

    Their rows of the output projection are zero; what they attend to is as before. The parameters
    given are not changed.

    Args:
      params: of decoder, numpy or JAX.
      heads: (layer, head), from 0.

    Raises:
      InputError: there is no such head.
    """
    num_layers, num_heads = params["layers"]["o_LNHD"].shape[:2]
    for head in heads:
        layer, number = head
        if not (0 <= layer < num_layers and 0 <= number < num_heads):
            raise InputError(
                f"heads must be from (0, 0) to ({num_layers - 1}, {num_heads - 1}), (layer, head), "
                f"got {tuple(head)}."
            )
    if not heads:
        return params
    layers, numbers = np.array(heads).T

    def masked(weight):
        if isinstance(weight, jax.Array):
            return weight.at[layers, numbers].set(0)
        weight = np.array(weight)
        weight[layers, numbers] = 0
        return weight

    changed = {n: masked(params["layers"][n]) for n in _HANDED_ON if n in params["layers"]}
    return params | {"layers": params["layers"] | changed}
