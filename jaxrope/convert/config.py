"""A Hugging Face config.json as a LlamaConfig, and back, by the rows of families.py."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from jaxrope.convert import folders, rope_config
from jaxrope.convert.families import FAMILIES, GATES, Family
from jaxrope.convert.fields import Fields
from jaxrope.errors import InputError
from jaxrope.llama import DIFFERENCES, LlamaConfig
from jaxrope.store import strict_json

# Keys that would change the result where no family reads them: key -> neutral values.
_FOREIGN = {
    "clip_qkv": (None, 0),
    "quantization_config": (None,),
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
    "qk_layernorm": (None, False),
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
    "use_bidirectional_attention": (None, False),
    "dual_chunk_attention_config": (None,),
}


def read(folder: Path) -> tuple[LlamaConfig, list[str]]:
    """Returns the config of a Hugging Face folder, and notes on what it leaves open.

    `auto_map` and every other key that names code is ignored: nothing in the folder is
    executed.

    Raises:
      InputError: config.json is missing, hostile, incomplete, or describes a model that the
        forward pass does not implement.
    """
    return from_hf(Fields(read_json(folder), str(folder / "config.json")))


def read_json(folder: Path) -> dict:
    """Returns the values of config.json; of a model with vision, those of its text part.

    Raises:
      InputError: there is none, or it is hostile.
    """
    path = folders.find(folder, "config.json") or folder / "config.json"
    return _text_part(strict_json.read(path, max_bytes=strict_json.MAX_CONFIG_BYTES))


def _text_part(values: dict) -> dict:
    """Returns what describes the decoder: `text_config` with the ids and the tie beside it."""
    text = values.get("text_config")
    if not isinstance(text, dict) or text.get("model_type") not in FAMILIES:
        return values
    beside = ("bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings", "torch_dtype")
    outer = {key: values[key] for key in beside if key in values}
    return outer | text | {"text_of": values.get("model_type")}


def from_hf(config: Fields) -> tuple[LlamaConfig, list[str]]:
    """Returns the LlamaConfig of a parsed config.json, and notes; see `read`."""
    family = config.text("model_type")
    if family not in FAMILIES:
        raise InputError(
            f"{config.where}: model_type must be one of {', '.join(FAMILIES)}, got {family!r}."
            " Other decoders are not supported; docs/families.md says how one is added."
        )
    row, notes = FAMILIES[family], []
    if config.get("text_of"):
        notes.append(f"the text part of a {config.get('text_of')} is read, the rest left out")
    config = _with_defaults(config, row, notes)
    _check_foreign(config, row)
    sizes = _sizes(config, family)
    num_layers = sizes["num_layers"]
    layers, window = row.layers.read(config, num_layers)
    if family == "mistral" and layers:
        family = "ministral"
        notes.append(
            "layer_types with model_type mistral: read as ministral, whose layers differ;"
            " transformers' Mistral passes over them"
        )
    fields = sizes | row.fixed_fields(sizes["embed_dim"]) | _differing(config, row)
    fields |= dict(family=family, layers=layers, sliding_window=window)
    ropes, more = _ropes(config, family, fields)
    try:
        return LlamaConfig(**fields | ropes), [*notes, *more]
    except InputError as error:
        raise InputError(f"{config.where}: {error}") from None


def _with_defaults(config: Fields, row: Family, notes: list[str]) -> Fields:
    """Returns the config with transformers' values of keys that are left out."""
    old = config.section("rope_parameters") or Fields({}, "")
    inside = {key for values in (old.values, *old.values.values()) if isinstance(values, dict)
              for key in values}  # fmt: skip
    absent = {k: v for k, v in row.defaults.items() if k not in config.values and k not in inside}
    if row.local_theta in absent and "sliding_attention" in inside:
        del absent[row.local_theta]
    silent = ("tie_word_embeddings", "rope_local_base_freq", "head_dim", "sliding_window")
    shown = ", ".join(f"{key} {value}" for key, value in absent.items() if key not in silent)
    if shown:
        notes.append(f"config.json leaves out keys; transformers' values are taken: {shown}")
    return dataclasses.replace(config, values=absent | config.values)


def _check_foreign(config: Fields, row: Family) -> None:
    read_keys = {*row.reads, *(key.name for key in row.keys.values())}
    for key, neutral in _FOREIGN.items():
        if key in config.values and key not in read_keys:
            if not any(config.values[key] == value for value in neutral):
                rule = f"be {' or '.join(map(repr, neutral))}: anything else is not supported"
                raise config.wrong(key, rule)
    gates = GATES[row.fixed.get("gate", "silu")]
    if config.text(row.gate_key, gates[0]) not in gates:
        rule = f"be {' or '.join(map(repr, gates))}: anything else is not supported"
        raise config.wrong(row.gate_key, rule)


