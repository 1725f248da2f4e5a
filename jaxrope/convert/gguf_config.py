"""The metadata and the tensor names of a GGUF file in Hugging Face's terms, and back.

An architecture is a row of `ARCHITECTURES`: its model_type, the names of its tensors, and what
llama.cpp's converter did to them (rows of q and k reordered for the rotary layout, norms stored
with the 1 that their formula adds). The values mean what llama.cpp makes of them.

Letters: R rotary pairs.
"""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

from jaxrope.convert import gguf_header, gguf_rope
from jaxrope.convert.fields import Fields
from jaxrope.errors import InputError, choose

_LISTED = ("attention.head_count", "attention.head_count_kv", "feed_forward_length")
_PATTERN = "attention.sliding_window_pattern"
# What both call otherwise and count alike: GGUF's key -> that of config.json.
_SIZES = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
}
_EPS = "attention.layer_norm_rms_epsilon"
_LAYER = re.compile(r"blk\.(\d+)\.([a-z0-9_]+)\.(weight|bias)")
_ENDS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LLAMA = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_QK_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_PHI3 = {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}
_GEMMA3 = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
# What changes the result, of any architecture: GGUF's key -> the key that config.py judges.
_PASSED_ON = {
    "logit_scale": "logit_scale",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "attention.scale": "attention_multiplier",
    "attention.clamp_kqv": "clip_qkv",
    "expert_count": "num_local_experts",
}


@dataclasses.dataclass(frozen=True)
class Origin:
    """A tensor of Hugging Face's, as a GGUF holds it.

    Attributes:
      name: there.
      heads: whose rows are in ggml's rotary order, pair by pair; 0: in Hugging Face's.
      offset: that was added to the values.
    """

    name: str
    heads: int = 0
    offset: float = 0.0


@dataclasses.dataclass(frozen=True)
class Translation:
    """A model in Hugging Face's terms.

    Attributes:
      config: the content of config.json.
      origins: by the tensor's name in a Hugging Face file.
    """

    config: dict
    origins: dict[str, Origin]


@dataclasses.dataclass(frozen=True)
class Architecture:
    """How llama.cpp's converter writes a model.

    Attributes:
      names: of the tensors of a layer.
      config_fn: (metadata, tensor names, the config so far) -> the keys of this family.
      permuted: the rows of q and k are in ggml's rotary order.
      norm_offset: added to all norms.
      metadata_fn: config.json -> metadata of this family, keys without the architecture.
    """

    names: dict[str, str]
    config_fn: Callable[[Fields, list[str], dict], dict]
    permuted: bool = False
    norm_offset: float = 0.0
    metadata_fn: Callable[[dict], dict] = lambda config: {}


def array_keys(architecture: str) -> tuple[str, ...]:
    """Returns the keys whose arrays `translate` needs whole."""
    return tuple(f"{architecture}.{key}" for key in (*_LISTED, _PATTERN))


def translate(path: Path, header: gguf_header.Header) -> Translation:
    """Returns the config and the tensors' origins.

    Args:
      path: of the file, for messages.
      header: with the arrays of `array_keys` and the tensors of `gguf_rope.TENSORS`; the places
        are those of all parts of the model.

    Raises:
      InputError: an architecture that is not known, or metadata that is missing or wrong.
    """
    name = str(header.values.get("general.architecture"))
    architecture = choose(f"{path}: general.architecture", name, ARCHITECTURES)
    fields = _fields(path, header, name)
    tensors = [*header.places]
    config = _common(fields, header)
    config |= gguf_rope.section(fields, header.tensors, config)
    config |= architecture.config_fn(fields, tensors, config)
    config |= {} if "hidden_activation" in config else {"hidden_act": "silu"}
    return Translation(config, _origins(architecture, tensors, config))


def _fields(path: Path, header: gguf_header.Header, name: str) -> Fields:
    values = gguf_rope.metadata(header)
    for key in _LISTED:
        items = header.arrays.get(f"{name}.{key}", [])
        if any(item != items[0] for item in items):
            raise InputError(
                f"{path}: {name}.{key} must be one number for all layers, got {len(items)} that"
                " differ: layers of different sizes are not supported."
            )
    if f"{name}.{_PATTERN}" in header.arrays:
        values[_PATTERN] = header.arrays[f"{name}.{_PATTERN}"]
    return Fields(values, str(path))


