"""Chats as text, by a model's own template, as `apply_chat_template` of transformers 5 renders it.

    template = chat.load_template("checkpoints/instruct")
    chat.render(template, [{"role": "user", "content": "Hello"}], add_generation_prompt=True).text

A template is a Jinja program that came with the model. It runs in Jinja's sandbox and sees plain
data alone: the messages, the special tokens of the tokenizer, and what `variables` holds.

The text holds the template's own begin and end tokens: encode it without adding any.
"""

import contextlib
import dataclasses
import datetime
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxrope.data import special
from jaxrope.errors import InputError
from jaxrope.store import files

TEMPLATE, FOLDER = "chat_template.jinja", "additional_chat_templates"
_MAX_BYTES = 10_000_000
_REASONING = ("reasoning_content", "thinking", "reasoning")  # names of one field, the first is used


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """A template and the tokens that it may write.

    Attributes:
      source: the Jinja program.
      tokens: the tokenizer's special tokens by name, "bos_token" -> "<s>".
      where: it comes from, for messages.
    """

    source: str
    tokens: Mapping[str, str]
    where: str

    @functools.cached_property
    def _program(self):
        return _compiled(self.source, self.where)


@dataclasses.dataclass(frozen=True)
class Chat:
    """A chat as text.

    Attributes:
      text: with every special token that belongs to it.
      answers: (begin, end) of the characters that the template marks as the model's, with
        `{% generation %}`; none where it marks nothing.
    """

    text: str
    answers: tuple[tuple[int, int], ...]


def load_template(place: Path | str, name: str = "default") -> ChatTemplate | None:
    """Returns a tokenizer's template; None: it has none.

    Files (chat_template.jinja, additional_chat_templates/NAME.jinja) come before
    tokenizer_config.json, as in transformers.

    Args:
      place: as `load_tokenizer` takes it; "bytes" has none.
      name: of the template, where there are several.

    Raises:
      InputError: there are templates, none of this name, or a file cannot be read.
    """
    if str(place) in ("", "bytes"):
        return None
    place = files.as_path(place)
    file = place / "tokenizer.json" if place.is_dir() else place
    sources = _in_files(file.parent) or _in_config(file)
    if not sources:
        return None
    if name not in sources:
        raise InputError(
            f"{file.parent}: there is no chat template '{name}'. Known:"
            f" {', '.join(sorted(sources))}."
        )
    return ChatTemplate(sources[name], special.named_tokens(file), f"{file.parent}, chat template")


def render(
    template: ChatTemplate,
    messages: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool = False,
    variables: Mapping[str, Any] | None = None,
) -> Chat:
    """Returns the text of a chat.

    Args:
      template: of `load_template`.
      messages: {"role": "user", "content": TEXT}, in order; a key whose value is None is absent.
      add_generation_prompt: ends with what the template writes before an answer.
      variables: what else the template may read: `tools`, `documents`, `enable_thinking`, ...

    Raises:
      InputError: `jinja2` is missing, the template is broken, or it refuses these messages.
    """
    program = template._program
    import jinja2  # behind what says that it is missing

    values = {"tools": None, "documents": None, **template.tokens, **_plain(dict(variables or {}))}
    values |= {"messages": _messages(messages), "add_generation_prompt": add_generation_prompt}
    spans: list[tuple[int, int]] = []
    pieces: list[str] = []
    try:
        with program.environment.marking(pieces, spans):
            for piece in program.generate(**values):
                pieces.append(piece)
    except (jinja2.TemplateError, *_FAILURES) as error:
        raise InputError(f"{template.where} refuses the messages: {error}") from None
    return Chat("".join(pieces), tuple(spans))


# what the operations of a template raise on values that it did not expect
_FAILURES = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


def _in_files(folder: Path) -> dict[str, str]:
    """Returns the templates that are files, by name."""
    found = {path.stem: path for path in sorted((folder / FOLDER).glob("*.jinja"))}
    if (folder / TEMPLATE).is_file():
        found["default"] = folder / TEMPLATE
    return {name: _text(path) for name, path in found.items()}


def _text(path: Path) -> str:
    try:
        raw = files.read_bytes(path, max_bytes=_MAX_BYTES)
        return raw.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: byte {error.start} is wrong.") from None


def _in_config(file: Path) -> dict[str, str]:
    """Returns the templates of tokenizer_config.json, by name."""
    value = special.read_beside(file, "tokenizer_config.json").get("chat_template")
    if isinstance(value, str):
        return {"default": value}
    rows = value if isinstance(value, list) else []
    rows = [(row.get("name"), row.get("template")) for row in rows if isinstance(row, dict)]
    return {n: text for n, text in rows if isinstance(n, str) and isinstance(text, str)}


def _messages(messages: Sequence[Mapping[str, Any]]) -> list[dict]:
    """Returns the messages as transformers hands them on: plain, without None, reasoning under
    each of its names.
    """
    if not messages:
        raise InputError("A chat needs at least one message, got none.")
    plain = []
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise InputError(
                f"messages[{number}] must be an object with role and content, got {message!r:.80}."
            )
        row = {key: value for key, value in _plain(dict(message)).items() if value is not None}
        reasoning = next((row[key] for key in _REASONING if row.get(key) is not None), None)
        if reasoning is not None:
            row = {"thinking": reasoning, **row, "reasoning_content": reasoning}
        plain.append(row)
    return plain


def _plain(value: Any) -> Any:
    """Returns a copy made of JSON's types alone; the name of its type for anything else."""
    return json.loads(json.dumps(value, default=lambda item: f"<{type(item).__name__}>"))


def _compiled(source: str, where: str):
    """Returns the compiled program.

    Raises:
      InputError: jinja2 is missing or too old, or the program has an error.
    """
    try:
        import jinja2
    except ImportError:
        raise InputError(
            "A chat template needs the package `jinja2`, which is not installed. Install it: "
            "pip install 'jaxrope[chat]'."
        ) from None
    try:
        return _environment().from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise InputError(f"{where}, line {error.lineno}: {error.message}.") from None


def _environment():
    """Returns Jinja's sandbox with what templates expect of it."""
    import jinja2
    import jinja2.ext
    import jinja2.sandbox

    class Generation(jinja2.ext.Extension):
        """`{% generation %}` ... `{% endgeneration %}`: what lies between is the model's."""

        tags = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            call = self.call_method("answer")
            return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

        def answer(self, caller):
            text = caller()
            marks = self.environment.marks
            if marks is not None:
                pieces, spans = marks
                begin = sum(map(len, pieces))
                spans.append((begin, begin + len(text)))
            return text

    class Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
        marks = None

        @contextlib.contextmanager
        def marking(self, pieces: list[str], spans: list) -> Iterator[None]:
            self.marks = (pieces, spans)
            try:
                yield
            finally:
                self.marks = None

    def raise_exception(message):
        raise jinja2.TemplateError(message)

    environment = Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {
        "raise_exception": raise_exception,
        "strftime_now": lambda pattern: datetime.datetime.now().strftime(pattern),
    }
    return environment


def _to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    """Returns JSON that keeps <, > and & as they are, unlike Jinja's own filter."""
    options = dict(indent=indent, separators=separators, sort_keys=sort_keys)
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)
