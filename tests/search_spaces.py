"""Spaces, seeds and streams that the tests of genomes and of evolution share."""

import dataclasses

import numpy as np

from jaxrope.search import genome
from jaxrope.search.encodings import ENCODINGS
from jaxrope.search.genome import Choice

START_TOKENS = (0, 1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 64, 128, 256)


def space_of(num_pairs=8, factor=4.0, step=0.01, bound=1.25, start_tokens=START_TOKENS, **more):
    return genome.make_space(
        num_pairs=num_pairs,
        factor=factor,
        step=step,
        highest=bound * factor,
        start_tokens=start_tokens,
        **(dict(attention_factors=(1.0,)) | more),
    )


def stream(seed=0):
    return np.random.Generator(np.random.Philox(seed))


def encode(name, space, factors, start_tokens=0, attention_factor=1.0):
    choice = Choice(np.asarray(factors, np.float64), start_tokens, attention_factor)
    return genome.encode(ENCODINGS[name], space, choice)


def space_for(name, **constants):
    """The space of an encoding: with pairs that may be critical, where it has such."""
    space = space_of(**constants)
    pairs = (2, 3, 5) if name == "critical" else ()
    return dataclasses.replace(space, critical_pairs=pairs)


def seeds_of(space, name="monotone"):
    """Vectors of the shapes of PI, NTK and YaRN."""
    pairs, s = np.arange(space.num_pairs), space.scale / space.units
    vectors = [
        np.full(space.num_pairs, s),
        s ** (pairs / (space.num_pairs - 1)),
        1 + (s - 1) * np.clip((pairs - 2) / 3, 0, 1),
    ]
    return np.stack([encode(name, space, vector) for vector in vectors])
