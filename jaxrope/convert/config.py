"""A Hugging Face config.json as a LlamaConfig, and back."""

from pathlib import Path

from jaxrope.convert import folders, rope_config
from jaxrope.convert.fields import Fields
from jaxrope.errors import InputError
from jaxrope.llama import LlamaConfig
from jaxrope.store import strict_json

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "phi3": "Phi3ForCausalLM",
}
# Keys that would change the result and that llama.py does not implement: key -> neutral values.
_FOREIGN = {
    "hidden_act": ("silu", "swish"),
    "clip_qkv": (None, 0),
    "query_pre_attn_scalar": (None,),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "logit_scale": (None, 1),
    "logits_scaling": (None, 1),
    "attention_multiplier": (None,),
    "embedding_multiplier": (None, 1),
    "residual_multiplier": (None, 1),
    "use_qk_norm": (None, False),
    "qk_norm": (None, False),
    "num_local_experts": (None, 0, 1),
    "num_experts": (None, 0, 1),
    "no_rope_layers": (None, []),
    "alibi": (None, False),
    "parallel_attn": (None, False),
    "use_parallel_residual": (None, False),
    "is_encoder_decoder": (None, False),
    "add_cross_attention": (None, False),
    "per_layer_config": (None, {}),
    "use_mrope": (None, False),
    "dual_chunk_attention_config": (None,),
}


def read(folder: Path) -> tuple[LlamaConfig, list[str]]:
    """Returns the config of a Hugging Face folder, and notes on what it leaves open.

    `auto_map` and every other key that names code is ignored: nothing in the folder is
    executed.

    Raises:
      InputError: config.json is missing, hostile, incomplete, or describes a model that llama.py
        does not implement.
    """
    return from_hf(Fields(read_json(folder), str(folder / "config.json")))


def read_json(folder: Path) -> dict:
    """Returns the values of config.json.

    Raises:
      InputError: there is none, or it is hostile.
    """
    path = folders.find(folder, "config.json") or folder / "config.json"
    return strict_json.read(path, max_bytes=strict_json.MAX_CONFIG_BYTES)


def from_hf(config: Fields) -> tuple[LlamaConfig, list[str]]:
    """Returns the LlamaConfig of a parsed config.json, and notes; see `read`."""
    family = config.text("model_type")
    if family not in ARCHITECTURES:
        raise InputError(
            f"{config.path('model_type')} '{family}' is not supported. Supported are"
            f" {', '.join(sorted(ARCHITECTURES))}."
        )
    _check_quantised(config)
    for key, neutral in _FOREIGN.items():
        if key in config.values and not any(config.values[key] == value for value in neutral):
            raise config.wrong(
                key, f"be {' or '.join(map(repr, neutral))}: anything else is not supported"
            )
    heads, embed_dim = config.count("num_attention_heads"), config.count("hidden_size")
    head_dim = _head_dim(config, embed_dim, heads)
    max_len, notes = _max_len(config, family)
    rope = rope_config.from_hf(config, family=family, head_dim=head_dim, max_len=max_len)
    bias = config.flag("attention_bias", False) if family == "llama" else False
    fields = dict(
        family=family,
        vocab_size=config.count("vocab_size"),
        num_layers=config.count("num_hidden_layers"),
        embed_dim=embed_dim,
        num_heads=heads,
        num_kv_heads=_kv_heads(config, family, heads),
        head_dim=head_dim,
        mlp_dim=config.count("intermediate_size"),
        norm_eps=config.number("rms_norm_eps"),
        tie_embeddings=config.flag("tie_word_embeddings", False),
        qkv_bias=bias or family == "qwen2",
        out_bias=bias,
        mlp_bias=config.flag("mlp_bias", False) if family == "llama" else False,
        sliding_window=_WINDOW[family](config, notes),
        theta=rope.theta,
        rotary_dim=rope.rotary_dim,
        original_len=rope.original_len,
        max_len=max_len,
        rope=rope.method,
        bos_id=config.token_id("bos_token_id"),
        eos_id=config.token_ids("eos_token_id"),
        pad_id=config.pad_id(),
    )
    try:
        return LlamaConfig(**fields), [*notes, *rope.notes]
    except InputError as error:
        raise InputError(f"{config.where}: {error}") from None


def to_hf(config: LlamaConfig, *, dtype: str) -> dict:
    """Returns config.json without its rope (`rope_export.express`).

    What both transformers 4 and 5 need, written out.
    """
    values = {
        "architectures": [ARCHITECTURES[config.family]],
        "model_type": config.family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.embed_dim,
        "intermediate_size": config.mlp_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
        **token_ids(config),
        "dtype": dtype,
        "torch_dtype": dtype,
    }
    return values | _FAMILY_KEYS[config.family](config)


def token_ids(config: LlamaConfig) -> dict:
    """Returns the ids of special tokens as config.json and generation_config.json write them."""
    eos = list(config.eos_id) if isinstance(config.eos_id, tuple) else config.eos_id
    return {"bos_token_id": config.bos_id, "eos_token_id": eos, "pad_token_id": config.pad_id}


def _head_dim(config: Fields, embed_dim: int, heads: int) -> int:
    if config.get("head_dim") is not None:
        return config.count("head_dim")
    if embed_dim % heads:
        raise InputError(
            f"{config.path('hidden_size')} must be a multiple of num_attention_heads where head_dim"
            f" is not given, got {embed_dim} and {heads}."
        )
    return embed_dim // heads


