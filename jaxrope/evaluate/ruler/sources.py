"""Files of the user's: essays for needles, and the data sets of RULER's questions and answers.

NVIDIA's haystack is essays that are not free to hand on, so scores on other text are marked. It
splits sentences with NLTK's trained Punkt; here a sentence ends at ". ", "! " or "? " before a
capital, a digit or a quotation mark, but for "Mr.", "Mrs.", "Dr." and "St.". A needle may so stand
at another place than with Punkt.
"""

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path

from jaxrope.data import ReadCounts, ReadSettings, check_bad_lines, find_files, read_documents
from jaxrope.errors import InputError
from jaxrope.store import files

_SENTENCE_END = re.compile(
    r"(?:(?<=[.!?])|(?<=[.!?][\"'”’)\]]))(?<!\b(?:Mr|Dr|St)\.)(?<!\bMrs\.) (?=[\"'“‘(\[]?[A-Z0-9])"
)


def split_sentences(text: str) -> list[str]:
    """Returns the sentences of a text that has single spaces."""
    return _SENTENCE_END.split(text)


@dataclasses.dataclass(frozen=True)
class Essay:
    """A text to hide needles in.

    Attributes:
      words: its words.
    """

    words: tuple[str, ...]

    def sentences(self, count: int) -> list[str]:
        """Returns the sentences of its first `count` words; it begins anew where it ends."""
        repeats = -(-count // len(self.words))
        return split_sentences(" ".join((self.words * repeats)[:count]).strip())


def read_essay(paths: Sequence[str], task: str) -> Essay:
    """Returns the text of eval.ruler.essays, one file after another.

    Args:
      paths: text files or globs; a .json has its text under "text" (PaulGrahamEssays.json).
      task: name of the task, for messages.

    Raises:
      InputError: no files are named, or they are no text.
    """
    if not paths:
        raise InputError(
            f"eval.ruler.essays: ruler/{task} hides needles in essays, none are named. Give text "
            "files, or leave it out of eval.ruler.tasks."
        )
    settings, counts = ReadSettings("eval.ruler.essays"), ReadCounts()
    texts = []
    for file in find_files(paths, setting=settings.setting):
        if file.path.suffix == ".json":
            texts.append(_nvidias_essays(settings.setting, file.path))
        else:
            texts += [text for _, text in read_documents([file], settings, counts)]
    check_bad_lines(counts.bad_lines, settings)
    words = tuple(re.sub(r"\s+", " ", "\n".join(texts)).split(" "))
    if not any(words):
        raise InputError(f"eval.ruler.essays: no words in {', '.join(map(str, paths))}.")
    return Essay(words)


def _nvidias_essays(setting: str, path: Path) -> str:
    read = _json(setting, path)
    if not isinstance(read, dict) or not isinstance(read.get("text"), str):
        raise InputError(f'{setting}: {path} has no "text". Give a text file.')
    return read["text"]


def read_words(path: str) -> list[str]:
    """Returns the words of RULER's english_words.json, or none for "".

    Raises:
      InputError: it is no such file; in a checkout without git-lfs it is a pointer.
    """
    if not path:
        return []
    read = _json("eval.ruler.english_words", files.as_path(path))
    if not isinstance(read, dict) or not all(isinstance(word, str) for word in read.values()):
        raise InputError(
            f"eval.ruler.english_words: {path} is no JSON object of words. Give RULER's "
            "english_words.json."
        )
    return list(read.values())


@dataclasses.dataclass(frozen=True)
class Question:
    """A question about documents.

    Attributes:
      query: the question.
      outputs: answers, any of which is right.
      documents: numbers of the documents that it needs.
      more: numbers of documents of the same article, which stand beside them first.
    """

    query: str
    outputs: tuple[str, ...]
    documents: tuple[int, ...]
    more: tuple[int, ...] = ()


Questions = tuple[list[Question], list[str]]  # and all documents, sorted


def read_squad(path: str, task: str) -> Questions:
    """Returns the answerable questions of SQuAD 2.0 (dev-v2.0.json) and its paragraphs.

    Raises:
      InputError: no file is named, or it is another one.
    """
    articles = _dataset("eval.ruler.squad", "SQuAD's dev-v2.0.json", path, task)
    try:
        documents = sorted({p["context"] for a in articles["data"] for p in a["paragraphs"]})
        number = {document: i for i, document in enumerate(documents)}
        questions = []
        for article in articles["data"]:
            siblings = [number[p["context"]] for p in article["paragraphs"]]
            for paragraph in article["paragraphs"]:
                doc = number[paragraph["context"]]
                more = tuple(i for i in siblings if i != doc)
                for question in paragraph["qas"]:
                    if not question["is_impossible"]:
                        outputs = tuple(answer["text"] for answer in question["answers"])
                        questions.append(Question(question["question"], outputs, (doc,), more))
    except (KeyError, TypeError) as error:
        raise _other_format("eval.ruler.squad", "SQuAD's dev-v2.0.json", path, error) from None
    return questions, documents


def read_hotpotqa(path: str, task: str) -> Questions:
    """Returns the questions of HotpotQA (dev, distractor) and its paragraphs.

    Raises:
      InputError: no file is named, or it is another one.
    """
    setting, expected = "eval.ruler.hotpotqa", "HotpotQA's hotpot_dev_distractor_v1.json"
    records = _dataset(setting, expected, path, task)
    try:
        texts = [[f"{t}\n{''.join(lines)}" for t, lines in r["context"]] for r in records]
        documents = sorted({text for paragraphs in texts for text in paragraphs})
        number = {document: i for i, document in enumerate(documents)}
        questions = [
            Question(
                record["question"], (record["answer"],), tuple(number[text] for text in paragraphs)
            )
            for record, paragraphs in zip(records, texts, strict=True)
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise _other_format(setting, expected, path, error) from None
    return questions, documents


def _dataset(setting: str, expected: str, path: str, task: str):
    if not path:
        raise InputError(
            f"{setting}: ruler/{task} needs {expected}, no file is named. Give its path, or leave "
            "it out of eval.ruler.tasks."
        )
    return _json(setting, files.as_path(path))


def _other_format(setting: str, expected: str, path: str, error: Exception) -> InputError:
    reason = f"{type(error).__name__} {error}"
    return InputError(f"{setting}: {path} is not in the format of {expected} ({reason}).")


def _json(setting: str, path: Path):
    text = _text(setting, path)
    if text.startswith("version https://git-lfs"):
        raise InputError(
            f"{setting}: {path} is a git-lfs pointer, not the file. Fetch it (git lfs pull)."
        )
    try:
        return json.loads(text)
    except ValueError as error:
        raise InputError(f"{setting}: {path} is not JSON ({error}). Give a whole file.") from None


def _text(setting: str, path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{setting}: {path} does not exist. Nothing is downloaded.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{setting}: {path} cannot be read as UTF-8 text ({error}).") from None
