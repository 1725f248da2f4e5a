"""Conversations as text by the model's own template, and which of its characters are answers.

A template with `{% generation %}` says itself what the model's part is. For any other, an answer is
what the template adds for it: the text of the messages up to the answer begins with that of the
messages before it, ended as for generation, and the rest is the answer, with its end token. Where a
template writes earlier messages otherwise once others follow (Qwen3 drops reasoning), no text holds
all answers as the model gives them, and each is learned in a text of its own: that of the messages
up to it, as the model meets them.
"""

import re
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from jaxrope.data import chat
from jaxrope.data.documents import ReadCounts
from jaxrope.data.fields import Conversation
from jaxrope.data.tokenizer import Tokenizer
from jaxrope.errors import InputError

TEXT, PROMPT, ANSWER = 0, 1, 2  # what a token belongs to; a prompt's are not learned
_MARKED = re.compile(r"\{%[-+]?\s*generation\b")


def render_all(
    documents: Iterable[tuple[str, str | Conversation]],
    template: Callable[[], chat.ChatTemplate],
    counts: ReadCounts,
    setting: str,
) -> Iterator[tuple[str, str | chat.Chat]]:
    """Yields documents with conversations rendered; those without an answer count as empty.

    Args:
      documents: of read_documents.
      template: returns the model's, or raises InputError; called for the first conversation.
      counts: added to.
      setting: the config key that named the files.

    Raises:
      InputError: see `render`; with the document's name.
    """
    program = None
    for name, text in documents:
        if isinstance(text, Conversation):
            program = program or template()
            try:
                chats = render(program, text)
            except InputError as error:
                raise InputError(f"{setting}: '{name}': {error}") from None
            if not chats:
                counts.empty += 1
            yield from ((name, rendered) for rendered in chats)
            continue
        yield name, text


def render(template: chat.ChatTemplate, conversation: Conversation) -> list[chat.Chat]:
    """Returns the text of a conversation, and where its answers are; or one for each answer, where
    the template writes earlier messages otherwise once others follow; none without an answer.

    Raises:
      InputError: the template refuses the messages, or marks no answers and has no borders.
    """
    messages, variables = conversation.messages, conversation.variables
    whole = chat.render(template, messages, variables=variables)
    if _MARKED.search(template.source):
        return [whole] if whole.answers else []
    turns = [n for n, message in enumerate(messages) if message["role"] == "assistant"]
    chats = [_of_one_answer(template, conversation, turn) for turn in turns]
    chats = [one for one in chats if one.answers]
    if all(whole.text.startswith(one.text) for one in chats):
        spans = tuple(span for one in chats for span in one.answers)
        return [chat.Chat(whole.text, spans)] if spans else []
    return chats


def _of_one_answer(template: chat.ChatTemplate, conversation: Conversation, turn: int) -> chat.Chat:
    """Returns the text of the messages up to an answer, which alone counts in it."""
    if not turn:
        raise InputError(
            "the conversation begins with an answer, which this template does not mark. Put a "
            "message of the user before it."
        )
    messages, variables = conversation.messages, conversation.variables
    begun = chat.render(template, messages[:turn], add_generation_prompt=True, variables=variables)
    ended = chat.render(template, messages[: turn + 1], variables=variables)
    if not ended.text.startswith(begun.text):
        raise InputError(
            f"{template.where} writes a message otherwise once an answer follows (message "
            f"{turn + 1} of {len(messages)}), so that answers have no border. Give a template "
            "that marks them with {% generation %}."
        )
    span = len(begun.text), len(ended.text)
    return chat.Chat(ended.text, (span,) if span[0] < span[1] else ())


def encode(tokenizer: Tokenizer, rendered: chat.Chat) -> tuple[np.ndarray, np.ndarray]:
    """Returns (ids, uint8: PROMPT or ANSWER of each): a token with a character of an answer is one.

    Begin and end tokens are those that the template wrote.
    """
    ids, spans_T2 = tokenizer.encode_with_spans(rendered.text, special=False)
    roles = np.full(len(ids), PROMPT, np.uint8)
    begins, ends = spans_T2[:, 0], spans_T2[:, 1]
    for begin, end in rendered.answers:
        roles[(begins < end) & (ends > begin)] = ANSWER
    return ids, roles