def _common(fields: Fields, header: gguf_header.Header) -> dict:
    sizes = {name: fields.count(key) for key, name in _SIZES.items()}
    heads, head_dim = sizes["num_attention_heads"], fields.count("attention.key_length", None)
    embed = header.places.get("token_embd.weight")
    if embed is None:
        raise InputError(f"{fields.where}: holds no token_embd.weight, so it is no language model.")
    config = sizes | {
        "vocab_size": embed.shape[0],
        "num_key_value_heads": fields.count("attention.head_count_kv", heads),
        "head_dim": head_dim or max(1, sizes["hidden_size"] // heads),
        "rms_norm_eps": fields.number(_EPS),
        "tie_word_embeddings": "output.weight" not in header.places,
    }
    for token, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        config[f"{token}_token_id"] = fields.count(f"tokenizer.ggml.{key}_token_id", None, low=0)
    if fields.count("attention.value_length", config["head_dim"]) != config["head_dim"]:
        raise fields.wrong("attention.value_length", "equal attention.key_length")
    return config | {
        key: fields.number(name, low=-gguf_rope.MOST)
        for name, key in _PASSED_ON.items()
        if fields.get(name) is not None
    }


def _llama(fields: Fields, tensors: list[str], config: dict) -> dict:
    """Returns the keys of what llama.cpp calls llama: also Mistral, and a Llama with biases."""
    window = fields.count("attention.sliding_window", 0, low=0)
    has_bias = "blk.0.attn_q.bias" in tensors
    if window:
        return {"model_type": "mistral", "sliding_window": window}
    if has_bias and "blk.0.attn_output.bias" not in tensors:
        return {"model_type": "qwen2", "use_sliding_window": False}
    return {
        "model_type": "llama",
        "attention_bias": has_bias,
        "mlp_bias": "blk.0.ffn_down.bias" in tensors,
    }


def _qwen2(fields: Fields, tensors: list[str], config: dict) -> dict:
    return {"model_type": "qwen2", "use_sliding_window": False}


def _qwen3(fields: Fields, tensors: list[str], config: dict) -> dict:
    biased = "blk.0.attn_q.bias" in tensors
    return {"model_type": "qwen3", "use_sliding_window": False, "attention_bias": biased}


def _phi3(fields: Fields, tensors: list[str], config: dict) -> dict:
    window = fields.count("attention.sliding_window", 0, low=0) or None
    return {"model_type": "phi3", "sliding_window": window}


def _gemma3(fields: Fields, tensors: list[str], config: dict) -> dict:
    """Returns the keys of a Gemma 3; llama.cpp knows the 27B model by its layers."""
    layers, heads = config["num_hidden_layers"], config["num_attention_heads"]
    scalar = config["hidden_size"] // heads if layers == 62 else config["head_dim"]
    sliding = {
        "rope_type": "default",
        "rope_theta": fields.number("rope.freq_base_swa", 10_000.0),
    }
    return {
        "model_type": "gemma3_text",
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": scalar,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": fields.number("final_logit_softcapping", None),
        "sliding_window": fields.count("attention.sliding_window"),
        "layer_types": _layer_types(fields, layers),
        "rope_parameters": {
            "full_attention": config["rope_parameters"],
            "sliding_attention": sliding,
        },
    }


def _gemma3_metadata(config: dict) -> dict:
    sliding = config["rope_parameters"]["sliding_attention"]
    return {
        "attention.sliding_window": config["sliding_window"],
        _PATTERN: [kind == "sliding_attention" for kind in config["layer_types"]],
        "rope.freq_base_swa": float(sliding["rope_theta"]),
        "final_logit_softcapping": config["final_logit_softcapping"],
    }


def _layer_types(fields: Fields, layers: int) -> list[str]:
    """Returns the kind of each layer: every 6th is full, unless the file says otherwise."""
    pattern = fields.get(_PATTERN)
    if isinstance(pattern, list):
        if len(pattern) != layers:
            raise InputError(
                f"{fields.path(_PATTERN)} must have {layers} items, got {len(pattern)}."
            )
        slides = [bool(item) for item in pattern]
    else:
        period = fields.count(_PATTERN, 6)
        slides = [(layer + 1) % period != 0 for layer in range(layers)]
    return ["sliding_attention" if slide else "full_attention" for slide in slides]


ARCHITECTURES = {
    "llama": Architecture(_LLAMA, _llama, permuted=True),
    "qwen2": Architecture(_LLAMA, _qwen2),
    "qwen3": Architecture(_LLAMA | _QK_NORMS, _qwen3),
    # llama.cpp wants the key; 0 tells a Phi-4 from others
    "phi3": Architecture(
        _LLAMA | _PHI3, _phi3, metadata_fn=lambda config: {"attention.sliding_window": 0}
    ),
    "gemma3": Architecture(
        _LLAMA | _QK_NORMS | _GEMMA3, _gemma3, norm_offset=1.0, metadata_fn=_gemma3_metadata
    ),
}


def metadata(name: str, config: dict) -> dict:
    """Returns what a config.json says, but for the rope and the tokens.

    Args:
      name: of the architecture.
      config: the content of config.json.

    Returns:
      By key, without the architecture.
    """
    values = {key: config[name] for key, name in _SIZES.items()}
    values |= {
        "vocab_size": config["vocab_size"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.key_length": config["head_dim"],
        "attention.value_length": config["head_dim"],
        _EPS: float(config["rms_norm_eps"]),
    }
    values |= ARCHITECTURES[name].metadata_fn(config)
    return {key: value for key, value in values.items() if value is not None}


def origins(name: str, config: dict) -> dict[str, Origin]:
    """Returns how an architecture holds each tensor that it can have, by Hugging Face's names.

    Args:
      name: of the architecture.
      config: the content of config.json.
    """
    architecture, layers = ARCHITECTURES[name], range(config["num_hidden_layers"])
    kinds = ("weight", "bias")
    names = [f"blk.{i}.{stem}.{k}" for i in layers for stem in architecture.names for k in kinds]
    return _origins(architecture, [*_ENDS, *names], config)


def _origins(architecture: Architecture, tensors: list[str], config: dict) -> dict[str, Origin]:
    """Returns the origin of every tensor but those of the rope; a name that the architecture does
    not have stays as it is, and the comparison with the config refuses it.
    """
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    origins = {}
    for name in (name for name in tensors if name not in gguf_rope.TENSORS):
        match = _LAYER.fullmatch(name)
        stem = match[2] if match else name.removesuffix(".weight")
        target = _ENDS.get(name, name)
        if match and stem in architecture.names:
            target = f"model.layers.{match[1]}.{architecture.names[stem]}.{match[3]}"
        offset = architecture.norm_offset if stem.endswith("_norm") else 0.0
        origins[target] = Origin(name, heads.get(stem, 0) if architecture.permuted else 0, offset)
    return origins
