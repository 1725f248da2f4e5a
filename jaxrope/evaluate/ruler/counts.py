"""RULER's counting of words: common words in a list (cwe) and frequent words of a code (fwe).

After NVIDIA/RULER, `common_words_extraction.py` and `freq_words_extraction.py` in
`scripts/data/synthetic`.
"""

import math
import string
from collections.abc import Sequence

import numpy as np

from jaxrope.errors import InputError
from jaxrope.evaluate.ruler import fit, words
from jaxrope.evaluate.ruler.niah import SHORT
from jaxrope.evaluate.ruler.prompts import COMMON_WORDS, FREQUENT_WORDS, Draws, Order, Sample

COMMON = 10  # words that are asked for in cwe
PROBE = 4096  # words by which cwe estimates the tokens of a word
STEP = 10  # words by which a list that is too long gets shorter

CODE_LETTERS = 6
ALPHA = 2.0  # of the zeta distribution of fwe
ZETA = math.pi**2 / 6  # zeta(ALPHA)
ASKED = 3  # words that are asked for in fwe; the most frequent of all is "..."


def common_words(order: Order, more_words: Sequence[str] = ()) -> list[Sample]:
    """Returns the questions of cwe.

    Args:
      order: how many, how long, which seed.
      more_words: what lists are drawn from that need more words than the frozen 8,166: the values
        of RULER's english_words.json. Without it such a list cannot be made.

    Raises:
      InputError: a question does not fit, or its list needs more words.
    """
    draws = Draws(order.seed)
    vocabulary = draws.shuffled(words.all_words())
    most = max(len(vocabulary), len(more_words))

    def word_list(count: int, often: int, seldom: int) -> tuple[str, list[str]]:
        drawn = draws.random.sample(vocabulary if count <= len(vocabulary) else more_words, count)
        common, others = drawn[:COMMON], drawn[COMMON:]
        return _numbered(draws.shuffled(common * often + others * seldom)), common

    def make(count: int) -> tuple[str, list[str]]:
        short = order.length < SHORT
        context, common = word_list(20, 3, 1) if short else word_list(40, 10, 3)
        example = f"{COMMON_WORDS.whole.format(context=context)} {_numbered(common)}"
        context, common = word_list(count, 6, 1) if short else word_list(count, 30, 3)
        return f"{example}\n{COMMON_WORDS.whole.format(context=context)}", common

    reserved = COMMON_WORDS.new_tokens
    tokens_per_word = fit.tokens(make, order, PROBE) / PROBE
    high = max(int(order.length // tokens_per_word) * 2, STEP * 2)
    count = fit.bisect(make, order, low=STEP, high=high, reserved=reserved, most=most)
    if count == most < high:
        raise InputError(
            f"eval.lengths: ruler/{order.name} of {order.length} tokens needs more than {most} "
            "words. Give shorter lengths, or RULER's english_words.json as "
            "eval.ruler.english_words."
        )
    return fit.samples(
        lambda index, count: make(count), order, COMMON_WORDS, units=count, step=STEP
    )


def _numbered(items: Sequence[str]) -> str:
    return " ".join(f"{number}. {item}" for number, item in enumerate(items, start=1))


def frequent_words(order: Order) -> list[Sample]:
    """Returns the questions of fwe: the three most frequent words of a text in code.

    Raises:
      InputError: the length has no room for a text in which all three occur.
    """
    room = order.length - FREQUENT_WORDS.new_tokens
    if room // 50 < ASKED + 1:
        raise fit.refusal(order, 50 * (ASKED + 1) + order.length - room, order.length - room)
    draws = Draws(order.seed)
    step = room // 32  # words
    code = _code(draws, room // 50)
    count = room // CODE_LETTERS
    while order.count_tokens(_coded(code, count, draws)) < room:
        count += step
    count -= step
    return [_coded_sample(order, draws, count, step) for _ in range(order.count)]


def _coded_sample(order: Order, draws: Draws, count: int, step: int) -> Sample:
    room = order.length - FREQUENT_WORDS.new_tokens
    code = _code(draws, room // 50)
    text = _coded(code, count, draws)
    while (tokens := order.count_tokens(text)) > room and count > 0:
        count -= step
        text = _coded(code, count, draws)
    if count <= 0 or not _times(count, len(code))[ASKED]:
        raise fit.refusal(order, None, FREQUENT_WORDS.new_tokens)
    question, prefix = FREQUENT_WORDS.split(text)
    answers = tuple(code[1 : ASKED + 1])
    return Sample(question, answers, tokens + FREQUENT_WORDS.new_tokens, prefix)


def _code(draws: Draws, size: int) -> list[str]:
    """Returns `size` words of the code, the most frequent first."""

    def word() -> str:
        return "".join(draws.random.choices(string.ascii_lowercase, k=CODE_LETTERS))

    code = [word() for _ in range(size)]
    while len(set(code)) < size:
        code.append(word())
    return ["...", *draws.shuffled(sorted(set(code)))[1:]]


def _times(count: int, size: int) -> np.ndarray:
    """Returns how often each of `size` words occurs in a text of about `count` words."""
    return (count * np.arange(1, size + 1) ** -ALPHA / ZETA).astype(int)


def _coded(code: list[str], count: int, draws: Draws) -> str:
    times = _times(count, len(code))
    text = [word for word, often in zip(code, times, strict=True) for _ in range(often)]
    return FREQUENT_WORDS.whole.format(context=" ".join(draws.shuffled(text)))
