"""The shape of a model, and the published shapes."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxrope import rope
from jaxrope.errors import InputError
from jaxrope.schema.model import Scratch
from jaxrope.schema.rules import rules


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """The shape of a model.

    Attributes:
      family: which layout a Hugging Face folder has.
      sliding_window: tokens a query sees, its own included; None: all.
      theta, rotary_dim: of the plain rope frequencies.
      original_len: tokens the rope was trained on.
      max_len: tokens the model claims to serve.
      rope: the model's own scaling, {"method": ..., constants}; {"method": "none"} for a plain one.
      bos_id, eos_id, pad_id: as config.json has them; several ids end a text of some models.
      stored_dtype: of the weights that came in, which an export keeps; None: not known.
    """

    vocab_size: int
    num_layers: int
    embed_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_dim: int
    norm_eps: float
    theta: float
    original_len: int
    max_len: int
    rotary_dim: int
    tie_embeddings: bool
    family: str = "llama"
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    sliding_window: int | None = None
    rope: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"method": "none"})
    bos_id: int | None = None
    eos_id: int | tuple[int, ...] | None = None
    pad_id: int | None = None
    stored_dtype: str | None = None

    def __post_init__(self):
        for name, rule in rules(Scratch).items():
            if name != "source":
                value = rule.read(getattr(self, name), f"model.{name}")
                object.__setattr__(self, name, value)
        if self.num_heads % self.num_kv_heads:
            raise InputError(
                f"model.num_heads must be a multiple of model.num_kv_heads, got {self.num_heads} "
                f"and {self.num_kv_heads}."
            )
        if self.rotary_dim % 2 or self.rotary_dim > self.head_dim:
            raise InputError(
                f"model.rotary_dim must be even and at most model.head_dim {self.head_dim}, got "
                f"{self.rotary_dim}."
            )
        ids = [("bos_id", self.bos_id), *(("eos_id", number) for number in self.eos_ids)]
        for name, value in ids:
            if value is not None and value >= self.vocab_size:
                raise InputError(
                    f"model.{name} must be below model.vocab_size {self.vocab_size}, got {value}."
                )

    def __hash__(self):
        return hash(
            (type(self), repr(self))
        )  # `rope` is a dict; a config is a static argument of jit

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Every id that ends a text."""
        if self.eos_id is None:
            return ()
        return self.eos_id if isinstance(self.eos_id, tuple) else (self.eos_id,)

    def to_json_dict(self) -> dict[str, Any]:
        """Returns what `LlamaConfig(**...)` takes."""
        return dataclasses.asdict(self) | {"rope": dict(self.rope)}


def own_rope(config: LlamaConfig) -> rope.RopeFn:
    """Returns the model's own scaling: the "none" row of every table."""
    return rope.make(
        **dict(config.rope),
        head_dim=config.head_dim,
        rotary_dim=config.rotary_dim,
        theta=config.theta,
        original_len=config.original_len,
    )


def _seven_billion(**differing) -> LlamaConfig:
    """What the published models of 7 and 8 billion parameters have in common, and what not."""
    common = dict(
        num_layers=32,
        embed_dim=4096,
        num_heads=32,
        head_dim=128,
        norm_eps=1e-5,
        rotary_dim=128,
        tie_embeddings=False,
        bos_id=1,
        eos_id=2,
    )
    return LlamaConfig(**common | differing)


# Of the config.json files of meta-llama/Llama-2-7b-hf, meta-llama/Meta-Llama-3-8B and
# mistralai/Mistral-7B-v0.1. Mistral's rope was trained on 32,768 tokens by its own account, but
# LongRoPE's published factors for it are of 4,096, its sliding window (Original length =
# `sliding_window` in the authors' search.py).
SHAPES: dict[str, LlamaConfig] = {
    "llama2_7b": _seven_billion(
        vocab_size=32_000,
        num_kv_heads=32,
        mlp_dim=11_008,
        theta=10_000.0,
        original_len=4096,
        max_len=4096,
    ),
    "llama3_8b": _seven_billion(
        vocab_size=128_256,
        num_kv_heads=8,
        mlp_dim=14_336,
        theta=500_000.0,
        original_len=8192,
        max_len=8192,
        bos_id=128_000,
        eos_id=128_001,
    ),
    "mistral_7b": _seven_billion(
        family="mistral",
        vocab_size=32_000,
        num_kv_heads=8,
        mlp_dim=14_336,
        theta=10_000.0,
        original_len=4096,
        max_len=32_768,
        sliding_window=4096,
    ),
}
