"""Names of tensors as other programs write them, in the plain form that `layout` knows.

What wraps a model puts its own name before, or into, every tensor's: torch.compile, DDP, FSDP,
PEFT, models of images and text, TRL's value head. Heads and vision parts that are no part of a
language model are passed over, and so are the rotary buffers of old checkpoints.
"""

import re
from collections.abc import Iterable
from typing import Any

from jaxrope.errors import InputError

_ANYWHERE = re.compile(r"(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_IN_FRONT = ("module.", "base_model.model.", "pretrained_model.", "language_model.")
_DOUBLED = ("model.language_model.", "model.model.")  # mean "model."
_BARE = ("layers.", "embed_tokens.", "norm.")  # a model that was saved without its head
_BUFFER = re.compile(r"(model\.)?(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")
_OTHER_HEAD = re.compile(r"(v_head|value_head|reward_head|score|classifier|rm_head)\.")
_MORE_TOKENS = re.compile(r"(model\.)?mtp\.")  # predicts tokens behind the next one
_VISION = re.compile(r"(model\.)?(visual|vision_tower|multi_modal_projector)\.")


def plain(name: str) -> str:
    """Returns a tensor's name without what wraps the model."""
    name = _ANYWHERE.sub("", name)
    while True:
        shorter = name
        for prefix in _IN_FRONT:
            shorter = shorter.removeprefix(prefix)
        for prefix in _DOUBLED:
            if shorter.startswith(prefix):
                shorter = "model." + shorter.removeprefix(prefix)
        if shorter == name:
            return f"model.{name}" if name.startswith(_BARE) else name
        name = shorter


def is_buffer(name: str) -> bool:
    """Returns whether this is a rotary buffer, which config.json makes unnecessary."""
    return _BUFFER.fullmatch(plain(name)) is not None


def settle(entries: dict[str, Any], where: str) -> tuple[dict[str, Any], list[str]]:
    """Returns (entries by their plain names, without what is passed over; notes).

    Args:
      entries: anything by the tensors' names.
      where: they come from, for messages.

    Raises:
      InputError: two tensors have one plain name.
    """
    settled, origin = {}, {}
    for name, entry in entries.items():
        short = plain(name)
        if short in settled:
            raise InputError(
                f"{where}: tensors '{origin[short][:80]}' and '{name[:80]}' are both {short[:80]}."
                " Remove one of them."
            )
        settled[short], origin[short] = entry, name
    buffers = [name for name in settled if is_buffer(name)]
    heads = [name for name in settled if _OTHER_HEAD.match(name)]
    more = [name for name in settled if _MORE_TOKENS.match(name)]
    seeing = [name for name in settled if _VISION.match(name)]
    passed_over = {*buffers, *heads, *more, *seeing}
    renamed = [name for name in settled if origin[name] != name and name not in passed_over]
    notes = []
    if renamed:
        notes.append(
            f"{len(renamed)} tensors have other names than transformers gives them:"
            f" '{origin[renamed[0]][:80]}' is read as {renamed[0][:80]}"
        )
    if buffers:
        notes.append(
            f"{len(buffers)} rotary buffers of an old checkpoint are passed over; the frequencies"
            " come from config.json"
        )
    if heads:
        notes.append(
            f"{heads[0][:80]} belongs to a value or reward head, which is passed over: the language"
            " model is read"
        )
    if seeing:
        notes.append(
            f"{len(seeing)} tensors of the vision part ({seeing[0][:80]}, ...) are passed over: the"
            " text part is read"
        )
    if more:
        notes.append(
            f"{len(more)} tensors of the multi-token-prediction head ({more[0][:80]}, ...) are"
            " passed over: the next token is predicted without it"
        )
    return {name: e for name, e in settled.items() if name not in passed_over}, notes


def some(names: Iterable[str], count: int = 3) -> str:
    """Returns a few names for a message."""
    names = sorted(names)
    return ", ".join(name[:80] for name in names[:count]) + (", ..." if len(names) > count else "")
