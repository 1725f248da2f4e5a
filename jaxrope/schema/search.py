"""How factors are searched: the evolution, descents, races, pre-filters, objectives."""

import dataclasses
import math
from typing import Any

from jaxrope.errors import InputError
from jaxrope.schema.model import MOST_KEYS, PLACES
from jaxrope.schema.rules import (
    Choice,
    Fixed,
    Many,
    NameOrNumber,
    Number,
    One,
    Section,
    Select,
    Switch,
    Text,
    Whole,
    field,
)

METHODS = ("evolution", "gradient", "hybrid")
FORMS = ("monotone", "free", "yarn", "ntk", "piecewise", "critical")
FREE = "free"  # the attention factor is searched like the factors
LAWS = (FREE, "su", "yarn", "none", "rope")


class _Objective(Section):
    PATH = "search.objective"


_SAMPLES = Whole(1, 2**20)
_OFFSET = Whole(0, unit="tokens")
_KEYS = Whole(1, MOST_KEYS, unit="needles")
_PLACE = Choice(("start", "spread"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Perplexity(_Objective):
    """Perplexity of text."""

    name: str = field(Choice(("perplexity",)))
    num_samples: int = field(_SAMPLES)
    offset_tokens: int = field(_OFFSET)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Needle(_Objective):
    """Perplexity of answers."""

    name: str = field(Choice(("needle",)))
    num_samples: int = field(_SAMPLES)
    num_keys: int = field(_KEYS)
    place: str = field(_PLACE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mix(_Objective):
    """Several of them, weighted."""

    name: str = field(Choice(("mix",)))
    num_samples: int = field(_SAMPLES)
    text_weight: float = field(Number(least=0))
    needle_weight: float = field(Number(least=0))
    mass_weight: float = field(Number(least=0), default=0.0)
    shift_weight: float = field(Number(least=0), default=0.0)
    short_weight: float = field(Number(least=0), default=0.0)
    offset_tokens: int = field(_OFFSET)
    num_keys: int = field(_KEYS)
    place: str = field(_PLACE)

    def check(self) -> None:
        """Each kind has as many samples."""
        names = ("text", "needle", "mass", "shift", "short")
        kinds = sum(getattr(self, f"{name}_weight") > 0 for name in names)
        self.require(kinds > 1, "text_weight", "have another weight beside it above 0 for 'mix'")
        rule = f"be a multiple of {kinds} for 'mix': each kind of sample has as many"
        self.require(self.num_samples % kinds == 0, "num_samples", rule)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OfHeads(_Objective):
    """Attention of heads."""

    name: str = field(Choice(("entropy_shift", "needle_mass")))
    num_samples: int = field(_SAMPLES)
    num_keys: int = field(_KEYS)
    place: str = field(_PLACE)
    needle_weight: float = field(Number(least=0))
    heads: tuple = field(Many(Fixed((Whole(0), Whole(0)), "(layer, head)"), distinct=True))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pattern(_Objective):
    """Attention by distance."""

    name: str = field(Choice(("pattern",)))
    num_samples: int = field(_SAMPLES)
    num_keys: int = field(_KEYS)
    place: str = field(_PLACE)
    needle_weight: float = field(Number(least=0))
    view: str = field(Choice(("below", "relative")))
    num_queries: int = field(Whole(1))
    num_bins: int = field(Whole(2))


OBJECTIVE = Select(
    "name",
    {
        "perplexity": Perplexity,
        "needle": Needle,
        "mix": Mix,
        "entropy_shift": OfHeads,
        "pattern": Pattern,
        "needle_mass": OfHeads,
    },
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Algorithm(Section):
    """The evolution (LongRoPE, Algorithm 1)."""

    PATH = "search.algorithm"

    population: int = field(Whole(1, 2**20))
    mutations: int = field(Whole(0, 2**20))
    crossovers: int = field(Whole(0, 2**20))
    parents: int = field(Whole(1, 2**20))
    iterations: int = field(Whole(1, 2**20))
    mutation_probability: float = field(Number(above=0, most=1))
    crossover_tries: int = field(Whole(0, 2**20))
    step: float = field(Number(least=1e-6, most=1))
    bound: float = field(Number(above=0))
    halve_above: int = field(Whole(0, unit="tokens"))

    def check(self) -> None:
        """Parents are of the population, generations have children, 1 is on the grid."""
        if self.parents > self.population:
            raise InputError(
                f"search.algorithm.parents must be at most the population, got {self.parents} of "
                f"{self.population}. Lower parents or raise population."
            )
        if self.iterations > 1 and self.mutations + self.crossovers == 0:
            raise InputError(
                "search.algorithm.mutations and crossovers are both 0: no generation after the "
                "first would be new. Raise one of them."
            )
        on_grid = math.isclose(round(1 / self.step) * self.step, 1.0)
        self.require(on_grid, "step", "divide 1 into whole steps", "Use 0.01 or 0.05.")

    def generations(self) -> tuple[int, ...]:
        """New candidates in each generation."""
        return (self.population, *[self.mutations + self.crossovers] * (self.iterations - 1))

    def num_evaluations(self) -> int:
        """Candidates in a whole search: 64 + 39 * 32 = 1,312 with the paper's constants."""
        return sum(self.generations())

    def halved(self, target_len: int) -> "Algorithm":
        """Returns the evolution for `target_len` tokens: above `halve_above` P, N1, N2 and k are
        halved (LongRoPE, section 4.1).
        """
        if not 0 < self.halve_above < target_len:
            return self
        names = ("population", "mutations", "crossovers", "parents")
        halves = {name: getattr(self, name) // 2 for name in names}
        least = {"population": 1, "parents": 1}
        return dataclasses.replace(self, **{n: max(v, least.get(n, 0)) for n, v in halves.items()})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gradient(Section):
    """Descents along the gradient."""

    PATH = "search.gradient"

    steps: int = field(Whole(1))
    batch: int = field(Whole(1, unit="samples"))
    starts: int = field(Whole(1))
    ramps: int = field(Whole(0))
    rate: float = field(Number(above=0))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judge(Section):
    """The last word on what a search found."""

    PATH = "search.judge"

    num_samples: int = field(Whole(0, 2**20))
    finalists: int = field(Whole(1, 2**10))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Racing(Section):
    """Whether candidates that lose on few samples are spared the rest."""

    PATH = "search.racing"

    first: int = field(Whole(2, also=0, unit="samples"))
    risk: float = field(Number(above=0, below=1))


class _Prefilter(Section):
    PATH = "search.prefilter"


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoPrefilter(_Prefilter):
    """Every child is evaluated."""

    name: str = field(Choice(("none",)))
    oversample = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Oversampled(_Prefilter):
    """The best of several children by a formula is evaluated."""

    name: str = field(Choice(("decay", "divergence")))
    oversample: int = field(Whole(2, 2**20))


PREFILTER = Select("name", {"none": NoPrefilter, "decay": Oversampled, "divergence": Oversampled})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search(Section):
    """The search for factors."""

    PATH = "search"

    method: str = field(Choice(METHODS))
    form: str = field(Choice(FORMS))
    judge: Judge = field(One(Judge))
    gradient: Gradient = field(One(Gradient))
    racing: Racing = field(One(Racing))
    training_len: int = field(Whole(0, unit="tokens"))
    algorithm: Algorithm = field(One(Algorithm))
    critical_pairs: tuple = field(Fixed((Whole(0), Whole(0)), "(lowest, highest)"))
    start_tokens: tuple = field(Many(Whole(0, unit="tokens"), least=1, ascending=True))
    attention_factor: str | float = field(NameOrNumber(Choice(LAWS), Number(above=0)))
    objective: Any = field(OBJECTIVE)
    lowest: float = field(Number(above=0, most=1))
    highest: float = field(Number(least=0))
    multiply: bool = field(Switch())
    seeds: tuple = field(Many(Text(PLACES, least=1)))
    per_layer: bool = field(Switch())
    prefilter: Any = field(PREFILTER)
    batch_size: int = field(Whole(0, 2**20))
    memory_gb: float = field(Number(least=0, unit="GiB"))
    compare: bool = field(Switch())

    def check(self) -> None:
        """What a method, a race and a second search need."""
        if self.highest and self.highest <= 1:
            raise InputError(
                "search.highest must be 0 (search.algorithm.bound * target_len / training_len) or "
                f"above 1, got {self.highest:g}."
            )
        if self.multiply and self.form == "critical":
            raise InputError(
                "search.multiply: the form 'critical' states all factors, and so multiplies none. "
                "Set search.form to monotone or piecewise, or multiply to False."
            )
        if self.racing.first >= self.objective.num_samples:
            raise InputError(
                f"search.racing.first must be below the {self.objective.num_samples} samples of a "
                f"candidate (search.objective.num_samples), got {self.racing.first}. Use 0 for no "
                "race."
            )
        if self.method != "evolution" and not self.compare:
            raise InputError(
                f"search.compare must be True for method '{self.method}': descents start from the "
                "best of the methods compared."
            )
