"""Pass key retrieval, teacher-forced: is each digit of a hidden key the model's first choice?

The prompt is the one of Landmark attention, YaRN and LongRoPE. Theirs is
cut by characters, so that its length in tokens is only roughly known; here it is built from tokens
and has exactly the length asked for, bos and answer counted. Depths are stratified over the
trials where theirs are random, and the digits are read from one forward pass rather than generated.
Under greedy decoding the two agree (see `forced`). What their scripts ask for, to the letter and
generated, is in `passkey_compat`.
"""

import numpy as np

from jaxrope.data import GRASS, continuation
from jaxrope.errors import InputError, TooShort
from jaxrope.evaluate.forced import Forced, Trial
from jaxrope.evaluate.scoring import Bench, EvalModel

OPENING = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. "
    "I will quiz you about the important information there.\n"
)
KEY_LINE = "\nThe pass key is {key}. Remember it. {key} is the pass key.\n"
QUESTION = "\nWhat is the pass key? The pass key is"
DIGITS = 5


def make_trials(model: EvalModel, bench: Bench, length: int) -> list[Trial]:
    """Returns the trials of one length: the same for every model with the same tokenizer.

    Trial i of n has its key at depth (i + 0.5) / n of the filler. What is drawn depends on the
    seed, the length and i only.

    Raises:
      InputError: `length` has no room for the prompt, or the documents are too short to fill it.
    """
    tokenizer, options = model.tokenizer, bench.options
    fill = _filler(tokenizer, bench, length)
    keys = [
        _draw_key(np.random.default_rng([bench.seed, length, i]), options.passkey_zero_padded)
        for i in range(options.passkey_trials)
    ]
    return [
        make_trial(tokenizer, fill, key=key, depth=(i + 0.5) / len(keys), length=length)
        for i, key in enumerate(keys)
    ]


def _draw_key(rng: np.random.Generator, zero_padded: bool) -> str:
    first = 0 if zero_padded else 10 ** (DIGITS - 1)
    return f"{rng.integers(first, 10**DIGITS):0{DIGITS}d}"


def _filler(tokenizer, bench: Bench, length: int):
    """Returns a function (depth, before, after) -> the tokens before the key and those after it."""
    if bench.options.passkey_filler == "grass":
        unit = len(tokenizer.encode(GRASS))
        ids = tokenizer.encode(" ".join([GRASS] * (length // unit + 2)))
        return lambda depth, before, after: (ids[:before], ids[:after])
    documents = bench.text("eval.passkey_filler is 'text'")
    return lambda depth, before, after: np.split(_text(documents, depth, before + after), [before])


def _text(documents, depth: float, count: int) -> np.ndarray:
    """Returns `count` tokens from the middle of a document, another one at each depth."""
    sizes = np.diff(documents.offsets)
    enough = np.flatnonzero(sizes >= count)
    if not len(enough):
        raise InputError(
            f"eval.passkey_filler 'text' needs a document of {count} tokens, the longest of "
            f"data.eval_files has {sizes.max(initial=0)}. Name longer texts, or use 'grass'."
        )
    doc = int(enough[int(depth * len(enough))])
    start = (int(sizes[doc]) - count) // 2
    return np.asarray(documents.doc(doc)[start : start + count])


def make_trial(tokenizer, fill, *, key: str, depth: float, length: int) -> Trial:
    """Returns the trial with this key at this depth, 0 to 1, of what `fill` gives: a function
    (depth, before, after) -> the tokens before the key and those after it.

    Raises:
      InputError: `length` has no room for the prompt.
    """
    bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    opening = [*bos, *tokenizer.encode(OPENING)]
    key_line = tokenizer.encode(KEY_LINE.format(key=key))
    question = tokenizer.encode(QUESTION)
    answer = continuation(tokenizer, QUESTION, f" {key}")
    room = length - sum(map(len, (opening, key_line, question, answer)))
    if room < 0:
        raise TooShort(
            f"eval.lengths: a pass key prompt without filler has {length - room} tokens, "
            f"got length {length}. Leave it out, or leave 'passkey' out of eval.suites.",
            least=length - room,
        )
    before = round(depth * room)
    filler_before, filler_after = fill(depth, before, room - before)
    parts = (opening, filler_before, key_line, filler_after, question, answer)
    tokens = np.concatenate([np.asarray(part, np.int32) for part in parts])
    # a space before the number may be a token of its own, which says nothing about the key
    digits = [place for place, token in enumerate(answer) if tokenizer.decode([token]).strip()]
    first = length - len(answer)
    return Trial(tokens, tuple(first + place for place in digits), dict(key=key, depth=depth))


FORCED = Forced(
    make=lambda model, bench, length: {"passkey": make_trials(model, bench, length)},
    count=lambda options: options.passkey_trials,
    filler="passkey_filler",
)
