"""RULER's variable tracking (vt): a number handed from variable to variable, in lines of noise.

One worked example stands before each question; its names and its number are drawn anew for each
(NVIDIA/RULER, `scripts/data/synthetic/variable_tracking.py`).
"""

import dataclasses
import string

from jaxrope.errors import InputError
from jaxrope.evaluate.ruler import fit, prompts
from jaxrope.evaluate.ruler.niah import SHORT
from jaxrope.evaluate.ruler.prompts import VARIABLES, Draws, Order, Sample

HOPS = 4  # a chain has one variable more
EXAMPLE_TOKENS = 500  # the worked example has no more
EXAMPLE_VALUE = "12345"


def samples(order: Order) -> list[Sample]:
    """Returns the questions; the answer is the names of all variables of the chain.

    Raises:
      InputError: the worked example has more than 500 tokens whatever is drawn (NVIDIA's script
        then never ends), or a question does not fit.
    """
    draws = Draws(order.seed)
    worked = example(order, draws)
    reserved = order.count_tokens(worked) + VARIABLES.new_tokens
    step = 5 if order.length < SHORT else 10

    def make(units: int) -> tuple[str, list[str]]:
        return _prompt(draws, units, letters=5)

    def make_with_example(index: int, units: int) -> tuple[str, list[str]]:
        text, names = make(units)
        return f"{_renamed(worked, draws)}\n{text}", names

    units = fit.largest(make, order, step=step, reserved=reserved)
    return fit.samples(make_with_example, order, VARIABLES, units=units, step=step)


def example(order: Order, draws: Draws) -> str:
    """Returns the worked example: its names have three letters, its value is 12345.

    Raises:
      InputError: it has more than 500 tokens, whatever is drawn.
    """

    def make(units: int) -> tuple[str, list[str]]:
        return _prompt(draws, units, letters=3, value=EXAMPLE_VALUE)

    short = dataclasses.replace(order, length=EXAMPLE_TOKENS, count=1)
    answered = dataclasses.replace(VARIABLES, new_tokens=0)
    units = fit.largest(make, short, step=5, reserved=0)
    try:
        (sample,) = fit.samples(
            lambda index, units: make(units), short, answered, units=units, step=5
        )
    except InputError:
        raise InputError(
            f"eval.ruler.tasks: ruler/{order.name} begins with a worked example of at most "
            f"{EXAMPLE_TOKENS} tokens, which this tokenizer makes longer. Leave it out, or use a "
            "tokenizer with more entries."
        ) from None
    return f"{sample.prompt} {' '.join(sample.outputs)}\n"


def _prompt(draws: Draws, units: int, *, letters: int, value: str = "") -> tuple[str, list[str]]:
    """Returns a question about a chain among `units` lines of noise.

    Args:
      draws: random numbers.
      units: lines.
      letters: of a name.
      value: of the chain; "": it is drawn.
    """
    names = _names(draws, letters)
    chain_value = value or _value(draws)
    if len(names) > HOPS + 1:  # two names were alike: NVIDIA's script begins a second chain, fails
        _ = value or _value(draws)
        raise prompts.Unmade
    chain = [f"VAR {names[0]} = {chain_value}"]
    chain += [f"VAR {names[i + 1]} = VAR {names[i]} " for i in range(HOPS)]
    if units < len(chain):
        raise prompts.Unmade
    lines = [prompts.NOISE] * units
    places = sorted(draws.random.sample(range(units), len(chain)))
    for number, place in enumerate(places):
        lines.insert(place + number, chain[number])
    context = "\n".join(lines).replace(". \n", ".\n")
    return VARIABLES.whole.format(context=context, query=chain_value, num_v=HOPS + 1), names


def _names(draws: Draws, letters: int) -> list[str]:
    names = [_name(draws, letters) for _ in range(HOPS + 1)]
    while len(set(names)) < HOPS + 1:
        names.append(_name(draws, letters))
    return names


def _name(draws: Draws, letters: int) -> str:
    return "".join(draws.random.choices(string.ascii_uppercase, k=letters))


def _value(draws: Draws) -> str:
    return str(draws.numpy.randint(10000, 99999))


def _renamed(example: str, draws: Draws) -> str:
    """Returns the example with other names and another value."""
    for name in example.split()[-HOPS - 1 :]:
        example = example.replace(name, _name(draws, len(name)))
    return example.replace(EXAMPLE_VALUE, _value(draws))
