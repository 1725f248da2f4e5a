"""Objectives that look at attention: does a longer text change how the heads attend?

Each reads needle documents of the target length with a candidate, and shorter versions of the same
documents with the rope and the length that the weights were trained on; the loss of a candidate is
the distance between the two. Low entropy is not a goal in itself: a head that attends to the sink
alone has it. All are differentiable in the rope. Whole rows are computed only for the queries that
count, so that the cost is that of the forward passes. The pass at the trained length depends on no
candidate and is done once for a batch of them, but counted for each.

`needle_weight` is the weight of the answers' NLL (nats) in the sum; 0: attention alone.

Letters: W samples, B batch of 1, T length, M answer tokens, Q queries, L layers, N heads, E bins of
distance.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrope import decoder, schema
from jaxrope.analysis import patterns, rows
from jaxrope.data import needles
from jaxrope.errors import InputError
from jaxrope.mesh import collectives
from jaxrope.search import judging
from jaxrope.search.judging import Objective, Task

_SINK = 1  # first keys that entropies and patterns leave out
_TRAINED = "trained_"  # of names in a sample: what is read at the trained length


def entropy_shift(task: Task, section: schema.search.OfHeads) -> Objective:
    """How far the entropy of attention moves where the answer is written: the mean of |H / ln n -
    that of the trained length| over the answer's tokens and heads, the sink left out.

    The heads that the section lists count, all the same; with none listed all do, each by the
    probability that it gives the needle at the trained length, so that those count that retrieve.
    """
    count_fn = _head_weights(task.config, section.heads)
    samples = _samples(task, section)

    def row_fn(row, needle_BT, length):
        rest = rows.without_first(row, _SINK)
        return rows.normalised_entropy(rest), rows.mass(row, needle_BT)

    def term_fn(candidate, trained, present_M):
        shift_LMN = jnp.abs(candidate[0] - trained[0])
        weights_LN = count_fn(_over_answers(trained[1], present_M), task.settings.mesh)
        return _over_heads(_over_answers(shift_LMN, present_M), weights_LN, task.settings.mesh)

    return _objective(task, section, samples, (row_fn, term_fn), "entropy shift")


def needle_mass(task: Task, section: schema.search.OfHeads) -> Objective:
    """-ln of the probability that retrieval heads give to the needle where the answer is written,
    mean over the answer's tokens, nats; heads as in entropy_shift.
    """
    count_fn = _head_weights(task.config, section.heads)
    samples = _samples(task, section)

    def row_fn(row, needle_BT, length):
        return rows.mass(row, needle_BT)

    def term_fn(candidate, trained, present_M):
        mesh = task.settings.mesh
        weights_LN = count_fn(_over_answers(trained, present_M), mesh)
        mass_M = _over_heads(jnp.moveaxis(candidate, 1, 0), weights_LN, mesh)
        least = jnp.finfo(mass_M.dtype).tiny
        return jnp.sum(-jnp.log(jnp.maximum(mass_M, least)) * present_M) / jnp.sum(present_M)

    return _objective(task, section, samples, (row_fn, term_fn), "-ln needle mass")


def pattern(task: Task, section: schema.search.Pattern) -> Objective:
    """How far attention by distance is from that of the trained length: the Jensen-Shannon
    divergence of the two curves, nats, mean over heads, the sink left out.

    The view "below" has distances below the trained length; "relative" distance / length, which is
    that of the trained length divided by the extension. Queries are of each text, evenly in its
    second half; bins of distance are equally wide.
    """
    edges_fn, trained_len = VIEWS[section.view], _reference(task).length
    num_queries, num_bins = section.num_queries, section.num_bins
    rule = f"be at most {{}} for a trained length of {trained_len:,} tokens"
    for name, most in (("num_queries", trained_len // 2), ("num_bins", trained_len)):
        section.require(getattr(section, name) <= most, name, rule.format(most))
    config, scales = task.config, {}
    windows = [config.window(config.kinds[layer]) for layer in config.attention_layers]
    places = {n: _second_half(n, num_queries) for n in (task.target_len, trained_len)}
    edges = {n: edges_fn(n, trained_len, num_bins) for n in places}
    for length, positions in places.items():
        pairs = {
            window: patterns.pair_counts(positions, length, window=window, first_keys=_SINK)
            for window in set(windows)
        }
        counts = np.stack([patterns.binned(pairs[window], edges[length]) for window in windows])
        scales[length] = np.diff(edges[length]) / np.maximum(counts, 1)
    samples = _samples(task, section, places)

    def row_fn(row, needle_BT, length):
        return rows.by_distance(rows.without_first(row, _SINK), edges[length])

    def curve(mass_LQNE, length):
        scale_LE = jnp.asarray(scales[length], mass_LQNE.dtype)
        return jnp.einsum("LQNE,LE->LNE", mass_LQNE, scale_LE)

    def term_fn(candidate, trained, present_M):
        js_LN = patterns.js(curve(candidate, task.target_len), curve(trained, trained_len))
        return _over_heads(js_LN, jnp.ones_like(js_LN), task.settings.mesh)

    return _objective(task, section, samples, (row_fn, term_fn), "pattern JS")


VIEWS = {
    "below": lambda length, trained, bins: np.rint(np.linspace(0, trained, bins + 1)).astype(int),
    "relative": lambda length, trained, bins: np.rint(np.linspace(0, length, bins + 1)).astype(int),
}


def _second_half(length: int, count: int) -> np.ndarray:
    return np.rint(np.linspace(length // 2, length - 1, count)).astype(int)


def _reference(task: Task) -> judging.Reference:
    if task.reference is None:
        raise ValueError("An objective of attention needs task.reference.")
    return task.reference


def _samples(
    task: Task, section: schema.Section, queries: dict | None = None
) -> dict[str, np.ndarray]:
    """Returns both texts of each sample, [W, T] but the tokens, which are [W, T + 1].

    "weights_WT": 1 where a token of the answer is predicted; "needle_WT": 1 at the needle that is
    asked for; "picks_WT": the queries that count, 1, 2, ..., else 0: those of `queries` by the
    length of the text, else those that predict the answer. Names of the shorter text begin with
    "trained_".
    """
    lengths = {"": task.target_len, _TRAINED: _reference(task).length}
    settings, samples = {"": "target_len", _TRAINED: "search.training_len"}, {}
    for prefix, length in lengths.items():
        documents = judging.needle_documents(task, section, length=length, setting=settings[prefix])
        shape = section.num_samples, length
        weights, needle, picks = (np.zeros(shape, np.float32) for _ in range(3))
        for i, document in enumerate(documents):
            columns = np.array(document.answers[0]) - 1  # column t predicts token t + 1
            weights[i, columns] = 1
            needle[i, slice(*document.spans[0])] = 1
            chosen = columns if queries is None else queries[length]
            picks[i, chosen] = 1 + np.arange(len(chosen))
        samples[f"{prefix}tokens_WT"] = np.stack([document.tokens for document in documents])
        of = {"weights_WT": weights, "needle_WT": needle, "picks_WT": picks}
        samples |= {f"{prefix}{name}": x_WT for name, x_WT in of.items()}
    return samples


def _lay_out(settings: decoder.ForwardSettings, samples: dict) -> dict[str, np.ndarray]:
    """Returns both texts of each sample laid out over the mesh; picks stay integers."""
    laid = {}
    for prefix in ("", _TRAINED):
        tokens_WT = samples[f"{prefix}tokens_WT"]

        def place(name, prefix=prefix, tokens_WT=tokens_WT):
            return decoder.lay_out(settings, tokens_WT, samples[f"{prefix}{name}_WT"])

        picks_WT = place("picks")["weights_BT"].astype(np.int32)
        marks = {"needle_BT": place("needle")["weights_BT"], "picks_BT": picks_WT}
        laid |= {f"{prefix}{name}": x for name, x in (place("weights") | marks).items()}
    return laid


def _objective(
    task: Task,
    section: schema.Section,
    samples: dict[str, np.ndarray],
    functions: tuple[Callable, Callable],
    unit: str,
) -> Objective:
    """Returns the objective of a term and of the answers' tokens.

    Args:
      task: the model and the text.
      section: has needle_weight, see the module.
      samples: of `_samples`.
      functions: row_fn, (row, needle_BT, length) -> leaves [B, ...] of a query; and term_fn,
        (leaves [L, M, ...] with the candidate, the same at the trained length, present_M) ->
        scalar; present_M is 1 for queries that exist, else 0.
      unit: of the term.
    """
    (row_fn, term_fn), reference, settings = functions, _reference(task), task.settings
    needle_weight = section.needle_weight
    answers_fn = judging.nll_of(task.config, settings)
    # a fresh sample may have an answer of more tokens than these, but never more than digits
    most = int(max(samples["picks_WT"].max(), needles.DIGITS))

    def probe(params, r, row, length):
        def probe_fn(layer):
            picked_row_fn = functools.partial(row_fn, needle_BT=row["needle_BT"], length=length)
            return rows.over_rows(layer, row["picks_BT"], most, picked_row_fn, mesh=settings.mesh)

        how = dict(positions_BT=row["positions_BT"], settings=settings, probe_fn=probe_fn)
        x_BTD, readings = decoder.probe(task.config, params, row["tokens_BT"], r, **how)
        return x_BTD, jax.tree.map(lambda leaf: leaf[:, 0], readings)  # the batch is one sample

    def loss_fn(params, r, sample):
        row = {name: x_T[None] for name, x_T in sample.items()}
        trained_row = {
            name.removeprefix(_TRAINED): x_BT
            for name, x_BT in row.items()
            if name.startswith(_TRAINED)
        }
        x_BTD, candidate = probe(params, r, row, task.target_len)
        trained_rope = jax.tree.map(jnp.asarray, reference.rope)
        _, trained = probe(params, trained_rope, trained_row, reference.length)
        number_M1 = jnp.arange(1, most + 1)[:, None]
        present_M = jnp.sum((row["picks_BT"] == number_M1).astype(x_BTD.dtype), axis=1)
        present_M = collectives.sum_over(present_M, settings.mesh, "context")
        loss = term_fn(candidate, trained, present_M)
        return loss + needle_weight * answers_fn(params, x_BTD, row) if needle_weight else loss

    return Objective(
        loss_fn=loss_fn,
        samples=samples,
        lay_out=functools.partial(_lay_out, settings),
        fitness_fn=np.asarray,
        unit=f"{unit} + {needle_weight:g} needle nats" if needle_weight else unit,
        sample_tokens=task.target_len + reference.length,
        shared_tokens=reference.length,
        scored_tokens=float((samples["picks_WT"] > 0).sum(axis=1).mean()),
    )


def _head_weights(config: decoder.DecoderConfig, heads) -> Callable[[jax.Array, Any], jax.Array]:
    """Returns (needle mass_LN at the trained length, mesh) -> weight of each head, [L, N] of layers
    that attend; on a mesh those of this device.
    """
    shape = config.num_attention_layers, config.num_heads
    chosen_LN = np.zeros(shape, np.float32)
    for head in heads:
        if not all(x < most for x, most in zip(head, shape, strict=True)):
            raise InputError(
                f"search.objective.heads must be pairs (layer, head) from (0, 0) to "
                f"({shape[0] - 1}, {shape[1] - 1}), got {head}."
            )
        chosen_LN[head] = 1

    def count(mass_LN, mesh):
        if not len(heads):
            return jax.lax.stop_gradient(mass_LN)
        num_local_heads = mass_LN.shape[1]
        first = jax.lax.axis_index("tensor") * num_local_heads if num_local_heads < shape[1] else 0
        return jax.lax.dynamic_slice_in_dim(
            jnp.asarray(chosen_LN, mass_LN.dtype), first, num_local_heads, axis=1
        )

    return count


def _over_answers(x_LMN, present_M):
    """The mean over the queries that exist, [L, N]."""
    return jnp.einsum("LMN,M->LN", x_LMN, present_M / jnp.sum(present_M))


def _over_heads(x_XLN, weights_LN, mesh):
    """The weighted mean over layers and the heads of all devices."""
    sums = jnp.einsum("...LN,LN->...", x_XLN, weights_LN), jnp.sum(weights_LN)
    total, weight = collectives.sum_over(sums, mesh, *collectives.TENSOR)
    return total / jnp.maximum(weight, jnp.finfo(weight.dtype).tiny)
