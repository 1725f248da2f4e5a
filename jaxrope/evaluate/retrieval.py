"""One record among many of the same form: key-value pairs and lines.

- "kv": a JSON object of UUIDs (Liu et al., Lost in the Middle, arXiv 2307.03172); the value of one
  key is asked for, and counts if it stands anywhere in the answer.
- "lines": LongEval's lines (LongChat, 2023), `line brave-otter: REGISTER_CONTENT is <12345>`; the
  last number of the answer must be the line's.

Each text has as many records as fit the length, or as many as the config says. Random numbers
are drawn in the order of the original scripts, so that the same seeds give their prompts.
"""

import random
import re
import uuid
from collections.abc import Callable

from jaxrope.data import ADJECTIVES, NOUNS
from jaxrope.errors import InputError
from jaxrope.evaluate.fitting import check_least, most_units, num_tokens
from jaxrope.evaluate.items import Item, Request, Task

KV_HEAD = "Extract the value corresponding to the specified key in the JSON object below.\n\n"
KV_RECORDS = "JSON data:\n{records}\n\n"
KV_KEY = 'Key: "{key}"\n'
KV_END = "Corresponding value:"

LINES_HEAD = (
    "Below is a record of lines I want you to remember. Each line begins with 'line <line index>' "
    "and contains a '<REGISTER_CONTENT>' at the end of the line as a numerical value. For each "
    "line index, memorize its corresponding <REGISTER_CONTENT>. At the end of the record, I will "
    "ask you to retrieve the corresponding <REGISTER_CONTENT> of a certain line index. Now the "
    "record start:\n\n"
)
LINE = "line {name}: REGISTER_CONTENT is <{value}>\n"
LINES_QUESTION = (
    "\nNow the record is over. Tell me what is the <REGISTER_CONTENT> in line {name}? I need the "
    "number."
)
LINES_COMPLETION = "Line <{name}>: <REGISTER_CONTENT> is"
MAX_VALUE = 50_000


def make_kv(request: Request) -> list[Item]:
    """Returns key-value items: item i of n has its pair at place (i + 0.5) / n of the pairs.

    Raises:
      InputError: so many pairs do not fit.
    """

    def items(pairs: int, count: int) -> list[Item]:
        rng = random.Random(request.seed)
        return [_kv_item(request, rng, pairs, i) for i in range(count)]

    return _fitting("kv", "pairs", request, items, least=2)


def kv_score(text: str, item: Item) -> float:
    """Returns 1.0 if the value stands in `text`, in whatever case."""
    return float(item.answers[0].lower() in text.lower())


def make_lines(request: Request) -> list[Item]:
    """Returns items of lines; which line is asked for is drawn, as LongEval does.

    Raises:
      InputError: so many lines do not fit, or there are not so many names.
    """
    names_fn = NAMES[request.options.names]

    def items(lines: int, count: int) -> list[Item]:
        rng = random.Random(request.seed)
        return [_lines_item(request, rng, names_fn, lines, i) for i in range(count)]

    return _fitting("lines", "lines", request, items, least=1)


def word_names(num: int, seed: int, index: int) -> list[str]:
    """Returns `num` different names, adjective-noun, for text `index`.

    LongEval draws them from the words of another package's lists, none twice; these are our own.

    Raises:
      InputError: there are not so many.
    """
    most = len(ADJECTIVES) * len(NOUNS)
    if num > most:
        raise InputError(
            f"eval.lines.names 'words' has {most:,} names, got {num:,} lines. Use 'numbers'."
        )
    drawn = random.Random(f"jaxrope.lines/{seed}/{index}").sample(range(most), num)
    return [f"{ADJECTIVES[i // len(NOUNS)]}-{NOUNS[i % len(NOUNS)]}" for i in drawn]


def number_names(num: int, seed: int, index: int) -> list[str]:
    """Returns "1", "2", ...: LongEval's first kind of line, LRT."""
    return [str(i + 1) for i in range(num)]


