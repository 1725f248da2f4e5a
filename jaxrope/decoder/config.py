"""The description of a decoder: sizes, and how it differs from a Llama."""

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
      num_experts, experts_per_token, expert_dim: experts of an MLP, of which a router chooses so
        many for each token, and how wide each is; 0 experts: MLPs are dense.
      dense_layers: those whose MLP is dense where others have experts.
      shares_sum_to_one: the shares of a token's experts are divided by their sum.
      router_loss: in training, coefficient of the loss that spreads tokens over experts.
      shared_dim: width of an expert that every token has, times the sigmoid of a gate; 0: none.
      output_gate: what attention gives is multiplied by the sigmoid of a projection, which lies
        behind each head's queries.
      delta_key_heads, delta_value_heads, delta_key_dim, delta_value_dim, delta_conv: of "delta"
        layers (delta.py): heads of queries and keys, and of values, their dims, and how many tokens
        the convolution spans.
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
    num_experts: int = 0
    experts_per_token: int = 0
    expert_dim: int = 0
    dense_layers: tuple[int, ...] = ()
    shares_sum_to_one: bool = True
    router_loss: float = 0.0
    shared_dim: int = 0
    output_gate: bool = False
    delta_key_heads: int = 0
    delta_value_heads: int = 0
    delta_key_dim: int = 0
    delta_value_dim: int = 0
    delta_conv: int = 0

    def __post_init__(self):
        for name, rule in rules(Scratch).items():
            if name != "source":
                value = rule.read(getattr(self, name), f"model.{name}")
                object.__setattr__(self, name, value)
        _check(self)
        _check_experts(self)
        _check_delta(self)

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

    @property
    def expert_layers(self) -> tuple[bool, ...]:
        """Whether each layer has experts."""
        has = self.num_experts > 0
        return tuple(has and layer not in self.dense_layers for layer in range(self.num_layers))

    @property
    def num_expert_layers(self) -> int:
        """How many layers have experts."""
        return self.num_layers - len(self.dense_layers) if self.num_experts else 0

    @property
    def num_delta_layers(self) -> int:
        """How many layers are a recurrence in place of attention."""
        return self.layers.count("delta")

    @property
    def num_attention_layers(self) -> int:
        """How many layers attend."""
        return self.num_layers - self.num_delta_layers

    @property
    def delta_layers(self) -> tuple[bool, ...]:
        """Whether each layer is a recurrence in place of attention."""
        return tuple(kind == "delta" for kind in self.kinds)

    @property
    def attention_layers(self) -> tuple[int, ...]:
        """The layers that attend."""
        return tuple(i for i, recurs in enumerate(self.delta_layers) if not recurs)

    def window(self, kind: str) -> int | None:
        """Returns how many tokens a query sees in layers of a kind; None: all."""
        return self.sliding_window if KINDS[kind].slides or not self.layers else None

    @property
    def full_window(self) -> int | None:
        """How many tokens a query sees in the layers that see most; None: all."""
        windows = [self.window(kind) for kind in self.kinds]
        return None if None in windows else max(windows)


def _check(config: DecoderConfig) -> None:
    if config.num_heads % config.num_kv_heads:
        raise InputError(
            f"model.num_heads must be a multiple of model.num_kv_heads, got {config.num_heads} "
            f"and {config.num_kv_heads}."
        )
    if config.rotary_dim % 2 or config.rotary_dim > config.head_dim:
        raise InputError(
            f"model.rotary_dim must be even and at most model.head_dim {config.head_dim}, got "
            f"{config.rotary_dim}."
        )
    if config.layers and len(config.layers) != config.num_layers:
        raise InputError(
            f"model.layers must name the kind of each of {config.num_layers} layers, got "
            f"{len(config.layers)} names."
        )
    if config.query_growth and config.query_growth_len is None:
        raise InputError("model.query_growth_len must be a number with query_growth, got None.")
    if config.sliding_window is None and any(KINDS[name].slides for name in config.layers):
        raise InputError("model.sliding_window must be a number where layers slide, got None.")
    ids = [("bos_id", config.bos_id), *(("eos_id", number) for number in config.eos_ids)]
    for name, value in ids:
        if value is not None and value >= config.vocab_size:
            raise InputError(
                f"model.{name} must be below model.vocab_size {config.vocab_size}, got {value}."
            )


def _check_experts(config: DecoderConfig) -> None:
    if not 0 <= config.experts_per_token <= config.num_experts:
        raise InputError(
            f"model.experts_per_token must be at most model.num_experts {config.num_experts}, got "
            f"{config.experts_per_token}."
        )
    if config.num_experts and (not config.experts_per_token or not config.expert_dim):
        raise InputError(
            "model.experts_per_token and model.expert_dim must be above 0 with experts, got "
            f"{config.experts_per_token} and {config.expert_dim}."
        )
    if config.num_experts and config.mlp_bias:
        raise InputError("model.mlp_bias must be False with experts, got True.")
    dense = config.dense_layers
    ascend = list(dense) == sorted({*dense}) and (not dense or dense[-1] < config.num_layers)
    if not ascend or len(dense) >= config.num_layers or (dense and not config.num_experts):
        raise InputError(
            f"model.dense_layers must name some of {config.num_layers} layers with experts, each "
            f"once and in order, got {list(dense)}."
        )


def _check_delta(config: DecoderConfig) -> None:
    names = [name for name in DIFFERENCES if name.startswith("delta_")]
    sizes, has = {name: getattr(config, name) for name in names}, "delta" in config.layers
    if any((size > 0) != has for size in sizes.values()):
        rule = "above 0 with layers called delta" if has else "0 without layers called delta"
        values = ", ".join(map(str, sizes.values()))
        raise InputError(f"model.{', model.'.join(names)} must be {rule}, got {values}.")
    if has and config.delta_value_heads % config.delta_key_heads:
        raise InputError(
            "model.delta_value_heads must be a multiple of model.delta_key_heads, got "
            f"{config.delta_value_heads} and {config.delta_key_heads}."
        )
    if has and "full" not in config.layers:
        raise InputError("model.layers must name a full layer: a delta layer has no rope.")
    if config.shared_dim and not config.num_experts:
        raise InputError(
            f"model.shared_dim must be 0 without model.num_experts, got {config.shared_dim}."
        )


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
    "num_experts",
    "experts_per_token",
    "expert_dim",
    "dense_layers",
    "shares_sum_to_one",
    "router_loss",
    "shared_dim",
    "output_gate",
    "delta_key_heads",
    "delta_value_heads",
    "delta_key_dim",
    "delta_value_dim",
    "delta_conv",
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
    "delta": Kind(slides=False, rope="none"),  # a recurrence
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
