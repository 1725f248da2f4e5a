"""The description of a decoder: sizes, and how it differs from a Llama; the published shapes."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from jaxrope import rope
from jaxrope.errors import InputError
from jaxrope.schema.model import Scratch
from jaxrope.schema.rules import rules


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """The shape of a model, whatever its family: what the forward pass branches on.

    Attributes:
      family: which layout a Hugging Face folder has.
      sliding_window: tokens a query sees, its own included, in the layers that slide; None: all.
      layers: what each layer is, a name in KINDS; (): all are "full", and all slide if there is a
        window.
      sliding_theta, sliding_rope: frequencies and scaling of the layers called "sliding", which
        nobody extends: they see no further than their window. None: theta.
      norm_type: of the residual stream: "rms", or "layer": LayerNorm with a bias.
      norms: where norms stand: "before" attention and MLP, "after" them, or "both".
      norm_offset: is added to the weight of a norm.
      qk_norm: RMSNorm of queries and keys before they are rotated: "none", of each "head", or of
        "all" heads together.
      gate: of the MLP, "silu" or "gelu_tanh".
      embed_scale, residual_scale, logit_scale: multiply embeddings, what a layer adds to the
        residual stream, and the final logits.
      attention_scale: multiplies products of queries and keys; None: head_dim^-0.5.
      attention_cap, logit_cap: logits become cap * tanh(logit / cap); None: they stay.
      query_growth, query_growth_len: queries at position p are multiplied by 1 + query_growth *
        ln(1 + floor(p / query_growth_len)) (the temperature of Llama 4 and Ministral 3).
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
    layers: tuple[str, ...] = ()
    sliding_theta: float | None = None
    sliding_rope: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"method": "none"})
    norm_type: str = "rms"
    norms: str = "before"
    norm_offset: float = 0.0
    qk_norm: str = "none"
    gate: str = "silu"
    embed_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    attention_scale: float | None = None
    attention_cap: float | None = None
    logit_cap: float | None = None
    query_growth: float = 0.0
    query_growth_len: int | None = None

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
        if self.layers and len(self.layers) != self.num_layers:
            raise InputError(
                f"model.layers must name the kind of each of {self.num_layers} layers, got "
                f"{len(self.layers)} names."
            )
        if self.query_growth and self.query_growth_len is None:
            raise InputError("model.query_growth_len must be a number with query_growth, got None.")
        if self.sliding_window is None and any(KINDS[name].slides for name in self.layers):
            raise InputError("model.sliding_window must be a number where layers slide, got None.")
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
    def geometry(self) -> dict[str, Any]:
        """What rope.make needs to know of the model."""
        names = ("head_dim", "rotary_dim", "theta", "original_len")
        return {name: getattr(self, name) for name in names}

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Every id that ends a text."""
        if self.eos_id is None:
            return ()
        return self.eos_id if isinstance(self.eos_id, tuple) else (self.eos_id,)

    def to_json_dict(self) -> dict[str, Any]:
        """Returns what `DecoderConfig(**...)` takes; without what is as in a Llama."""
        values = dataclasses.asdict(self) | {"rope": dict(self.rope)}
        plain = {field.name: field for field in dataclasses.fields(self)}
        for name in DIFFERENCES:
            field = plain[name]
            default = field.default
            if field.default_factory is not dataclasses.MISSING:
                default = field.default_factory()
            if values[name] == default:
                del values[name]
        return values

    @functools.cached_property
    def kinds(self) -> tuple[str, ...]:
        """The kind of each layer."""
        return self.layers or ("full",) * self.num_layers

    def window(self, kind: str) -> int | None:
        """Returns how many tokens a query sees in layers of a kind; None: all."""
        return self.sliding_window if KINDS[kind].slides or not self.layers else None

    @property
    def full_window(self) -> int | None:
        """How many tokens a query sees in the layers that see most; None: all."""
        windows = [self.window(kind) for kind in self.kinds]
        return None if None in windows else max(windows)


# The fields in which families differ from a Llama.
DIFFERENCES = (
    "layers",
    "sliding_theta",
    "sliding_rope",
    "norm_type",
    "norms",
    "norm_offset",
    "qk_norm",
    "gate",
    "embed_scale",
    "residual_scale",
    "logit_scale",
    "attention_scale",
    "attention_cap",
    "logit_cap",
    "query_growth",
    "query_growth_len",
)


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a layer is.

    Attributes:
      slides: its queries see `sliding_window` tokens.
      rope: "scaled": the rope that is searched and extended; "sliding": `sliding_rope`; "none".
    """

    slides: bool
    rope: str


