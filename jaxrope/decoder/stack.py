"""Layers of different kinds, scanned: a run is a pattern of kinds that repeats, compiled once.

Gemma 3's 26 layers are four times (five sliding, one full), then two sliding: seven layers are
compiled. A model whose layers are alike is one run of one.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Run(NamedTuple):
    """Layers first, first + 1, ...: `pattern`, `repeats` times."""

    first: int
    pattern: tuple[str, ...]
    repeats: int


@functools.lru_cache(maxsize=64)
def runs(kinds: tuple[str, ...]) -> tuple[Run, ...]:
    """Returns the runs that cover the layers with the fewest compiled ones."""
    best: dict[int, tuple[int, tuple[Run, ...]]] = {len(kinds): (0, ())}
    for first in reversed(range(len(kinds))):
        choices = []
        for size in range(1, len(kinds) - first + 1):
            pattern, repeats = kinds[first : first + size], 1
            while kinds[first + repeats * size :][:size] == pattern:
                repeats += 1
            cost, rest = best[first + repeats * size]
            choices.append((size + cost, (Run(first, pattern, repeats), *rest)))
        best[first] = min(choices, key=lambda choice: (choice[0], len(choice[1])))
    return best[0][1]


def scan(
    layer_of: Callable[[str], Callable],
    carry: Any,
    scanned: Any,
    kinds: tuple[str, ...],
    some: Sequence[tuple[tuple[bool, ...], dict]] = (),
) -> tuple[Any, dict]:
    """Returns (carry, outputs [L, ...] by name) of `lax.scan` over layers of different kinds.

    Args:
      layer_of: kind -> function (carry, (slice of scanned, arrays of `some`)) -> (carry, outputs by
        name); L is of the layers that have an output of that name.
      carry: of the first layer.
      scanned: pytree of arrays [L, ...].
      kinds: of each layer.
      some: (which layers, arrays by name [number of these layers, ...]) that others do not have.
    """
    outputs = []
    for run in runs(tuple(zip(kinds, *(have for have, _ in some), strict=True))):
        carry, output = _scan_run(layer_of, carry, scanned, run, some)
        outputs.append(output)
    return carry, outputs[0] if len(outputs) == 1 else _joined(outputs, jnp.concatenate)


def _scan_run(layer_of, carry, scanned, run: Run, some):
    size = len(run.pattern)
    stop = run.first + size * run.repeats
    scanned = _cut(scanned, run.first, stop)
    parts = [_cut(arrays, sum(have[: run.first]), sum(have[:stop])) for have, arrays in some]
    places = [have[run.first :][:size] for have, _ in some]  # of the pattern
    layers = [layer_of(kind) for kind, *_ in run.pattern]
    if size == 1:
        own = _of_place(0, parts, places, lambda x, _: x)
        return jax.lax.scan(layers[0], carry, (scanned, own))

    def repeat(carry, slices):
        slices, parts = slices
        outputs = []
        for place, layer in enumerate(layers):
            own = _of_place(place, parts, places, lambda x, before: x[before])
            own_slice = jax.tree.map(lambda x, place=place: x[place], slices)
            carry, output = layer(carry, (own_slice, own))
            outputs.append(output)
        return carry, _joined(outputs, jnp.stack)

    folded = jax.tree.map(
        lambda x: x.reshape(run.repeats, x.shape[0] // run.repeats, *x.shape[1:]), (scanned, parts)
    )
    carry, outputs = jax.lax.scan(repeat, carry, folded)
    return carry, jax.tree.map(lambda x: x.reshape(x.shape[0] * x.shape[1], *x.shape[2:]), outputs)


def _of_place(place: int, parts, places, slice_fn: Callable) -> dict:
    """Returns what the layer at `place` of a pattern has of arrays that only some layers have, by
    `slice_fn` of an array and of how many layers of the pattern before it have one.
    """
    return {
        name: slice_fn(x, sum(have[:place]))
        for part, have in zip(parts, places, strict=True)
        if have[place]
        for name, x in part.items()
    }


def _joined(outputs: list[dict], join: Callable) -> dict:
    names = dict.fromkeys(name for output in outputs for name in output)
    having = {name: [output[name] for output in outputs if name in output] for name in names}
    return {n: jax.tree.map(lambda *xs: join(xs), *parts) for n, parts in having.items()}


def _cut(arrays, first: int, stop: int):
    return jax.tree.map(lambda x: x if stop - first == x.shape[0] else x[first:stop], arrays)
