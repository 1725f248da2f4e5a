"""The critical pair of LongRoPE2: by the theory, and as it is measured on a model.

Rotary pairs whose period is longer than the training texts never completed a turn: they are
interpolated by at least target / training length, and the pairs below them by NTK. The paper finds
that the border lies lower than its theory predicts (pair 25 for 31 in Phi-3-mini, 30 for 35 in
LLaMA3-8B), and searches for it. An evolution of the form "critical" evaluates "NTK below,
target / training length from there on" for every pair that may be critical, before anything else:
the fitness of these is the measurement.

Pairs count from 0. Letters: R rotary pairs.
"""

import dataclasses
import math
from typing import Any

import numpy as np

from jaxrope import rope, schema
from jaxrope.errors import InputError
from jaxrope.search import encodings, evolution, genome
from jaxrope.search.baselines import Baseline

_MANY_TURNS = 10  # in the training length: of the lowest candidate (LongRoPE2, Algorithm 1)


def theoretical_pair(*, rotary_dim: int, theta: float, trained_len: int, turns: float = 1) -> int:
    """Returns ceil((d / 2) log_theta(L / (2 pi turns))), at least 1 and at most R - 1.

    The first pair that makes less than `turns` turns in the training length; with 1, the
    theoretical critical dimension of LongRoPE2 (its d_tcd is twice this), and of "Scaling laws of
    RoPE-based extrapolation".

    Args:
      rotary_dim: d.
      theta: base of the plain frequencies.
      trained_len: L, tokens.
      turns: of the pair.
    """
    reduced_wavelength = trained_len / (2 * math.pi * turns)
    pair = math.ceil(rotary_dim / 2 * math.log(reduced_wavelength) / math.log(theta))
    return min(max(pair, 1), rotary_dim // 2 - 1)


def _pair(space: genome.Space, theta: float, trained_len: int, turns: float = 1) -> int:
    """Returns the theoretical pair of what the search starts from: of scaled frequencies, the first
    that makes less than `turns` turns in the length that they serve.
    """
    if not space.multiplier:
        geometry = dict(rotary_dim=2 * space.num_pairs, theta=theta)
        return theoretical_pair(**geometry, trained_len=trained_len, turns=turns)
    turns_R = rope.turns_in(trained_len, np.array(space.multiplier), theta)
    return min(max(int(np.sum(turns_R >= turns)), 1), space.num_pairs - 1)


def narrow(
    space: genome.Space,
    section: schema.search.Search,
    *,
    theta: float,
    trained_len: int,
    target_len: int,
) -> genome.Space:
    """Returns the space with the pairs that may be critical; as it is for any other form.

    Raises:
      InputError: the pairs are out of range or order, or factors of target / training length are
        not in the space.
    """
    if section.form != "critical":
        return space
    lowest, highest = section.critical_pairs
    low = lowest or _pair(space, theta, trained_len, _MANY_TURNS)
    high = highest or _pair(space, theta, trained_len)
    if not 1 <= low <= high < space.num_pairs:
        raise InputError(
            "search.critical_pairs must be 0 (by formula) or ascend within 1 to "
            f"{space.num_pairs - 1} (rotary_dim / 2 - 1), got ({lowest}, {highest}), which are "
            f"{low} and {high}."
        )
    least = round(target_len / trained_len * space.units)
    if space.highest < least:
        raise InputError(
            "search.form 'critical' needs factors of at least target_len / training_len, "
            f"{least / space.units:g}, got {space.highest / space.units:g} at most. Raise "
            "search.algorithm.bound (LongRoPE2 has 2)."
        )
    return dataclasses.replace(space, critical_pairs=tuple(range(low, high + 1)))


def seeds(space: genome.Space, *, target_len: int, attention_factor: float) -> list[Baseline]:
    """Returns a seed for every pair that may be critical: none for any other form."""
    scale, own = space.scale / space.units, np.array(space.multiplier or 1.0)
    return [
        Baseline(
            f"critical_{pair}",
            rope.Bucket(
                target_len,
                rope.as_factors(own * rope.ntk_rcd(scale, pair, space.num_pairs)),
                0,
                attention_factor,
            ),
            True,
        )
        for pair in space.critical_pairs
    ]


def report(
    state: evolution.SearchState, *, theta: float, trained_len: int, attention_factor: float
) -> dict[str, Any]:
    """Returns what a search measured about the critical pair; {} for any other form.

    Returns:
      "critical_pair", the best as measured by the seeds (None: all of them failed);
      "theoretical_critical_pair"; "critical_pairs", [{"pair", "fitness"}] of the seeds (null:
      failed); and "best_critical_pairs", of the best candidate, one of each layer with factors of
      its own.
    """
    space = state.space
    if not space.critical_pairs:
        return {}
    encoding = encodings.ENCODINGS["critical"]
    index_of = {genome.key(space, genome_G): i for i, genome_G in enumerate(state.seen_EG)}
    seed_fitness = []
    for seed in seeds(space, target_len=1, attention_factor=attention_factor):
        choice = genome.Choice(np.array(seed.bucket.factors), 0, attention_factor)
        index = index_of[genome.key(space, genome.encode(encoding, space, choice))]
        fitness = float(state.seen_fitness_E[index])
        seed_fitness.append(fitness)
    pairs = zip(space.critical_pairs, seed_fitness, strict=True)
    best_seed = int(np.argmin(seed_fitness))
    measured = space.critical_pairs[best_seed] if np.isfinite(seed_fitness[best_seed]) else None
    _, own_LO = genome.layers(space, evolution.best(state)[0])
    return {
        "critical_pair": measured,
        "theoretical_critical_pair": _pair(space, theta, trained_len),
        "critical_pairs": [
            {"pair": pair, "fitness": fitness if math.isfinite(fitness) else None}
            for pair, fitness in pairs
        ],
        "best_critical_pairs": own_LO[:, 0].tolist(),
    }
