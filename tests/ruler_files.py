"""Small files in the formats that RULER reads, and a tokenizer without a vocabulary.

What NVIDIA's scripts make of the same files is frozen in ruler_test.py.
"""

import json
import random
from pathlib import Path

from jaxrope import data

_SYLLABLES = ("ba", "ce", "di", "fo", "gu", "ka", "le", "mi", "no", "pu", "ra", "so", "ti", "vu")


def _words(rng: random.Random, count: int) -> list[str]:
    return ["".join(rng.choices(_SYLLABLES, k=rng.randint(1, 4))) for _ in range(count)]


def _sentences(rng: random.Random, count: int) -> str:
    ends = (".", ".", ".", "?", "!", '."')
    found = []
    for _ in range(count):
        text = " ".join(_words(rng, rng.randint(4, 14))).capitalize()
        found.append(text + rng.choice(ends) + rng.choice((" ", " ", "\n", "\n\n")))
    return "".join(found)


def pieces_tokenizer(folder: Path) -> data.Tokenizer:
    """Returns a tokenizer that gives every piece of about five letters the same id.

    Only numbers of tokens matter to RULER's generators, and these are like a real tokenizer's.
    """
    pattern = {"Regex": " ?[A-Za-z]{1,5}| ?[0-9]{1,3}|[^A-Za-z0-9]"}
    spec = {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {
            "type": "Split",
            "pattern": pattern,
            "behavior": "Isolated",
            "invert": False,
        },
        "model": {"type": "WordLevel", "vocab": {"<unk>": 0}, "unk_token": "<unk>"},
    }
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(spec), encoding="utf-8")
    return data.load_tokenizer(path)


def write_essay(path: Path) -> Path:
    """Writes 900 sentences of no meaning, in the format of PaulGrahamEssays.json."""
    text = _sentences(random.Random(1), 900)
    path.write_text(json.dumps({"text": text}), encoding="utf-8")
    return path


def write_english_words(path: Path) -> Path:
    """Writes 9,000 words, in the format of RULER's english_words.json."""
    rng = random.Random(2)
    found = {str(i): word + str(i) for i, word in enumerate(_words(rng, 9000))}
    path.write_text(json.dumps(found), encoding="utf-8")
    return path


def write_squad(path: Path) -> Path:
    """Writes articles of 5 to 30 paragraphs, one question in three without an answer."""
    rng = random.Random(3)
    articles = []
    for article, num_paragraphs in enumerate((30, 5, 12, 5, 5)):
        paragraphs = []
        for paragraph in range(num_paragraphs):
            asked = [
                {
                    "question": f"Who {' '.join(_words(rng, 5))}?",
                    "is_impossible": (article + paragraph + number) % 3 == 0,
                    "answers": [{"text": word} for word in _words(rng, 3)],
                }
                for number in range(2)
            ]
            paragraphs.append({"context": _sentences(rng, rng.randint(3, 7)), "qas": asked})
        articles.append({"title": f"article {article}", "paragraphs": paragraphs})
    path.write_text(json.dumps({"version": "v2.0", "data": articles}), encoding="utf-8")
    return path


def write_hotpotqa(path: Path) -> Path:
    """Writes twelve questions with ten paragraphs each."""
    rng = random.Random(4)
    records = [
        {
            "question": f"Which {' '.join(_words(rng, 6))}?",
            "answer": " ".join(_words(rng, 2)),
            "context": [
                [" ".join(_words(rng, 2)), [_sentences(rng, 1) for _ in range(rng.randint(1, 3))]]
                for _ in range(10)
            ],
        }
        for _ in range(12)
    ]
    path.write_text(json.dumps(records), encoding="utf-8")
    return path
