"""The families of Hugging Face's decoders: a row each, read by config.py and layout.py alone.

docs/families.md says how a row is added. Values are those of transformers' configuration classes.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxrope.convert import expert_keys
from jaxrope.convert.fields import Fields
from jaxrope.decoder import DecoderConfig
from jaxrope.errors import InputError


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


class Layers(NamedTuple):
    """How config.json says what each layer is.

    Attributes:
      read: (config, number of layers) -> (DecoderConfig.layers, sliding_window).
      write: keys of a DecoderConfig.
    """

    read: Callable[[Fields, int], tuple[tuple[str, ...], int | None]]
    write: Callable[[DecoderConfig], dict]


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
    """

    architecture: str
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    keys: Mapping[str, Key] = dataclasses.field(default_factory=dict)
    layers: Layers | None = None
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

    def fixed_fields(self, embed_dim: int) -> dict[str, Any]:
        """Returns the fields that every model of this width has."""
        return {k: v(embed_dim) if callable(v) else v for k, v in self.fixed.items()}


_TYPES = {"full_attention": "full", "sliding_attention": "sliding"}
_NAMES = {kind: name for name, kind in _TYPES.items()}


def _no_window(config: Fields, num_layers: int):
    del config, num_layers  # transformers' class has no window, whatever the key says
    return (), None


def _window_of_all(config: Fields, num_layers: int):
    del num_layers
    return (), config.count("sliding_window", None)


def _typed(default: Callable[[Fields, int, int], bool], switch: str = "") -> Layers:
    """Returns the reader and writer of `layer_types`.

    Args:
      default: (config, layer, number of layers) -> whether it slides, where the key is absent.
      switch: the key without which nothing slides.
    """

    def read(config: Fields, num_layers: int):
        window = config.count("sliding_window", None)
        if switch and not config.flag(switch, False):
            window = None
        kinds = layer_types(config, num_layers)
        if kinds is None:
            slides = (window and default(config, i, num_layers) for i in range(num_layers))
            kinds = tuple("sliding" if sliding else "full" for sliding in slides)
        if window is None or "sliding" not in kinds:
            return (), None
        return (kinds if "full" in kinds else ()), window

    def write(config: DecoderConfig) -> dict:
        slides = config.sliding_window is not None
        kinds = config.layers or (("sliding" if slides else "full"),) * config.num_layers
        keys = {"sliding_window": config.sliding_window}
        keys["layer_types"] = [_NAMES[kind] for kind in kinds]
        return keys | ({switch: slides} if switch else {})

    return Layers(read, write)


def layer_types(config: Fields, num_layers: int) -> tuple[str, ...] | None:
    """Returns the kinds that `layer_types` names; None: it is absent.

    Raises:
      InputError: it is no list of so many known types.
    """
    types = config.get("layer_types")
    if types is None:
        return None
    known = isinstance(types, list) and all(isinstance(t, str) and t in _TYPES for t in types)
    if not known or len(types) != num_layers:
        rule = f"name {' or '.join(_TYPES)} for each of {num_layers} layers"
        raise config.wrong("layer_types", rule)
    return tuple(_TYPES[kind] for kind in types)


def _after_max_window_layers(config: Fields, layer: int, num_layers: int) -> bool:
    del num_layers
    return layer >= config.count("max_window_layers", 28, low=0)


def _every(period: int) -> Callable[[Fields, int, int], bool]:
    """Every so many layers one is full."""

    def slides(config: Fields, layer: int, num_layers: int) -> bool:
        del num_layers
        return (layer + 1) % config.count("sliding_window_pattern", period) != 0

    return slides


def _with_max_window_layers(layers: Layers) -> Layers:
    def write(config: DecoderConfig) -> dict:
        keys = layers.write(config)
        first = keys["layer_types"].index("sliding_attention") if config.sliding_window else None
        return keys | {"max_window_layers": config.num_layers if first is None else first}

    return Layers(layers.read, write)


def _smollm3(config: Fields, num_layers: int):
    interval = config.count("no_rope_layer_interval", 4)
    turns = config.get("no_rope_layers")
    if turns is None or turns == []:
        turns = [int((layer + 1) % interval != 0) for layer in range(num_layers)]
    valid = isinstance(turns, list) and all(turn in (0, 1) for turn in turns)
    if not valid or len(turns) < num_layers:
        rule = f"hold 1 (with rope) or 0 (without) for each of {num_layers} layers"
        raise config.wrong("no_rope_layers", rule)
    window = config.count("sliding_window", None)
    window = window if config.flag("use_sliding_window", False) else None
    kinds = layer_types(config, num_layers)
    if kinds is None:
        kinds = tuple("full" if turn or not window else "sliding" for turn in turns[:num_layers])
    kinds = tuple(kind if window else "full" for kind in kinds)
    nope = {"full": "nope", "sliding": "sliding_nope"}
    pairs = zip(kinds, turns, strict=False)
    layers = tuple(kind if turn else nope[kind] for kind, turn in pairs)
    if "sliding" in layers and "full" not in layers:
        raise InputError(
            f"{config.path('layer_types')}: no layer with a rope sees the whole text, so that there"
            " is nothing to extend."
        )
    return (() if set(layers) == {"full"} else layers), window


