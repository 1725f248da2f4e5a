"""A needle in a haystack, as Fu et al. ask for it (arXiv 2402.10171, `eval/needle`).

One sentence is put into a long text behind one of its sentences, and asked for after the text. The
text is what the user names. The original's 49 essays are not free to share, so that a score on any
other text is marked "niah-pd" in Item.about.

Ours has exactly the tokens asked for: bos, prompt and the answer's room together. `compat` makes
what the original's code makes, of which not all was meant:

- Text and needle together have length - buffer tokens; the question comes on top.
- Tokens are decoded and encoded anew, three times in all, so that their number drifts.
- The tokenizer puts bos before each text, and what it decodes shows it: bos stands three times at
  the beginning, one of them before the prompt, and once more before the needle.
- Only a token that is "." and nothing else ends a sentence, as those listed there for LLaMA,
  Mistral and GLM; ours may end with it.

Both walk back from the depth to the end of a sentence, and to the very beginning where there is
none; depth 100 is the end, wherever that is. gkamradt's original inserts alike, at 35 depths.
"""

import dataclasses
import hashlib
import itertools
import re
import string
from collections import Counter
from collections.abc import Callable

import numpy as np

from jaxrope.data import ReadCounts, ReadSettings, check_bad_lines, find_files, read_documents
from jaxrope.errors import InputError, TooShort
from jaxrope.evaluate.items import Item, Request, Task

HEAD = "<|im_start|> This is a very long story book: <book> "
TAIL = " </book>.\n Based on the content of the book, Question: {question}\nAnswer:"

# SHA-256 of the sorted SHA-256 of the 49 essays, as gkamradt has them and as Fu et al. do
ORIGINAL_ESSAYS = (
    "87d9ee90b230d832207f8b07b5928be9097447a13913a636fc307649fc14101d",
    "d2bd4b7a845e94b9f3720866ba30215049bddb6e8c76bee8d13b2da9134b7b4d",
)
_MARGIN = 16  # tokens behind the last one used, whose ends a cut within a word may change


@dataclasses.dataclass(frozen=True)
class Source:
    """Where haystacks come from.

    Attributes:
      num_texts: how many there are, one at least.
      text: (index, characters at most) -> the beginning of a text.
      mark: "niah" for the original's essays, else "niah-pd".
    """

    num_texts: int
    text: Callable[[int, int], str]
    mark: str


def make(request: Request) -> list[Item]:
    """Returns the items of a length: for each haystack one at each depth.

    Haystack i begins with text i; texts follow one another, and again from the first one, until
    there are enough tokens.

    Raises:
      InputError: there is no text, or the question does not fit.
    """
    options = request.options
    source = _source(request)
    if request.count > source.num_texts:
        raise InputError(
            f"eval.niah.trials is the number of haystacks, each beginning with another text: there "
            f"are {source.num_texts}, got {request.count}. Name more texts, or set it to 1."
        )
    depths = SPACINGS[options.depth_spacing](options.depths)
    build = _compat_tokens if options.compat else _exact_tokens
    items = []
    for trial in range(request.count):
        hay = _leading_tokens(request.tokenizer, source, trial, request.length)
        for depth in depths:
            tokens, place = build(request, hay, depth)
            about = {
                "depth": depth / 100,
                "place": place,
                "trial": trial,
                "haystack": source.mark,
                "score": options.score,
            }
            prompt = request.tokenizer.decode(tokens)
            items.append(Item(prompt, (options.answer,), options.max_new_tokens, about, tokens))
    return items


def linear(num: int) -> list[float]:
    """Returns depths in percent from 0 to 100, equally spaced and rounded to whole ones."""
    return np.round(np.linspace(0, 100, num)).astype(int).tolist()


def sigmoid(num: int) -> list[float]:
    """Returns depths in percent, denser towards both ends; 0 and 100 are kept as they are."""
    return [
        x if x in (0.0, 100.0) else float(np.round(100 / (1 + np.exp(-0.1 * (x - 50))), 3))
        for x in np.linspace(0, 100, num).tolist()
    ]


SPACINGS: dict[str, Callable[[int], list[float]]] = {"linear": linear, "sigmoid": sigmoid}


def fu_compat(text: str, answer: str) -> float:
    """Returns what the original's figure shows (`visualize.py`): the share of the answer's words.

    The words are a set above and a list below the line, so that the perfect answer to the usual
    question, which has "a" twice, scores 11/12 = 0.9167; and "day" is not "day.".
    """
    expected = answer.lower().split()
    return len(set(text.lower().split()) & set(expected)) / len(expected)


def overlap(text: str, answer: str) -> float:
    """Returns the share of the answer's distinct words, whatever their case and punctuation."""
    expected = _words(answer)
    return len(_words(text) & expected) / len(expected)


def substring(text: str, answer: str) -> float:
    """Returns 1.0 if the answer stands in the text, whatever the case, spaces and its full stop."""
    phrase = " ".join(answer.lower().split()).rstrip(string.punctuation)
    return float(phrase in " ".join(text.lower().split()))


def rouge1(text: str, answer: str) -> float:
    """Returns ROUGE-1's F-measure (Lin 2004), without stemming.

    The original prints ten times that of the whole needle, with words stemmed; its figure is not
    made of it.
    """
    actual, expected = (Counter(re.findall("[a-z0-9]+", part.lower())) for part in (text, answer))
    common = (actual & expected).total()
    return 2 * common / (actual.total() + expected.total()) if common else 0.0


SCORERS: dict[str, Callable[[str, str], float]] = {
    "overlap": overlap,
    "substring": substring,
    "rouge1": rouge1,
    "fu_compat": fu_compat,
}


