"""Needle documents: magic numbers hidden in a text, and the question for one of them, to the token.

The wording is RULER's, with several keys, one of which is asked for (`niah_multikey`, arXiv
2404.06654; one query and one value make its plural a singular). Theirs is as long as sentences
allow and has its needles between sentences; here a document has exactly the tokens asked for, bos
and answer counted, and each needle is a line of its own at a given depth. A key is one noun where
theirs is "adjective-noun". LongRoPE2's needle-driven perplexity (arXiv 2502.20082) has them at the
start.

One generator serves evaluation, search and training, each with random numbers of its own, and
training with words of its own: a key that is trained on is never tested. Training words come from
the training text: a model that was trained on 260 nouns missed some other nouns, always the same
ones, that it retrieved before training (docs/recipes.md).
"""

import collections
import dataclasses
from collections.abc import Callable

import numpy as np

from jaxrope.data.corpus import TokenDocuments
from jaxrope.data.tokenizer import Tokenizer, continuation
from jaxrope.data.words import NOUNS
from jaxrope.errors import InputError, TooShort

OPENING = (
    "A special magic number is hidden within the following text. Make sure to memorize it. I will "
    "quiz you about the number afterwards.\n"
)
NEEDLE = "\nOne of the special magic numbers for {word} is: {number}.\n"
QUESTION = (
    "\nWhat is the special magic number for {word} mentioned in the provided text? The special "
    "magic number for {word} mentioned in the provided text is"
)
GRASS = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
DIGITS = 7
_GOLDEN = (5**0.5 - 1) / 2

_ASKED = NOUNS[1::2]
# use -> (number of its random stream, words of its keys)
_USES = {
    "evaluation": (1, _ASKED),
    "search": (2, _ASKED),
    "training": (3, NOUNS[::2]),
}
_READ_TOKENS = 1_000_000  # of all documents together, that words are taken from

Haystack = Callable[[int, int], np.ndarray]  # (tokens, a random word of 64 bits) -> ids


@dataclasses.dataclass(frozen=True)
class Source:
    """What needle documents are made of.

    Attributes:
      tokenizer: the model's.
      haystack: gives the text between the needles: `grass` or `text`.
      use: "evaluation", "search" or "training".
      setting: the config key that says how long a document is, for messages.
      words: keys are drawn from these; (): from nouns of the use's own.
    """

    tokenizer: Tokenizer
    haystack: Haystack
    use: str
    setting: str
    words: tuple[str, ...] = ()

    @property
    def keys(self) -> tuple[str, ...]:
        """What keys are drawn from."""
        return self.words or _USES[self.use][1]


@dataclasses.dataclass(frozen=True)
class NeedleDocument:
    """One document with its answers.

    Attributes:
      tokens: int32, exactly the length asked for: bos, prompt, answer.
      answers: for each question the places of the number's digits in `tokens`, ascending.
      words: the keys, those asked first, in the order of the questions.
      numbers: of seven digits, in the order of `words`.
      depths: share of the text that stands before each needle, 0 to 1, in the order of `words`.
      spans: (begin, end) of each needle's line in `tokens`, in the order of `words`.
    """

    tokens: np.ndarray
    answers: tuple[tuple[int, ...], ...]
    words: tuple[str, ...]
    numbers: tuple[str, ...]
    depths: tuple[float, ...]
    spans: tuple[tuple[int, int], ...]


def make_document(
    source: Source,
    *,
    length: int,
    num_keys: int,
    seed: int,
    index: int,
    depth: float | None,
    num_asked: int = 1,
) -> NeedleDocument:
    """Returns document `index` of those of `seed`, a function of nothing but the arguments.

    Args:
      source: what it is made of.
      length: tokens, bos and the last digit of the answer counted.
      num_keys: needles.
      seed, index: 0 to 2**64 - 1.
      depth: share of the text before the needle that is asked for first, 0 to 1; the others stand
        anywhere. None: all needles stand at the start, in any order.
      num_asked: keys that are asked for, one after another, 1 to num_keys.

    Raises:
      InputError: `length` has no room for the needles, or the text is too short to fill it.
    """
    if not 1 <= num_asked <= num_keys <= len(NOUNS) // 2:
        raise ValueError(
            f"1 <= num_asked <= num_keys <= {len(NOUNS) // 2}, got {num_asked}, {num_keys}."
        )
    words, numbers, anywhere, text_word = _draw(source, seed, index, num_keys)
    depths = np.where(depth is None, 0.0, anywhere)
    depths[0] = 0.0 if depth is None else depth
    encode = source.tokenizer.encode
    lines = [
        encode(NEEDLE.format(word=word, number=number))
        for word, number in zip(words, numbers, strict=True)
    ]
    bos_id = source.tokenizer.bos_id
    opening = [*([] if bos_id is None else [bos_id]), *encode(OPENING)]
    ending, marks = _questions(source.tokenizer, words[:num_asked], numbers)
    room = length - len(opening) - len(ending) - sum(map(len, lines))
    if room < 0:
        raise TooShort(
            f"{source.setting}: {num_keys} needles and {num_asked} questions without any text "
            f"have {length - room} tokens, got length {length}. Use a longer one, or fewer keys.",
            least=length - room,
        )
    filler = source.haystack(room, text_word)
    places = np.rint(depths * room).astype(np.int64)
    order = np.lexsort((anywhere, places))
    cuts = np.split(filler, places[order])
    body = [
        cuts[0],
        *(part for i, cut in zip(order, cuts[1:], strict=True) for part in (lines[i], cut)),
    ]
    tokens = np.concatenate([np.asarray(p, np.int32) for p in (opening, *body, ending)])
    first = length - len(ending)
    answers = tuple(tuple(first + place for place in mark) for mark in marks)
    spans = _spans(len(opening) + places, order, [len(line) for line in lines])
    return NeedleDocument(tokens, answers, words, numbers, tuple(depths.tolist()), spans)


