"""A DecoderConfig as the keys of config.json, as the rows of families.py have them."""

from collections.abc import Mapping

from jaxrope.convert.families import FAMILIES, GATES, Family
from jaxrope.decoder import DIFFERENCES, DecoderConfig
from jaxrope.errors import InputError


def to_hf(config: DecoderConfig, *, dtype: str) -> dict:
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
        **token_ids(config),
        "dtype": dtype,
        "torch_dtype": dtype,
    }
    values |= {key.name: _written(config, field, key) for field, key in row.keys.items()}
    if row.partial_rotary is not None:
        values["partial_rotary_factor"] = fraction(config.rotary_dim, config.head_dim)
    values |= row.experts.write(config) if row.experts else {}
    return values | _biases(config, row) | row.layers.write(config) | row.extras


def token_ids(config: DecoderConfig) -> dict:
    """Returns the ids of special tokens as config.json and generation_config.json write them."""
    eos = list(config.eos_id) if isinstance(config.eos_id, tuple) else config.eos_id
    return {"bos_token_id": config.bos_id, "eos_token_id": eos, "pad_token_id": config.pad_id}


def obstacle(config: DecoderConfig, family: str) -> str | None:
    """Returns what a family's folder cannot say of a model; None: nothing."""
    row = FAMILIES[family]
    fixed, plain = row.fixed_fields(config.embed_dim), DecoderConfig.__dataclass_fields__
    said = {"layers", "sliding_theta", "sliding_rope", *row.keys}
    if row.query_growth:
        said |= {"query_growth", "query_growth_len"}
    if row.experts:
        said |= {*row.experts.fields}
    for name in DIFFERENCES:
        expected = fixed.get(name, plain[name].default)
        if name not in said and getattr(config, name) != expected:
            return f"{name} must be {expected!r}, got {getattr(config, name)!r}"
    return None


def _written(config: DecoderConfig, field: str, key) -> float | None:
    value = getattr(config, field)
    return None if value is None else key.write(value)


def _biases(config: DecoderConfig, row: Family) -> dict:
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


def rope_keys(config: DecoderConfig, keys: Mapping) -> dict:
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


def fraction(part: int, whole: int) -> float:
    """Returns a fraction f with int(whole * f) == part, which rounding down could miss by one."""
    fraction = part / whole
    return fraction if int(whole * fraction) == part else (part + 0.5) / whole
