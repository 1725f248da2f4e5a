"""Genomes of the search: factors as whole steps of a grid, and which of the listed start tokens.

A genome is int32 [G]. Its first R genes are the factors in grid steps (hundredths, with the paper's
step of 0.01), its last gene is an index into `Space.start_tokens`. The piecewise encoding has two
more between them: alpha and beta, rotary pairs. Genomes are always settled: the first R genes and
the last one say everything that the model sees.

numpy on the host throughout: a generation is some thousand integers, beside forward passes of 1e11
operations each.

Letters: R rotary pairs, G genes.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from jaxrope.errors import InputError

_SIGMA_PAIRS = 2.0  # of the Gaussian step of alpha and beta (microsoft/LongRoPE, dim_piece_mono)


@dataclasses.dataclass(frozen=True)
class Space:
    """What a genome may hold (LongRoPE, Table 4).

    Attributes:
      num_pairs: R.
      units: grid steps in 1.0, which is also the smallest factor gene.
      scale: target length / training length, in grid steps; at most `highest`.
      highest: the largest factor gene.
      start_tokens: what n̂ may be, in tokens.
    """

    num_pairs: int
    units: int
    scale: int
    highest: int
    start_tokens: tuple[int, ...]


def make_space(
    *, num_pairs: int, factor: float, step: float, bound: float, start_tokens: tuple[int, ...]
) -> Space:
    """Returns the space of factors from 1 to `bound` * `factor` in steps of `step`.

    Args:
      num_pairs: rotary pairs of the model.
      factor: target length / training length.
      step: of the grid; 1 is a whole number of steps.
      bound: the paper has 1.25.
      start_tokens: ascending, tokens.

    Raises:
      InputError: one of the settings breaks its rule.
    """
    units = round(1 / step) if isinstance(step, int | float) and 0 < step <= 1 else 0
    if units < 1 or not math.isclose(units * step, 1.0, rel_tol=1e-9):
        raise InputError(
            f"search.algorithm.step must divide 1 into whole steps, got {step}. Use 0.01 or 0.05."
        )
    highest = math.floor(bound * factor * units + 1e-6) if math.isfinite(bound) else 0
    if highest <= units:
        raise InputError(
            f"search.algorithm.bound must leave factors above 1: {bound} * {factor:g} (target_len "
            "/ training_len) does not. Use a larger bound."
        )
    tokens = tuple(start_tokens)
    valid = (
        tokens
        and all(isinstance(n, int) and n >= 0 for n in tokens)
        and list(tokens) == sorted(set(tokens))
    )
    if not valid:
        raise InputError(
            f"search.start_tokens must list ascending numbers of tokens from 0 on, got {tokens}. "
            "Use (0,) to search none."
        )
    return Space(num_pairs, units, min(round(factor * units), highest), highest, tokens)


@dataclasses.dataclass(frozen=True)
class Encoding:
    """How vectors of factors become genomes, and how genomes vary.

    Every function returns a settled genome and changes none.

    Attributes:
      encode: (space, factors_R, start_tokens) -> genome nearest to them.
      mutate: (space, rng, genome, probability) -> genome.
      cross: (space, rng, first, second) -> genome, or None where the child's factors would not
        ascend.
    """

    encode: Callable[[Space, np.ndarray, int], np.ndarray]
    mutate: Callable[[Space, np.random.Generator, np.ndarray, float], np.ndarray]
    cross: Callable[[Space, np.random.Generator, np.ndarray, np.ndarray], np.ndarray | None]


def decode(space: Space, genome_G: np.ndarray) -> tuple[np.ndarray, int]:
    """Returns (factors float64 [R], start tokens)."""
    return genome_G[: space.num_pairs] / space.units, space.start_tokens[genome_G[-1]]


def key(space: Space, genome_G: np.ndarray) -> bytes:
    """Returns what the model sees of a genome: equal keys are one candidate."""
    return np.append(genome_G[: space.num_pairs], genome_G[-1]).astype(np.int32).tobytes()


def encode_monotone(space: Space, factors_R: np.ndarray, start_tokens: int) -> np.ndarray:
    """Returns the genome nearest to `factors_R`.

    Rounded to the grid, clipped to [1, highest], each raised to the largest before it.
    """
    return np.append(
        _round(space, factors_R, space.highest), _nearest_index(space, start_tokens)
    ).astype(np.int32)


def mutate_monotone(
    space: Space, rng: np.random.Generator, genome_G: np.ndarray, probability: float
) -> np.ndarray:
    """Mutation of LongRoPE, Algorithm 1.

    Each gene with `probability`, uniform on the grid between its neighbours. Genes change from left
    to right, so the left neighbour is already mutated and the right one is the old one: the factors
    ascend by construction.
    """
    child_G = genome_G.copy()
    _mutate_genes(rng, child_G, (0, space.num_pairs), (space.units, space.highest), probability)
    _mutate_start(space, rng, child_G, probability)
    return child_G


def cross_monotone(
    space: Space, rng: np.random.Generator, first_G: np.ndarray, second_G: np.ndarray
) -> np.ndarray | None:
    """Uniform crossover: each gene from either parent."""
    child_G = np.where(rng.random(first_G.shape) < 0.5, first_G, second_G)
    return child_G if np.all(np.diff(child_G[: space.num_pairs]) >= 0) else None


def encode_piecewise(space: Space, factors_R: np.ndarray, start_tokens: int) -> np.ndarray:
    """Returns the piecewise genome of `factors_R`.

    Alpha is the last pair with factor 1, beta the last one below target / training length.
    """
    genes_R = _round(space, factors_R, space.scale)
    alpha = int(np.sum(genes_R == space.units)) - 1
    beta = max(alpha, int(np.sum(genes_R < space.scale)) - 1)
    return np.concatenate([genes_R, [alpha, beta, _nearest_index(space, start_tokens)]]).astype(
        np.int32
    )


def mutate_piecewise(
    space: Space, rng: np.random.Generator, genome_G: np.ndarray, probability: float
) -> np.ndarray:
    """Mutation of microsoft/LongRoPE's dim_piece_mono.

    The borders of the ramp take a Gaussian step, the genes of the ramp mutate as in Algorithm 1.
    The authors never change the last two entries of their array; here every gene can change.
    """
    num_pairs = space.num_pairs
    child_G = genome_G.copy()
    for border in (num_pairs, num_pairs + 1):
        if rng.random() < probability:
            child_G[border] = np.clip(
                child_G[border] + round(rng.normal(0.0, _SIGMA_PAIRS)), -1, num_pairs - 1
            )
    alpha, beta = sorted(child_G[num_pairs : num_pairs + 2].tolist())
    child_G[num_pairs : num_pairs + 2] = alpha, beta
    _settle_piecewise(space, child_G)
    _mutate_genes(rng, child_G, (alpha + 1, beta + 1), (space.units, space.scale), probability)
    _mutate_start(space, rng, child_G, probability)
    return child_G


def cross_piecewise(
    space: Space, rng: np.random.Generator, first_G: np.ndarray, second_G: np.ndarray
) -> np.ndarray | None:
    """Uniform crossover of all genes, the borders among them.

    Outside the child's ramp the factors are 1 and target / training length.
    """
    child_G = np.where(rng.random(first_G.shape) < 0.5, first_G, second_G)
    if child_G[space.num_pairs] > child_G[space.num_pairs + 1]:
        return None
    _settle_piecewise(space, child_G)
    return child_G if np.all(np.diff(child_G[: space.num_pairs]) >= 0) else None


ENCODINGS = {
    "monotone": Encoding(encode_monotone, mutate_monotone, cross_monotone),
    "piecewise": Encoding(encode_piecewise, mutate_piecewise, cross_piecewise),
}


def _round(space: Space, factors_R: np.ndarray, highest: int) -> np.ndarray:
    genes_R = np.rint(np.asarray(factors_R, np.float64) * space.units)
    return np.maximum.accumulate(np.clip(genes_R, space.units, highest)).astype(np.int32)


def _nearest_index(space: Space, start_tokens: int) -> int:
    return int(np.argmin([abs(n - start_tokens) for n in space.start_tokens]))


def _mutate_genes(
    rng, child_G, pairs: tuple[int, int], limits: tuple[int, int], probability: float
) -> None:
    """Mutates in place the genes of pairs[0] <= pair < pairs[1].

    `limits` stand for the neighbours that the first and the last do not have.
    """
    begin, end = pairs
    is_chosen = rng.random(end - begin) < probability
    for pair in begin + np.flatnonzero(is_chosen):
        left = child_G[pair - 1] if pair > begin else limits[0]
        right = child_G[pair + 1] if pair + 1 < end else limits[1]
        child_G[pair] = rng.integers(left, right, endpoint=True)


def _mutate_start(space: Space, rng, child_G, probability: float) -> None:
    if rng.random() < probability:
        child_G[-1] = rng.integers(len(space.start_tokens))


def _settle_piecewise(space: Space, child_G) -> None:
    """Writes in place what the borders say: 1 up to alpha, target / training length above beta."""
    alpha, beta = child_G[space.num_pairs : space.num_pairs + 2]
    child_G[: alpha + 1] = space.units
    child_G[beta + 1 : space.num_pairs] = space.scale