NAMES: dict[str, Callable[[int, int, int], list[str]]] = {
    "words": word_names,
    "numbers": number_names,
}

# which number of an answer counts: LongEval takes the last one, which punishes a model that goes on
PICKS = {"last": -1, "first": 0}


def lines_score(text: str, item: Item) -> float:
    """Returns 1.0 if the number of `text` that counts is the line's."""
    numbers = re.findall(r"\d+", text)
    pick = PICKS[item.about["score"]]
    return float(bool(numbers) and int(numbers[pick]) == int(item.answers[0]))


def _fitting(
    suite: str,
    key: str,
    request: Request,
    items_fn: Callable[[int, int], list[Item]],
    *,
    least: int,
) -> list[Item]:
    """Returns items with as many records as the options say, or as fit.

    Args:
      suite, key: the option of config.eval.
      request: how many items.
      items_fn: (records, items) -> items.
      least: records that an item cannot do without.
    """
    num_records, limit = getattr(request.options, key), request.length
    if not num_records:
        sizes = dict(limit=limit, least=least, setting=suite)
        shortest = _longest(items_fn(least, request.count))
        check_least(shortest, limit=limit, setting=suite)
        # one item is soon tried; the others have nearly its size
        guess = most_units(lambda n: _longest(items_fn(n, 1)), **sizes)
        num_records = most_units(
            lambda n: _longest(items_fn(n, request.count)), **sizes, guess=guess
        )
    items = items_fn(num_records, request.count)
    if _longest(items) > limit:
        raise InputError(
            f"eval.{suite}.{key}: {num_records} of them and the answer have {_longest(items):,} "
            f"tokens, got length {limit:,}. Use fewer, or 0 (as many as fit)."
        )
    return items


def _longest(items: list[Item]) -> int:
    return max(item.about["tokens"] + item.max_new_tokens for item in items)


def _kv_item(request: Request, rng: random.Random, pairs: int, index: int) -> Item:
    records: dict[str, str] = {}
    while len(records) < pairs:
        value = _draw_uuid(rng)  # Python evaluates d[key()] = value() in this order
        records[_draw_uuid(rng)] = value
    ordered = list(records.items())
    gold = rng.choice(ordered)
    place = int(pairs * (index + 0.5) / request.count)
    ordered.remove(gold)
    ordered.insert(place, gold)
    lines = ",\n ".join(f'"{key}": "{value}"' for key, value in ordered)
    key_line = KV_KEY.format(key=gold[0])
    first = f"{key_line}\n" if request.options.query_first else ""
    body = KV_RECORDS.format(records=f"{{{lines}}}")
    prompt = f"{KV_HEAD}{first}{body}{key_line}{KV_END}"
    about = {
        "depth": place / (pairs - 1),
        "pairs": pairs,
        "tokens": num_tokens(request.tokenizer, prompt),
    }
    return Item(prompt, (gold[1],), request.options.max_new_tokens, about)


def _draw_uuid(rng: random.Random) -> str:
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def _lines_item(request: Request, rng: random.Random, names_fn, lines: int, index: int) -> Item:
    options = request.options
    names = names_fn(lines, request.seed, index)
    values = [rng.randint(1, MAX_VALUE) for _ in names]
    place = rng.randint(0, lines - 1)
    record = "".join(
        LINE.format(name=name, value=value) for name, value in zip(names, values, strict=True)
    )
    prompt = LINES_HEAD + record + LINES_QUESTION.format(name=names[place])
    if options.completion:
        prompt += LINES_COMPLETION.format(name=names[place])
    about = {
        "depth": place / max(1, lines - 1),
        "lines": lines,
        "tokens": num_tokens(request.tokenizer, prompt),
        "score": options.score,
    }
    return Item(prompt, (str(values[place]),), options.max_new_tokens, about)


KV = Task("kv", "kv", make_kv, kv_score, columns=("depth",))
LINES = Task("lines", "lines", make_lines, lines_score)