def _sizes(config: Fields, family: str) -> dict:
    """Returns the fields of a LlamaConfig that every family gives alike."""
    row, heads = FAMILIES[family], config.count("num_attention_heads")
    embed_dim = config.count("hidden_size")
    bias = row.attention_bias and config.flag("attention_bias", False)
    return dict(
        vocab_size=config.count("vocab_size"),
        num_layers=config.count("num_hidden_layers"),
        embed_dim=embed_dim,
        num_heads=heads,
        num_kv_heads=_kv_heads(config, family, heads),
        head_dim=_head_dim(config, embed_dim, heads),
        mlp_dim=config.count("intermediate_size"),
        norm_eps=config.number(row.norm_eps_key),
        tie_embeddings=config.flag("tie_word_embeddings", False),
        qkv_bias=config.flag(row.qkv_bias_key, False) if row.qkv_bias_key else bias,
        out_bias=bias,
        mlp_bias=row.mlp_bias and config.flag("mlp_bias", False),
        max_len=config.count("max_position_embeddings"),
        bos_id=config.token_id("bos_token_id"),
        eos_id=config.token_id("eos_token_id"),
    )


def _differing(config: Fields, row: Family) -> dict:
    """Returns the fields that the family's own keys give; null leaves them as they are."""
    fields = {}
    for field, key in row.keys.items():
        absent = key.name not in config.values
        value = key.default if absent else config.number(key.name, None)
        if value == 0:
            raise config.wrong(key.name, "be above 0")
        if value is not None:
            fields[field] = key.read(value)
    return fields


def _ropes(config: Fields, family: str, fields: dict) -> tuple[dict, list[str]]:
    """Returns the fields of the ropes of full and of sliding layers, and notes."""
    growth, config = _query_growth(config) if FAMILIES[family].query_growth else ({}, config)
    full, sliding = _by_layer(config, FAMILIES[family])
    how = dict(family=family, head_dim=fields["head_dim"], max_len=fields["max_len"])
    parsed = rope_config.from_hf(full, **how)
    ropes = growth | dict(
        theta=parsed.theta,
        rotary_dim=parsed.rotary_dim,
        original_len=parsed.original_len,
        max_len=parsed.max_len,
        rope=parsed.method,
    )
    if "sliding" not in fields["layers"]:
        return ropes, list(parsed.notes)
    if sliding is not None:
        of_window = rope_config.from_hf(sliding, **how)
        of_window = dict(sliding_theta=of_window.theta, sliding_rope=of_window.method)
        return ropes | of_window, list(parsed.notes)
    if parsed.method["method"] in ("dynamic_ntk", "longrope"):
        raise InputError(
            f"{config.where}: one rope of factors that change with the length for full and sliding"
            " layers is not supported. Remove the scaling, or the sliding window."
        )
    return ropes | dict(sliding_rope=parsed.method), list(parsed.notes)


def _by_layer(config: Fields, row: Family) -> tuple[Fields, Fields | None]:
    """Returns the config as if full layers were all, and as if sliding ones were; None: they have
    no rope of their own.
    """
    if not row.rope_by_layer:
        return config, None
    values = {key: value for key, value in config.values.items() if key != row.local_theta}
    section, full, sliding = config.section("rope_parameters"), values, {}
    if section is not None and any(isinstance(value, dict) for value in section.values.values()):
        parts = (section.section(f"{kind}_attention") for kind in ("full", "sliding"))
        of_full, sliding = ({} if part is None else part.values for part in parts)
        full = values | {"rope_parameters": of_full}
        if "rope_theta" in of_full:  # that of the top level is for older readers
            full = {key: value for key, value in full.items() if key != "rope_theta"}
    theta = config.get(row.local_theta or "rope_theta")
    sliding = {"rope_type": "default"} | ({} if theta is None else {"rope_theta": theta}) | sliding
    rest = {k: v for k, v in values.items() if k not in ("rope_scaling", "rope_theta")}
    of_window = rest | {"rope_parameters": sliding}
    return dataclasses.replace(config, values=full), dataclasses.replace(config, values=of_window)


def _query_growth(config: Fields) -> tuple[dict, Fields]:
    """Returns the fields of Ministral 3's query temperature, and the config without its keys."""
    growth, rest = {}, {}
    for name in ("rope_scaling", "rope_parameters"):
        section = config.section(name)
        if section is None or section.get("llama_4_scaling_beta") is None:
            continue
        growth = dict(
            query_growth=section.number("llama_4_scaling_beta"),
            query_growth_len=section.count("original_max_position_embeddings"),
        )
        own = ("llama_4_scaling_beta", "max_position_embeddings")
        rest[name] = {key: value for key, value in section.values.items() if key not in own}
    return growth, dataclasses.replace(config, values=config.values | rest)