KINDS = {
    "full": Kind(slides=False, rope="scaled"),
    "sliding": Kind(slides=True, rope="sliding"),
    "nope": Kind(slides=False, rope="none"),
    "sliding_nope": Kind(slides=True, rope="none"),
}


def sliding_rope(config: DecoderConfig) -> rope.RopeFn:
    """Returns the rope of the layers called "sliding"."""
    return rope.make(
        **dict(config.sliding_rope),
        head_dim=config.head_dim,
        rotary_dim=config.rotary_dim,
        theta=config.sliding_theta or config.theta,
        original_len=config.original_len,
    )


def own_rope(config: DecoderConfig) -> rope.RopeFn:
    """Returns the model's own scaling: the "none" row of every table."""
    return rope.make(
        **dict(config.rope),
        head_dim=config.head_dim,
        rotary_dim=config.rotary_dim,
        theta=config.theta,
        original_len=config.original_len,
    )


def own_base(config: DecoderConfig) -> rope.Base:
    """Returns what an extension of the model starts from; rope/base.py says which it is."""
    return rope.base_of(own_rope(config), config.max_len)


def _seven_billion(**differing) -> DecoderConfig:
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
    return DecoderConfig(**common | differing)


# Of the config.json files of meta-llama/Llama-2-7b-hf, meta-llama/Meta-Llama-3-8B,
# mistralai/Mistral-7B-v0.1, Qwen/Qwen3-8B, allenai/Olmo-3-1025-7B, HuggingFaceTB/SmolLM3-3B and
# google/gemma-3-4b-pt (its text part). Mistral's rope was trained on 32,768 tokens by its own
# account, but LongRoPE's published factors for it are of 4,096, its sliding window (Original length
# = `sliding_window` in the authors' search.py).
SHAPES: dict[str, DecoderConfig] = {
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
    "qwen3_8b": DecoderConfig(
        family="qwen3",
        vocab_size=151_936,
        num_layers=36,
        embed_dim=4096,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        mlp_dim=12_288,
        norm_eps=1e-6,
        theta=1_000_000.0,
        original_len=32_768,
        max_len=40_960,
        rotary_dim=128,
        tie_embeddings=False,
        qk_norm="head",
        bos_id=151_643,
        eos_id=151_645,
    ),
    "olmo3_7b": DecoderConfig(
        family="olmo3",
        vocab_size=100_278,
        num_layers=32,
        embed_dim=4096,
        num_heads=32,
        num_kv_heads=32,
        head_dim=128,
        mlp_dim=11_008,
        norm_eps=1e-6,
        theta=500_000.0,
        original_len=8192,
        max_len=65_536,
        rotary_dim=128,
        tie_embeddings=False,
        norms="after",
        qk_norm="all",
        layers=("sliding", "sliding", "sliding", "full") * 8,
        sliding_window=4096,
        rope={"method": "yarn", "factor": 8.0},
        eos_id=100_257,
    ),
    "smollm3_3b": DecoderConfig(
        family="smollm3",
        vocab_size=128_256,
        num_layers=36,
        embed_dim=2048,
        num_heads=16,
        num_kv_heads=4,
        head_dim=128,
        mlp_dim=11_008,
        norm_eps=1e-6,
        theta=5_000_000.0,
        original_len=65_536,
        max_len=65_536,
        rotary_dim=128,
        tie_embeddings=True,
        layers=("full", "full", "full", "nope") * 9,
        bos_id=128_000,
        eos_id=128_001,
    ),
    "gemma3_4b": DecoderConfig(
        family="gemma3_text",
        vocab_size=262_208,
        num_layers=34,
        embed_dim=2560,
        num_heads=8,
        num_kv_heads=4,
        head_dim=256,
        mlp_dim=10_240,
        norm_eps=1e-6,
        theta=1_000_000.0,
        original_len=131_072,
        max_len=131_072,
        rotary_dim=256,
        tie_embeddings=True,
        norms="both",
        norm_offset=1.0,
        qk_norm="head",
        gate="gelu_tanh",
        embed_scale=2560**0.5,
        layers=(("sliding",) * 5 + ("full",)) * 5 + ("sliding",) * 4,
        sliding_window=1024,
        sliding_theta=10_000.0,
        rope={"method": "pi", "factor": 8.0},
        bos_id=2,
        eos_id=1,
    ),
}
