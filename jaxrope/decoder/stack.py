"""Layers of different kinds, scanned: a run is a pattern of kinds that repeats, compiled once.

Gemma 3's 26 layers are four times (five sliding, one full), then two sliding: seven layers are
compiled. A model whose layers are alike is one run of one.
"""

import functools
from collections.abc import Callable
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
    layer_of: Callable[[str], Callable], carry: Any, scanned: Any, kinds: tuple[str, ...]
) -> tuple[Any, Any]:
    """Returns (carry, outputs [L, ...]) of `lax.scan` over layers of different kinds.

    Args:
      layer_of: kind -> function (carry, slice) -> (carry, output).
      carry: of the first layer.
      scanned: pytree of arrays [L, ...].
      kinds: of each layer.
    """
    outputs = []
    for run in runs(kinds):
        carry, output = _scan_run(layer_of, carry, scanned, run, len(kinds))
        outputs.append(output)
    if len(outputs) == 1:
        return carry, outputs[0]
    return carry, jax.tree.map(lambda *parts: jnp.concatenate(parts), *outputs)


def _scan_run(layer_of, carry, scanned, run: Run, num_layers: int):
    size, count = len(run.pattern), len(run.pattern) * run.repeats
    if count < num_layers:
        scanned = jax.tree.map(lambda x: x[run.first : run.first + count], scanned)
    if size == 1:
        return jax.lax.scan(layer_of(run.pattern[0]), carry, scanned)
    layers = [layer_of(kind) for kind in run.pattern]

    def repeat(carry, slices):
        outputs = []
        for place, layer in enumerate(layers):
            carry, output = layer(carry, jax.tree.map(lambda x, place=place: x[place], slices))
            outputs.append(output)
        return carry, jax.tree.map(lambda *parts: jnp.stack(parts), *outputs)

    folded = jax.tree.map(lambda x: x.reshape(run.repeats, size, *x.shape[1:]), scanned)
    carry, outputs = jax.lax.scan(repeat, carry, folded)
    return carry, jax.tree.map(lambda x: x.reshape(count, *x.shape[2:]), outputs)