def spread_depth(index: int) -> float:
    """Returns a depth, 0 to 1, such that those of indices 0 to n - 1 are spread evenly for any n
    (the golden ratio's multiples, from the middle)."""
    return (0.5 + index * _GOLDEN) % 1.0


def most_tokens(source: Source, num_keys: int, num_asked: int) -> int:
    """Returns a bound of the tokens that needles and questions have without any text."""
    encode, nouns = source.tokenizer.encode, source.keys
    digits = DIGITS + 1  # each a token, and a space before them
    line = max(len(encode(NEEDLE.format(word=w, number=""))) for w in nouns) + digits
    question = max(len(encode(QUESTION.format(word=w))) for w in nouns) + digits + len(encode("."))
    return 1 + len(encode(OPENING)) + num_keys * line + num_asked * question


def grass(tokenizer: Tokenizer) -> Haystack:
    """Returns what fills documents with the sentences of the pass key, over and over."""
    unit = len(tokenizer.encode(GRASS))

    def haystack(count: int, word: int) -> np.ndarray:
        return tokenizer.encode(" ".join([GRASS] * (count // unit + 2)))[:count]

    return haystack


def text(documents: TokenDocuments) -> Haystack:
    """Returns what fills documents with text: any run of tokens within a document of `documents`
    is as likely as any other. It raises InputError for more tokens than the longest has.
    """

    def haystack(count: int, word: int) -> np.ndarray:
        starts = np.cumsum(np.maximum(documents.lengths - count + 1, 0))
        if not starts[-1]:
            raise InputError(
                f"{documents.setting}: needles are to be hidden in {count:,} tokens of one "
                f"document, the longest of {len(documents)} has {documents.lengths.max():,}. Give "
                "longer documents, or hide needles in shorter ones."
            )
        chosen = word % int(starts[-1])
        doc = int(np.searchsorted(starts, chosen, side="right"))
        start = chosen - (int(starts[doc - 1]) if doc else 0)
        return documents.tokens(doc, start, start + count)

    return haystack


def training_words(documents: TokenDocuments, tokenizer: Tokenizer) -> tuple[str, ...]:
    """Returns words of the text that no evaluation and no search asks for, in the order of the
    alphabet: in small letters, of 4 or more, written twice or more often in a million tokens. Where
    a text has too few of these, the nouns of training.
    """
    share = _READ_TOKENS // len(documents) + 1
    counts: collections.Counter[str] = collections.Counter()
    for doc in range(len(documents)):
        counts.update(tokenizer.decode(documents.tokens(doc, 0, share).tolist()).split())
    words = {word for word, count in counts.items() if count > 1 and len(word) >= 4}
    words = {word for word in words if word.isalpha() and word.islower()} - set(_ASKED)
    return tuple(sorted(words)) if len(words) >= len(NOUNS) else _USES["training"][1]


def _spans(begins, order, sizes) -> tuple[tuple[int, int], ...]:
    """Returns (begin, end) of lines put into a text, at `begins` without each other, in `order`."""
    sizes = np.array(sizes)
    before = np.cumsum(sizes[order]) - sizes[order]
    begins = begins + before[np.argsort(order)]
    return tuple(zip(begins.tolist(), (begins + sizes).tolist(), strict=True))


def _questions(tokenizer: Tokenizer, words, numbers) -> tuple[np.ndarray, list[list[int]]]:
    """Returns the tokens of questions and answers, and the places of each answer's digits."""
    parts, marks, size = [], [], 0
    for word, number in zip(words, numbers, strict=False):
        question = QUESTION.format(word=word)
        head = ([tokenizer.encode(".")] if parts else []) + [tokenizer.encode(question)]
        answer = continuation(tokenizer, question, f" {number}")
        size += sum(map(len, head))
        # a space before the number may be a token of its own, which says nothing about it
        digits = [i for i, token in enumerate(answer) if tokenizer.decode([token]).strip()]
        marks.append([size + i for i in digits])
        parts += [*head, answer]
        size += len(answer)
    return np.concatenate([np.asarray(part, np.int32) for part in parts]), marks


def _draw(source: Source, seed: int, index: int, num_keys: int):
    """Returns (words, numbers, depths from 0 to 1, a random word for the haystack)."""
    nouns = source.keys
    draw = _stream(_USES[source.use][0], seed, index)
    words = tuple(nouns[i] for i in np.argsort(draw(len(nouns)), kind="stable")[:num_keys])
    text_word = int(draw(1)[0])
    low = 10 ** (DIGITS - 1)
    numbers = tuple(str(low + int(word) % (9 * low)) for word in draw(num_keys))
    return words, numbers, draw(num_keys) / 2.0**64, text_word


def _stream(stream: int, seed: int, index: int) -> Callable[[int], np.ndarray]:
    """Returns (count) -> the next random words, uint64. NumPy promises them for ever (NEP 19)."""
    bits = np.random.Philox(
        key=np.array([seed, index], np.uint64), counter=np.array([0, 0, 0, stream], np.uint64)
    )
    return bits.random_raw
