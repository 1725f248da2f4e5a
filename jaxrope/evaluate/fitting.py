"""How many units of text (lines, pairs, sentences) a prompt may have so that it fits a length."""

from collections.abc import Callable

from jaxrope.errors import TooShort


def num_tokens(tokenizer, text: str) -> int:
    """Returns the tokens that a model reads for `text`, bos counted."""
    return (tokenizer.bos_id is not None) + len(tokenizer.encode(text))


def check_least(tokens: int, *, limit: int, setting: str) -> None:
    """Refuses a length of `limit` tokens that the shortest prompt and its answer exceed.

    Raises:
      TooShort: so it is.
    """
    if tokens > limit:
        raise TooShort(
            f"eval.lengths: the shortest prompt of '{setting}' and its answer have {tokens:,} "
            f"tokens, got length {limit:,}. Leave it out, or leave '{setting}' out of eval.suites.",
            least=tokens,
        )


def most_units(
    count_fn: Callable[[int], int], *, limit: int, least: int, setting: str, guess: int = 0
) -> int:
    """Returns a number of units with which a prompt fits, while with one more it does not.

    Tokens grow almost in proportion to units, so that a few prompts are made rather than one for
    each bit of the answer.

    Args:
      count_fn: units -> tokens of the longest prompt with so many, and of its answer.
      limit: tokens.
      least: units that a prompt cannot do without.
      setting: what is being made, for the message.
      guess: what is tried first; 0 = twice the least, and some.

    Raises:
      TooShort: not even `least` units fit.
    """
    first = low_tokens = count_fn(least)
    check_least(first, limit=limit, setting=setting)
    low, high = least, max(guess, 2 * least + 16)
    while (high_tokens := count_fn(high)) <= limit:
        a_unit = max(1, (high_tokens - first) / (high - least))
        low, low_tokens, high = high, high_tokens, high + 1 + int((limit - high_tokens) / a_unit)
    while high - low > 1:
        share = (limit - low_tokens) / max(1, high_tokens - low_tokens)
        middle = min(max(low + int(share * (high - low)), low + 1), high - 1)
        if (tokens := count_fn(middle)) <= limit:
            low, low_tokens = middle, tokens
        else:
            high, high_tokens = middle, tokens
    return low
