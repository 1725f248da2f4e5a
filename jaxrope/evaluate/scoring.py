"""Where evaluators meet the device: rows of tokens in, the cost of every token out.

The arguments of an evaluator (`EvalModel`, `Bench`) and its output (`Result`) are defined here.
One function is compiled per shape of a batch. The rope is an argument of it, so that all methods
share the compilation, and logits exist for `chunk` positions at a time only.

Legend: B rows of a batch, T tokens a row predicts, W windows or trials.
"""

import dataclasses
import functools
import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from jaxrope import decoder
from jaxrope.decoder import losses
from jaxrope.errors import InputError
from jaxrope.evaluate.journal import Journal, Place, row_digest
from jaxrope.mesh import sharding
from jaxrope.rope import Rope
from jaxrope.schema.evaluation import Evaluation

CHUNK = 512  # positions whose logits exist at one time: 4096 words take 8 MiB a row


def ignore(tokens: int) -> None:
    """Does not report progress."""


@dataclasses.dataclass(frozen=True)
class EvalModel:
    """A model and a rope, as an evaluator sees them.

    Attributes:
      config: a decoder.DecoderConfig.
      params: its parameters; on the way through training, the current ones.
      rope_fn: gives the Rope for a length in tokens; a RopeFn, or any function like it.
      tokenizer: the model's.
      settings: a decoder.ForwardSettings; over its mesh the params lie and rows are spread.
      label: the row's name in tables.
      window: tokens of the window that slides over a longer text; 0 = one whole window.
      identity: digest of all but the factors that its answers depend on; "" = nothing is stored in
        a journal.
    """

    config: Any
    params: Any
    rope_fn: Callable[[int], Rope]
    tokenizer: Any
    settings: Any
    label: str
    window: int = 0
    identity: str = ""


@dataclasses.dataclass(frozen=True)
class Bench:
    """What all evaluators of a run share: what is asked for, and what the run adds to it.

    Attributes:
      options: config.eval.
      seed: of everything that is drawn.
      documents: held-out text as tokens, or None when no suite needs any.
      tokenizer_dir: where the tokenizer lies, for tasks of lm-eval; "" = unknown.
      tick: called with the number of tokens of each finished batch.
      skip: called with the number of tokens that need not be read, since the journal has them.
      journal: answers of earlier runs, and where new ones are stored.
      cache: questions built for one row and reused by the next (answering.questions), and the
        contents of their files ("files").
    """

    options: Evaluation
    seed: int
    documents: Any = None
    tokenizer_dir: str = ""
    tick: Callable[[int], None] = ignore
    skip: Callable[[int], None] = ignore
    journal: Journal = dataclasses.field(default_factory=Journal)
    cache: dict = dataclasses.field(default_factory=dict, compare=False, repr=False)

    @property
    def resamples(self) -> dict[str, int]:
        """The arguments of a bootstrap."""
        return {"num_samples": self.options.bootstrap_samples, "seed": self.seed}

    def text(self, setting: str) -> Any:
        """Returns the documents.

        Args:
          setting: what asks for them, for the message.

        Raises:
          InputError: there are none.
        """
        if self.documents is None:
            raise InputError(f"{setting}, which needs text: set data.eval_files, or data.held_out.")
        return self.documents


@dataclasses.dataclass(frozen=True)
class Result:
    """What one evaluator measured of one row at one length.

    Attributes:
      suite: the evaluator's name.
      label: the row's.
      length: tokens.
      metrics: numbers by name; the first one is the score that tables show, and `low` and `high`
        are the ends of its 95% interval.
      items: per window or trial, lists of plain numbers, for the record.
      nll_WT: every scored token's NLL in nats, float32, or None.
      fingerprint: of the tokens scored: equal for two rows that answered the same items.
      tokens: forward tokens it took.
      seconds: wall time it took, the first use of a shape with its compilation.
      chance: the score of a model that answers at random, or continues the text and
        ignores the question; None: not defined.
      columns: names in `items` whose cells are drawn against length, such as ("depth",).
      weights: digest of the weights: equal for two rows of one model, whatever their factors.
      original_len: tokens that model was trained on; None: unknown.
    """

    suite: str
    label: str
    length: int
    metrics: dict[str, float]
    items: dict[str, list]
    nll_WT: np.ndarray | None
    fingerprint: str
    tokens: int
    seconds: float
    chance: float | None = None
    columns: tuple[str, ...] = ()
    weights: str = ""
    original_len: int | None = None


