"""Genomes of the search: factors as whole steps of a grid, and which of the listed numbers.

A genome is int32 [G]. Its first L * R genes are the factors in grid steps (hundredths, with the
paper's step of 0.01), layer after layer; one layer stands for all where they share their factors.
Then come the genes that an encoding has of its own, layer after layer, then the attention gene, an
index into `Space.attention_factors`, which is missing where there is nothing to choose, and last an
index into `Space.start_tokens`. Genomes are always settled: the factors and the last two say
everything that the model sees.

numpy on the host throughout: a generation is some thousand integers, beside forward passes of 1e11
operations each.

Letters: L layers with factors of their own, R rotary pairs, O own genes of a layer, G genes.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxrope import rope
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
      attention_factors: what cos and sin may be multiplied by.
      num_layers: L; 1: all layers share their factors.
      critical_pairs: what the critical pair may be, in the encoding that has one.
      multiplier: factors, [R] or [L, R], that those of the genes multiply: of a model that is
        scaled already, or of a second search; () = they stand for themselves.
    """

    num_pairs: int
    units: int
    scale: int
    highest: int
    start_tokens: tuple[int, ...]
    attention_factors: tuple[float, ...]
    num_layers: int = 1
    critical_pairs: tuple[int, ...] = ()
    multiplier: tuple = ()

    @property
    def num_factors(self) -> int:
        return self.num_layers * self.num_pairs

    @property
    def num_choices(self) -> int:
        """Genes at the end of a genome that are indices into a list."""
        return 2 if len(self.attention_factors) > 1 else 1


class Choice(NamedTuple):
    """The choice that a genome encodes.

    Attributes:
      factors: float64 [R], or [L, R] where every layer has its own.
      start_tokens: tokens.
      attention_factor: multiplies cos and sin.
    """

    factors: np.ndarray
    start_tokens: int
    attention_factor: float


def make_space(
    *,
    num_pairs: int,
    factor: float,
    step: float,
    highest: float,
    start_tokens: tuple[int, ...],
    attention_factors: tuple[float, ...],
    num_layers: int = 1,
) -> Space:
    """Returns the space of factors from 1 to `highest` in steps of `step`.

    Args:
      num_pairs: rotary pairs of the model.
      factor: target length / training length.
      step: of the grid; 1 is a whole number of steps.
      highest: the paper has 1.25 * factor.
      start_tokens: ascending, tokens.
      attention_factors: of the candidates.
      num_layers: layers with factors of their own; 1: they share them.

    Raises:
      InputError: no factor above 1 is left.
    """
    units = round(1 / step)
    most = math.floor(highest * units + 1e-6)
    if not units < most < 2**31:
        raise InputError(
            "search.algorithm.bound must leave factors above 1 and below 2^31 steps: the largest "
            f"one, bound * target_len / training_len = {highest:g}, is not. Use another bound."
        )
    scale = min(round(factor * units), most)
    return Space(num_pairs, units, scale, most, start_tokens, attention_factors, num_layers)


@dataclasses.dataclass(frozen=True)
class Encoding:
    """How the factors of one layer become genes, and how those vary: one line each in ENCODINGS.

    The genes of a layer are two arrays, factors [R] and own genes [O]; all but `encode` write them
    in place.

    Attributes:
      encode: (space, factors_R) -> (genes_R, own genes) nearest to them.
      mutate: (space, rng, genes_R, own_O, probability) -> None.
      settle: (space, genes_R, own_O) -> whether crossed own genes are consistent; sets the factors
        that they imply.
      begin: as `mutate`, for the first population.
    """

    encode: Callable[[Space, np.ndarray], tuple[np.ndarray, list[int]]]
    mutate: Callable[[Space, np.random.Generator, np.ndarray, np.ndarray, float], None]
    settle: Callable[[Space, np.ndarray, np.ndarray], bool]
    begin: Callable[[Space, np.random.Generator, np.ndarray, np.ndarray, float], None]


def encode(encoding: Encoding, space: Space, choice: Choice) -> np.ndarray:
    """Returns the genome nearest to a choice; factors [R] serve every layer."""
    factors = choice.factors / np.array(space.multiplier or 1.0)
    factors_LR = np.broadcast_to(factors, (space.num_layers, space.num_pairs))
    layers = [encoding.encode(space, factors_R) for factors_R in factors_LR]
    genes = [genes_R for genes_R, _ in layers] + [own_O for _, own_O in layers]
    if space.num_choices > 1:
        genes.append([_nearest(space.attention_factors, choice.attention_factor)])
    genes.append([_nearest(space.start_tokens, choice.start_tokens)])
    return np.concatenate(genes).astype(np.int32)


