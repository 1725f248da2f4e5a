"""RULER's prompts: the templates, the table of its 13 tasks, and what one question is made of.

A benchmark is its prompt: the wording is that of NVIDIA/RULER, to the character
(`scripts/data/synthetic/constants.py` and `scripts/synthetic.yaml`).
"""

import dataclasses
import random
from collections.abc import Callable

import numpy as np

# What is reproduced. RULER's later versions, v1 among them, live on in NeMo-Skills.
VERSION = "NVIDIA/RULER v1, commit c3f5e3b; words of wonderwords 3.0.1"

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."


@dataclasses.dataclass(frozen=True)
class Template:
    """A prompt with holes.

    Attributes:
      question: what NVIDIA's scripts write as `input`.
      answer_prefix: how the answer begins; the model reads it too.
      new_tokens: the answer may have; they count in the length.
    """

    question: str
    answer_prefix: str
    new_tokens: int

    @property
    def whole(self) -> str:
        """The question and the beginning of the answer."""
        return self.question + self.answer_prefix

    def split(self, text: str) -> tuple[str, str]:
        """Returns (question, answer prefix) of a filled prompt, cut where the last answer begins.

        An example before the question has an answer of its own.
        """
        border = text.rindex(self.answer_prefix[:10])
        return text[:border], text[border:]


NIAH = Template(
    "Some special magic {type_needle_v} are hidden within the following text. Make sure to "
    "memorize it. I will quiz you about the {type_needle_v} afterwards.\n{context}\nWhat are all "
    "the special magic {type_needle_v} for {query} mentioned in the provided text?",
    " The special magic {type_needle_v} for {query} mentioned in the provided text are",
    new_tokens=128,
)
VARIABLES = Template(
    "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
    "{context}\nQuestion: Find all variables that are assigned the value {query} in the text "
    "above.",
    " Answer: According to the chain(s) of variable assignment in the text above, {num_v} "
    "variables are assigned the value {query}, they are: ",
    new_tokens=30,
)
COMMON_WORDS = Template(
    "Below is a numbered list of words. In these words, some appear more often than others. "
    "Memorize the ones that appear most often.\n{context}\nQuestion: What are the 10 most common "
    "words in the above list?",
    " Answer: The top 10 words that appear most often in the list are:",
    new_tokens=120,
)
FREQUENT_WORDS = Template(
    "Read the following coded text and track the frequency of each coded word. Find the three "
    "most frequently appeared coded words. {context}\nQuestion: Do not provide any explanation. "
    "Please ignore the dots '....'. What are the three most frequently appeared words in the above "
    "coded text?",
    " Answer: According to the coded text above, the three most frequently appeared words are:",
    new_tokens=50,
)
_QA_RULE = (
    "Answer the question based on the given documents. Only give me the answer and do not output "
    "any other words."
)
QA = Template(
    _QA_RULE
    + "\n\nThe following are given documents.\n\n{context}\n\n"
    + _QA_RULE
    + "\n\nQuestion: {query}",
    " Answer:",
    new_tokens=32,
)


@dataclasses.dataclass(frozen=True)
class Order:
    """The command-line arguments of NVIDIA's scripts.

    Attributes:
      name: of the task, for messages.
      count_tokens: tokens of a text; bos is not counted.
      length: tokens of a prompt and its answer, at most (max_seq_length).
      count: questions (num_samples). The first n of more are the n of fewer.
      seed: of both generators.
    """

    name: str
    count_tokens: Callable[[str], int]
    length: int
    count: int
    seed: int


@dataclasses.dataclass(frozen=True)
class Sample:
    """One line of NVIDIA's file: what their names say, and `length` with the answer's tokens."""

    input: str
    outputs: tuple[str, ...]
    length: int
    answer_prefix: str

    @property
    def prompt(self) -> str:
        """What the model reads."""
        return self.input + self.answer_prefix


class Draws:
    """The random numbers of one run: NVIDIA's scripts seed both global generators once.

    Attributes:
      random: Python's, for nearly everything.
      numpy: NumPy's legacy generator, for the values of variables.
    """

    def __init__(self, seed: int):
        self.random = random.Random(seed)
        self.numpy = np.random.RandomState(seed)
        self._seed = seed

    def shuffled(self, items) -> list:
        """Returns the items in the order of a generator of its own: the same at every call."""
        items = list(items)
        random.Random(self._seed).shuffle(items)
        return items


class Unmade(Exception):
    """A question came out broken; NVIDIA's loop tries again."""