def _smollm3_keys(config: DecoderConfig) -> dict:
    kinds = config.kinds
    return {
        "no_rope_layers": [int(not kind.endswith("nope")) for kind in kinds],
        "layer_types": [_NAMES["sliding" if "sliding" in kind else "full"] for kind in kinds],
        "use_sliding_window": config.sliding_window is not None,
        "sliding_window": config.sliding_window,
    }


def _window_key(config: DecoderConfig) -> dict:
    return {"sliding_window": config.sliding_window}


def _longest(length: int, **others) -> dict[str, Any]:
    return {"max_position_embeddings": length, **others}


def _window_if_used(config: Fields, num_layers: int):
    return (
        _window_of_all(config, num_layers)
        if config.flag("use_sliding_window", False)
        else ((), None)
    )


def _window_if_used_keys(config: DecoderConfig) -> dict:
    return _window_key(config) | {"use_sliding_window": config.sliding_window is not None}


NO_WINDOW = Layers(_no_window, lambda config: {})
WINDOW = Layers(_window_of_all, _window_key)
_QWEN = _with_max_window_layers(_typed(_after_max_window_layers, "use_sliding_window"))
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
        layers=NO_WINDOW,
        attention_bias=True,
        mlp_bias=True,
        extras=dict(pretraining_tp=1),
        defaults=_longest(2048),
    ),
    "mistral": Family(
        "MistralForCausalLM",
        layers=Layers(_typed(lambda *_: True).read, _window_key),
        typed="ministral",  # its own class passes over them
        defaults=_longest(131_072, sliding_window=4096, num_key_value_heads=8),
    ),
    "ministral": Family(
        "MinistralForCausalLM",
        layers=_typed(lambda *_: True),
        defaults=_longest(131_072, num_key_value_heads=8),
    ),
    "ministral3": Family(
        "Ministral3ForCausalLM",
        layers=WINDOW,
        query_growth=True,
        defaults=_longest(262_144, head_dim=128, num_key_value_heads=8),
    ),
    "qwen2": Family(
        "Qwen2ForCausalLM",
        fixed=dict(qkv_bias=True),
        layers=_QWEN,
        defaults=_longest(32_768, num_key_value_heads=32),
    ),
    "qwen3": Family(
        "Qwen3ForCausalLM",
        fixed=dict(qk_norm="head"),
        layers=_QWEN,
        attention_bias=True,
        defaults=_longest(32_768, head_dim=128, num_key_value_heads=32),
    ),
    "qwen3_moe": Family(
        "Qwen3MoeForCausalLM",
        fixed=dict(qk_norm="head"),
        layers=Layers(_window_if_used, _window_if_used_keys),
        attention_bias=True,
        experts=expert_keys.QWEN,
        defaults=_longest(32_768, num_key_value_heads=4),
    ),
    "mixtral": Family(
        "MixtralForCausalLM",
        layers=WINDOW,
        experts=expert_keys.MIXTRAL,
        defaults=_longest(131_072, rope_theta=1e6, num_key_value_heads=8),
    ),
    "phi3": Family(
        "Phi3ForCausalLM",
        layers=WINDOW,
        joined=True,
        longrope_alone=True,
        extras=dict(resid_pdrop=0.0, embd_pdrop=0.0),
        partial_rotary=1.0,
        defaults=_longest(4096),
    ),
    "smollm3": Family(
        "SmolLM3ForCausalLM",
        layers=Layers(_smollm3, _smollm3_keys),
        reads=("no_rope_layers",),
        attention_bias=True,
        mlp_bias=True,
        defaults=_longest(32_768, rope_theta=2e6, tie_word_embeddings=True, num_key_value_heads=4),
    ),
    "olmo2": Family(
        "Olmo2ForCausalLM",
        fixed=dict(norms="after", qk_norm="all"),
        layers=NO_WINDOW,
        attention_bias=True,
        defaults=_longest(2048, rms_norm_eps=1e-5),
    ),
    "olmo3": Family(
        "Olmo3ForCausalLM",
        fixed=dict(norms="after", qk_norm="all"),
        layers=_typed(_every(4)),
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
        layers=_typed(_every(2)),
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
        layers=_typed(_every(6)),
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
        layers=NO_WINDOW,
        attention_bias=True,
        mlp_bias=True,
        defaults=_longest(2048),
    ),
    "stablelm": Family(
        "StableLmForCausalLM",
        fixed=dict(norm_type="layer"),
        layers=NO_WINDOW,
        qkv_bias_key="use_qkv_bias",
        norm_eps_key="layer_norm_eps",
        defaults=_longest(4096, layer_norm_eps=1e-5, num_key_value_heads=32),
        partial_rotary=0.25,
    ),
}
GATES = {"silu": ("silu", "swish"), "gelu_tanh": ("gelu_pytorch_tanh", "gelu_new", "gelu_fast")}