def decode(space: Space, genome_G: np.ndarray) -> Choice:
    """Returns the choice that a genome encodes."""
    factors = genome_G[: space.num_factors] / space.units
    if space.num_layers > 1:
        factors = factors.reshape(space.num_layers, space.num_pairs)
    if space.multiplier:
        factors = factors * np.array(space.multiplier)
    index = genome_G[-2] if space.num_choices > 1 else 0
    return Choice(factors, space.start_tokens[genome_G[-1]], space.attention_factors[index])


def key(space: Space, genome_G: np.ndarray) -> bytes:
    """Returns the genes that the model depends on: equal keys are one candidate."""
    genes = np.append(genome_G[: space.num_factors], genome_G[-space.num_choices :])
    return genes.astype(np.int32).tobytes()


def mutate(
    encoding: Encoding, space: Space, rng: np.random.Generator, genome_G, probability: float
) -> np.ndarray:
    """Mutation of LongRoPE, Algorithm 1: each gene with `probability`, within its rules."""
    return _vary(encoding.mutate, space, rng, genome_G, probability)


def begin(
    encoding: Encoding, space: Space, rng: np.random.Generator, seed_G, probability: float
) -> np.ndarray:
    """Returns a member of the first population, made from a seed."""
    return _vary(encoding.begin, space, rng, seed_G, probability)


def cross(
    encoding: Encoding, space: Space, rng: np.random.Generator, first_G, second_G
) -> np.ndarray | None:
    """Returns the child that has each gene from either parent.

    Where layers have factors of their own, each layer comes whole from one of them: single genes of
    so many layers would hardly ever ascend in all.

    Returns:
      A genome; None where its factors would not ascend, or its own genes contradict each other.
    """
    if space.num_layers > 1:
        is_first = _layer_mask(space, rng, len(first_G))
    else:
        is_first = rng.random(first_G.shape) < 0.5
    child_G = np.where(is_first, first_G, second_G)
    genes_LR, own_LO = layers(space, child_G)
    for genes_R, own_O in zip(genes_LR, own_LO, strict=True):
        if not encoding.settle(space, genes_R, own_O):
            return None
    return child_G if np.all(np.diff(genes_LR, axis=1) >= 0) else None


