"""Genomes of the search: factors as whole steps of a grid, and which of the listed numbers.

A genome is int32 [G]. Its first L * R genes are the factors in grid steps (hundredths, with the
paper's step of 0.01), layer after layer; one layer stands for all where they share their factors.
Then come the genes that a form has of its own, layer after layer, then the attention gene, an
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

from jaxrope.errors import InputError
from jaxrope.search import forms

_ATTENTION_STEP = 0.015  # of ln(attention factor)


@dataclasses.dataclass(frozen=True)
class Space:
    """What a genome may hold (LongRoPE, Table 4).

    Attributes:
      num_pairs: R.
      units: grid steps in 1.0.
      scale: target length / training length, in grid steps; at most `highest`.
      lowest, highest: the smallest and the largest factor gene.
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
    lowest: int
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
    return Space(num_pairs, units, scale, units, most, start_tokens, attention_factors, num_layers)


def attention_grid(lowest: float, largest: float) -> tuple[float, ...]:
    """Returns what the attention gene may choose: numbers about 1.5% apart."""
    count = math.ceil(math.log(largest / lowest) / _ATTENTION_STEP) + 1
    return tuple(np.geomspace(lowest, largest, count).tolist()) if count > 1 else (lowest,)


def limits(space: Space) -> forms.Limits:
    """Returns what factors may be."""
    ends = (gene / space.units for gene in (space.lowest, space.highest, space.scale))
    return forms.Limits(*ends, space.critical_pairs)


@dataclasses.dataclass(frozen=True)
class Encoding:
    """How the factors of one layer become genes, and how those vary: one line each in encodings.py.

    The genes of a layer are two arrays, factors [R] and own genes [O]; all but `encode` write them
    in place.

    Attributes:
      encode: (space, factors_R) -> (genes_R, own genes) nearest to them.
      mutate: (space, rng, genes_R, own_O, probability) -> None.
      settle: (space, genes_R, own_O) -> whether crossed genes are of this form; sets the factors
        that own genes imply.
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
      A genome; None where it is not of this form: its factors would not ascend, or its own genes
      contradict each other.
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
    return child_G


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
