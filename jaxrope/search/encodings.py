"""The encodings of a search, one line each in ENCODINGS: what the factors of a layer may be.

Letters: R rotary pairs, O own genes of a layer.
"""

import numpy as np

from jaxrope import rope
from jaxrope.search.genome import Encoding, Space

_SIGMA_PAIRS = 2.0  # of the Gaussian step of alpha and beta (microsoft/LongRoPE, dim_piece_mono)


def encode_monotone(space: Space, factors_R: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """Returns the genes nearest to `factors_R`.

    Rounded to the grid, clipped to [1, highest], each raised to the largest before it.
    """
    return round_to_grid(space, factors_R, (space.units, space.highest)), []


def mutate_monotone(space: Space, rng, genes_R, own_O, probability: float) -> None:
    """Mutation of LongRoPE, Algorithm 1.

    Each gene with `probability`, uniform on the grid between its neighbours. Genes change from left
    to right, so the left neighbour is already mutated and the right one is the old one: the factors
    ascend by construction.
    """
    del own_O
    mutate_genes(rng, genes_R, (0, space.num_pairs), (space.units, space.highest), probability)


def settle_monotone(space: Space, genes_R, own_O) -> bool:
    """Returns True: there are no genes but the factors."""
    del space, genes_R, own_O
    return True


def encode_piecewise(space: Space, factors_R: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """Returns the piecewise genes of `factors_R`.

    Alpha is the last pair with factor 1, beta the last one below target / training length.
    """
    genes_R = round_to_grid(space, factors_R, (space.units, space.scale))
    alpha = int(np.sum(genes_R == space.units)) - 1
    beta = max(alpha, int(np.sum(genes_R < space.scale)) - 1)
    return genes_R, [alpha, beta]


def mutate_piecewise(space: Space, rng, genes_R, own_O, probability: float) -> None:
    """Mutation of microsoft/LongRoPE's dim_piece_mono.

    The borders of the ramp take a Gaussian step, the genes of the ramp mutate as in Algorithm 1.
    The authors never change the last two entries of their array; here every gene can change.
    """
    for border in (0, 1):
        if rng.random() < probability:
            moved = own_O[border] + round(rng.normal(0.0, _SIGMA_PAIRS))
            own_O[border] = np.clip(moved, -1, space.num_pairs - 1)
    own_O.sort()
    settle_piecewise(space, genes_R, own_O)
    ramp = (own_O[0] + 1, own_O[1] + 1)
    mutate_genes(rng, genes_R, ramp, (space.units, space.scale), probability)


def settle_piecewise(space: Space, genes_R, own_O) -> bool:
    """Writes the factors by the borders: 1 up to alpha, target / training length above beta.

    Returns:
      Whether the borders are in order.
    """
    alpha, beta = own_O
    genes_R[: alpha + 1] = space.units
    genes_R[beta + 1 :] = space.scale
    return bool(alpha <= beta)


def encode_critical(space: Space, factors_R: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """Returns the critical genes nearest to `factors_R`, by the squares of the logs of factors."""
    log_factors_R, candidates = np.log(np.maximum(factors_R, 1.0)), []
    for pair in space.critical_pairs:
        genes_R = round_to_grid(space, factors_R, (space.scale, space.highest))
        settle_critical(space, genes_R, [pair])
        distance = np.sum((np.log(genes_R / space.units) - log_factors_R) ** 2)
        candidates.append((distance, pair, genes_R))
    _, pair, genes_R = min(candidates, key=lambda candidate: candidate[:2])
    return genes_R, [pair]


def mutate_critical(space: Space, rng, genes_R, own_O, probability: float) -> None:
    """Mutation of LongRoPE2, Algorithm 2: from the critical pair on as in Algorithm 1 of LongRoPE,
    between target / training length and `highest`; below it NTK.

    The critical pair is a gene like the others, and takes any of its values.
    """
    if len(space.critical_pairs) > 1 and rng.random() < probability:
        own_O[0] = rng.choice(space.critical_pairs)
    settle_critical(space, genes_R, own_O)
    searched = (int(own_O[0]), space.num_pairs)
    mutate_genes(rng, genes_R, searched, (space.scale, space.highest), probability)
    settle_critical(space, genes_R, own_O)


def begin_critical(space: Space, rng, genes_R, own_O, probability: float) -> None:
    """Initial population of LongRoPE2, Algorithm 1: any critical pair, one factor from there on,
    uniform from target / training length to `highest`.
    """
    del probability
    own_O[0] = rng.choice(space.critical_pairs)
    genes_R[:] = rng.integers(space.scale, space.highest, endpoint=True)
    settle_critical(space, genes_R, own_O)


def settle_critical(space: Space, genes_R, own_O) -> bool:
    """Writes NTK below the critical pair, and at least target / training length from it on."""
    pair = int(own_O[0])
    genes_R[pair:] = np.maximum(genes_R[pair:], space.scale)
    below_R = rope.ntk_rcd(genes_R[pair] / space.units, pair, space.num_pairs)[:pair]
    genes_R[:pair] = np.rint(below_R * space.units)
    return True


def round_to_grid(space: Space, factors_R, limits: tuple[int, int]) -> np.ndarray:
    """Returns factors in grid steps within `limits`, each raised to the largest before it."""
    genes_R = np.rint(np.asarray(factors_R, np.float64) * space.units)
    return np.maximum.accumulate(np.clip(genes_R, *limits)).astype(np.int32)


def mutate_genes(
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
    "monotone": Encoding(encode_monotone, mutate_monotone, settle_monotone, mutate_monotone),
    "piecewise": Encoding(encode_piecewise, mutate_piecewise, settle_piecewise, mutate_piecewise),
    "critical": Encoding(encode_critical, mutate_critical, settle_critical, begin_critical),
}
