"""Descent along the natural gradient of the factors.

The loss is differentiable in all factors at the price of three forward passes, but a plain gradient
says little: the loss turns with the phase of a fast pair thousands of times within a change that a
search would make, so that its slope there is a thousand times that of a slow pair, and all noise.
Steps are therefore divided by the curvature. That of a log likelihood is the variance of its
gradient over texts, times their tokens (Fisher), which costs nothing more: pairs whose gradients
disagree stay where they are, those that agree take the step that ends at the bottom of a parabola.

    number -= rate * mean gradient / (CORRELATION * tokens * variance)

The first step has the mean of FIRST gradients; later ones are of search.gradient.batch draws each
and shrink as 1 / (1 + t / 5), as an estimate from noise needs (Robbins and Monro). Every draw is of
fresh text: with few texts a descent overfits. On books-6m at 8x, 9 of these steps find more than
the paper's whole evolution, and than 60 of Adam.

A descent is a function of its start and of the gradients so far, which the journal has: a killed
one comes back bit for bit. Arithmetic beside the model is numpy in float64.

Letters: B draws, R rotary pairs, K numbers of a form (leading L: layers with factors of their own).
"""

import dataclasses
import math

import numpy as np

from jaxrope import schema
from jaxrope.search.forms import Shape

FIRST = 4  # draws of the first step: fewer do not tell a variance
# Tokens of a text are not independent, and its gradients vary as if it had fewer: for the factors a
# quarter (0.15 to 0.4 end alike on books-6m), for the attention factor less: what suits a part of a
# text suits all of it (there the slope changes as if it were 0.1).
CORRELATION, ATTENTION_CORRELATION = 0.25, 0.15
_FLOOR = 0.003  # nats for each unit of ln: what varies less has no curvature worth a step
_OUTLIER = 3.0  # standard deviations from the median: what lies farther counts as if it lay there
_TRIMMED = 1.65  # standard deviation of a normal distribution / that without a quarter at its ends
_LAST = 5  # draws
_LONGEST, _LONGEST_ATTENTION = 0.3, 0.03  # of a step, in ln
_HALF_LIFE = 5.0  # steps


Range = tuple[float, float]  # of the attention factor; both alike: it is not searched


@dataclasses.dataclass(frozen=True)
class State:
    """A descent.

    Attributes:
      step: number of steps so far.
      numbers: float64, [K] or [L, K], of the form.
      log_attention: of the attention factor.
      grads: of all draws so far, in the numbers and, last, in log_attention, [draws, all of them].
    """

    step: int
    numbers: np.ndarray
    log_attention: float
    grads: np.ndarray


def begin(shape: Shape, allowed: Range, factors, attention_factor: float) -> State:
    """Returns the descent before its first step.

    Args:
      shape: of the factors.
      allowed: attention factors.
      factors: [R] or [L, R]; the nearest ones of the form are the start.
      attention_factor: the nearest one that is allowed is the start.
    """
    numbers = shape.numbers_fn(np.log(np.asarray(factors, np.float64)))
    numbers = shape.settle(numbers, np.ones_like(numbers))
    log_attention = _clipped(allowed, math.log(attention_factor))
    return State(0, numbers, log_attention, np.zeros((0, numbers.size + 1)))


def point(shape: Shape, state: State) -> tuple[np.ndarray, float]:
    """Returns (factors, attention factor) at which to take the next gradients."""
    return np.exp(shape.logs_fn(state.numbers)), math.exp(state.log_attention)


def draws(settings: schema.search.Gradient, step: int) -> int:
    """Returns the draws of a step."""
    return settings.batch if step else max(FIRST, settings.batch)


def draws_before(settings: schema.search.Gradient, step: int) -> int:
    """Returns the draws of all steps before `step`."""
    return sum(draws(settings, earlier) for earlier in range(step))


def tell(
    settings: schema.search.Gradient,
    shape: Shape,
    allowed: Range,
    state: State,
    *,
    factors_grads: np.ndarray,
    attention_grads: np.ndarray,
    tokens: float,
) -> State:
    """Returns the descent one step further.

    Args:
      settings, shape, allowed: of the search.
      state: where it stands.
      factors_grads: of the loss in the factors at `point`, [B, R] or [B, L, R].
      attention_grads: of the loss in the attention factor, [B].
      tokens: that the loss of a draw is the mean of.
    """
    factors, attention_factor = point(shape, state)
    slopes_BK = shape.slopes_fn(state.numbers, np.asarray(factors_grads) * factors)
    count = len(slopes_BK)
    grads = np.column_stack([slopes_BK.reshape(count, -1), attention_grads * attention_factor])
    history = np.concatenate([state.grads, grads])
    middle, spread = _middle_and_spread(history)
    mean = np.clip(grads, middle - _OUTLIER * spread, middle + _OUTLIER * spread).mean(axis=0)
    curvature = CORRELATION * tokens * (spread**2 + _FLOOR**2)
    curvature[-1] *= ATTENTION_CORRELATION / CORRELATION
    fall = 1 / (1 + state.step / _HALF_LIFE)
    longest = np.full(len(mean), _LONGEST)
    longest[-1] = _LONGEST_ATTENTION
    change = np.clip(-settings.rate * mean / curvature, -longest, longest) * fall
    numbers = state.numbers + change[:-1].reshape(state.numbers.shape)
    return State(
        step=state.step + 1,
        numbers=shape.settle(numbers, curvature[:-1].reshape(numbers.shape)),
        log_attention=_clipped(allowed, state.log_attention + change[-1]),
        grads=history,
    )


def _middle_and_spread(grads: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns for each column the median of the last draws, and the standard deviation of a draw:
    from the differences of successive ones, since all of them differ by the way between as well,
    and without the largest quarter: one odd text in ten must not set the curvature. (The median
    distance from the median of so few is often next to nothing, and the step then a jump.)
    """
    squares = np.sort(np.diff(grads, axis=0) ** 2, axis=0)
    count = len(squares) - len(squares) // 4
    spread = np.sqrt(squares[:count].mean(axis=0) / 2)
    return np.median(grads[-_LAST:], axis=0), spread * (1 if count == len(squares) else _TRIMMED)


def _clipped(allowed: Range, log_attention: float) -> float:
    lowest, largest = map(math.log, allowed)
    return float(min(max(log_attention, lowest), largest))
