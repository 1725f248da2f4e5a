"""The loop: prompts are read, then each row gets a token at a time until it ends.

Letters: B rows (filled up to what the mesh divides), W groups of devices that have rows of their
own, C chunk.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxrope import attention
from jaxrope.generate import policy, program, sampling
from jaxrope.generate import state as states
from jaxrope.generate.options import Model, Options, check
from jaxrope.generate.state import State
from jaxrope.mesh import sharding

StopFn = Callable[[int, int], bool]


@dataclasses.dataclass
class Timing:
    """What it took. A row that was read again counts as prefill.

    Attributes:
      prefill_tokens, prefill_seconds: tokens read in chunks.
      padding_tokens: that chunks, of all groups of devices, were filled up with.
      decode_tokens, decode_seconds: tokens made.
    """

    prefill_tokens: int = 0
    prefill_seconds: float = 0.0
    padding_tokens: int = 0
    decode_tokens: int = 0
    decode_seconds: float = 0.0


def generate(
    model: Model,
    prompts: Sequence[Sequence[int]],
    options: Options,
    *,
    stop_fn: StopFn | None = None,
    timing: Timing | None = None,
) -> list[list[int]]:
    """Returns the new tokens of each prompt, in their order; see `stream`."""
    new = [[] for _ in prompts]
    for tokens in stream(model, prompts, options, stop_fn=stop_fn, timing=timing):
        for row, token in tokens:
            new[row].append(token)
    return new


def stream(
    model: Model,
    prompts: Sequence[Sequence[int]],
    options: Options,
    *,
    stop_fn: StopFn | None = None,
    timing: Timing | None = None,
) -> Iterator[list[tuple[int, int]]]:
    """Returns an iterator over the tokens as they are made: for each step (row, token) of the rows
    that still run.

    Args:
      model: what generates.
      prompts: ids of each row, bos included where the model uses one.
      options: how.
      stop_fn: `stop_fn(row, token)`, called once for each new token: True ends the row with it.
      timing: is added to.

    Raises:
      InputError: see options.check; at once, before anything runs.
    """
    check(model, prompts, options)
    return _stream(model, prompts, options, stop_fn, Timing() if timing is None else timing)


def warm_up(model: Model, prompts: Sequence[Sequence[int]], options: Options) -> None:
    """Compiles what `stream` will run, and reads nothing.

    Raises:
      InputError: see options.check.
    """
    check(model, prompts, options)
    batch = _Batch(model, prompts, options)
    state = batch.empty()
    groups = sharding.ways(model.settings.mesh, *sharding.BATCH_AXES)
    lengths = {n for row in batch.rows for n in row.read_lengths()}
    for size in sorted({size for n in lengths for _, size in batch.pieces(n)}):
        nothing = np.zeros((groups, size), np.int32), np.zeros(groups, np.int32)
        state = batch.read_chunk(state, program.Chunk(*nothing, np.int32(0), np.int32(0)))
    state, _ = batch.step(state, [])
    jax.block_until_ready(state)


def _stream(model, prompts, options, stop_fn, timing) -> Iterator[list[tuple[int, int]]]:
    batch = _Batch(model, prompts, options)
    running = list(range(len(prompts)))
    state = batch.read(batch.empty(), running, timing)
    while running:
        growing = [i for i in running if batch.rows[i].can_grow()]
        crossing = [i for i in growing if batch.rows[i].is_at_border()]
        start = time.perf_counter()
        state, tokens_B = batch.step(state, [i for i in growing if i not in crossing])
        new = [(i, int(tokens_B[i])) for i in running]
        timing.decode_seconds += time.perf_counter() - start
        timing.decode_tokens += len(new)
        ended = set()
        for i, token in new:
            batch.rows[i].tokens.append(token)
            if token in options.stop or (stop_fn is not None and stop_fn(i, token)):
                ended.add(i)
        yield new
        running = [i for i in growing if i not in ended]
        crossing = [i for i in crossing if i not in ended]
        if crossing:
            state = batch.read(batch.with_ropes(state), crossing, timing)


@dataclasses.dataclass
class _Row:
    """A sequence on the host.

    Attributes:
      tokens: prompt and what was made so far.
      prompt_len, planned_len: tokens of the prompt, and with max_new_tokens.
      rope_fn, policy: choose the factors.
    """

    tokens: list[int]
    prompt_len: int
    planned_len: int
    rope_fn: Callable
    policy: str

    def rope_len(self, now: int) -> int:
        """Returns the length that chooses the factors when the row has `now` tokens."""
        return policy.POLICIES[self.policy](self.prompt_len, self.planned_len, now)

    def can_grow(self) -> bool:
        """Returns whether the row may have a token after the next one."""
        return len(self.tokens) + 1 < self.planned_len

    def is_at_border(self) -> bool:
        """Returns whether the next token changes the factors."""
        now = len(self.tokens)
        return policy.changes(self.rope_fn, self.rope_len(now), self.rope_len(now + 1))

    def read_lengths(self) -> list[int]:
        """Returns the lengths at which the row is read from its tokens."""
        limits = [bucket.max_len or 0 for bucket in self.rope_fn.buckets]
        inside = [n + 1 for n in limits if self.prompt_len <= n < self.planned_len - 1]
        crossed = [n for n in inside if self.rope_len(n) != self.rope_len(n - 1)]
        return [self.prompt_len, *crossed]


class _Batch:
    """The rows, and the programs with what they need of them."""

    def __init__(self, model: Model, prompts, options: Options):
        self._model, self._options = model, options
        self._unit = attention.unit(model.settings.mesh)
        self._streams = sampling.streams(prompts, options.seed)
        self.rows = [
            _Row(
                [int(token) for token in prompt],
                len(prompt),
                len(prompt) + options.max_new_tokens,
                model.rope_fn,
                options.policy,
            )
            for prompt in prompts
        ]
        self._groups = sharding.ways(model.settings.mesh, *sharding.BATCH_AXES)
        self._rows_of_group = math.ceil(len(prompts) / self._groups)
        self._filled = [min(i, len(prompts) - 1) for i in range(self._groups * self._rows_of_group)]

    def pieces(self, length: int) -> list[tuple[int, int]]:
        """Returns (start, size) of the chunks of a row."""
        return states.pieces(length, self._options.chunk, self._unit)

    def empty(self) -> State:
        """Returns the state before anything was read."""
        planned = max(row.planned_len for row in self.rows)
        sizes = states.capacity(planned, self._options.chunk, self._unit), self._options.chunk
        model, streams_B2 = self._model, self._streams[self._filled]
        return states.empty(model.config, model.settings, sizes, self._ropes(), streams_B2)

    def with_ropes(self, state: State) -> State:
        """Returns the state with the factors of the rows' present lengths."""
        return states.with_rope(state, self._ropes(), self._model.settings.mesh)

    def read(self, state: State, rows: Sequence[int], timing: Timing) -> State:
        """Returns the state after these rows were read from their tokens."""
        start, computed = time.perf_counter(), 0
        for place in range(self._rows_of_group):
            wave = {i // self._rows_of_group: i for i in rows if i % self._rows_of_group == place}
            for chunk in self._chunks({g: self.rows[i].tokens for g, i in wave.items()}, place):
                state = self.read_chunk(state, chunk)
                computed += chunk.tokens_WC.size
        jax.block_until_ready(state.logits_BV)
        timing.prefill_seconds += time.perf_counter() - start
        read = sum(len(self.rows[i].tokens) for i in rows)
        timing.prefill_tokens += read
        timing.padding_tokens += computed - read
        return state

    def read_chunk(self, state: State, chunk: program.Chunk) -> State:
        """Returns the state after a chunk."""
        if self._model.settings.mesh is not None:
            chunk = self._put_rows(chunk)
        how = dict(config=self._model.config, settings=self._model.settings)
        return program.read_chunk(self._model.params, state, chunk, **how)

    def step(self, state: State, advance: Sequence[int]) -> tuple[State, np.ndarray]:
        """Returns (the state with these rows one token longer, the next token of every row)."""
        advance_B = np.zeros(len(self._filled), bool)
        advance_B[list(advance)] = True
        if self._model.settings.mesh is not None:
            advance_B = sharding.put(advance_B, states.rows_sharding(self._model.settings.mesh))
        state, tokens_B = program.step(
            self._model.params,
            state,
            jnp.asarray(advance_B),
            config=self._model.config,
            settings=self._model.settings,
            sampling=self._options.sampling,
        )
        return state, np.asarray(tokens_B)

    def _chunks(self, tokens: dict[int, list[int]], place: int) -> Iterator[program.Chunk]:
        """Yields the chunks of one row for each group; groups without a row do nothing."""
        lengths_W = np.zeros(self._groups, np.int32)
        for group, row in tokens.items():
            lengths_W[group] = len(row)
        for start, size in self.pieces(int(lengths_W.max())) if tokens else []:
            tokens_WC = np.zeros((self._groups, size), np.int32)
            for group, row in tokens.items():
                part = row[start : start + size]
                tokens_WC[group, : len(part)] = part
            yield program.Chunk(tokens_WC, lengths_W, np.int32(start), np.int32(place))

    def _put_rows(self, chunk: program.Chunk) -> program.Chunk:
        where = states.rows_sharding(self._model.settings.mesh)
        rows = (sharding.put(x, where) for x in (chunk.tokens_WC, chunk.lengths_W))
        return program.Chunk(*rows, chunk.start, chunk.row)

    def _ropes(self):
        lengths = [self.rows[i].rope_len(len(self.rows[i].tokens)) for i in self._filled]
        return policy.of_rows(self._model.rope_fn, lengths, self._model.config.num_layers)
