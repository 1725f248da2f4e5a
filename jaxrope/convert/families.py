"""The families of Hugging Face's decoders: a row each, read by config.py and layout.py alone.

docs/families.md says how a row is added. Values are those of transformers' configuration classes.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxrope.convert import expert_keys, layer_keys


class Key(NamedTuple):
    """A field of the description that config.json gives as a number.

    Attributes:
      name: of the key.
      default: transformers' value where it is absent; None: the field's own default.
      read, write: field of a value, and back.
    """

    name: str
    default: float | None = None
    read: Callable[[float], float] = float
    write: Callable[[float], float | int] = float


@dataclasses.dataclass(frozen=True)
class Family:
    """In what a family differs from a Llama.

    Attributes:
      architecture: its class in transformers.
      fixed: fields of DecoderConfig that every model of it has; a function takes embed_dim.
      keys: fields that config.json gives as numbers.
      layers: how it says what each layer is.
      attention_bias, mlp_bias: whether keys of these names switch biases on.
      qkv_bias_key: the key that switches biases of q, k and v alone on, "" if there is none.
      norm_eps_key: the key of norm_eps.
      defaults: transformers' values of keys that its config.json files leave out.
      reads: further keys that `layers` reads.
      query_growth: whether rope_parameters has Ministral 3's query temperature.
      rope_by_layer: whether full and sliding layers have a rope each, under rope_parameters.
      local_theta: the older key of the sliding layers' theta, "" if there is none.
      gate_key: the key that names the activation.
      joined: q, k and v, and gate and up, are one tensor.
      typed: the family that its files mean where they have layer types, "" for itself.
      longrope_alone: its class takes no other scaling, and computes its cache anew where the
        factors change; llama.cpp's converter keeps them for it.
      extras: keys that other programs look for in its config.json.
      partial_rotary: the part of the dims that turns where the key is absent; None: all turn.
      experts: how it says what its experts are; None: MLPs are dense.
      delta: tensors of what a delta layer projects its input to -> parameters; {}: it has no such
        layers.
      delta_grouped: rows of these tensors are joined for each key head.
    """

    architecture: str
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    keys: Mapping[str, Key] = dataclasses.field(default_factory=dict)
    layers: layer_keys.Layers | None = None
    attention_bias: bool = False
    mlp_bias: bool = False
    qkv_bias_key: str = ""
    norm_eps_key: str = "rms_norm_eps"
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    reads: tuple[str, ...] = ()
    query_growth: bool = False
    rope_by_layer: bool = False
    local_theta: str = ""
    gate_key: str = "hidden_act"
    joined: bool = False
    typed: str = ""
    longrope_alone: bool = False
    extras: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    partial_rotary: float | None = None
    experts: expert_keys.Experts | None = None
    delta: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    delta_grouped: bool = False

    @property
    def has_gguf(self) -> bool:
        """Whether `export --to=gguf` writes it."""
        return self.experts is None and not self.delta

    def fixed_fields(self, embed_dim: int) -> dict[str, Any]:
        """Returns the fields that every model of this width has."""
        return {k: v(embed_dim) if callable(v) else v for k, v in self.fixed.items()}


def _longest(length: int, **others) -> dict[str, Any]:
    return {"max_position_embeddings": length, **others}


def _whole(value: float) -> int | float:
    return int(value) if value == int(value) else value  # the description refuses others


_DELTA_KEYS = {
    "delta_key_heads": Key("linear_num_key_heads", 16, _whole, int),
    "delta_value_heads": Key("linear_num_value_heads", 32, _whole, int),
    "delta_key_dim": Key("linear_key_head_dim", 128, _whole, int),
    "delta_value_dim": Key("linear_value_head_dim", 128, _whole, int),
    "delta_conv": Key("linear_conv_kernel_dim", 4, _whole, int),
}
_HYBRID_FIELDS = dict(qk_norm="head", norm_offset=1.0, output_gate=True)
_QWEN3_5 = Family(
    "Qwen3_5ForCausalLM",
    fixed=_HYBRID_FIELDS,
    keys=_DELTA_KEYS,
    layers=layer_keys.HYBRID,
    attention_bias=True,
    delta={
        "linear_attn.in_proj_qkv.weight": ("delta_q", "delta_k", "delta_v"),
        "linear_attn.in_proj_z.weight": ("delta_z",),
        "linear_attn.in_proj_b.weight": ("delta_beta",),
        "linear_attn.in_proj_a.weight": ("delta_decay",),
    },
    partial_rotary=0.25,
    defaults=_longest(32_768, head_dim=256, num_key_value_heads=4),
)
_GEMMA_SCALE = Key("query_pre_attn_scalar", 256, lambda v: v**-0.5, lambda v: round(v**-2))
_GEMMA = dict(
    norms="both", norm_offset=1.0, gate="gelu_tanh", embed_scale=lambda embed_dim: embed_dim**0.5
)
_MULTIPLIERS = {
    "embed_scale": Key("embedding_multiplier", 1.0),
    "residual_scale": Key("residual_multiplier", 1.0),
    "attention_scale": Key("attention_multiplier", 1.0),
    "logit_scale": Key("logits_scaling", 1.0, lambda v: 1 / v, lambda v: 1 / v),
}
_CAPS = {"attention_cap": "attn_logit_softcapping", "logit_cap": "final_logit_softcapping"}

FAMILIES: dict[str, Family] = {
    "llama": Family(
        "LlamaForCausalLM",
        layers=layer_keys.NONE,
        attention_bias=True,
        mlp_bias=True,
        extras=dict(pretraining_tp=1),
        defaults=_longest(2048),
    ),
    "mistral": Family(
        "MistralForCausalLM",
        layers=layer_keys.MISTRAL,
        typed="ministral",  # its own class passes over them
        defaults=_longest(131_072, sliding_window=4096, num_key_value_heads=8),
    ),
    "ministral": Family(
        "MinistralForCausalLM",
        layers=layer_keys.MINISTRAL,
        defaults=_longest(131_072, num_key_value_heads=8),
    ),
    "ministral3": Family(
        "Ministral3ForCausalLM",
        layers=layer_keys.ALL,
        query_growth=True,
        defaults=_longest(262_144, head_dim=128, num_key_value_heads=8),
    ),
    "qwen2": Family(
        "Qwen2ForCausalLM",
        fixed=dict(qkv_bias=True),
        layers=layer_keys.QWEN,
        defaults=_longest(32_768, num_key_value_heads=32),
    ),
    "qwen3": Family(
        "Qwen3ForCausalLM",
        fixed=dict(qk_norm="head"),
        layers=layer_keys.QWEN,
        attention_bias=True,
        defaults=_longest(32_768, head_dim=128, num_key_value_heads=32),
    ),
    "qwen3_moe": Family(
        "Qwen3MoeForCausalLM",
        fixed=dict(qk_norm="head"),
        layers=layer_keys.ALL_IF_USED,
        attention_bias=True,
        experts=expert_keys.QWEN,
        defaults=_longest(32_768, num_key_value_heads=4),
    ),
    "mixtral": Family(
        "MixtralForCausalLM",
        layers=layer_keys.ALL,
        experts=expert_keys.MIXTRAL,
        defaults=_longest(131_072, rope_theta=1e6, num_key_value_heads=8),
    ),
    "qwen3_next": Family(
        "Qwen3NextForCausalLM",
        fixed=_HYBRID_FIELDS,
        keys=_DELTA_KEYS,
        layers=layer_keys.HYBRID,
        attention_bias=True,
        experts=expert_keys.NEXT,
        delta={
            "linear_attn.in_proj_qkvz.weight": ("delta_q", "delta_k", "delta_v", "delta_z"),
            "linear_attn.in_proj_ba.weight": ("delta_beta", "delta_decay"),
        },
        delta_grouped=True,
        partial_rotary=0.25,
        defaults=_longest(
            32_768,
            head_dim=256,
            num_key_value_heads=2,
            num_experts=512,
            num_experts_per_tok=10,
            moe_intermediate_size=512,
            norm_topk_prob=True,
        ),
    ),
    "qwen3_5_text": _QWEN3_5,
    "qwen3_5_moe_text": dataclasses.replace(
        _QWEN3_5,
        architecture="Qwen3_5MoeForCausalLM",
        experts=expert_keys.QWEN3_5,
        defaults=_longest(
            32_768,
            head_dim=256,
            num_key_value_heads=2,
            intermediate_size=512,
            num_experts=256,
            num_experts_per_tok=8,
            moe_intermediate_size=512,
        ),
    ),
    "phi3": Family(
        "Phi3ForCausalLM",
        layers=layer_keys.ALL,
        joined=True,
        longrope_alone=True,
        extras=dict(resid_pdrop=0.0, embd_pdrop=0.0),
        partial_rotary=1.0,
        defaults=_longest(4096),
    ),
    "smollm3": Family(
        "SmolLM3ForCausalLM",
        layers=layer_keys.SMOLLM3,
        reads=("no_rope_layers",),
        attention_bias=True,
        mlp_bias=True,
        defaults=_longest(32_768, rope_theta=2e6, tie_word_embeddings=True, num_key_value_heads=4),
    ),
    "olmo2": Family(
        "Olmo2ForCausalLM",
        fixed=dict(norms="after", qk_norm="all"),
        layers=layer_keys.NONE,
        attention_bias=True,
        defaults=_longest(2048, rms_norm_eps=1e-5),
    ),
    "olmo3": Family(
        "Olmo3ForCausalLM",
        fixed=dict(norms="after", qk_norm="all"),
        layers=layer_keys.typed(layer_keys.every(4)),
        attention_bias=True,
        defaults=_longest(2048, rms_norm_eps=1e-5, rope_theta=500_000.0, sliding_window=4096),
        rope_by_layer=True,
    ),
    "gemma2": Family(
        "Gemma2ForCausalLM",
        fixed=_GEMMA,
        keys={
            "attention_scale": _GEMMA_SCALE,
            "attention_cap": Key(_CAPS["attention_cap"], 50.0),
            "logit_cap": Key(_CAPS["logit_cap"], 30.0),
        },
        layers=layer_keys.typed(layer_keys.every(2)),
        attention_bias=True,
        defaults=_longest(
            8192,
            head_dim=256,
            num_key_value_heads=4,
            sliding_window=4096,
            tie_word_embeddings=True,
        ),
        gate_key="hidden_activation",
    ),
    "gemma3_text": Family(
        "Gemma3ForCausalLM",
        fixed=_GEMMA | dict(qk_norm="head"),
        keys={"attention_scale": _GEMMA_SCALE}
        | {field: Key(name) for field, name in _CAPS.items()},
        layers=layer_keys.typed(layer_keys.every(6)),
        attention_bias=True,
        defaults=dict(
            vocab_size=262_208,
            num_attention_heads=8,
            num_key_value_heads=4,
            head_dim=256,
            max_position_embeddings=131_072,
            rms_norm_eps=1e-6,
            sliding_window=4096,
            tie_word_embeddings=True,
            rope_theta=1e6,
            rope_local_base_freq=1e4,
            bos_token_id=2,
            eos_token_id=1,
        ),
        rope_by_layer=True,
        local_theta="rope_local_base_freq",
        gate_key="hidden_activation",
    ),
    "granite": Family(
        "GraniteForCausalLM",
        keys=_MULTIPLIERS,
        layers=layer_keys.NONE,
        attention_bias=True,
        mlp_bias=True,
        defaults=_longest(2048),
    ),
    "stablelm": Family(
        "StableLmForCausalLM",
        fixed=dict(norm_type="layer"),
        layers=layer_keys.NONE,
        qkv_bias_key="use_qkv_bias",
        norm_eps_key="layer_norm_eps",
        defaults=_longest(4096, layer_norm_eps=1e-5, num_key_value_heads=32),
        partial_rotary=0.25,
    ),
}
GATES = {"silu": ("silu", "swish"), "gelu_tanh": ("gelu_pytorch_tanh", "gelu_new", "gelu_fast")}
