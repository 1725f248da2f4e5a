"""Statistics of every layer of a model on given tokens, on one device or over a mesh.

The forward pass runs as usual, in blocks; beside it every layer's queries and keys are read once
(`decoder.probe`). Memory is linear in length: the statistics themselves, and a layer's activations.
If only some queries are measured, they still see all their keys, and memory and time are those of
the forward pass.

Letters: B batch, T length, N heads, K kv heads, H head dim, L layers, M chosen queries, Z sets.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from jaxrope import attention, decoder, rope
from jaxrope.analysis import spread, streaming
from jaxrope.analysis.state import Options
from jaxrope.analysis.streaming import Stats
from jaxrope.attention import Mask
from jaxrope.errors import InputError
from jaxrope.mesh import collectives, sharding

_CONTEXT = "context"
_WITHOUT_HEADS = ("visible", "bin_pairs")


class Inputs(NamedTuple):
    """Optional arrays that go with the tokens; on the host, in natural order.

    Attributes:
      positions_BT: int32, restarting with each document; None: 0, 1, 2, ...
      segment_ids_BT: int32, documents of a packed row; None: one document.
      queries_BM: int, the queries that are measured, by their place in the row; None: all.
      sets_BTZ: bool, sets of keys whose mass is measured, such as a needle's span.
    """

    positions_BT: np.ndarray | None = None
    segment_ids_BT: np.ndarray | None = None
    queries_BM: np.ndarray | None = None
    sets_BTZ: np.ndarray | None = None


def measure(
    config: decoder.DecoderConfig,
    params: dict,
    tokens_BT: np.ndarray,
    r: rope.Rope,
    *,
    inputs: Inputs = Inputs(),  # noqa: B008 (frozen)
    options: Options = Options(),  # noqa: B008 (frozen)
    settings: decoder.ForwardSettings = decoder.ForwardSettings(),  # noqa: B008 (frozen)
) -> list[Stats]:
    """Returns the statistics of each layer that attends, numpy arrays in the natural order of the
    tokens.

    Args:
      config, params, r: the model, on the mesh where there is one, and its rope.
      tokens_BT: ids below vocab_size.
      inputs: arrays that go with the tokens. With queries, T of the statistics is their number.
      options: what is measured. On a mesh that spreads a row, "alone" means "ring".
      settings: how the model is run.

    Raises:
      InputError: tokens, queries or sets that are not legal, a length the mesh does not divide.
    """
    rows = lay_out(tokens_BT, inputs, config, settings)
    options = on_mesh(options, settings.mesh)
    stats = of_layers(params, r, rows, config=config, options=options, settings=settings)
    order = decoder.token_order(settings, rows["tokens_BT"].shape[1])
    if order is not None and inputs.queries_BM is None:
        back = attention.inverse(order)
        stats = Stats(*(np.asarray(x)[:, :, back] for x in stats))
    stats = Stats(*map(np.asarray, stats))
    return [Stats(*(x[layer] for x in stats)) for layer in range(config.num_attention_layers)]


def lay_out(
    tokens_BT, inputs: Inputs, config: decoder.DecoderConfig, settings: decoder.ForwardSettings
) -> dict[str, np.ndarray]:
    """Returns what `of_layers` reads, checked, in the order of the mesh.

    Raises:
      InputError: as `measure`.
    """
    tokens_BT = np.asarray(tokens_BT)
    _check(tokens_BT, inputs, config.vocab_size)
    batch, length = tokens_BT.shape
    if settings.mesh is not None:
        attention.check(
            settings.attention,
            settings.of_attention,
            platform=settings.mesh.devices.flat[0].platform,
            heads=(config.num_heads, config.num_kv_heads),
            lack=None,
            seq_len=length,
        )
    numbers_BT = np.broadcast_to(np.arange(length, dtype=np.int32), (batch, length))
    sets_BTZ = np.zeros((batch, length, 0), bool) if inputs.sets_BTZ is None else inputs.sets_BTZ
    positions_BT = numbers_BT if inputs.positions_BT is None else inputs.positions_BT
    rows = {
        "tokens_BT": tokens_BT.astype(np.int32),
        "positions_BT": np.asarray(positions_BT, np.int32),
        "index_BT": numbers_BT,
        "sets_BTZ": np.asarray(sets_BTZ, bool),
    }
    if inputs.segment_ids_BT is not None:
        rows["segment_ids_BT"] = np.asarray(inputs.segment_ids_BT, np.int32)
    order = decoder.token_order(settings, length)
    if order is not None:
        rows = {name: x[:, order] for name, x in rows.items()}
    if inputs.queries_BM is not None:
        places = np.arange(length) if order is None else attention.inverse(order)
        rows["places_BM"] = places[np.asarray(inputs.queries_BM)].astype(np.int32)
    return rows


@functools.partial(jax.jit, static_argnames=("config", "options", "settings"))
def of_layers(params, r, rows, *, config, options, settings) -> Stats:
    """Returns the statistics of all layers, leaves [L, B, T, ...], in the order of `rows`
    (`lay_out`); `options` of `on_mesh`.
    """

    def local(params, r, rows):
        _, stats = decoder.probe(
            config,
            params,
            rows["tokens_BT"],
            r,
            probe_fn=functools.partial(_of_layer, rows, options, settings.mesh),
            positions_BT=rows["positions_BT"],
            segment_ids_BT=rows.get("segment_ids_BT"),
            settings=settings,
        )
        return stats

    mesh = settings.mesh
    if mesh is None:
        return local(params, r, rows)
    weights = jax.tree.map(lambda where: where.spec, decoder.param_shardings(config, mesh))
    whole_rows = PartitionSpec(sharding.BATCH_AXES)
    spread_rows = sharding.row_sharding(mesh).spec
    of_rows = {name: whole_rows if name == "places_BM" else spread_rows for name in rows}
    of_queries = None, sharding.BATCH_AXES, None if "places_BM" in rows else _CONTEXT
    of_stats = {name: PartitionSpec(*of_queries, "tensor") for name in Stats._fields}
    of_stats |= {name: PartitionSpec(*of_queries) for name in _WITHOUT_HEADS}
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(weights, PartitionSpec(), of_rows),
        out_specs=Stats(**of_stats),
        check_vma=False,  # scans inside start from constants, which vary nowhere
    )(params, r, rows)


def _of_layer(rows: dict, options: Options, mesh: Mesh | None, layer: decoder.Seen) -> Stats:
    q_BTNH, k_BTKH = (rope.rotate(x, *layer.turn) for x in (layer.q_BTNH, layer.k_BTKH))
    keys = streaming.Keys(k_BTKH, rows["index_BT"], rows["sets_BTZ"])
    if "places_BM" not in rows:
        return streaming.finish(streaming.state_of(q_BTNH, keys, layer.mask, options))
    pick = functools.partial(_picked, rows["places_BM"], mesh)
    mask, segments = layer.mask, layer.mask.q_segment_ids_BT
    ids = pick(mask.q_positions_BT), mask.kv_positions_BS
    segments = None if segments is None else pick(segments), mask.kv_segment_ids_BS
    few = Mask(*ids, *segments, mask.causal, mask.window)
    q_BMNH = pick(q_BTNH)
    if options.spread == "alone":
        return streaming.finish(streaming.state_of(q_BMNH, keys, few, options))
    # these queries are on every device; each has its own keys
    options = options.of(k_BTKH)
    state = streaming.empty(q_BMNH, keys, options)
    state = streaming.update(state, q_BMNH, keys, few, options)
    return streaming.finish(spread.merged(streaming.merge, state))


def _picked(places_BM, mesh: Mesh | None, x_BT):
    """Returns [B, M, ...] of the tokens at these places of the whole row, on every device."""
    length = x_BT.shape[1]
    if sharding.ways(mesh, _CONTEXT) > 1:
        places_BM = places_BM - jax.lax.axis_index(_CONTEXT) * length
    here_BM = (places_BM >= 0) & (places_BM < length)
    spread_out = (slice(None), slice(None)) + (None,) * (x_BT.ndim - 2)
    at = jnp.clip(places_BM, 0, length - 1)[spread_out]
    picked = jnp.where(here_BM[spread_out], jnp.take_along_axis(x_BT, at, axis=1), 0)
    return collectives.sum_over(picked, mesh, _CONTEXT)


def on_mesh(options: Options, mesh: Mesh | None) -> Options:
    """Returns the options for rows that lie over this mesh: "alone" is "ring" where several
    devices share a row, and everything is "alone" where none do.
    """
    if sharding.ways(mesh, _CONTEXT) == 1:
        return dataclasses.replace(options, spread="alone")
    if options.spread == "alone":
        return dataclasses.replace(options, spread="ring")
    return options


def _check(tokens_BT, inputs: Inputs, vocab_size: int) -> None:
    if tokens_BT.ndim != 2 or not np.issubdtype(tokens_BT.dtype, np.integer):
        raise InputError(
            f"analysis.tokens must be whole numbers [rows, length], got {tokens_BT.dtype} "
            f"{list(tokens_BT.shape)}. Give one row as [1, length]."
        )
    if tokens_BT.size and not 0 <= tokens_BT.min() <= tokens_BT.max() < vocab_size:
        raise InputError(
            f"analysis.tokens must be from 0 to {vocab_size - 1}, got {tokens_BT.min()} to "
            f"{tokens_BT.max()}. Use the model's own tokenizer."
        )
    (batch, length), like = tokens_BT.shape, list(tokens_BT.shape)
    for name in ("positions_BT", "segment_ids_BT"):
        value = getattr(inputs, name)
        if value is not None and np.shape(value) != tokens_BT.shape:
            raise InputError(
                f"analysis.{name} must be as the tokens, {like}, got {list(np.shape(value))}. Give "
                "one for each token."
            )
    sets = inputs.sets_BTZ
    if sets is not None and (np.ndim(sets) != 3 or np.shape(sets)[:2] != tokens_BT.shape):
        raise InputError(
            f"analysis.sets must be {like[:-1] + [length]} and one more axis of sets, got "
            f"{list(np.shape(sets))}. Add an axis for one set."
        )
    queries = inputs.queries_BM
    if queries is None:
        return
    queries = np.asarray(queries)
    if queries.ndim != 2 or len(queries) != batch or not np.issubdtype(queries.dtype, np.integer):
        raise InputError(
            f"analysis.queries must be whole numbers [{batch}, number], got {queries.dtype} "
            f"{list(queries.shape)}. Give every row its own."
        )
    if not queries.size or queries.min() < 0 or queries.max() >= length:
        raise InputError(
            f"analysis.queries must be places from 0 to {length - 1}, got "
            f"{queries.min() if queries.size else 'none'} to "
            f"{queries.max() if queries.size else 'none'}. Leave them out for all."
        )
