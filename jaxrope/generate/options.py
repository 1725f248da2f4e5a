"""The model, the options of a generation, and their checks before anything runs."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from jaxrope import attention
from jaxrope.decoder import DecoderConfig, ForwardSettings
from jaxrope.errors import InputError
from jaxrope.generate.policy import POLICIES
from jaxrope.rope import RopeFn
from jaxrope.schema import Section
from jaxrope.schema.rules import Choice, Many, Number, Whole, field


@dataclasses.dataclass(frozen=True)
class Model:
    """What generates; an evaluation.EvalModel with a RopeFn serves as well.

    Attributes:
      config: its shape.
      params: on the devices of settings.mesh as decoder.param_shardings says, or of one device.
      rope_fn: factors by length.
      settings: compute_dtype, attention_block, mlp_chunk and mesh are used.
    """

    config: DecoderConfig
    params: dict
    rope_fn: RopeFn
    settings: ForwardSettings


class Sampling(NamedTuple):
    """How a token is drawn; see Options."""

    temperature: float
    top_k: int
    top_p: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Section):
    """How text is generated.

    Attributes:
      max_new_tokens: tokens a row gets, at most.
      temperature: logits are divided by it; 0: the most probable token, always.
      top_k: only the k most probable tokens are drawn from; 0: all.
      top_p: only the most probable tokens that together have this probability, after top_k.
      stop: ids that end a row; the id itself is the row's last token.
      policy: which length chooses a row's factors, a name in POLICIES.
      chunk: tokens of a prompt that are read at one time; a multiple of 16 times mesh.context.
      seed: of what is drawn.
    """

    PATH = "generate"

    max_new_tokens: int = field(Whole(1, unit="tokens"))
    temperature: float = field(Number(least=0), default=0.0)
    top_k: int = field(Whole(0, unit="tokens"), default=0)
    top_p: float = field(Number(above=0, most=1), default=1.0)
    stop: tuple[int, ...] = field(Many(Whole(0)), default=())
    policy: str = field(Choice(tuple(POLICIES)), default="recompute")
    chunk: int = field(Whole(1, unit="tokens"), default=512)
    seed: int = field(Whole(0), default=0)

    @property
    def sampling(self) -> Sampling:
        """The options that are compiled into the step."""
        return Sampling(self.temperature, self.top_k, self.top_p)


def check(model: Model, prompts: Sequence[Sequence[int]], options: Options) -> None:
    """Refuses what could not be generated to its end.

    Raises:
      InputError: a prompt is empty, has ids outside the vocabulary, or would grow longer than the
        rope's last bucket; the policy does not suit the rope; chunk does not divide.
    """
    unit = attention.unit(model.settings.mesh)
    if options.chunk % unit:
        below = options.chunk // unit * unit
        legal = " or ".join(str(size) for size in (below, below + unit) if size)
        raise InputError(
            f"generate.chunk must be a multiple of {unit} (16 * mesh.context), got "
            f"{options.chunk}. Nearest: {legal}."
        )
    if not prompts:
        raise InputError("generate: there is no prompt. Give one at least.")
    vocab_size = model.config.vocab_size
    for i, prompt in enumerate(prompts):
        if not len(prompt):
            raise InputError(f"generate: prompt {i + 1} has no tokens. Begin it with bos.")
        wrong = [int(token) for token in prompt if not 0 <= token < vocab_size]
        if wrong:
            raise InputError(
                f"generate: prompt {i + 1} has the token {wrong[0]}, the model's ids end at "
                f"{vocab_size - 1}. Use the model's own tokenizer."
            )
        _check_length(model.rope_fn, i, len(prompt), options)


def _check_length(rope_fn: RopeFn, i: int, length: int, options: Options) -> None:
    planned = length + options.max_new_tokens
    if rope_fn.max_len is not None and planned > rope_fn.max_len:
        raise InputError(
            f"generate: prompt {i + 1} has {length} tokens, with max_new_tokens "
            f"{options.max_new_tokens} {planned}; the rope ends at {rope_fn.max_len}. Shorten it, "
            "ask for fewer tokens, or use factors for a longer target."
        )
    if rope_fn.buckets:
        return
    length_fn = POLICIES[options.policy]
    first, last = (length_fn(length, planned, now) for now in (length, planned))
    if rope_fn.bucket(first) != rope_fn.bucket(last):
        raise InputError(
            f"generate.policy '{options.policy}' needs a rope with length buckets: the factors of "
            f"'{rope_fn.method}' change with every token. Use 'fixed' (those of the planned "
            "length) or 'keep' (those of the prompt's)."
        )
