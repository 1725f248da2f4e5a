"""Models that are known: the loss of a text is a bowl in ln(factors) and ln(attention factor).

The bottom differs from text to text as the Fisher information of its tokens says, and a text is
easier or harder by a number that all candidates share; both are drawn by the part of the text and
the number of the sample. Searches run on them with all of their code but the model's own.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np

from jaxrope import rope, search
from jaxrope.search import beside, evaluator, gradient, loop, meter, objective, run
from tests.search_config import tiny_default, write_model

PAIRS = 16
PARTS = {"search": 0, "first": 1, "last": 2, "after": 3}


@dataclasses.dataclass(frozen=True)
class Bowl:
    """A model: the bottom and the curvature of its loss, and the seed of its texts."""

    bottom: np.ndarray  # of ln(factors) and, last, of ln(attention factor)
    fisher: np.ndarray
    seed: int

    def losses(self, points_PK, samples) -> np.ndarray:
        """Returns the losses [P, W] of points on samples (part, number)."""
        texts = [self._text(sample) for sample in samples]
        bottoms = np.stack([bottom for bottom, _ in texts])
        off_PWK = points_PK[:, None] - bottoms
        return (off_PWK**2 @ self.fisher) / 2 + np.array([ease for _, ease in texts])

    def slopes(self, point_K, sample) -> np.ndarray:
        return self.fisher * (point_K - self._text(sample)[0])

    def _text(self, sample):
        rng = np.random.default_rng([self.seed, *sample])
        spread = 1 / np.sqrt(self.fisher * TOKENS * gradient.CORRELATION)
        return self.bottom + spread * rng.normal(size=PAIRS + 1), 3 + 0.3 * rng.normal()


TOKENS = 512


def random_bowl(seed: int, away: float) -> Bowl:
    """Returns a model whose best factors are YaRN's or NTK's, with other borders, moved by about
    `away` in ln; 0: a known method is the best there is, or nearly."""
    rng = np.random.default_rng([99, seed])
    low, high = rng.integers(1, 6), rng.integers(8, 14)
    known = [rope.ramp_factors(low, high, PAIRS, 8.0), 8.0 ** (np.arange(PAIRS) / (PAIRS - 1))]
    smooth = np.convolve(rng.normal(0, 1, PAIRS + 4), np.ones(5) / 5**0.5, mode="valid")
    factors = np.log(known[seed % 2]) + away * smooth
    bottom = np.append(factors, rng.uniform(0, 0.2))
    return Bowl(bottom, np.append(np.exp(rng.uniform(-5, -1, PAIRS)), 1.0), seed)


class Rows:
    """A journal in memory."""

    def __init__(self):
        self.rows, self.path, self.notes = [], "journal.jsonl", []

    def append(self, rows):
        self.rows += rows


class Number(float):
    """What jax gives back, ready at once."""

    def is_ready(self):
        return True


def point(r: rope.Rope) -> np.ndarray:
    return np.log(np.append(np.asarray(r.factors_R, float), float(r.attention_factor)))


class Stand:
    """Runs searches of bowls: `prepare` once, `phases` for each model."""

    def __init__(self, folder, monkeypatch, **changes):
        self.bowl = None
        monkeypatch.setitem(objective.OBJECTIVES, "perplexity", self._objective)
        monkeypatch.setattr(evaluator, "place", lambda judge, mesh: list(judge.samples))
        monkeypatch.setattr(evaluator, "evaluate", self._evaluate)
        monkeypatch.setattr(evaluator, "gradient_fns", lambda *_: (self._gradient,))
        monkeypatch.setattr(beside, "kinds", lambda problem: [])
        config = tiny_default(folder)
        write_model(folder / "wide", head_dim=2 * PAIRS, max_position_embeddings=64)
        config.model.path, config.target_len = str(folder / "wide"), 512
        config.search.gradient.update(steps=18, ramps=10)
        config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
        self.problem = search.prepare(config)

    def phases(self, bowl: Bowl, save_fn=lambda pool: None):
        """Returns (verdict, rows of the journal) of a search of this model."""
        self.bowl, record = bowl, Rows()
        samples = list(self.problem.objective.samples)
        made = evaluator.Evaluator((None,), None, samples, num_groups=1, per_device=8)
        told = meter.Meter(dict.fromkeys(MANY, 10**9))
        bench = loop.Bench(made, self.problem.objective, record, told)
        found, _ = run._phases(self.problem, bench, save_fn)
        return found, record.rows

    def _objective(self, task, section) -> objective.Objective:
        part = task.part if task.skip else "search"
        numbers = range(task.skip, task.skip + section.num_samples)
        return objective.Objective(
            loss_fn=None,
            samples=np.array([(PARTS[part], number) for number in numbers]),
            lay_out=None,
            fitness_fn=np.exp,
            unit="perplexity",
            sample_tokens=TOKENS,
            scored_tokens=TOKENS,
        )

    def _evaluate(self, made, ropes):
        return self.bowl.losses(np.stack([point(r) for r in ropes]), made.samples)

    def _gradient(self, params, r, sample):
        here = point(r)
        slopes = self.bowl.slopes(here, sample) / np.exp(here)
        loss = self.bowl.losses(here[None], [sample])[0, 0]
        return Number(loss), jnp.asarray(slopes[:-1]), jnp.asarray(slopes[-1])


MANY = ("baselines", "ramp", "descent", "evolution", "judging", "beside")


def after(bowl: Bowl, buckets, count: int = 16) -> np.ndarray:
    """Returns the losses [P, count] of buckets on text drawn after the judging."""
    points = [np.log([*bucket.factors, bucket.attention_factor]) for bucket in buckets]
    return bowl.losses(np.stack(points), [(PARTS["after"], number) for number in range(count)])
