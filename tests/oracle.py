"""An independent forward pass in numpy, float64.

That reads Hugging Face's config and tensors as they are.

It shares no code with jaxrope: a slip in the conversion, the rope or the model shows as a
difference. Written for clarity: quadratic, one sequence at a time. Letters: T length, N heads, H
head dim, R rotary pairs.
"""

import math

import numpy as np


def logits(config: dict, tensors: dict, tokens, *, cos_sin=None) -> np.ndarray:
    """Returns logits [T, vocabulary] of one sequence.

    Args:
      config: a config.json of llama, mistral, qwen2 or phi3.
      tensors: name -> array, as in model.safetensors.
      tokens: ids, [T].
      cos_sin: (cos, sin), each [T, R], instead of those of the config.
    """
    weights = {name: np.asarray(value, np.float64) for name, value in tensors.items()}
    heads, kv_heads = (
        config["num_attention_heads"],
        config.get("num_key_value_heads") or config["num_attention_heads"],
    )
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    cos, sin = cos_sin or rotary(config, head_dim, len(tokens))
    visible = causal(len(tokens), window(config))
    x = weights["model.embed_tokens.weight"][np.asarray(tokens)]
    for i in range(config["num_hidden_layers"]):
        layer = {name.removeprefix(f"model.layers.{i}."): value for name, value in weights.items()}
        y = norm(x, layer["input_layernorm.weight"], config)
        q, k, v = (
            part.reshape(len(tokens), -1, head_dim)
            for part in project_qkv(layer, y, heads * head_dim, kv_heads * head_dim)
        )
        q, k = turn(q, cos, sin), turn(k, cos, sin)
        k, v = (np.repeat(part, heads // kv_heads, axis=1) for part in (k, v))
        scores = np.einsum("tnh,snh->nts", q, k) / math.sqrt(head_dim)
        scores = np.where(visible, scores, -np.inf)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        attended = np.einsum("nts,snh->tnh", scores / scores.sum(-1, keepdims=True), v)
        x = x + linear(layer, "self_attn.o_proj", attended.reshape(len(tokens), -1))
        x = x + mlp(layer, norm(x, layer["post_attention_layernorm.weight"], config))
    x = norm(x, weights["model.norm.weight"], config)
    tied = config.get("tie_word_embeddings", False)
    return x @ weights["model.embed_tokens.weight" if tied else "lm_head.weight"].T


def rotary(config: dict, head_dim: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns cos and sin [T, R] by the published formulas, times the attention factor."""
    section = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = section.get("rope_theta", config.get("rope_theta", 10_000.0))
    part = section.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
    dim = int(head_dim * part)
    freq = theta ** (-np.arange(0, dim, 2) / dim)
    longest = config["max_position_embeddings"]
    original = section.get(
        "original_max_position_embeddings", config.get("original_max_position_embeddings", longest)
    )
    kind = section.get("rope_type", section.get("type", "default"))
    freq, scale = FORMULAS[kind](section, freq, theta, dim, original, longest, length)
    angles = np.arange(length)[:, None] * freq
    return np.cos(angles) * scale, np.sin(angles) * scale


def _yarn(section, freq, theta, dim, original, longest, length):
    del longest, length
    factor = section["factor"]

    def border(turns):
        return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = border(section.get("beta_fast") or 32), border(section.get("beta_slow") or 1)
    if section.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = np.clip((np.arange(dim // 2) - low) / max(high - low, 0.001), 0, 1)

    def mscale(k):
        return 0.1 * k * math.log(factor) + 1 if factor > 1 else 1.0

    scale = section.get("attention_factor")
    if scale is None:
        both = section.get("mscale") and section.get("mscale_all_dim")
        scale = mscale(section["mscale"]) / mscale(section["mscale_all_dim"]) if both else mscale(1)
    return freq * (1 - ramp) + freq / factor * ramp, scale


def _llama3(section, freq, theta, dim, original, longest, length):
    del theta, dim, longest, length
    low, high = section["low_freq_factor"], section["high_freq_factor"]
    smooth = np.clip((original * freq / (2 * np.pi) - low) / (high - low), 0, 1)
    return freq * smooth + freq / section["factor"] * (1 - smooth), 1.0


def _dynamic(section, freq, theta, dim, original, longest, length):
    del freq, original
    factor = section["factor"]
    base = theta * (factor * max(length, longest) / longest - (factor - 1)) ** (dim / (dim - 2))
    return base ** (-np.arange(0, dim, 2) / dim), 1.0


def _longrope(section, freq, theta, dim, original, longest, length):
    del theta, dim
    factor = section.get("factor") or longest / original
    scale = section.get("attention_factor") or math.sqrt(1 + math.log(factor) / math.log(original))
    return freq / np.asarray(section["long_factor" if length > original else "short_factor"]), scale


FORMULAS = {
    "default": lambda section, freq, *_: (freq, 1.0),
    "linear": lambda section, freq, *_: (freq / section["factor"], 1.0),
    "dynamic": _dynamic,
    "yarn": _yarn,
    "llama3": _llama3,
    "longrope": _longrope,
    "su": _longrope,
}


def turn(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Rotates pairs (i, i + R) as complex numbers; x is [T, N, H]."""
    pairs = cos.shape[-1]
    turned = (x[..., :pairs] + 1j * x[..., pairs : 2 * pairs]) * (cos + 1j * sin)[:, None]
    return np.concatenate([turned.real, turned.imag, x[..., 2 * pairs :]], axis=-1)


def causal(length: int, window: int | None) -> np.ndarray:
    """Returns which key [S] each query [T] sees.

    Itself and what lies before, `window` tokens at most.
    """
    distance = np.arange(length)[:, None] - np.arange(length)
    return (distance >= 0) & (distance < (window or length))


def window(config: dict) -> int | None:
    """Returns the sliding window, which qwen2 has only where it is switched on and llama never."""
    used = {"mistral": True, "phi3": True, "qwen2": config.get("use_sliding_window", False)}
    return config.get("sliding_window") if used.get(config["model_type"]) else None


def norm(x: np.ndarray, scale: np.ndarray, config: dict) -> np.ndarray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + config["rms_norm_eps"]) * scale


def linear(layer: dict, name: str, x: np.ndarray) -> np.ndarray:
    return x @ layer[f"{name}.weight"].T + layer.get(f"{name}.bias", 0.0)


def project_qkv(layer: dict, x: np.ndarray, q_size: int, kv_size: int) -> list[np.ndarray]:
    if "self_attn.qkv_proj.weight" in layer:
        return np.split(linear(layer, "self_attn.qkv_proj", x), [q_size, q_size + kv_size], axis=-1)
    return [linear(layer, f"self_attn.{name}_proj", x) for name in "qkv"]


def mlp(layer: dict, x: np.ndarray) -> np.ndarray:
    if "mlp.gate_up_proj.weight" in layer:
        gate, up = np.split(linear(layer, "mlp.gate_up_proj", x), 2, axis=-1)
    else:
        gate, up = linear(layer, "mlp.gate_proj", x), linear(layer, "mlp.up_proj", x)
    return linear(layer, "mlp.down_proj", gate / (1 + np.exp(-gate)) * up)
