"""A window that slides over a text: what it reads, and what it scores."""

from typing import NamedTuple

import numpy as np

from jaxrope.errors import InputError


class Span(NamedTuple):
    """A forward window: it predicts tokens begin .. end - 1 and scores scored .. end - 1."""

    begin: int
    end: int
    scored: int


def spans(num_tokens: int, *, window: int, stride: int) -> list[Span]:
    """Returns the forward windows that score each of `num_tokens` tokens once.

    All have `window` tokens, the last one too: it begins early enough rather than being short.
    It is how lm-evaluation-harness cuts rolling windows; the scripts of YaRN and LongRoPE keep
    the stride and let the last one be shorter, with less context.

    Args:
      num_tokens: of the text.
      window: tokens of a forward window, at most num_tokens.
      stride: tokens from one to the next.

    Raises:
      InputError: the stride is longer than the window.
    """
    assert 1 <= window <= num_tokens and stride >= 1
    if window == num_tokens:
        return [Span(0, window, 0)]
    if stride > window:
        raise InputError(
            f"eval.stride is 1 to the window's {window} tokens, got {stride}: "
            "a longer step would leave tokens unscored."
        )
    plan = [Span(0, window, 0)]
    while plan[-1].end < num_tokens:
        scored = plan[-1].end
        end = min(scored + stride, num_tokens)
        plan.append(Span(end - window, end, scored))
    return plan


def rows(tokens: np.ndarray, plan: list[Span], *, bos_per_window: bool) -> np.ndarray:
    """Returns the token rows of the forward windows, window + 1 columns each.

    Args:
      tokens: one window of text, int32 [T + 1]: bos, then the tokens to be scored.
      plan: see `spans`.
      bos_per_window: each row begins with bos, else (but for the first) with the token of text
        before it.
    """
    cut = np.stack([tokens[span.begin : span.end + 1] for span in plan])
    if bos_per_window:
        cut[:, 0] = tokens[0]
    return cut
