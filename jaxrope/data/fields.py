"""Which field of a record is its text, or its conversation.

`data.text_field` names it. Otherwise it is a field with a usual name; the fields of a question and
its answer; or the only field of text that is long. Where none is plainly the one, the fields there
are are listed and the user is asked.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from jaxrope.errors import nearest

TEXTS = ("text", "content", "raw_content", "document", "article", "body", "passage", "code")
CHATS = ("messages", "conversations", "conversation")
PAIRS = (("instruction", "output"), ("prompt", "completion"), ("prompt", "response"))
BESIDE = (TOOLS, _SYSTEM) = ("tools", "system")  # a conversation
SAMPLE = 16  # records that are looked at
_LONG, _TIMES = 200, 10  # characters of a long field, and how many times those of all others

# roles of a message, by the names that they have in ShareGPT's records
_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}
_ROLES |= {"observation": "tool", "function_response": "tool"}
_ROLES |= {name: name for name in ("system", "developer", "user", "assistant", "tool")}


class BadRecord(Exception):
    """A record that has no usable text; its message says why."""


class NoField(Exception):
    """No field of the records is plainly the text; its message lists the fields and asks."""


@dataclasses.dataclass(frozen=True)
class Conversation:
    """Messages as a chat template takes them.

    Attributes:
      messages: dicts with role ("system", "user", "assistant", "tool", ...) and content, and what
        else the record had in them.
      variables: what else a template reads: the record's `tools`.
    """

    messages: tuple[Mapping[str, Any], ...]
    variables: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Field:
    """Where a record has its text.

    Attributes:
      names: of the field; two of a question and its answer; () for a record that is the text.
      chat: it holds a conversation.
    """

    names: tuple[str, ...]
    chat: bool = False

    def __str__(self) -> str:
        return " and ".join(f"'{name}'" for name in self.names) or "the records themselves"

    def read(self, record: Any) -> str | Conversation:
        """Returns the text or the conversation of a record.

        Raises:
          BadRecord: it has none.
        """
        if not self.names:
            return checked_text(record, "the record")
        if not isinstance(record, Mapping):
            raise BadRecord(f"a JSON {type(record).__name__}, not an object")
        for name in self.names:
            if name not in record:
                near = nearest(name, list(record)[:20])
                raise BadRecord(f"no field '{name}' (data.text_field). {near}")
        if len(self.names) == 2:
            return _pair(record, *self.names)
        value, what = record[self.names[0]], f"field '{self.names[0]}'"
        if not self.chat:
            return checked_text(value, what)
        return Conversation(_with_system(record, _messages(value, what)), _variables(record))


def choose(records: Sequence[Any], wanted: str) -> Field:
    """Returns the field that has the text of records.

    Args:
      records: some of them.
      wanted: data.text_field; "" looks for it.

    Raises:
      NoField: none is plainly the one.
    """
    dicts = [record for record in records if isinstance(record, Mapping)]
    if wanted:
        values = [record[wanted] for record in dicts if wanted in record]
        return Field((wanted,), chat=any(map(_is_chat, values)))
    if not dicts and any(isinstance(record, str) for record in records):
        return Field(())
    if not dicts:
        return Field(TEXTS[:1])
    sizes = _sizes(dicts)
    names = {name: None for record in dicts for name in record}
    chats = [name for name in CHATS if any(_is_chat(record.get(name)) for record in dicts)]
    texts = [name for name in TEXTS if name in sizes] or [name for name in TEXTS if name in names]
    pairs = [pair for pair in PAIRS if all(name in sizes for name in pair)]
    if bool(chats) + bool(texts) + bool(pairs) > 1 or len(chats) > 1:
        raise NoField(_question("more than one field may be the text", dicts, sizes))
    if chats:
        return Field((chats[0],), chat=True)
    if pairs:
        return Field(pairs[0], chat=True)
    name = texts[0] if texts else _only_long(sizes, len(dicts))
    if name is None:
        raise NoField(_question("no field is plainly the text", dicts, sizes))
    return Field((name,))


def checked_text(text: object, what: str) -> str:
    """Returns a text that is one.

    Raises:
      BadRecord: it is no string, or one that UTF-8 cannot hold.
    """
    if not isinstance(text, str):
        raise BadRecord(f"{what} is {type(text).__name__}, not a string")
    if "\x00" in text:
        raise BadRecord(f"{what} has a NUL character")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise BadRecord(f"{what} has half a surrogate pair") from None
    return text


def _sizes(records: Sequence[Mapping]) -> dict[str, int]:
    """Returns {field of text: characters in all records}."""
    sizes: dict[str, int] = {}
    for record in records:
        for name, value in record.items():
            if isinstance(value, str):
                sizes[name] = sizes.get(name, 0) + len(value)
    return sizes


def _only_long(sizes: Mapping[str, int], count: int) -> str | None:
    if len(sizes) == 1:
        return next(iter(sizes))
    longest = max(sizes, key=sizes.get, default=None)
    if longest is None or sizes[longest] < _LONG * count:
        return None
    others = sum(sizes.values()) - sizes[longest]
    return longest if sizes[longest] >= _TIMES * others else None


def _question(why: str, records: Sequence[Mapping], sizes: Mapping[str, int]) -> str:
    names = {name: type(value).__name__ for record in records for name, value in record.items()}
    listed = [
        f"{name} ({sizes[name] // len(records):,} characters)" if name in sizes else f"{name} ({k})"
        for name, k in list(names.items())[:20]
    ]
    listed = ", ".join(listed) or "no fields"
    return f"{why}. The records have: {listed}. Set data.text_field to one of them"


def _is_chat(value: object) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], Mapping)


def _messages(value: object, what: str) -> tuple[Mapping[str, Any], ...]:
    if not _is_chat(value):
        raise BadRecord(f"{what} is no list of messages")
    return tuple(_message(message, what) for message in value)


def _variables(record: Mapping) -> dict[str, Any]:
    """Returns the tools that a conversation may use, which some sets keep as JSON."""
    tools = record.get(TOOLS)
    if isinstance(tools, str) and tools.strip():
        try:
            tools = json.loads(tools)
        except ValueError:
            raise BadRecord(f"field '{TOOLS}' is no JSON") from None
    return {TOOLS: tools} if isinstance(tools, list) and tools else {}


def _message(message: object, what: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise BadRecord(f"{what} has a {type(message).__name__} among its messages")
    named = message.get("from") is not None  # as ShareGPT names them
    role = message.get("from" if named else "role")
    if role not in _ROLES:
        known = ", ".join(_ROLES)
        raise BadRecord(f"{what} has a message of role {role!r}. Known: {known}")
    rest = {k: v for k, v in message.items() if k not in ("from", "value") and v is not None}
    content = message.get("value" if named else "content")
    if content is not None or not rest.get("tool_calls"):
        content = checked_text(_joined(content), f"a message of {what}")
    return rest | {"role": _ROLES[role], "content": content or ""}


def _joined(content: object) -> object:
    """Returns a content that is a list of texts, {"type": "text", "text": ...}, as one."""
    parts = content if isinstance(content, list) else []
    texts = [part.get("text") for part in parts if isinstance(part, Mapping)]
    is_text = all(isinstance(part, Mapping) and part.get("type") == "text" for part in parts)
    if parts and is_text and all(isinstance(text, str) for text in texts):
        return "".join(texts)
    return content


def _with_system(record: Mapping, messages: tuple) -> tuple[Mapping[str, Any], ...]:
    """Returns messages behind the record's own field `system`, which some sets have."""
    system = record.get(_SYSTEM)
    if not (isinstance(system, str) and system) or messages[0]["role"] == "system":
        return messages
    return ({"role": "system", "content": checked_text(system, "field 'system'")}, *messages)


def _pair(record: Mapping, question: str, answer: str) -> Conversation:
    """Returns the conversation of a question and an answer; "input" belongs to an instruction."""
    asks, answers = (checked_text(record[n], f"field '{n}'") for n in (question, answer))
    more = record.get("input") if question == "instruction" else ""
    asks = "\n".join([asks, checked_text(more, "field 'input'")]) if more else asks
    turns = dict(role="user", content=asks), dict(role="assistant", content=answers)
    return Conversation(_with_system(record, turns))
