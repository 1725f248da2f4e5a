"""Gradient descent on the factors: the loss is differentiable in them, so that a step
has the gradient in all of them at the price of three forward passes.

Factors ascend and stay within [1, highest] by construction: ln(factors) = ln(highest) * (1 -
exp(-z)), z the cumulative sum of softplus(slopes). Adam works on the slopes, and on the logarithm
of the attention factor where a candidate may choose it. Every step reads fresh text: with few
texts it overfits (on books-6m with two, it is no better than evolution on held-out text).

A descent is a function of its start and of the gradients so far, which the journal has: a killed
one comes back bit for bit. Arithmetic beside the model is numpy in float64.

Letters: L layers with factors of their own (none: they are shared), R rotary pairs.
"""

import dataclasses
import math

import jax
import numpy as np
import optax

from jaxrope import schema

_LEAST_RISE = 1e-3  # of z from pair to pair at the start: where softplus is flat, nothing moves
_NEAREST = 0.999  # of ln(highest): the most that a start may have, for z is infinite at the bound


@dataclasses.dataclass(frozen=True)
class Bounds:
    """What a descent may reach.

    Attributes:
      highest: the largest factor; above 1.
      attention: the smallest and the largest attention factor; equal: it is not searched.
    """

    highest: float
    attention: tuple[float, float]


@dataclasses.dataclass(frozen=True)
class State:
    """A descent.

    Attributes:
      step: number of gradients so far.
      slopes: float64, [R] or [L, R]; see the module.
      log_attention: of the attention factor.
      moments: of optax.
    """

    step: int
    slopes: np.ndarray
    log_attention: float
    moments: optax.OptState


def begin(
    settings: schema.search.Gradient, bounds: Bounds, factors, attention_factor: float
) -> State:
    """Returns the descent before its first step.

    Args:
      settings, bounds: of the search.
      factors: [R] or [L, R]; clipped to the bounds, and made to ascend.
      attention_factor: clipped to the bounds.
    """
    slopes = to_slopes(factors, bounds.highest)
    log_attention = math.log(min(max(attention_factor, bounds.attention[0]), bounds.attention[1]))
    with jax.enable_x64():
        moments = _adam(settings).init(_tree(slopes, log_attention))
    return State(0, slopes, log_attention, jax.tree.map(np.asarray, moments))


def point(bounds: Bounds, state: State) -> tuple[np.ndarray, float]:
    """Returns (factors, attention factor) at which to take the next gradient."""
    return to_factors(state.slopes, bounds.highest), math.exp(state.log_attention)


def tell(
    settings: schema.search.Gradient,
    bounds: Bounds,
    state: State,
    factors_grad,
    attention_grad: float,
) -> State:
    """Returns the descent one step further.

    Args:
      settings, bounds: of the search.
      state: where it stands.
      factors_grad: of the loss in the factors at `point`, [R] or [L, R].
      attention_grad: of the loss in the attention factor.
    """
    grads = _tree(
        slopes_grad(state.slopes, bounds.highest, factors_grad),
        attention_grad * math.exp(state.log_attention),
    )
    with jax.enable_x64():
        updates, moments = _adam(settings).update(grads, state.moments)
        updates = jax.tree.map(np.asarray, updates)
    lowest, largest = map(math.log, bounds.attention)
    log_attention = state.log_attention + settings.attention_rate * float(updates["attention"])
    return State(
        step=state.step + 1,
        slopes=state.slopes + settings.learning_rate * updates["slopes"],
        log_attention=min(max(log_attention, lowest), largest),
        moments=jax.tree.map(np.asarray, moments),
    )


def to_factors(slopes: np.ndarray, highest: float) -> np.ndarray:
    """Returns factors, ascending and within [1, highest]; see the module."""
    z = np.cumsum(np.logaddexp(0.0, slopes), axis=-1)
    return np.exp(-math.log(highest) * np.expm1(-z))


def to_slopes(factors, highest: float) -> np.ndarray:
    """Returns the slopes of factors; undoes `to_factors`, for those that it can give."""
    logs = np.log(np.maximum.accumulate(np.maximum(factors, 1.0), axis=-1)) / math.log(highest)
    z = -np.log1p(-np.minimum(logs, _NEAREST))
    rises = np.maximum(np.diff(z, axis=-1, prepend=0.0), _LEAST_RISE)
    return np.log(np.expm1(rises))


def slopes_grad(slopes: np.ndarray, highest: float, factors_grad) -> np.ndarray:
    """Returns the gradient in the slopes, from that in the factors."""
    z = np.cumsum(np.logaddexp(0.0, slopes), axis=-1)
    by_z = np.asarray(factors_grad) * to_factors(slopes, highest) * math.log(highest) * np.exp(-z)
    later = np.flip(np.cumsum(np.flip(by_z, axis=-1), axis=-1), axis=-1)  # z_j has slope_i, i <= j
    return later / (1.0 + np.exp(-slopes))


def _adam(settings: schema.search.Gradient) -> optax.GradientTransformation:
    """Adam at a rate that falls to zero as a half cosine; rates are multiplied in by `tell`."""
    fall = optax.cosine_decay_schedule(-1.0, settings.steps)
    return optax.chain(
        optax.scale_by_adam(b1=settings.b1, b2=settings.b2), optax.scale_by_schedule(fall)
    )


def _tree(slopes: np.ndarray, attention) -> dict[str, np.ndarray]:
    return {"slopes": np.asarray(slopes, np.float64), "attention": np.float64(attention)}
