"""How large a haystack is: NVIDIA's search for the largest that fits, and its loop over questions.

Every prompt that is tried draws random numbers, so the prompts are NVIDIA's only if the same
sizes are tried in the same order.
"""

from collections.abc import Callable

from jaxrope.errors import TooShort
from jaxrope.evaluate.ruler.prompts import Order, Sample, Template, Unmade

# Draws of the smallest haystack. Their lengths vary, so one that is too long may be followed by one
# that fits, which NVIDIA's loop waits for: after FEW draws so does this, up to MANY, where what is
# missing is no more than lengths vary by.
FEW, MANY = 50, 200
_UNIT = 16  # the shortest length that fits is reported as a multiple of this many tokens

Make = Callable[[int], tuple[str, list[str]]]  # units of haystack -> (prompt, answers)


def largest(make: Make, order: Order, *, step: int, reserved: int) -> int:
    """Returns the units of haystack with which a prompt fits, by bisection.

    Args:
      make: draws a prompt.
      order: what is asked for.
      step: units of the prompt by which the length of a unit is estimated; the least number.
      reserved: tokens of order.length that are not for the prompt.
    """
    tokens_per_unit = tokens(make, order, step) / step
    high = max(int((order.length / tokens_per_unit) * 3), step * 2)
    return bisect(make, order, low=step, high=high, reserved=reserved)


def bisect(
    make: Make, order: Order, *, low: int, high: int, reserved: int, most: int | None = None
) -> int:
    """Returns the most units from `low` to `high` with which a prompt fits; `low` if none does.

    A prompt of more than `most` units cannot be made, and counts as one that does not fit.
    """
    best = low
    while low <= high:
        units = (low + high) // 2
        is_possible = most is None or units <= most
        if is_possible and tokens(make, order, units) + reserved <= order.length:
            best = units
            low = units + 1
        else:
            high = units - 1
    return best


def tokens(make: Make, order: Order, units: int) -> int:
    """Returns the tokens of a prompt that is drawn; NVIDIA's search stops at a broken one."""
    for _ in range(FEW):
        try:
            return order.count_tokens(make(units)[0])
        except Unmade:
            continue
    raise refusal(order, None, 0)


def samples(
    make: Callable[[int, int], tuple[str, list[str]]],
    order: Order,
    template: Template,
    *,
    units: int,
    step: int,
) -> list[Sample]:
    """Returns the questions. One that is too long is drawn again with `step` units fewer.

    NVIDIA's loop never ends when not even the smallest haystack fits; this one raises.

    Args:
      make: (number of the question, units) -> (prompt, answers); may raise Unmade.
      order: what is asked for.
      template: of the task.
      units: of haystack to begin with.
      step: units taken away; a haystack of `step` units or fewer is not made smaller.

    Raises:
      TooShort: a question does not fit.
    """
    return [_sample(make, order, template, index, units, step) for index in range(order.count)]


def _sample(make, order, template, index, units, step) -> Sample:
    smallest: list[int | None] = []  # lengths with the smallest haystack; None: it was broken
    while not _hopeless(smallest, order.length):
        length = None
        try:
            text, outputs = make(index, units)
        except Unmade:
            pass
        else:
            length = order.count_tokens(text) + template.new_tokens
            if length <= order.length:
                question, prefix = template.split(text)
                return Sample(question, tuple(outputs), length, prefix)
        if units > step:
            units -= step
        else:
            smallest.append(length)
    raise refusal(order, min(filter(None, smallest), default=None), template.new_tokens)


def _hopeless(smallest: list[int | None], length: int) -> bool:
    if len(smallest) < FEW:
        return False
    lengths = [num_tokens for num_tokens in smallest if num_tokens is not None]
    if not lengths or len(smallest) >= MANY:
        return True
    return min(lengths) - length > max(lengths) - min(lengths)


def least_length(make_fn: Callable[[int], object], length: int) -> int | None:
    """Returns a length at which questions can be made: a multiple of 16 tokens beyond `length`, the
    shortest one as far as bisection finds it; None if there is none up to 16 times `length`.

    Args:
      make_fn: makes all questions of a length; raises TooShort if it cannot.
      length: tokens, at which it cannot.
    """

    def fits(units: int) -> bool:
        try:
            make_fn(_UNIT * units)
        except TooShort:
            return False
        return True

    low = length // _UNIT
    high = low + 1
    while not fits(high):
        low, high = high, 2 * high - length // _UNIT + 1
        if high * _UNIT > 16 * max(length, _UNIT):
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high * _UNIT


def refusal(
    order: Order, shortest: int | None, new_tokens: int, *, least: int | None = None
) -> TooShort:
    """Returns the error of a task that a length has no room for.

    Args:
      order: what was asked for.
      shortest: tokens of the shortest prompt that was tried, with its answer; None if unknown.
      new_tokens: of the answer.
      least: tokens with which it fits; None if unknown.
    """
    needs = f"its shortest prompt takes {shortest}" if shortest else "it takes more"
    needs = f"it does into {least}" if least else needs
    return TooShort(
        f"eval.lengths: ruler/{order.name} does not fit into {order.length} tokens, "
        f"{new_tokens} of them for the answer: {needs}. Give longer lengths, or leave it out of "
        "eval.ruler.tasks.",
        least=least,
    )
