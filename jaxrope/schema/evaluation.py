"""What is measured: suites, rows, text, and the options of each suite."""

import dataclasses
import re
from typing import Any

from jaxrope.errors import InputError, choose
from jaxrope.schema.model import MOST_KEYS, PLACES
from jaxrope.schema.rules import (
    Choice,
    Fixed,
    Many,
    Number,
    One,
    Section,
    Switch,
    Text,
    Whole,
    field,
)

RULER_TASKS = (
    *("niah_single_1", "niah_single_2", "niah_single_3"),
    *("niah_multikey_1", "niah_multikey_2", "niah_multikey_3", "niah_multivalue"),
    *("niah_multiquery", "vt", "cwe", "fwe", "qa_1", "qa_2"),
)
SUITES = (
    *("perplexity", "passkey", "needle", "harness", "longppl", "niah", "kv", "lines"),
    *("number_string", "passkey_infinitebench", "passkey_longrope", "passkey_yarn", "ruler"),
    *(f"ruler/{name}" for name in RULER_TASKS),
)
ROWS = ("none", "sliding", "pi", "ntk", "dynamic_ntk", "yarn")
LAWS = ("su", "yarn", "none")
PROTOCOLS = ("", "proof_pile_yarn", "pg19_sliding_256", "books3_256k")
AGGREGATIONS = ("token_mean", "window_mean", "doc_mean")
_FILLER = Choice(("grass", "text"))
_FILES = Many(Text(PLACES, least=1))


@dataclasses.dataclass(frozen=True)
class RowName:
    """A row's method: a name, with "@" and an attention factor or not, or a rope.json.

    Attributes:
      more: further names.
    """

    more: tuple[str, ...] = ()

    def read(self, value: Any, path: str) -> str:
        """Returns the name."""
        if not isinstance(value, str):
            raise InputError(f"{path} must be the name of a method, got {value!r}.")
        if value.endswith(".json") or value in self.more:
            return value
        method, at, law = value.partition("@")
        choose(path.partition("[")[0], method, dict.fromkeys((*ROWS, *self.more)))
        if at and method == "sliding":
            raise InputError(f"{path}: '{value}' takes no attention factor. Write 'sliding'.")
        if at and law not in LAWS and not _is_positive(law):
            raise InputError(
                f"{path}: '{value}': an attention factor is {', '.join(LAWS)} or a number above 0."
            )
        return value


def _is_positive(text: str) -> bool:
    return bool(re.fullmatch(r"[0-9]*\.?[0-9]+(e-?[0-9]{1,2})?", text)) and float(text) > 0