def _kv_heads(config: Fields, family: str, heads: int) -> int:
    if family in ("mistral", "qwen2") and "num_key_value_heads" not in config.values:
        raise InputError(
            f"{config.path('num_key_value_heads')} is missing. A model cannot be run without it."
        )
    kv_heads = config.count("num_key_value_heads", heads)
    if heads % kv_heads:
        raise InputError(
            f"{config.path('num_attention_heads')} must be a multiple of num_key_value_heads, got"
            f" {heads} and {kv_heads}."
        )
    return kv_heads


def _max_len(config: Fields, family: str) -> tuple[int, list[str]]:
    """Returns the longest length, tokens, and notes where max_position_embeddings is absent."""
    key = next((key for key in _LENGTHS if config.get(key) is not None), _LENGTHS[0])
    if config.get(key) is None and family in _DEFAULT_LEN:
        length = _DEFAULT_LEN[family]
        note = f"config.json has no {key}; {length} is taken, transformers' own for {family}"
        return length, [note]
    notes = [] if key == _LENGTHS[0] else [f"config.json has no {_LENGTHS[0]}; {key} is taken"]
    return config.count(key), notes


_LENGTHS = ("max_position_embeddings", "max_sequence_length", "max_seq_len")
_DEFAULT_LEN = {"llama": 2048, "mistral": 131_072, "qwen2": 32_768, "phi3": 4096}
_MISTRAL_WINDOW = 4096  # transformers' own


def _check_quantised(config: Fields) -> None:
    section = config.section("quantization_config")
    if section is None:
        return
    kind = section.get("quant_method") or section.get("bits") or "method not named"
    raise InputError(
        f"{config.path('quantization_config')} says that the weights are quantised"
        f" ({str(kind)[:40]}), which is not read. Save the model without quantisation:"
        " model.dequantize() of transformers, then save_pretrained; or take the model that it was"
        " made from."
    )


def _no_window(config: Fields, notes: list[str]) -> None:
    del config, notes  # transformers' Llama has no window, whatever the key says


def _mistral_window(config: Fields, notes: list[str]) -> int | None:
    if "sliding_window" in config.values:
        return config.count("sliding_window", None)
    notes.append(
        f"config.json has no sliding_window; {_MISTRAL_WINDOW} is taken, transformers' own. null"
        " there means none"
    )
    return _MISTRAL_WINDOW


def _optional_window(config: Fields, notes: list[str]) -> int | None:
    del notes
    return config.count("sliding_window", None)


def _qwen2_window(config: Fields, notes: list[str]) -> int | None:
    """Returns the window of all layers; llama.py has no window in some layers only."""
    del notes
    layers = config.count("num_hidden_layers")
    window = (
        config.count("sliding_window", None) if config.flag("use_sliding_window", False) else None
    )
    kinds = config.get("layer_types")
    if kinds is None:
        first = config.count("max_window_layers", 28, low=0) if window else layers
        num_sliding = max(0, layers - first)
    else:
        valid = isinstance(kinds, list) and all(
            kind in ("full_attention", "sliding_attention") for kind in kinds
        )
        if not valid or len(kinds) != layers:
            raise config.wrong(
                "layer_types",
                f"name full_attention or sliding_attention for each of {layers} layers",
            )
        num_sliding = kinds.count("sliding_attention")
    if 0 < num_sliding < layers:
        raise InputError(
            f"{config.path('layer_types')}: a sliding window in {num_sliding} of {layers} layers is"
            " not supported. All layers must be alike."
        )
    return window if num_sliding else None


_WINDOW = {
    "llama": _no_window,
    "mistral": _mistral_window,
    "qwen2": _qwen2_window,
    "phi3": _optional_window,
}


def _llama_keys(config: LlamaConfig) -> dict:
    if config.qkv_bias != config.out_bias:
        raise InputError(
            "A Llama of transformers has a bias on q, k, v and o, or on none of them. Export it as"
            " qwen2."
        )
    return {"attention_bias": config.qkv_bias, "mlp_bias": config.mlp_bias, "pretraining_tp": 1}


def _qwen2_keys(config: LlamaConfig) -> dict:
    kind = "sliding_attention" if config.sliding_window else "full_attention"
    return {
        "use_sliding_window": config.sliding_window is not None,
        "sliding_window": config.sliding_window,
        "max_window_layers": 0 if config.sliding_window else config.num_layers,
        "layer_types": [kind] * config.num_layers,
    }


def _phi3_keys(config: LlamaConfig) -> dict:
    return {
        "sliding_window": config.sliding_window,
        "partial_rotary_factor": fraction(config.rotary_dim, config.head_dim),
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
    }


def fraction(part: int, whole: int) -> float:
    """Returns a fraction f with int(whole * f) == part, which rounding down could miss by one."""
    fraction = part / whole
    return fraction if int(whole * fraction) == part else (part + 0.5) / whole


_FAMILY_KEYS = {
    "llama": _llama_keys,
    "mistral": lambda config: {"sliding_window": config.sliding_window},
    "qwen2": _qwen2_keys,
    "phi3": _phi3_keys,
}
