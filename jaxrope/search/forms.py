"""What a result may look like: from a few numbers to the factors of all pairs, and back.

A descent moves the numbers of a form, an evolution its genes (genome.py). Numbers are natural
logarithms; by the chain rule a gradient in ln(factors) is one in them.

  free       a factor for each pair
  monotone   the same, ascending (LongRoPE, Algorithm 1)
  piecewise  1 up to a pair, target / training length from another on, ascending between
  critical   NTK below a critical pair, ascending from there on (LongRoPE2)
  yarn       YaRN's ramp: two borders, which are whole pairs and stay, and the factor beyond them
  ntk        the base: factors a geometric series

Letters: R rotary pairs, K numbers, X any leading axes (samples, layers with factors of their own).
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxrope import rope

_LIKE = 0.02


class Limits(NamedTuple):
    """What factors may be.

    Attributes:
      lowest, highest: the smallest and the largest factor.
      scale: target / training length.
      critical_pairs: that may be critical.
    """

    lowest: float
    highest: float
    scale: float
    critical_pairs: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Shape:
    """A form with what stays as it is: the borders of its ramp, its critical pair.

    Attributes:
      numbers_fn: logs_XR -> numbers_XK nearest to them.
      logs_fn: numbers_XK -> logs_XR, ln(factors).
      slopes_fn: (numbers_XK, slopes_XR in ln(factors)) -> slopes_XK in the numbers.
      lowest, highest: of the numbers.
      ascends: numbers ascend.
      constants: what states the factors together with the numbers: {"borders": (low, high)} or
        {"critical_pair": pair}.
    """

    numbers_fn: Callable[[np.ndarray], np.ndarray]
    logs_fn: Callable[[np.ndarray], np.ndarray]
    slopes_fn: Callable[[np.ndarray, np.ndarray], np.ndarray]
    lowest: float
    highest: float
    ascends: bool = False
    constants: dict = dataclasses.field(default_factory=dict)

    def settle(self, numbers_XK: np.ndarray, weights_XK: np.ndarray) -> np.ndarray:
        """Returns the legal numbers nearest to these, by the weighted sum of squares."""
        if self.ascends and numbers_XK.size:
            flat = zip(_rows(numbers_XK), _rows(weights_XK), strict=True)
            numbers_XK = np.stack([ascending(*pair) for pair in flat]).reshape(numbers_XK.shape)
        return np.clip(numbers_XK, self.lowest, self.highest)


def _rows(values: np.ndarray) -> np.ndarray:
    return values.reshape(-1, values.shape[-1])


def ascending(values_K: np.ndarray, weights_K: np.ndarray) -> np.ndarray:
    """Returns the ascending numbers nearest to `values_K` (isotonic regression: neighbours that
    violate the order are pooled to their weighted mean).
    """
    pools: list[tuple[float, float, int]] = []
    for value, weight in zip(values_K.tolist(), weights_K.tolist(), strict=True):
        pool = (value, weight, 1)
        while pools and pools[-1][0] > pool[0]:
            before = pools.pop()
            weight = before[1] + pool[1]
            mean = (before[0] * before[1] + pool[0] * pool[1]) / weight
            pool = (mean, weight, before[2] + pool[2])
        pools.append(pool)
    return np.concatenate([np.full(count, value) for value, _, count in pools])


def of(name: str, limits: Limits, factors: np.ndarray) -> Shape:
    """Returns the form `name` with the borders that suit `factors` best, [R] or [L, R]."""
    mean_R = np.log(np.asarray(factors, np.float64)).reshape(-1, np.shape(factors)[-1]).mean(axis=0)
    return FORMS[name](limits, mean_R)


def nearest(name: str, limits: Limits, factors: np.ndarray) -> np.ndarray:
    """Returns the factors of a form that are nearest to `factors`."""
    shape = of(name, limits, factors)
    numbers = shape.numbers_fn(np.log(np.asarray(factors, np.float64)))
    return np.exp(shape.logs_fn(shape.settle(numbers, np.ones_like(numbers))))


def fits(name: str, limits: Limits, factors: np.ndarray) -> bool:
    """Returns whether factors are of a form, as nearly as a grid of hundredths can tell."""
    return bool(np.allclose(nearest(name, limits, factors), factors, rtol=_LIKE))


def _linear(matrix_RK: np.ndarray, offset_R, limits: Limits, lowest=None, **fields) -> Shape:
    """Returns a form whose ln(factors) are offset_R + matrix_RK @ numbers_K."""
    inverse_KR = np.linalg.pinv(matrix_RK)
    return Shape(
        numbers_fn=lambda logs_XR: (logs_XR - offset_R) @ inverse_KR.T,
        logs_fn=lambda numbers_XK: offset_R + numbers_XK @ matrix_RK.T,
        slopes_fn=lambda numbers_XK, slopes_XR: slopes_XR @ matrix_RK,
        lowest=math.log(limits.lowest if lowest is None else lowest),
        highest=math.log(limits.highest),
        **fields,
    )


def _free(limits: Limits, logs_R: np.ndarray) -> Shape:
    return _linear(np.eye(len(logs_R)), 0.0, limits)


def _monotone(limits: Limits, logs_R: np.ndarray) -> Shape:
    return _linear(np.eye(len(logs_R)), 0.0, limits, ascends=True)


def _piecewise(limits: Limits, logs_R: np.ndarray) -> Shape:
    scale, tolerance = math.log(limits.scale), 1e-6
    start = int(np.sum(logs_R <= tolerance))
    stop = max(start, int(np.sum(logs_R < scale - tolerance)))
    offset_R = np.where(np.arange(len(logs_R)) >= stop, scale, 0.0)
    bounded = limits._replace(lowest=1.0, highest=limits.scale)
    return _linear(np.eye(len(logs_R))[:, start:stop], offset_R, bounded, ascends=True)


def _critical(limits: Limits, logs_R: np.ndarray) -> Shape:
    shapes = [_critical_at(limits, len(logs_R), pair) for pair in limits.critical_pairs]
    return min(shapes, key=lambda shape: _distance(shape, logs_R))


def _critical_at(limits: Limits, num_pairs: int, pair: int) -> Shape:
    matrix_RK = np.eye(num_pairs)[:, pair:]
    matrix_RK[:pair, 0] = np.arange(pair) / pair  # of ntk_rcd: factor^(i / critical)
    constants = {"critical_pair": pair}
    return _linear(matrix_RK, 0.0, limits, limits.scale, ascends=True, constants=constants)


def _ntk(limits: Limits, logs_R: np.ndarray) -> Shape:
    last = len(logs_R) - 1
    return _linear((np.arange(last + 1) / last)[:, None], 0.0, limits)


def _yarn(limits: Limits, logs_R: np.ndarray) -> Shape:
    count = len(logs_R)
    # from the last pair on no ramp has any of the factor
    borders = [(low, high) for high in range(1, count + 1) for low in range(min(high, count - 1))]
    ends = [yarn_at(limits, count, ramp) for ramp in borders]
    return min(ends, key=lambda shape: _distance(shape, logs_R))


def yarn_at(limits: Limits, num_pairs: int, borders: tuple[int, int]) -> Shape:
    """Returns YaRN with a ramp: its one number is ln of the factor from the second border on."""
    low, high = borders
    ramp_R = np.clip((np.arange(num_pairs) - low) / (high - low), 0, 1)

    def numbers(logs_XR):
        shrunk_X1 = np.exp(-np.max(logs_XR, axis=-1, keepdims=True)) - (1 - ramp_R[-1])
        return -np.log(np.maximum(shrunk_X1 / ramp_R[-1], np.finfo(float).tiny))

    def inverse(numbers_X1):  # of the factors: frequencies ramp
        return 1 - ramp_R + ramp_R * np.exp(-numbers_X1)

    def slopes(numbers_X1, slopes_XR):
        share_XR = ramp_R * np.exp(-numbers_X1) / inverse(numbers_X1)
        return np.sum(slopes_XR * share_XR, axis=-1, keepdims=True)

    return Shape(
        numbers_fn=numbers,
        logs_fn=lambda numbers_X1: -np.log(inverse(numbers_X1)),
        slopes_fn=slopes,
        lowest=math.log(limits.scale),
        highest=math.log(max(limits.scale, limits.highest)),
        constants={"borders": (low, high)},
    )


def _distance(shape: Shape, logs_R: np.ndarray) -> float:
    numbers_K = shape.numbers_fn(logs_R)
    settled_K = shape.settle(numbers_K, np.ones_like(numbers_K))
    return float(np.sum((shape.logs_fn(settled_K) - logs_R) ** 2))


FORMS = {
    "monotone": _monotone,
    "free": _free,
    "yarn": _yarn,
    "ntk": _ntk,
    "piecewise": _piecewise,
    "critical": _critical,
}


BY_FORMULA = ("yarn", "ntk")  # few numbers state all factors


def betas(borders: tuple[int, int], *, rotary_dim: int, theta: float, original_len: int) -> dict:
    """Returns YaRN's constants beta_fast and beta_slow that have these borders, whether a program
    rounds them outwards (as YaRN's code does) or not: they lie 1e-6 of a pair inside.
    """
    low, high = borders

    def turns(pair: float) -> float:
        return original_len / (2 * math.pi * theta ** (pair / (rotary_dim // 2)))

    return {"beta_fast": turns(low + 1e-6), "beta_slow": turns(high - 1e-6)}


def of_rope(borders: tuple[int, int], factor: float, **geometry) -> rope.RopeFn:
    """Returns YaRN with these borders; `geometry` as rope.make has it, attention_factor too."""
    shape = {name: geometry[name] for name in ("theta", "original_len")}
    constants = betas(borders, rotary_dim=geometry["rotary_dim"], **shape)
    return rope.make("yarn", factor=factor, **constants, **geometry)