@functools.partial(jax.jit, static_argnames=("config", "settings", "chunk"))
def score_batch(params, rope, rows, *, config, settings, chunk):
    """Returns (nll_BT, hit_BT) of the targets of `rows` (decoder.lay_out), in their order."""

    def local(params, rope, rows):
        x_BTD = decoder.hidden(
            config,
            params,
            rows["tokens_BT"],
            rope,
            positions_BT=rows["positions_BT"],
            settings=settings,
        )
        arrays = x_BTD, decoder.head_DV(config, params), rows["targets_BT"]
        how = dict(mesh=settings.mesh, vocab_size=config.vocab_size, cap=config.logit_cap)
        return losses.nll_and_hits(*arrays, chunk=chunk, **how)

    mesh = settings.mesh
    if mesh is None:
        return local(params, rope, rows)
    specs = jax.tree.map(lambda where: where.spec, decoder.param_shardings(config, mesh))
    spread = sharding.row_sharding(mesh).spec
    outputs = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(specs, PartitionSpec(), spread),
        out_specs=spread,
        check_vma=False,  # scans inside start from constants, which vary nowhere
    )(params, rope, rows)
    # every process reads all of it
    return jax.lax.with_sharding_constraint(outputs, sharding.replicated(mesh))


def score(
    model: EvalModel, rows: np.ndarray, *, batch_tokens: int, tick: Callable[[int], None] = ignore
) -> tuple[np.ndarray, np.ndarray]:
    """Scores rows of tokens.

    Args:
      model: what predicts.
      rows: int32 [W, T + 1]; the first T columns are read, the last T predicted.
      batch_tokens: tokens in one forward pass, at most (but one row at least).
      tick: called with the number of tokens of each batch once its losses are on the host.

    Returns:
      (nll_WT float32 in nats, hit_WT bool: the token was the most probable one).

    Raises:
      InputError: T is longer than the rope's last bucket.
    """
    rope, size = model.rope_fn(rows.shape[1] - 1), _batch_size(model, rows, batch_tokens)
    nlls, hits = [], []
    for nll_BT, hit_BT in _batches(model, rope, rows, size):
        nlls.append(nll_BT)
        hits.append(hit_BT)
        tick(nll_BT.size)
    return np.concatenate(nlls), np.concatenate(hits)


def score_with_journal(
    model: EvalModel,
    bench: Bench,
    rows: np.ndarray,
    *,
    suite: str,
    length: int,
    items: Sequence[str] = (),
) -> tuple[np.ndarray, np.ndarray]:
    """Returns what `score` does; rows in the bench's journal are not read again, the others are
    added to it, each batch when it is finished.

    Args:
      model: what predicts.
      bench: its journal, tick and skip are used, and options.batch_tokens.
      rows: see `score`.
      suite, length: whose rows they are, as in Result.
      items: fingerprints of the rows in the journal; () = those of their tokens.
    """
    if not (bench.journal.keeps and model.identity):
        return score(model, rows, batch_tokens=bench.options.batch_tokens, tick=bench.tick)
    rope = model.rope_fn(rows.shape[1] - 1)
    place = Place(row_digest(model.identity, rope), model.label, suite, length)
    items = items or [fingerprint(row) for row in rows]
    records = bench.journal.find(place, items)
    scores = {i: {name: line[name] for name in _ARRAYS} for i, line in records.items()}
    if scores:
        bench.skip(len(scores) * (rows.shape[1] - 1))
    missing = np.array([i for i in range(len(rows)) if i not in scores], np.int64)
    # of all rows: a batch has the rows that it would have had, and the same bits come out
    size, watch, done = _batch_size(model, rows, bench.options.batch_tokens), Stopwatch(), 0
    for nll_BT, hit_BT in _batches(model, rope, rows[missing], size) if len(missing) else ():
        indices = missing[done : done + len(nll_BT)]
        done, seconds = done + len(indices), watch.lap() / len(indices)
        lines = [{"item": items[i], "seconds": round(seconds, 6)} for i in indices]
        bench.journal.add(place, lines, {"nll": nll_BT, "hit": hit_BT})
        scores |= {int(i): {"nll": nll_BT[j], "hit": hit_BT[j]} for j, i in enumerate(indices)}
        bench.tick(nll_BT.size)
    nll_WT, hit_WT = (np.stack([scores[i][name] for i in range(len(rows))]) for name in _ARRAYS)
    return nll_WT, hit_WT


