"""Genes by form: how the factors of one layer become genes, and how those vary.

Letters: R rotary pairs, O own genes of a layer.
"""

import math

import numpy as np

from jaxrope import rope
from jaxrope.search import forms
from jaxrope.search.genome import Encoding, Space, limits

_SPREAD = 0.2  # of ln(factor), for the forms in which factors do not hem each other in
_SIGMA_PAIRS = 2.0  # of the Gaussian step of alpha and beta (microsoft/LongRoPE, dim_piece_mono)


def _encode_monotone(space: Space, factors_R: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """Returns the genes nearest to `factors_R`.

    Rounded to the grid, clipped to [lowest, highest], each raised to the largest before it.
    """
    return _round_to_grid(space, factors_R, (space.lowest, space.highest)), []


def _mutate_monotone(space: Space, rng, genes_R, own_O, probability: float) -> None:
    """Mutation of LongRoPE, Algorithm 1.

    Each gene with `probability`, uniform on the grid between its neighbours. Genes change from left
    to right, so the left neighbour is already mutated and the right one is the old one: the factors
    ascend by construction.
    """
    del own_O
    _mutate_genes(rng, genes_R, (0, space.num_pairs), (space.lowest, space.highest), probability)


def _settle_monotone(space: Space, genes_R, own_O) -> bool:
    del space, own_O
    return _ascends(genes_R)


def _ascends(genes_R: np.ndarray) -> bool:
    return bool(np.all(np.diff(genes_R) >= 0))


def _encode_free(space: Space, factors_R: np.ndarray) -> tuple[np.ndarray, list[int]]:
    genes_R = np.rint(np.asarray(factors_R, np.float64) * space.units)
    return np.clip(genes_R, space.lowest, space.highest).astype(np.int32), []


def _mutate_free(space: Space, rng, genes_R, own_O, probability: float) -> None:
    """Each gene with `probability`, by a factor of exp(+-_SPREAD) at most."""
    del own_O
    for pair in np.flatnonzero(rng.random(len(genes_R)) < probability):
        genes_R[pair] = _nearby(space, rng, genes_R[pair])


def _nearby(space: Space, rng, gene: int) -> int:
    moved = round(gene * math.exp(rng.uniform(-_SPREAD, _SPREAD)))
    return int(np.clip(moved, space.lowest, space.highest))


def _settle_free(space: Space, genes_R, own_O) -> bool:
    del space, genes_R, own_O
    return True


def _encode_yarn(space: Space, factors_R: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """Returns the genes of the nearest ramp: its borders, and the factor beyond them."""
    shape = forms.of("yarn", limits(space), factors_R)
    (number,) = shape.numbers_fn(np.log(np.asarray(factors_R, np.float64)))
    factor = math.exp(min(number, shape.highest))
    own = [*shape.constants["borders"], round(factor * space.units)]
    own[2] = int(np.clip(own[2], space.scale, max(space.scale, space.highest)))
    genes_R = np.zeros(space.num_pairs, np.int32)
    _settle_yarn(space, genes_R, own)
    return genes_R, own


def _mutate_yarn(space: Space, rng, genes_R, own_O, probability: float) -> None:
    """Borders take a Gaussian step, as in dim_piece_mono; the factor any value."""
    for border in (0, 1):
        if rng.random() < probability:
            own_O[border] += round(rng.normal(0.0, _SIGMA_PAIRS))
    own_O[0] = np.clip(own_O[0], 0, space.num_pairs - 2)
    own_O[1] = np.clip(own_O[1], own_O[0] + 1, space.num_pairs)
    if rng.random() < probability:
        own_O[2] = rng.integers(space.scale, max(space.scale, space.highest), endpoint=True)
    _settle_yarn(space, genes_R, own_O)


def _settle_yarn(space: Space, genes_R, own_O) -> bool:
    low, high, factor = (int(gene) for gene in own_O)
    ramp_R = rope.ramp_factors(low, high, space.num_pairs, factor / space.units)
    genes_R[:] = np.rint(ramp_R * space.units)
    return low < high


def _encode_ntk(space: Space, factors_R: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """Returns the genes of the nearest base; its own gene is the factor of the last pair."""
    nearest_R = forms.nearest("ntk", limits(space), factors_R)
    own = [round(float(nearest_R[-1]) * space.units)]
    genes_R = np.zeros(space.num_pairs, np.int32)
    _settle_ntk(space, genes_R, own)
    return genes_R, own


def _mutate_ntk(space: Space, rng, genes_R, own_O, probability: float) -> None:
    if rng.random() < probability:
        own_O[0] = _nearby(space, rng, own_O[0])
    _settle_ntk(space, genes_R, own_O)


def _settle_ntk(space: Space, genes_R, own_O) -> bool:
    last = len(genes_R) - 1
    genes_R[:] = np.rint(space.units * (own_O[0] / space.units) ** (np.arange(last + 1) / last))
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
    return bool(alpha <= beta) and _ascends(genes_R)


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
    return _ascends(genes_R)


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
    "free": Encoding(_encode_free, _mutate_free, _settle_free, _mutate_free),
    "yarn": Encoding(_encode_yarn, _mutate_yarn, _settle_yarn, _mutate_yarn),
    "ntk": Encoding(_encode_ntk, _mutate_ntk, _settle_ntk, _mutate_ntk),
    "critical": Encoding(_encode_critical, _mutate_critical, _settle_critical, _begin_critical),
}
