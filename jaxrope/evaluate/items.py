"""What a task that is answered by generation is made of: questions with their answers, a request
for some of them, and the task itself.

A task does not depend on a model: it makes prompts and scores texts. `answering` makes it a suite.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Item:
    """One question.

    Attributes:
      prompt: text the model reads; bos is added when it is encoded, if the tokenizer has one.
      answers: texts that are searched for in the answer of the model.
      max_new_tokens: tokens it may write.
      about: what tables and maps group by: {"depth": 0.25, "task": "vt"}.
      tokens: int32, bos included, if the prompt is built to the token; None: encode(prompt).
    """

    prompt: str
    answers: tuple[str, ...]
    max_new_tokens: int
    about: dict[str, float | int | str]
    tokens: np.ndarray | None = dataclasses.field(default=None, compare=False)

    def fingerprint(self) -> str:
        """Returns the SHA-256 of the tokens (else the prompt) and the answers, as hex: equal on
        any machine, so that two systems can show that they were asked the same.
        """
        if self.tokens is None:
            content, kind = self.prompt.encode("utf-8"), "text"
        else:
            content, kind = np.ascontiguousarray(self.tokens, "<i4").tobytes(), "tokens"
        head = json.dumps([kind, len(content), list(self.answers)], ensure_ascii=True)
        return hashlib.sha256(head.encode("ascii") + content).hexdigest()


@dataclasses.dataclass(frozen=True)
class Request:
    """Which questions a task has to make.

    Attributes:
      tokenizer: data.Tokenizer of the model.
      length: tokens; bos, prompt and max_new_tokens together have no more.
      count: items.
      seed: of everything that is drawn.
      documents: held-out data.TokenDocuments, or None.
      options: the suite's own section of config.eval.
      cache: what one request read, for later requests.
    """

    tokenizer: Any
    length: int
    count: int
    seed: int
    documents: Any
    options: Any
    cache: dict = dataclasses.field(default_factory=dict, compare=False, repr=False)


@dataclasses.dataclass(frozen=True)
class Task:
    """A kind of question, and how an answer to it is judged.

    Attributes:
      name: in eval.suites.
      section: the section of config.eval with its options.
      make: the items of a request; raises InputError when they cannot fit.
      score: (text the model wrote, item) -> 0 to 1.
      counted_by: the key of the section that says how many items there are.
      stops: texts at which an answer ends; they are no part of it.
      needs_text: (its section) -> whether it uses documents (config.data.eval_files).
      columns: names in Item.about whose cells are drawn against length, such as ("depth",).
      copying_scores: the answers are words that occur all over the text, so that merely continuing
        it scores above 0: that score is chance; else chance is 0.
      exceeds: prompts may have more tokens than the length they are named for: what a benchmark
        that counts in characters, or with another tokenizer, makes of it.
    """

    name: str
    section: str
    make: Callable[[Request], list[Item]]
    score: Callable[[str, Item], float]
    counted_by: str = "trials"
    stops: tuple[str, ...] = ()
    needs_text: Callable[[Any], bool] = lambda options: False
    columns: tuple[str, ...] = ()
    copying_scores: bool = False
    exceeds: bool = False

    def request(self, tokenizer: Any, bench: Any, length: int) -> Request:
        """Returns the request to the task at a length.

        Args:
          tokenizer: of the model.
          bench: a scoring.Bench.
          length: tokens.
        """
        options = getattr(bench.options, self.section)
        return Request(
            tokenizer=tokenizer,
            length=length,
            count=getattr(options, self.counted_by),
            seed=bench.seed,
            documents=bench.documents,
            options=options,
            cache=bench.cache.setdefault("files", {}),
        )
