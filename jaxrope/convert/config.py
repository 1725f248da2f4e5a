"""A config.json as a DecoderConfig, by the rows of families.py; the way back is config_keys.py."""

import dataclasses
from pathlib import Path

from jaxrope.convert import expert_keys, gguf_folder, lookup, rope_config
from jaxrope.convert.families import FAMILIES, GATES, Family
from jaxrope.convert.fields import Fields
from jaxrope.decoder import DecoderConfig
from jaxrope.errors import InputError, choose
from jaxrope.store import strict_json

QUANTISED = "quantization_config"
# Keys that would change the result where no family reads them: key -> neutral values.
_FOREIGN = {
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
    "qk_layernorm": (None, False),
    "num_local_experts": (None, 0, 1),
    "num_experts": (None, 0, 1),
    "router_jitter_noise": (None, 0),
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


def read(folder: Path) -> tuple[DecoderConfig, list[str]]:
    """Returns the config of a Hugging Face folder, and notes on what it leaves open.

    `auto_map` and every other key that names code is ignored: nothing in the folder is
    executed.

    Raises:
      InputError: config.json is missing, hostile, incomplete, or describes a model that the
        forward pass does not implement.
    """
    is_view = gguf_folder.is_view(folder)
    where = gguf_folder.origin(folder) if is_view else str(folder / "config.json")
    return from_hf(Fields(read_json(folder), where))


def for_rope(config: Fields) -> tuple[Fields, Family, list[str]]:
    """Returns what a config.json says of the rope of full layers, whatever else it holds.

    Returns:
      (the part that describes the decoder, with values for keys that are left out; its family;
      notes).

    Raises:
      InputError: a family that is not known.
    """
    config, notes = dataclasses.replace(config, values=_text_part(config.values)), []
    row = choose(f"{config.where}: model_type", config.text("model_type"), FAMILIES)
    of_rope = {key: value for key, value in row.defaults.items() if key in _OF_ROPE}
    config = _with_defaults(config, dataclasses.replace(row, defaults=of_rope), notes)
    config = _query_growth(config)[1] if row.query_growth else config
    return _by_layer(config, row)[0], row, notes


def read_json(folder: Path) -> dict:
    """Returns the values of config.json; of a model with vision, those of its text part.

    Raises:
      InputError: there is none, or it is hostile.
    """
    path = lookup.find(folder, "config.json") or folder / "config.json"
    return _text_part(strict_json.read(path, max_bytes=strict_json.MAX_CONFIG_BYTES))


def _text_part(values: dict) -> dict:
    """Returns what describes the decoder: `text_config` with what is beside it of the whole."""
    text = values.get("text_config")
    if not isinstance(text, dict) or text.get("model_type") not in FAMILIES:
        return values
    beside = ("bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings", "torch_dtype")
    beside += (QUANTISED,)
    outer = {key: values[key] for key in beside if key in values}
    return outer | text | {"text_of": values.get("model_type")}


def from_hf(config: Fields) -> tuple[DecoderConfig, list[str]]:
    """Returns the DecoderConfig of a parsed config.json, and notes; see `read`."""
    family = config.text("model_type")
    if family not in FAMILIES:
        raise InputError(
            f"{config.where}: model_type must be one of {', '.join(FAMILIES)}, got {family!r}."
            " Other decoders are not supported; docs/families.md says how one is added."
        )
    row, notes = FAMILIES[family], []
    if config.get("text_of"):
        notes.append(f"the text part of a {config.get('text_of')} is read, the rest left out")
    _check_quantised(config)
    config = _with_defaults(config, row, notes)
    _check_foreign(config, row)
    sizes = _sizes(config, row)
    num_layers = sizes["num_layers"]
    layers, window = row.layers.read(config, num_layers)
    if row.typed and layers:
        notes.append(
            f"layer_types with model_type {family}: read as {row.typed}, whose layers differ;"
            f" transformers' {row.architecture} passes over them"
        )
        family = row.typed
    fields = sizes | row.fixed_fields(sizes["embed_dim"]) | _differing(config, row)
    fields |= dict(family=family, layers=layers, sliding_window=window)
    fields |= row.experts.read(config, num_layers) if row.experts else {}
    ropes, more = _ropes(config, family, fields)
    try:
        return DecoderConfig(**fields | ropes), [*notes, *more]
    except InputError as error:
        raise InputError(f"{config.where}: {error}") from None


def _with_defaults(config: Fields, row: Family, notes: list[str]) -> Fields:
    """Returns the config with values for keys that are left out: those of another spelling, else
    transformers' own.
    """
    values, ropes = dict(config.values), config.section("rope_parameters")
    sections = [] if ropes is None else [ropes.values, *ropes.values.values()]
    inside = {key for section in sections if isinstance(section, dict) for key in section}
    older = next((key for key in _OLD_LENGTHS if values.get(key) is not None), None)
    if values.get(_LENGTH) is None and older:
        values[_LENGTH] = values[older]
        notes.append(f"config.json has no {_LENGTH}; {older} is taken")
    for key, value in row.defaults.items():
        if key in values and (values[key] is not None or key != _LENGTH) or key in inside:
            continue
        if key == row.local_theta and "sliding_attention" in inside:
            continue
        values[key] = value
        if key not in _DERIVED:
            hint = ". null there means none" if key == "sliding_window" else ""
            notes.append(f"config.json has no {key}; {value} is taken, transformers' own{hint}")
    return dataclasses.replace(config, values=values)


_OF_ROPE = ("max_position_embeddings", "rope_theta", "head_dim", "num_attention_heads")
_LENGTH, _OLD_LENGTHS = "max_position_embeddings", ("max_sequence_length", "max_seq_len")
_DERIVED = ("tie_word_embeddings", "rope_local_base_freq", "head_dim")  # told by the tensors
_DERIVED += ("intermediate_size",)  # of a family without dense MLPs


def _check_foreign(config: Fields, row: Family) -> None:
    read_keys = {*row.reads, *(key.name for key in row.keys.values())}
    read_keys |= {*expert_keys.COUNTS} if row.experts else set()
    for key, neutral in _FOREIGN.items():
        if key in config.values and key not in read_keys:
            if not any(config.values[key] == value for value in neutral):
                rule = f"be {' or '.join(map(repr, neutral))}: anything else is not supported"
                raise config.wrong(key, rule)
    gates = GATES[row.fixed.get("gate", "silu")]
    if config.text(row.gate_key, gates[0]) not in gates:
        rule = f"be {' or '.join(map(repr, gates))}: anything else is not supported"
        raise config.wrong(row.gate_key, rule)


def _sizes(config: Fields, row: Family) -> dict:
    """Returns the fields of a DecoderConfig that every family gives alike."""
    heads = config.count("num_attention_heads")
    embed_dim = config.count("hidden_size")
    bias = row.attention_bias and config.flag("attention_bias", False)
    return dict(
        vocab_size=config.count("vocab_size"),
        num_layers=config.count("num_hidden_layers"),
        embed_dim=embed_dim,
        num_heads=heads,
        num_kv_heads=_kv_heads(config, heads),
        head_dim=_head_dim(config, embed_dim, heads),
        mlp_dim=config.count("intermediate_size"),
        norm_eps=config.number(row.norm_eps_key),
        tie_embeddings=config.flag("tie_word_embeddings", False),
        qkv_bias=config.flag(row.qkv_bias_key, False) if row.qkv_bias_key else bias,
        out_bias=bias,
        mlp_bias=row.mlp_bias and config.flag("mlp_bias", False),
        max_len=config.count("max_position_embeddings"),
        bos_id=config.token_id("bos_token_id"),
        eos_id=config.token_ids("eos_token_id"),
        pad_id=config.pad_id(),
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
    how = dict(row=FAMILIES[family], head_dim=fields["head_dim"], max_len=fields["max_len"])
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


def _check_quantised(config: Fields) -> None:
    section = config.section(QUANTISED)
    if section is None:
        return
    kind = section.get("quant_method") or section.get("bits") or "method not named"
    raise InputError(
        f"{config.path(QUANTISED)} says that the weights are quantised"
        f" ({str(kind)[:40]}), which is not read. Save the model without quantisation:"
        " model.dequantize() of transformers, then save_pretrained; or take the model that it was"
        " made from."
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


def _kv_heads(config: Fields, heads: int) -> int:
    kv_heads = config.count("num_key_value_heads", heads)
    if heads % kv_heads:
        raise InputError(
            f"{config.path('num_attention_heads')} must be a multiple of num_key_value_heads, got"
            f" {heads} and {kv_heads}."
        )
    return kv_heads
