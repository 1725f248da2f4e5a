"""What a result depends on: content, and every key of the config but those that change no number.

A program asks for the identity of what it is about to make, and goes on with, or takes over, what
was made before only where the identities are equal. A key that is added later is dependent unless
it is listed here.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from jaxrope.schema.config import Config, leaves
from jaxrope.schema.rules import rules
from jaxrope.schema.training import Train

# Keys and sections that change memory, time, places and lines of logs, and no number beyond the
# rounding of another order of sums. What a path leads to is content.
FREE = (
    "analysis.second",  # what differs for the second model is in its own config
    "checkpoint",
    "data.cache_dir",
    "data.eval_files",
    "data.exclude",
    "data.held_out",  # of the text, which is content
    "data.sources",  # their shares are in the digest of the batches
    "data.skip_bad_lines",  # it refuses text, or reads it as it is
    "data.tokenizer",
    "data.train_files",
    "eval.checkpoints",
    "eval.harness.include_path",
    "eval.label",
    "eval.longppl.evaluator",
    "eval.niah.haystack",
    "eval.ruler.english_words",
    "eval.ruler.essays",
    "eval.ruler.hotpotqa",
    "eval.ruler.squad",
    "forward.attention",
    "forward.attention_block",
    "forward.attention_kernel",
    "forward.mlp_chunk",
    "forward.remat",
    "forward.ulysses",
    "hosts",
    "join.ropes",
    "mesh",
    "model.path",
    "model.shape",
    "optimizer.offload",
    "recipe",
    "rope.path",
    "search.batch_size",
    "search.memory_gb",
    "search.seeds",
    "stages",
    "sweep",
    "train.check_every",
    "train.chunk_tokens",
    "train.eval_every",
    "train.log_every",
    "train.max_bad_steps",
)
# what alone a training reads, but for the dtype that weights are read in
_TRAINED = tuple(f"train.{name}" for name in rules(Train) if name != "param_dtype")
_TRAINED += ("lora", "optimizer")
_MIXED = ("data.mode", "data.needle_keys", "data.needle_share", "data.needle_weight")
_MIXED += ("data.short_share", "data.long_share", "data.long_tokens", "data.chat_share")
_BY_ALL = ("train.param_dtype",)  # weights are read in this dtype, whatever is done with them
# program -> sections and keys that it does not read, _BY_ALL excepted
UNREAD: dict[str, tuple[str, ...]] = {
    "search": (*_TRAINED, *_MIXED, "eval", "analysis", "join"),
    "train": ("search", "eval", "analysis", "join"),
    "join": (*_TRAINED, *_MIXED, "eval", "analysis", "search", "forward", "target_len", "rope"),
    "evaluate": (*_TRAINED, *_MIXED, "search", "analysis", "join", "target_len"),
    "analyse": (*_TRAINED, *_MIXED, "search", "join", "target_len", "eval.baseline"),
}


@dataclasses.dataclass(frozen=True)
class Identity:
    """What a result depends on.

    Attributes:
      program: that makes it.
      settings: {dotted key: value}, as JSON has them.
      content: {what: digest}: weights, rope, text, tokenizer, items.
    """

    program: str
    settings: Mapping[str, Any]
    content: Mapping[str, str]

    @property
    def digest(self) -> str:
        """SHA-256, in hex."""
        text = json.dumps(self.to_json(), sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Returns what `from_json` reads."""
        parts = dict(settings=dict(self.settings), content=dict(self.content))
        return {"program": self.program} | parts

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> "Identity":
        """Returns the identity that a record holds."""
        return Identity(value["program"], value["settings"], value["content"])

    def without(self, *names: str) -> "Identity":
        """Returns the identity without some keys and content."""
        settings = {k: v for k, v in self.settings.items() if not is_in(k, names)}
        content = {k: v for k, v in self.content.items() if k not in names}
        return Identity(self.program, settings, content)

    def changes(self, now: "Identity") -> list[str]:
        """Returns what differs from an earlier identity: "train.seq_len (512, now 1024)"."""
        lines = []
        if self.program != now.program:
            lines.append(f"program ({self.program}, now {now.program})")
        for key in sorted({**self.settings, **now.settings}):
            before, after = self.settings.get(key), now.settings.get(key)
            if before != after:
                lines.append(f"{key} ({_short(before)}, now {_short(after)})")
        for name in sorted({**self.content, **now.content}):
            before, after = self.content.get(name, ""), now.content.get(name, "")
            if before != after:
                lines.append(f"the {name} (digest {before[:12] or '-'}, now {after[:12] or '-'})")
        return lines


def identify(
    program: str, config: Config, content: Mapping[str, str], *, free: tuple[str, ...] = ()
) -> Identity:
    """Returns the identity of what a program is about to make.

    Args:
      program: a key of UNREAD.
      config: of the program.
      content: digests of all that it reads, by what it is.
      free: further keys that change nothing here, such as the length of a training that goes on.
    """
    left_out = (*FREE, *UNREAD[program], *free)
    settings = {k: v for k, v in leaves(config) if k in _BY_ALL or not is_in(k, left_out)}
    return Identity(program, json.loads(json.dumps(settings)), dict(content))


def is_in(key: str, places: tuple[str, ...]) -> bool:
    """Returns whether a dotted key is one of `places` or inside of one."""
    return any(key == place or key.startswith(f"{place}.") for place in places)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."
