"""The rows of a table: a name ("yarn", "pi@su", "sliding") made into a rope for each length.

A plain method has its usual constants and factor = length / original_len, where the length is each
column's own or one that is fixed. Of a model that is scaled already it stands on top of that
scaling, with factor = length / what the model reaches (rope.extend). "METHOD@LAW" keeps the
method's factors and states the attention factor ("su", "yarn", "none", times that of the model's
own scaling, or a number), which alone can decide a comparison. A path that ends in .json is a
rope.json.
"""

import dataclasses
from collections.abc import Callable

from jaxrope import decoder, rope
from jaxrope.decoder import DecoderConfig
from jaxrope.rope import Rope, RopeFn
from jaxrope.schema.evaluation import LAWS
from jaxrope.store import files

OWN = "none"  # the model's own scaling, whatever it is
SLIDING = "sliding"  # the same, in a window of what the model serves by it (original_len tokens)


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
      label: its name.
      rope_fn: gives the Rope for a length in tokens.
      window: tokens of the window that slides over the text; 0 = one whole window.
    """

    label: str
    rope_fn: Callable[[int], Rope]
    window: int = 0


def is_file(name: str) -> bool:
    """Returns whether a row's method is a rope.json, and no name."""
    return name.endswith(".json")


def method_row(name: str, config: DecoderConfig, *, rope_len: int, window: int = 0) -> Row:
    """Returns the row of a baseline.

    Args:
      name: a method, "none", "sliding", or any but "sliding" with "@" and an attention factor; or
        the path of a rope.json.
      config: of the model.
      rope_len: tokens for which the factors are chosen; 0 = each length's own.
      window: tokens of a sliding window for the rows that have none of their own; 0 = none.

    Raises:
      InputError: see rope.load.
    """
    if is_file(name):
        geometry = dict(head_dim=config.head_dim, rotary_dim=config.rotary_dim, theta=config.theta)
        path = files.as_path(name)
        return Row(name, rope.load(path, **geometry, num_layers=config.num_layers), window)
    method, at, law = name.partition("@")
    if method == SLIDING:
        return Row(name, decoder.own_rope(config), decoder.own_base(config).length)
    if method == OWN and not at:
        return Row(name, decoder.own_rope(config), window)  # with its lengths, if it has several
    law, own = law if law in ("", *LAWS) else float(law), decoder.own_base(config)

    def rope_fn(seq_len: int) -> Rope:
        # window > 0: never longer than it, whatever the text's length
        factor = max(1.0, (rope_len or seq_len) / own.length)
        method_rope = _method(method, config, factor)
        if not at:
            return method_rope(seq_len)
        number = rope.attention_factor(law, factor=factor, original_len=own.length)
        number *= own.attention_factor if isinstance(law, str) else 1.0
        return _with_attention_factor(method_rope, seq_len, number)

    return Row(name, rope_fn, window)


def _method(method: str, config: DecoderConfig, factor: float) -> RopeFn:
    if method == OWN:
        return decoder.own_rope(config)
    return rope.extend(
        decoder.own_base(config),
        method,
        head_dim=config.head_dim,
        rotary_dim=config.rotary_dim,
        theta=config.theta,
        original_len=config.original_len,
        factor=factor,
    )


def _with_attention_factor(rope_fn: RopeFn, seq_len: int, number: float) -> Rope:
    bucket = rope_fn.bucket(seq_len)
    return rope.build(
        bucket.factors,
        theta=rope_fn.theta,
        start_tokens=bucket.start_tokens,
        attention_factor=number,
    )
