"""GGUF files as llama.cpp's converter writes them, from a config.json and its tensors."""

import math
from pathlib import Path

import numpy as np

ARCHITECTURES = {"mistral": "llama", "gemma3_text": "gemma3"}  # others are called alike
SHORT, LONG = "rope_factors_short.weight", "rope_factors_long.weight"


def write(path: Path, config: dict, tensors: dict, *, tokenizer=None, kind=None, extra=()) -> Path:
    """Writes a model.

    Args:
      path: of the file.
      config: of config.json, `rope_parameters` or `rope_scaling` with it.
      tensors: by Hugging Face's names.
      tokenizer: (writer) -> None adds one; None: as many tokens as rows.
      kind: gguf's quantisation of the matrices; None: as they are.
      extra: pairs (key without the architecture, value), which come last.
    """
    import gguf

    family = config["model_type"]
    arch = ARCHITECTURES.get(family, family)
    writer = gguf.GGUFWriter(path, arch)
    metadata = dict(_metadata(config)) | dict(extra)
    for key, value in metadata.items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
        add |= {str: writer.add_string, list: writer.add_array}
        name = (
            key if "." in key and key.split(".")[0] in ("tokenizer", "general") else f"{arch}.{key}"
        )
        add[type(value)](name, value)
    if tokenizer:
        tokenizer(writer)
    for name, values in _tensors(gguf, arch, config, tensors):
        is_matrix = values.ndim == 2
        if kind is not None and is_matrix:
            raw = gguf.quantize(np.float32(values), kind)
            writer.add_tensor(name, raw, raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def permuted(values: np.ndarray, heads: int) -> np.ndarray:
    """The rows of q or k in ggml's order: the two of a rotary pair side by side."""
    head_dim = len(values) // heads
    order = [
        h * head_dim + i
        for h in range(heads)
        for p in range(head_dim // 2)
        for i in (p, p + head_dim // 2)
    ]
    return values[order]


def _rope(config: dict) -> dict:
    section = config.get("rope_parameters") or config.get("rope_scaling") or {}
    section = section.get("full_attention", section)
    return {"rope_theta": config.get("rope_theta"), "rope_type": "default"} | section


def _metadata(config: dict):
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    yield "context_length", config["max_position_embeddings"]
    yield "embedding_length", config["hidden_size"]
    yield "block_count", config["num_hidden_layers"]
    yield "feed_forward_length", config["intermediate_size"]
    yield "attention.head_count", heads
    yield "attention.head_count_kv", config["num_key_value_heads"]
    yield "attention.key_length", head_dim
    yield "attention.value_length", head_dim
    yield "attention.layer_norm_rms_epsilon", config["rms_norm_eps"]
    rope = _rope(config)
    yield "rope.freq_base", float(rope["rope_theta"])
    yield "rope.dimension_count", int(head_dim * (config.get("partial_rotary_factor") or 1))
    kind = rope.get("type") or rope["rope_type"]
    original = rope.get("original_max_position_embeddings")
    original = original or config.get("original_max_position_embeddings")
    if kind in ("linear", "yarn"):
        yield "rope.scaling.type", kind
        yield "rope.scaling.factor", float(rope["factor"])
    if kind in ("yarn", "longrope") and original:
        yield "rope.scaling.original_context_length", original
    if kind == "yarn":
        for name in ("beta_fast", "beta_slow"):
            if name in rope:
                yield f"rope.scaling.yarn_{name}", rope[name]
    if kind == "longrope":
        scale = config["max_position_embeddings"] / original
        law = math.sqrt(1 + math.log(scale) / math.log(original))
        yield "rope.scaling.attn_factor", rope.get("attention_factor", law)
    if config.get("sliding_window"):
        yield "attention.sliding_window", config["sliding_window"]
    for token, name in (("bos", "bos"), ("eos", "eos")):
        yield f"tokenizer.ggml.{name}_token_id", config[f"{token}_token_id"]


def _tensors(gguf, arch: str, config: dict, tensors: dict):
    arches = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(arches[arch], config["num_hidden_layers"])
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    for name, values in tensors.items():
        if name == "lm_head.weight" and config["tie_word_embeddings"]:
            continue
        part = name.split(".")[-2]
        values = permuted(values, heads[part]) if arch == "llama" and part in heads else values
        values = values + np.float32(1) if arch == "gemma3" and part.endswith("norm") else values
        values = np.float32(values) if values.ndim == 1 else values
        yield names.get_name(name, try_suffixes=(".weight", ".bias")), values
    rope = _rope(config)
    if "long_factor" in rope:
        yield LONG, np.float32(rope["long_factor"])
        yield SHORT, np.float32(rope["short_factor"])
    if (rope.get("type") or rope["rope_type"]) == "llama3":
        yield "rope_freqs.weight", llama3_factors(rope, config)


def llama3_factors(rope: dict, config: dict) -> np.ndarray:
    """Llama 3's law by wavelengths, one frequency after the other, as the converter has it."""
    head_dim, original = config["head_dim"], rope["original_max_position_embeddings"]
    factors = []
    for pair in range(head_dim // 2):
        wavelength = 2 * math.pi * rope["rope_theta"] ** (2 * pair / head_dim)
        if wavelength < original / rope["high_freq_factor"]:
            factors.append(1.0)
        elif wavelength > original / rope["low_freq_factor"]:
            factors.append(rope["factor"])
        else:
            smooth = original / wavelength - rope["low_freq_factor"]
            smooth /= rope["high_freq_factor"] - rope["low_freq_factor"]
            factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.float32(factors)