def obstacle(config: LlamaConfig, family: str) -> str | None:
    """Returns what a family's folder cannot say of a model; None: nothing."""
    row = FAMILIES[family]
    fixed, plain = row.fixed_fields(config.embed_dim), LlamaConfig.__dataclass_fields__
    said = {"layers", "sliding_theta", "sliding_rope", *row.keys}
    if row.query_growth:
        said |= {"query_growth", "query_growth_len"}
    for name in DIFFERENCES:
        expected = fixed.get(name, plain[name].default)
        if name not in said and getattr(config, name) != expected:
            return f"{name} must be {expected!r}, got {getattr(config, name)!r}"
    return None


def to_hf(config: LlamaConfig, *, dtype: str) -> dict:
    """Returns config.json without its rope (`rope_export.express`).

    What both transformers 4 and 5 need, written out.

    Raises:
      InputError: the family has no words for the model.
    """
    row = FAMILIES[config.family]
    problem = obstacle(config, config.family)
    if problem:
        raise InputError(f"model_type {config.family}: {problem}. Export it as another family.")
    gate = GATES[config.gate][0]
    values = {
        "architectures": [row.architecture],
        "model_type": config.family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.embed_dim,
        "intermediate_size": config.mlp_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": gate,
        row.gate_key: gate,
        row.norm_eps_key: config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
        "bos_token_id": config.bos_id,
        "eos_token_id": config.eos_id,
        "pad_token_id": None,
        "dtype": dtype,
        "torch_dtype": dtype,
    }
    values |= {key.name: _written(config, field, key) for field, key in row.keys.items()}
    if row.partial_rotary is not None:
        values["partial_rotary_factor"] = fraction(config.rotary_dim, config.head_dim)
    return values | _biases(config, row) | row.layers.write(config) | _own_keys(config)


def _written(config: LlamaConfig, field: str, key) -> float | None:
    value = getattr(config, field)
    return None if value is None else key.write(value)


def _biases(config: LlamaConfig, row: Family) -> dict:
    keys = {row.qkv_bias_key: config.qkv_bias} if row.qkv_bias_key else {}
    fixed = config.qkv_bias if row.qkv_bias_key else row.fixed.get("qkv_bias", False)
    if row.attention_bias:
        if config.qkv_bias != config.out_bias:
            raise InputError(
                f"A model of transformers' {row.architecture} has a bias on q, k, v and o, or on"
                " none of them. Export it as qwen2."
            )
        keys["attention_bias"] = config.qkv_bias
    elif (config.qkv_bias, config.out_bias) != (fixed, False):
        raise InputError(
            f"model_type {config.family}: biases on q, k, v must be {fixed} and on o False, got "
            f"{config.qkv_bias} and {config.out_bias}. Export it as another family."
        )
    if row.mlp_bias:
        keys["mlp_bias"] = config.mlp_bias
    return keys


def _own_keys(config: LlamaConfig) -> dict:
    if config.family == "llama":
        return {"pretraining_tp": 1}
    if config.family == "phi3":
        return {"resid_pdrop": 0.0, "embd_pdrop": 0.0}
    return {}


def rope_keys(config: LlamaConfig, keys: Mapping) -> dict:
    """Returns the keys of a rope (`HfRope.keys`) as the family has them: by layer type, with the
    keys of its own.
    """
    row, keys = FAMILIES[config.family], dict(keys)
    if config.query_growth:
        own = {"llama_4_scaling_beta": config.query_growth}
        own["original_max_position_embeddings"] = config.query_growth_len
        sections = [name for name in ("rope_parameters", "rope_scaling") if keys[name]]
        return keys | {name: keys[name] | own for name in sections}
    if not row.rope_by_layer:
        return keys
    theta = config.sliding_theta or config.theta
    sliding = {"rope_type": "default", "rope_theta": theta}
    by_layer = {"full_attention": keys["rope_parameters"], "sliding_attention": sliding}
    return (
        keys | {"rope_parameters": by_layer} | ({row.local_theta: theta} if row.local_theta else {})
    )


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
    if family in ("mistral", "qwen2", "qwen3") and "num_key_value_heads" not in config.values:
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


def fraction(part: int, whole: int) -> float:
    """Returns a fraction f with int(whole * f) == part, which rounding down could miss by one."""
    fraction = part / whole
    return fraction if int(whole * fraction) == part else (part + 0.5) / whole
