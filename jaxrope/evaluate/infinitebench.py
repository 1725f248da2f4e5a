"""The pass key and the number string of InfiniteBench (`data/construct_synthetic_dataset.py`).

The text is N lines of grass with one line that states the key. A key has exactly five digits (the
number string ten, of which five repeat others), zeros in front included, and must come back as it
is written: the first run of digits in the answer is compared as text. The prompt is the one for
models without instructions (`src/prompt.py`, yarn-mistral).

Here N is the most that fits a length and the key stands at spread depths. With `official`, N,
places and repeats are those of the benchmark, which knows six lengths; its counts are of another
tokenizer, so that a prompt may have more tokens than the length it is named for.
"""

import dataclasses
import functools
import random
import re
from collections.abc import Callable

from jaxrope.data import GRASS
from jaxrope.errors import InputError
from jaxrope.evaluate.fitting import most_units, num_tokens
from jaxrope.evaluate.items import Item, Request, Task

# length -> (lines of grass, lines between two places of the key). The script as it was published
# builds pass keys up to 65536 and the number string at 131072.
OFFICIAL = {
    8_192: (326, 6),
    16_384: (652, 12),
    32_768: (1_305, 22),
    65_536: (2_610, 45),
    131_072: (5_220, 90),
    262_144: (10_440, 180),
}


@dataclasses.dataclass(frozen=True)
class Wording:
    """One of the two tasks.

    Attributes:
      name: in eval.suites.
      template: with {context}.
      key_line: with {key}, twice.
      draw: a random generator -> a key.
      max_new_tokens: of the answer.
      repeats: keys at each place, in the benchmark.
    """

    name: str
    template: str
    key_line: str
    draw: Callable[[random.Random], str]
    max_new_tokens: int
    repeats: int


def draw_passkey(rng: random.Random) -> str:
    """Returns five digits, the first of which may be 0."""
    return "".join(str(rng.randint(0, 9)) for _ in range(5))


def draw_number_string(rng: random.Random) -> str:
    """Returns ten digits: five, and five more, each next to one that it repeats."""
    digits = list(draw_passkey(rng))
    for more in range(5):
        place = rng.randint(0, 4 + more)
        digits.insert(place, digits[place])
    return "".join(digits)


PASSKEY = Wording(
    name="passkey_infinitebench",
    template=(
        "There is an important info hidden inside a lot of irrelevant text. Find it and memorize "
        "it. I will quiz you about the important information.\n\n{context}\n\nWhat is the pass "
        "key?\n\nThe pass key is"
    ),
    key_line="The pass key is {key}. Remember it. {key} is the pass key.\n",
    draw=draw_passkey,
    max_new_tokens=6,
    repeats=5,
)
NUMBER_STRING = Wording(
    name="number_string",
    template=(
        "There is an important info hidden inside a lot of irrelevant text. Find it. I will quiz "
        "you about the important information there.\n\n{context}\n\nWhat is the sequence of "
        "digits?\n\nThe sequence of digits is"
    ),
    key_line="The sequence of digits is {key}. Remember it. {key} is the sequence of digits.\n",
    draw=draw_number_string,
    max_new_tokens=12,
    repeats=10,
)


def make(wording: Wording, request: Request) -> list[Item]:
    """Returns the prompts of one of the two tasks.

    Raises:
      InputError: the prompt's own words exceed the length, or the benchmark does not know it.
    """
    rng = random.Random(request.seed)
    if request.options.official:
        lines, places = _official(wording, request.length)
        keys = [wording.draw(rng) for _ in places]
    else:
        keys = [wording.draw(rng) for _ in range(request.count)]
        lines = _most_lines(wording, request, keys)
        places = [int(lines * (i + 0.5) / request.count) for i in range(request.count)]
    items = []
    for place, key in zip(places, keys, strict=True):
        prompt = _prompt(wording, key, lines=lines, place=place)
        tokens = num_tokens(request.tokenizer, prompt)
        about = {"depth": place / max(1, lines), "lines": lines, "tokens": tokens}
        items.append(Item(prompt, (key,), wording.max_new_tokens, about))
    return items


def score(text: str, item: Item) -> float:
    """Returns 1.0 if the first run of digits in `text` is the key, zeros in front included."""
    match = re.search("[0-9]+", text)
    return float(match is not None and match.group() == item.answers[0])


def _official(wording: Wording, length: int) -> tuple[int, list[int]]:
    if length not in OFFICIAL:
        raise InputError(
            f"eval.lengths: InfiniteBench's '{wording.name}' knows {', '.join(map(str, OFFICIAL))} "
            f"tokens, got length {length}. Use those, or eval.number_string.official=False."
        )
    lines, step = OFFICIAL[length]
    return lines, [place for place in range(0, lines + 1, step) for _ in range(wording.repeats)]


def _most_lines(wording: Wording, request: Request, keys: list[str]) -> int:
    tokenizer = request.tokenizer
    longest = max(keys, key=lambda key: num_tokens(tokenizer, wording.key_line.format(key=key)))

    def tokens(lines: int) -> int:
        places = {0, lines // 2, lines}
        prompts = [_prompt(wording, longest, lines=lines, place=place) for place in places]
        return max(num_tokens(tokenizer, text) for text in prompts) + wording.max_new_tokens

    return most_units(tokens, limit=request.length, least=0, setting=wording.name)


def _prompt(wording: Wording, key: str, *, lines: int, place: int) -> str:
    noise = f"{GRASS}\n"
    context = noise * place + wording.key_line.format(key=key) + noise * (lines - place)
    return wording.template.format(context=context)


def _task(wording: Wording) -> Task:
    make_fn = functools.partial(make, wording)
    return Task(wording.name, "number_string", make_fn, score, columns=("depth",), exceeds=True)


PASSKEY_TASK, NUMBER_STRING_TASK = _task(PASSKEY), _task(NUMBER_STRING)