def score(text: str, item: Item) -> float:
    """Returns what the scorer that the item names makes of `text`."""
    return SCORERS[item.about["score"]](text, item.answers[0])


def _words(text: str) -> set[str]:
    return {word.strip(string.punctuation) for word in text.lower().split()} - {""}


def _source(request: Request) -> Source:
    """Returns the files of eval.niah.haystack, else the documents of data.eval_files."""
    patterns, documents = request.options.haystack, request.documents
    if patterns:
        settings, counts = ReadSettings("eval.niah.haystack"), ReadCounts()
        files = find_files(patterns, setting=settings.setting)
        texts = [text for _, text in read_documents(files, settings, counts)]
        check_bad_lines(counts.bad_lines, settings)
        if not texts:
            raise InputError(f"eval.niah.haystack: there is no text in {tuple(patterns)}.")
        return Source(len(texts), lambda i, chars: texts[i][:chars], _mark(files))
    if documents is None:
        raise InputError(
            "eval.suites has 'niah', which needs text: set eval.niah.haystack or data.eval_files."
        )
    decode = request.tokenizer.decode
    return Source(
        len(documents),
        lambda i, chars: decode(documents.tokens(i, 0, chars))[:chars],
        _mark(documents.files),
    )


def _mark(files) -> str:
    digests = "".join(sorted(file.sha256 for file in files))
    is_original = hashlib.sha256(digests.encode("ascii")).hexdigest() in ORIGINAL_ESSAYS
    return "niah" if is_original else "niah-pd"


def _leading_tokens(tokenizer, source: Source, first: int, count: int) -> np.ndarray:
    """Returns the first `count` tokens of the texts from `first` on."""
    chars = 8 * (count + _MARGIN)
    while True:
        parts, missing = [], chars
        for i in itertools.count(first):
            parts.append(source.text(i % source.num_texts, missing))
            missing -= len(parts[-1])
            if missing <= 0:
                break
        ids = tokenizer.encode("".join(parts))
        if len(ids) >= count + _MARGIN:
            return ids[:count]
        chars *= 2


def _place(tokenizer, hay: np.ndarray, depth: float, ends_fn: Callable[[str], bool]) -> int:
    """Returns how many tokens stand before the needle."""
    if depth == 100:
        return len(hay)
    place = int(len(hay) * (depth / 100))
    while place and not ends_fn(tokenizer.decode([hay[place - 1]])):
        place -= 1
    return place


def _exact_tokens(request: Request, hay: np.ndarray, depth: float) -> tuple[np.ndarray, int]:
    """Returns (a prompt of length - max_new_tokens tokens, those of the text before the needle)."""
    tokenizer, options = request.tokenizer, request.options
    bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    head = [*bos, *tokenizer.encode(HEAD)]
    needle = tokenizer.encode(options.needle)
    tail = tokenizer.encode(TAIL.format(question=options.question))
    room = request.length - options.max_new_tokens - len(head) - len(needle) - len(tail)
    if room < 1:
        least = request.length - room + 1  # a token of haystack
        raise TooShort(
            f"eval.lengths: a needle, its question and its answer without a haystack have "
            f"{least - 1} tokens, got length {request.length}. Leave it out, or leave "
            "'niah' out of eval.suites.",
            least=least,
        )
    hay = hay[:room]
    place = _place(tokenizer, hay, depth, lambda text: text.endswith("."))
    return _joined(head, hay[:place], needle, hay[place:], tail), place


def _compat_tokens(request: Request, hay: np.ndarray, depth: float) -> tuple[np.ndarray, int]:
    """Returns (the original's prompt, tokens of its text before the needle)."""
    tokenizer, options = request.tokenizer, request.options
    bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    needle = _joined(bos, tokenizer.encode(options.needle))
    most = request.length - options.buffer - len(needle)
    if most < 1:
        raise InputError(
            f"eval.lengths: the needle and eval.niah.buffer have {request.length - most} tokens, "
            f"got length {request.length}. Use a smaller buffer, or eval.niah.compat=False."
        )
    trimmed = _texts(tokenizer, _joined(bos, hay[: request.length - len(bos)]))
    context = _encoded(tokenizer, trimmed)[:most]
    place = _place(tokenizer, context, depth, lambda text: text.strip() == ".")
    texts = _texts(tokenizer, _joined(context[:place], needle, context[place:]))
    texts[0] = HEAD + texts[0]
    texts[-1] += TAIL.format(question=options.question)
    tokens = _encoded(tokenizer, texts)
    over = len(tokens) + options.max_new_tokens - request.length
    if over > 0:
        raise InputError(
            f"eval.niah.buffer: prompt and answer are {over} tokens longer than length "
            f"{request.length}, got {options.buffer}. Use a larger buffer."
        )
    return tokens, place


def _texts(tokenizer, tokens: np.ndarray) -> list[str]:
    """Returns the texts between the bos of `tokens`."""
    cuts = np.flatnonzero(tokens == tokenizer.bos_id) if tokenizer.bos_id is not None else ()
    parts = np.split(tokens, cuts)
    return [tokenizer.decode(part) for part in parts]  # which leaves bos out


def _encoded(tokenizer, texts: list[str]) -> np.ndarray:
    """Returns the tokens of texts, bos before each."""
    bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    return _joined(*(part for text in texts for part in (bos, tokenizer.encode(text))))


def _joined(*parts) -> np.ndarray:
    return np.concatenate([np.asarray(part, np.int32) for part in parts])


TASK = Task(
    "niah",
    "niah",
    make,
    score,
    needs_text=lambda options: not options.haystack,
    columns=("depth",),
    copying_scores=True,
)
