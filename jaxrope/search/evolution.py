"""Evolution of genomes (LongRoPE, Algorithm 1) as three pure functions: `init`, `ask`, `tell`.

The state is one immutable pytree of numpy arrays and holds no random stream: every generation draws
from a Philox stream of (seed, generation). A state is therefore a function of the settings, the
seeds and the fitness values so far, and a killed search comes back bit for bit from its journal
alone.

Letters: P candidates of one generation, K parents, E candidates evaluated so far, S seeds, G genes.
"""

import dataclasses
from collections.abc import Callable, Iterable

import jax
import numpy as np

from jaxrope import schema
from jaxrope.errors import InputError
from jaxrope.search import encodings
from jaxrope.search import genome as genomes
from jaxrope.search import prefilter as prefilters
from jaxrope.search.prefilter import Prefilter

_MUTATION_TRIES = 100  # for a new genome; of more than 1e40 a whole search sees 1,312


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SearchState:
    """The state of a search.

    Attributes:
      generation: number of generations evaluated.
      population_PG: the candidates to evaluate next; none of them is in `seen_EG`, and no two are
        alike.
      parents_KG: the best candidates so far, best first.
      parent_fitness_K: theirs, float64.
      seen_EG: every candidate evaluated, in order.
      seen_fitness_E: theirs, float64; lower is better, +inf: failed.
      seed, settings, form, space, prefilter: arguments of `init`.
    """

    generation: int
    population_PG: np.ndarray
    parents_KG: np.ndarray
    parent_fitness_K: np.ndarray
    seen_EG: np.ndarray
    seen_fitness_E: np.ndarray
    seed: int = dataclasses.field(metadata={"static": True})
    settings: schema.search.Algorithm = dataclasses.field(metadata={"static": True})
    form: str = dataclasses.field(metadata={"static": True})
    space: genomes.Space = dataclasses.field(metadata={"static": True})
    prefilter: Prefilter = dataclasses.field(metadata={"static": True})


def init(
    settings: schema.search.Algorithm,
    form: str,
    space: genomes.Space,
    seeds_SG: np.ndarray,
    seed: int,
    prefilter: Prefilter = prefilters.NONE,
) -> SearchState:
    """Returns the state before the first generation (Algorithm 1, line 1).

    Its population is the seeds, then genomes by the encoding's `begin`, from each seed in turn.

    Raises:
      InputError: the population cannot hold the seeds.
    """
    first = distinct(space, seeds_SG)
    check_population(settings, len(first))
    breed = _Breed(settings, form, space, prefilter, _stream(seed, 0), first)
    children = [
        breed.child(lambda i=i: breed.beginning(first[i % len(first)]))
        for i in range(settings.population - len(first))
    ]
    empty_EG = np.zeros((0, seeds_SG.shape[1]), np.int32)
    return SearchState(
        generation=0,
        population_PG=_rows([*first, *children], empty_EG),
        parents_KG=empty_EG,
        parent_fitness_K=np.zeros(0),
        seen_EG=empty_EG,
        seen_fitness_E=np.zeros(0),
        seed=seed,
        settings=settings,
        form=form,
        space=space,
        prefilter=prefilter,
    )


def check_population(settings: schema.search.Algorithm, num_seeds: int, num_ends: int = 0) -> None:
    """Refuses a population that cannot hold the seeds and the ends of descents."""
    if num_seeds + num_ends > settings.population:
        ends = f" and {num_ends} end{'s' * (num_ends > 1)} of descents" if num_ends else ""
        raise InputError(
            f"search.algorithm.population must hold the {num_seeds} seeds{ends}, got "
            f"{settings.population} (halved above halve_above). Raise it."
        )


def distinct(space: genomes.Space, genomes_SG: np.ndarray) -> list[np.ndarray]:
    """Returns the genomes that the model tells apart, each once, in order."""
    first: dict[bytes, np.ndarray] = {}
    for genome in genomes_SG:
        first.setdefault(genomes.key(space, genome), genome)
    return list(first.values())


def ask(state: SearchState) -> np.ndarray:
    """Returns the candidates to evaluate next, int32 [P, G]."""
    return state.population_PG


def tell(state: SearchState, fitness_P: np.ndarray) -> SearchState:
    """Returns the state after a generation (Algorithm 1, lines 4 to 8).

    The k best of all so far are the parents of the next generation.
    """
    seen_EG = np.concatenate([state.seen_EG, state.population_PG])
    seen_fitness_E = np.concatenate([state.seen_fitness_E, clean_fitness(fitness_P)])
    best_K = np.argsort(seen_fitness_E, kind="stable")[: state.settings.parents]
    next_state = dataclasses.replace(
        state,
        generation=state.generation + 1,
        population_PG=seen_EG[:0],
        parents_KG=seen_EG[best_K],
        parent_fitness_K=seen_fitness_E[best_K],
        seen_EG=seen_EG,
        seen_fitness_E=seen_fitness_E,
    )
    all_failed = not np.isfinite(next_state.parent_fitness_K[0])
    if next_state.generation == state.settings.iterations or all_failed:
        return next_state
    return dataclasses.replace(next_state, population_PG=_next_population(next_state))