_ARRAYS = ("nll", "hit")


def _batch_size(model: EvalModel, rows: np.ndarray, batch_tokens: int) -> int:
    """Returns the rows of a batch: those of batch_rows, and as many as the mesh divides."""
    ways = sharding.ways(model.settings.mesh, *sharding.BATCH_AXES)
    return math.ceil(batch_rows(len(rows), rows.shape[1] - 1, batch_tokens) / ways) * ways


def _batches(
    model: EvalModel, rope: Rope, rows: np.ndarray, size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields (nll_BT, hit_BT) of one batch after another; the device works on the next one."""
    length, pending = rows.shape[1] - 1, None

    def read(batch, count):
        nll_BT, hit_BT = (
            decoder.natural_order(model.settings, np.asarray(values), length)[:count]
            for values in batch
        )
        if wrong := np.count_nonzero(~np.isfinite(nll_BT)):
            raise InputError(
                f"row '{model.label}' at {length:,} tokens: the loss of {wrong:,} of "
                f"{nll_BT.size:,} tokens is not finite. Weights, factors or products are NaN or "
                f"infinite: check the checkpoint, or set forward.compute_dtype to float32, got "
                f"'{model.settings.compute_dtype}'."
            )
        return nll_BT, hit_BT

    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        # the last batch is filled up with its last row: a second shape would compile again
        full = np.concatenate([part, np.repeat(part[-1:], size - len(part), axis=0)])
        batch = score_batch(
            model.params,
            rope,
            _put(model.settings, decoder.lay_out(model.settings, full)),
            config=model.config,
            settings=model.settings,
            chunk=min(CHUNK, length),
        )
        if pending is not None:
            yield read(*pending)
        pending = batch, len(part)
    yield read(*pending)


def _put(settings, rows: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    rows = {name: x_BT for name, x_BT in rows.items() if name != "weights_BT"}
    if settings.mesh is None:
        return jax.tree.map(jnp.asarray, rows)
    return sharding.put(rows, sharding.row_sharding(settings.mesh))


def batch_rows(num_rows: int, length: int, batch_tokens: int) -> int:
    """Returns the rows of a batch: as many as `batch_tokens` allows, spread evenly."""
    most = max(1, batch_tokens // length)
    return math.ceil(num_rows / math.ceil(num_rows / most))


def fingerprint(rows: np.ndarray | Sequence[int], *extra: object) -> str:
    """Returns the SHA-256 of token rows (int32, little endian), their shape, and `extra`."""
    rows = np.ascontiguousarray(rows, "<i4")
    return hashlib.sha256(repr((rows.shape, *extra)).encode() + rows.tobytes()).hexdigest()


class Stopwatch:
    """Seconds since its creation, and those that recalled answers of a journal took originally."""

    def __init__(self, journal: Journal | None = None):
        self._start = self._lap = time.perf_counter()
        self._journal = journal or Journal()
        self._recalled = self._journal.recalled_seconds

    def seconds(self) -> float:
        """Returns the seconds since its creation, including those of recalled answers."""
        before = self._journal.recalled_seconds - self._recalled
        return time.perf_counter() - self._start + before

    def lap(self) -> float:
        """Returns the seconds since the last call of this."""
        then, self._lap = self._lap, time.perf_counter()
        return self._lap - then


@dataclasses.dataclass(frozen=True)
class Suite:
    """A kind of measurement.

    Attributes:
      evaluate: (model, bench) -> a Result for each length.
      items: (model, bench, length) -> its questions; raises InputError if they cannot be built.
      forward_tokens: (model, bench, length) -> tokens that are read and written, at most.
      needs_text: (config.eval) -> whether it uses bench.documents.
      steps: (model, bench, length) -> tokens that are written one after another, those of a batch
        at one time, at most.
      filled: (model, bench, length) -> (tokens that are computed, those of them that are padding).
    """

    evaluate: Callable[[EvalModel, Bench], Iterator[Result]]
    items: Callable[[EvalModel, Bench, int], object]
    forward_tokens: Callable[[EvalModel, Bench, int], int]
    filled: Callable[[EvalModel, Bench, int], tuple[int, int]]
    needs_text: Callable[[Evaluation], bool] = lambda options: False
    steps: Callable[[EvalModel, Bench, int], int] = lambda model, bench, length: 0
