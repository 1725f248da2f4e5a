"""Pass keys as the scripts of LongRoPE and YaRN ask for them: generated, and cut by characters.

Both have the prompt of Landmark attention (`llama/run_test.py`), with which `passkey` agrees but
for what follows from counting tokens. Here are their random numbers and their control of length:

- the sentences of grass are cut at a character, mostly within a word;
- the place of the key is drawn, not spread; the key is drawn from 1 to 50000, so that it has one
  to five digits, though the papers say five;
- LongRoPE (`evaluation/passkey.py`) takes 3.65 characters for a token, whatever the tokenizer, and
  seeds Python's generator with 42 before each length;
- YaRN (`eval/passkey.py`) adds 128 characters at a time until a prompt, drawn anew each time, has
  the tokens, and takes the characters before the last step. Its script is not seeded.

Their prompts are therefore near a length, not exact: `tokens` in Item.about is the actual count.
"""

import random
import re

from jaxrope.data import GRASS
from jaxrope.errors import InputError, TooShort
from jaxrope.evaluate.fitting import num_tokens
from jaxrope.evaluate.items import Item, Request, Task
from jaxrope.evaluate.passkey import KEY_LINE, OPENING, QUESTION

CHARS_PER_TOKEN = 3.65  # that LongRoPE assumes
STEP_CHARS = 128  # by which YaRN lengthens a prompt
MAX_KEY = 50_000
MAX_NEW_TOKENS = 10
YARN_REPEATS = 10_000  # of the sentences in YaRN's script: it can go no further
LONGROPE_TRIALS, YARN_TRIALS = 10, 20


def make_longrope(request: Request) -> list[Item]:
    """Returns the prompts of LongRoPE's script for request.length.

    Raises:
      InputError: the prompt's own words exceed the length.
    """
    options = _checked(request)
    num_chars = int(request.length * CHARS_PER_TOKEN)
    rng = random.Random(options.seed)
    return _items(request, rng, num_chars, trials=request.count or LONGROPE_TRIALS)


def make_yarn(request: Request) -> list[Item]:
    """Returns the prompts of YaRN's script when it is run for request.length alone.

    Raises:
      InputError: the prompt's own words exceed the length, or the length needs more characters than
        the script has.
    """
    options = _checked(request)
    rng = random.Random(options.seed)
    num_chars = yarn_chars(request.tokenizer, request.length, rng=rng)
    return _items(request, rng, num_chars, trials=request.count or YARN_TRIALS)


def draw_prompt(rng: random.Random, garbage: str, num_chars: int) -> tuple[str, int, int]:
    """Returns (prompt, key, characters before the key), drawn as all three scripts do.

    Args:
      rng: takes two draws.
      garbage: sentences, `num_chars` or more.
      num_chars: of garbage, before and after the key together.
    """
    before = rng.randint(0, num_chars)
    key = rng.randint(1, MAX_KEY)
    parts = (OPENING, garbage[:before], KEY_LINE.format(key=key))
    return "".join([*parts, garbage[: num_chars - before], QUESTION]), key, before


def yarn_chars(tokenizer, target: int, *, rng: random.Random) -> int:
    """Returns the characters of garbage that YaRN's script takes for `target` tokens.

    Each probe draws a prompt of its own, as there. Those that are certainly too short are drawn but
    not encoded: at 128k tokens there are thousands.

    Raises:
      InputError: the sentences end first, as an assertion of the script says.
    """
    garbage, sample = _garbage(YARN_REPEATS), _garbage(64)
    density = num_tokens(tokenizer, sample) / len(sample)  # tokens for a character
    # a part of the garbage has at most the tokens of the whole sentences that it touches, and what
    # is cut mid-word may take a token for each of its characters
    slack = _unfilled_tokens(tokenizer) + 2 * (density * len(GRASS) + max(map(len, GRASS.split())))
    last, num_chars = 0, 0
    while True:
        last, num_chars = num_chars, num_chars + STEP_CHARS
        if num_chars > len(garbage):
            raise InputError(
                f"eval.lengths: 'passkey_yarn' has {len(garbage):,} characters of filler, which "
                f"this tokenizer makes fewer than {target:,} tokens. Use shorter lengths, or "
                "'passkey' or 'passkey_longrope' in eval.suites."
            )
        prompt, _, _ = draw_prompt(rng, garbage, num_chars)
        if slack + density * num_chars < target:
            continue
        if num_tokens(tokenizer, prompt) >= target:
            return last


def score(text: str, item: Item) -> float:
    """Returns 1.0 if the first run of digits in `text` is the key as a number, so 0123 is 123.

    Without a digit their answer is the text's first 20 characters, which equal no number.
    """
    match = re.search(r"\d+", text)
    answer = int(match.group()) if match else text[:20]
    return float(answer == int(item.answers[0]))


def _checked(request: Request):
    options = request.options
    needed = _unfilled_tokens(request.tokenizer) + MAX_NEW_TOKENS
    if needed > request.length:
        raise TooShort(
            f"eval.lengths: a pass key prompt without filler and its answer have {needed} tokens, "
            f"got length {request.length}. Leave it out, or leave 'passkey_longrope' and "
            "'passkey_yarn' out of eval.suites.",
            least=needed,
        )
    return options


def _unfilled_tokens(tokenizer) -> int:
    """Returns the tokens of a prompt without garbage, with the longest key."""
    return num_tokens(tokenizer, OPENING + KEY_LINE.format(key=MAX_KEY) + QUESTION)


def _garbage(repeats: int) -> str:
    return " ".join([GRASS] * repeats)


def _items(request: Request, rng: random.Random, num_chars: int, *, trials: int) -> list[Item]:
    garbage = _garbage(num_chars // (len(GRASS) + 1) + 1)
    items = []
    for _ in range(trials):
        prompt, key, before = draw_prompt(rng, garbage, num_chars)
        about = {
            "depth": before / max(1, num_chars),
            "characters": num_chars,
            "tokens": num_tokens(request.tokenizer, prompt),
        }
        items.append(Item(prompt, (str(key),), MAX_NEW_TOKENS, about))
    return items


LONGROPE = Task("passkey_longrope", "passkey_compat", make_longrope, score, exceeds=True)
YARN = Task("passkey_yarn", "passkey_compat", make_yarn, score, exceeds=True)