_CHECKPOINT = Fixed(
    (Text(PLACES, least=1), Text(PLACES, least=1), RowName(("model",))),
    "('base', 'models/base', 'sliding'): (label, path, method)",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProtocolOptions(Section):
    """What differs from a paper's protocol."""

    PATH = "eval.protocol_options"

    documents: int = field(Whole(0))
    min_tokens: int = field(Whole(0))
    stride: int = field(Whole(0, unit="tokens"))
    max_strides: int = field(Whole(0))
    whole_windows: bool = field(Switch())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Harness(Section):
    """Tasks of lm-evaluation-harness."""

    PATH = "eval.harness"

    tasks: tuple = field(Many(Text("a task of another program", least=1)))
    shots: int = field(Whole(-1))
    limit: int = field(Whole(0))
    max_length: int = field(Whole(0, unit="tokens"))
    include_path: str = field(Text(PLACES))
    chat_template: bool = field(Switch())
    allow_truncation: bool = field(Switch())


_NATS = "a threshold in nats, of either sign"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LongPpl(Section):
    """Perplexity of key tokens."""

    PATH = "eval.longppl"

    evaluator: str = field(Text(PLACES))
    documents: int = field(Whole(1))
    context: int = field(Whole(1, unit="tokens"))
    window: int = field(Whole(1, unit="tokens"))
    alpha: float = field(Number(because=_NATS))
    beta: float = field(Number(because=_NATS))


@dataclasses.dataclass(frozen=True, kw_only=True)
class PasskeyCompat(Section):
    """Pass keys as the papers' scripts ask them."""

    PATH = "eval.passkey_compat"

    trials: int = field(Whole(0))
    seed: int = field(Whole(0))


@dataclasses.dataclass(frozen=True, kw_only=True)
class NumberString(Section):
    """InfiniteBench's numbers."""

    PATH = "eval.number_string"

    trials: int = field(Whole(1))
    official: bool = field(Switch())


_PROMPT = Text("words of a prompt", least=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Niah(Section):
    """Needles in a haystack."""

    PATH = "eval.niah"

    trials: int = field(Whole(1))
    depths: int = field(Whole(1))
    depth_spacing: str = field(Choice(("linear", "sigmoid")))
    haystack: tuple = field(_FILES)
    needle: str = field(_PROMPT)
    question: str = field(_PROMPT)
    answer: str = field(_PROMPT)
    score: str = field(Choice(("overlap", "substring", "rouge1", "fu_compat")))
    max_new_tokens: int = field(Whole(1))
    compat: bool = field(Switch())
    buffer: int = field(Whole(0, unit="tokens"))

    def check(self) -> None:
        """The answer stands in the needle."""
        is_part = self.answer.lower() in self.needle.lower()
        if not is_part or not re.search(r"\w", self.answer):
            raise InputError(
                f"eval.niah.answer must be a part of eval.niah.needle with a word in it, got "
                f"{self.answer!r} and {self.needle!r}."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeyValue(Section):
    """Key-value pairs."""

    PATH = "eval.kv"

    trials: int = field(Whole(1))
    pairs: int = field(Whole(2, also=0))
    query_first: bool = field(Switch())
    max_new_tokens: int = field(Whole(1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lines(Section):
    """Lines of a record."""

    PATH = "eval.lines"

    trials: int = field(Whole(1))
    lines: int = field(Whole(1, also=0))
    names: str = field(Choice(("words", "numbers")))
    completion: bool = field(Switch())
    score: str = field(Choice(("last", "first")))
    max_new_tokens: int = field(Whole(1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ruler(Section):
    """RULER's tasks."""

    PATH = "eval.ruler"

    tasks: tuple = field(Many(Choice(RULER_TASKS), distinct=True))
    lengths: tuple = field(Many(Whole(1, unit="tokens"), distinct=True))
    samples: int = field(Whole(1))
    seed: int = field(Whole(0))
    essays: tuple = field(_FILES)
    squad: str = field(Text(PLACES))
    hotpotqa: str = field(Text(PLACES))
    english_words: str = field(Text(PLACES))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation(Section):
    """What is measured."""

    PATH = "eval"

    suites: tuple = field(Many(Choice(SUITES), distinct=True))
    lengths: tuple = field(Many(Whole(1, unit="tokens"), least=1, distinct=True))
    label: str = field(Text("a name in the user's tables"))
    methods: tuple = field(Many(RowName()))
    checkpoints: tuple = field(Many(_CHECKPOINT))
    rope_len: int = field(Whole(0, unit="tokens"))
    baseline: str = field(Text("a row of the user's tables"))
    num_windows: int = field(Whole(1))
    windows_per_doc: int = field(Whole(1))
    offset_tokens: int = field(Whole(0))
    batch_tokens: int = field(Whole(1))
    chunk_tokens: int = field(Whole(16))
    window: int = field(Whole(0, unit="tokens"))
    stride: int = field(Whole(1, unit="tokens"))
    bos_per_window: bool = field(Switch())
    aggregation: str = field(Choice(AGGREGATIONS))
    protocol: str = field(Choice(PROTOCOLS))
    protocol_options: ProtocolOptions = field(One(ProtocolOptions))
    harness: Harness = field(One(Harness))
    longppl: LongPpl = field(One(LongPpl))
    passkey_trials: int = field(Whole(1))
    passkey_filler: str = field(_FILLER)
    passkey_zero_padded: bool = field(Switch())
    needle_keys: tuple = field(Many(Whole(1, MOST_KEYS), least=1, distinct=True))
    needle_trials: int = field(Whole(1))
    needle_filler: str = field(_FILLER)
    passkey_compat: PasskeyCompat = field(One(PasskeyCompat))
    number_string: NumberString = field(One(NumberString))
    niah: Niah = field(One(Niah))
    kv: KeyValue = field(One(KeyValue))
    lines: Lines = field(One(Lines))
    ruler: Ruler = field(One(Ruler))
    bootstrap_samples: int = field(Whole(100, 10**7))

    def check(self) -> None:
        """A harness has tasks; a protocol of one window has no stride."""
        if "harness" in self.suites and not self.harness.tasks:
            raise InputError(
                "eval.suites has 'harness', but eval.harness.tasks is empty. Name tasks: "
                "--tasks=arc_challenge,hellaswag,mmlu,truthfulqa_mc2."
            )
        stride = self.protocol_options.stride
        if self.protocol == "proof_pile_yarn" and stride:
            raise InputError(
                f"eval.protocol_options.stride must be 0 for '{self.protocol}', which has one "
                f"window of a document, got {stride}. Choose a sliding protocol, or leave it out."
            )