def layers(space: Space, genome_G: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns views of a genome: (factors in grid steps [L, R], own genes [L, O])."""
    end = len(genome_G) - space.num_choices
    return (
        genome_G[: space.num_factors].reshape(space.num_layers, space.num_pairs),
        genome_G[space.num_factors : end].reshape(space.num_layers, -1),
    )


def _vary(layer_fn: Callable, space: Space, rng, genome_G, probability: float) -> np.ndarray:
    child_G = genome_G.copy()
    for genes_R, own_O in zip(*layers(space, child_G), strict=True):
        layer_fn(space, rng, genes_R, own_O, probability)
    if space.num_choices > 1 and rng.random() < probability:
        child_G[-2] = rng.integers(len(space.attention_factors))
    if rng.random() < probability:
        child_G[-1] = rng.integers(len(space.start_tokens))
    return child_G


def _layer_mask(space: Space, rng, num_genes: int) -> np.ndarray:
    is_first_L = rng.random(space.num_layers) < 0.5
    num_own = (num_genes - space.num_choices - space.num_factors) // space.num_layers
    parts = [np.repeat(is_first_L, space.num_pairs), np.repeat(is_first_L, num_own)]
    return np.concatenate([*parts, rng.random(space.num_choices) < 0.5])


def _nearest(values: tuple[float, ...], target: float) -> int:
    return int(np.argmin([abs(value - target) for value in values]))


def _encode_monotone(space: Space, factors_R: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """Returns the genes nearest to `factors_R`.

    Rounded to the grid, clipped to [1, highest], each raised to the largest before it.
    """
    return _round_to_grid(space, factors_R, (space.units, space.highest)), []


def _mutate_monotone(space: Space, rng, genes_R, own_O, probability: float) -> None:
    """Mutation of LongRoPE, Algorithm 1.

    Each gene with `probability`, uniform on the grid between its neighbours. Genes change from left
    to right, so the left neighbour is already mutated and the right one is the old one: the factors
    ascend by construction.
    """
    del own_O
    _mutate_genes(rng, genes_R, (0, space.num_pairs), (space.units, space.highest), probability)


def _settle_monotone(space: Space, genes_R, own_O) -> bool:
    """Returns True: there are no genes but the factors."""
    del space, genes_R, own_O
    return True


def _encode_piecewise(space: Space, factors_R: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """Returns the piecewise genes of `factors_R`.

    Alpha is the last pair with factor 1, beta the last one below target / training length.
    """
    genes_R = _round_to_grid(space, factors_R, (space.units, space.scale))
    alpha = int(np.sum(genes_R == space.units)) - 1
    beta = max(alpha, int(np.sum(genes_R < space.scale)) - 1)
    return genes_R, [alpha, beta]


def _mutate_piecewise(space: Space, rng, genes_R, own_O, probability: float) -> None:
    """Mutation of microsoft/LongRoPE's dim_piece_mono.

    The borders of the ramp take a Gaussian step, the genes of the ramp mutate as in Algorithm 1.
    The authors never change the last two entries of their array; here every gene can change.
    """
    for border in (0, 1):
        if rng.random() < probability:
            moved = own_O[border] + round(rng.normal(0.0, _SIGMA_PAIRS))
            own_O[border] = np.clip(moved, -1, space.num_pairs - 1)
    own_O.sort()
    _settle_piecewise(space, genes_R, own_O)
    ramp = (own_O[0] + 1, own_O[1] + 1)
    _mutate_genes(rng, genes_R, ramp, (space.units, space.scale), probability)


def _settle_piecewise(space: Space, genes_R, own_O) -> bool:
    """Writes the factors by the borders: 1 up to alpha, target / training length above beta.

    Returns:
      Whether the borders are in order.
    """
    alpha, beta = own_O
    genes_R[: alpha + 1] = space.units
    genes_R[beta + 1 :] = space.scale
    return bool(alpha <= beta)


def _encode_critical(space: Space, factors_R: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """Returns the critical genes nearest to `factors_R`, by the squares of the logs of factors."""
    log_factors_R, candidates = np.log(np.maximum(factors_R, 1.0)), []
    for pair in space.critical_pairs:
        genes_R = _round_to_grid(space, factors_R, (space.scale, space.highest))
        _settle_critical(space, genes_R, [pair])
        distance = np.sum((np.log(genes_R / space.units) - log_factors_R) ** 2)
        candidates.append((distance, pair, genes_R))
    _, pair, genes_R = min(candidates, key=lambda candidate: candidate[:2])
    return genes_R, [pair]


def _mutate_critical(space: Space, rng, genes_R, own_O, probability: float) -> None:
    """Mutation of LongRoPE2, Algorithm 2: from the critical pair on as in Algorithm 1 of LongRoPE,
    between target / training length and `highest`; below it NTK.

    The critical pair is a gene like the others, and takes any of its values.
    """
    if len(space.critical_pairs) > 1 and rng.random() < probability:
        own_O[0] = rng.choice(space.critical_pairs)
    _settle_critical(space, genes_R, own_O)
    searched = (int(own_O[0]), space.num_pairs)
    _mutate_genes(rng, genes_R, searched, (space.scale, space.highest), probability)
    _settle_critical(space, genes_R, own_O)


def _begin_critical(space: Space, rng, genes_R, own_O, probability: float) -> None:
    """Initial population of LongRoPE2, Algorithm 1: any critical pair, one factor from there on,
    uniform from target / training length to `highest`.
    """
    del probability
    own_O[0] = rng.choice(space.critical_pairs)
    genes_R[:] = rng.integers(space.scale, space.highest, endpoint=True)
    _settle_critical(space, genes_R, own_O)


def _settle_critical(space: Space, genes_R, own_O) -> bool:
    """Writes NTK below the critical pair, and at least target / training length from it on."""
    pair = int(own_O[0])
    genes_R[pair:] = np.maximum(genes_R[pair:], space.scale)
    below_R = rope.ntk_rcd(genes_R[pair] / space.units, pair, space.num_pairs)[:pair]
    genes_R[:pair] = np.rint(below_R * space.units)
    return True


def _round_to_grid(space: Space, factors_R, limits: tuple[int, int]) -> np.ndarray:
    """Returns factors in grid steps within `limits`, each raised to the largest before it."""
    genes_R = np.rint(np.asarray(factors_R, np.float64) * space.units)
    return np.maximum.accumulate(np.clip(genes_R, *limits)).astype(np.int32)


def _mutate_genes(
    rng, genes_R, pairs: tuple[int, int], limits: tuple[int, int], probability: float
) -> None:
    """Mutates in place the genes of pairs[0] <= pair < pairs[1].

    `limits` stand for the neighbours that the first and the last do not have.
    """
    begin, end = pairs
    is_chosen = rng.random(end - begin) < probability
    for pair in begin + np.flatnonzero(is_chosen):
        lower = genes_R[pair - 1] if pair > begin else limits[0]
        upper = genes_R[pair + 1] if pair + 1 < end else limits[1]
        genes_R[pair] = rng.integers(lower, upper, endpoint=True)


ENCODINGS = {
    "monotone": Encoding(_encode_monotone, _mutate_monotone, _settle_monotone, _mutate_monotone),
    "piecewise": Encoding(
        _encode_piecewise, _mutate_piecewise, _settle_piecewise, _mutate_piecewise
    ),
    "critical": Encoding(_encode_critical, _mutate_critical, _settle_critical, _begin_critical),
}