def clean_fitness(fitness_P: np.ndarray) -> np.ndarray:
    """Returns `fitness_P` as float64 with +inf, which means failed, for what is not a number."""
    fitness_P = np.asarray(fitness_P, np.float64)
    return np.where(np.isfinite(fitness_P), fitness_P, np.inf)


def stop_reason(state: SearchState) -> str | None:
    """Returns why the search is over, or None while candidates remain to be evaluated."""
    if state.generation >= state.settings.iterations:
        return f"all {state.settings.iterations} generations were evaluated"
    if state.generation and not np.isfinite(state.parent_fitness_K[0]):
        return f"all {len(state.seen_EG)} candidates failed"
    if not len(state.population_PG):
        return f"no new candidate was found in {_MUTATION_TRIES} mutations"
    return None


def best(state: SearchState) -> tuple[np.ndarray, float]:
    """Returns the best genome so far and its fitness; of equals, the one evaluated first."""
    return state.parents_KG[0], float(state.parent_fitness_K[0])


def decode(state: SearchState, genome_G: np.ndarray) -> genomes.Choice:
    """Returns the choice that a genome encodes."""
    return genomes.decode(state.space, genome_G)


class _Breed:
    """Children of one generation; `used_keys` are those of genomes that may not come again."""

    def __init__(
        self,
        settings: schema.search.Algorithm,
        form: str,
        space: genomes.Space,
        prefilter: Prefilter,
        rng: np.random.Generator,
        genomes_EG: Iterable[np.ndarray],
    ):
        self.settings, self.space, self.prefilter, self.rng = settings, space, prefilter, rng
        self.used_keys = {genomes.key(space, genome_G) for genome_G in genomes_EG}
        self.encoding = encodings.ENCODINGS[form]

    def child(self, breed_fn: Callable[[], np.ndarray | None]) -> np.ndarray | None:
        """Returns the best of `oversample` children by the pre-filter; None if all were None."""
        bred = [breed_fn() for _ in range(self.prefilter.oversample)]
        children = [child_G for child_G in bred if child_G is not None]
        if not children:
            return None
        best = 0
        if len(children) > 1:
            choices = [genomes.decode(self.space, child_G) for child_G in children]
            factors = np.stack([choice.factors for choice in choices])
            best = int(np.argmin(prefilters.scores(self.prefilter, factors)))
        self.used_keys.add(genomes.key(self.space, children[best]))
        return children[best]

    def beginning(self, seed_G: np.ndarray) -> np.ndarray | None:
        return self._varied(genomes.begin, seed_G)

    def mutation(self, parent_G: np.ndarray) -> np.ndarray | None:
        return self._varied(genomes.mutate, parent_G)

    def crossover(self, first_G: np.ndarray, second_G: np.ndarray) -> np.ndarray | None:
        for _ in range(self.settings.crossover_tries):
            child_G = genomes.cross(self.encoding, self.space, self.rng, first_G, second_G)
            if child_G is not None and self._is_new(child_G):
                return child_G
        return self.mutation(first_G)

    def _varied(self, vary_fn, parent_G: np.ndarray) -> np.ndarray | None:
        probability = self.settings.mutation_probability
        for _ in range(_MUTATION_TRIES):
            child_G = vary_fn(self.encoding, self.space, self.rng, parent_G, probability)
            if self._is_new(child_G):
                return child_G
        return None

    def _is_new(self, child_G: np.ndarray) -> bool:
        return genomes.key(self.space, child_G) not in self.used_keys


def _next_population(state: SearchState) -> np.ndarray:
    """N1 mutations of random parents, then N2 crossovers of two different ones if there are."""
    settings, rng = state.settings, _stream(state.seed, state.generation)
    breed = _Breed(settings, state.form, state.space, state.prefilter, rng, state.seen_EG)
    # A failed candidate has nothing to pass on.
    num_parents = int(np.sum(np.isfinite(state.parent_fitness_K)))

    def mutation():
        return breed.mutation(state.parents_KG[rng.integers(num_parents)])

    def crossover():
        pair = rng.choice(num_parents, size=2, replace=num_parents < 2)
        return breed.crossover(*state.parents_KG[pair])

    children = [breed.child(mutation) for _ in range(settings.mutations)]
    children += [breed.child(crossover) for _ in range(settings.crossovers)]
    return _rows(children, state.seen_EG)


def _rows(children: list[np.ndarray | None], like_EG: np.ndarray) -> np.ndarray:
    bred = [child for child in children if child is not None]
    return np.stack(bred).astype(np.int32) if bred else like_EG[:0]


def _stream(seed: int, generation: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, generation])))
