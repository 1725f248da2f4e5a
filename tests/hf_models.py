"""Small random models of every family in Hugging Face format, as other programs write them."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

_BASE = dict(
    vocab_size=96,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    hidden_act="silu",
    max_position_embeddings=128,
    rms_norm_eps=1e-5,
    rope_theta=10_000.0,
    tie_word_embeddings=False,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=None,
)
_LLAMA = _BASE | dict(model_type="llama", architectures=["LlamaForCausalLM"], head_dim=16)
_SHORT = [1.0, 1.1, 1.3, 1.2, 1.9, 2.5, 3.0, 3.5]
_LONG = [1.0, 1.4, 2.2, 2.0, 3.1, 4.4, 5.0, 6.5]
_YARN = dict(rope_type="yarn", factor=4.0, beta_fast=4.0, beta_slow=0.5)
_YARN |= dict(original_max_position_embeddings=32)
_LLAMA3 = dict(rope_type="llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=3.0)
_LLAMA3 |= dict(original_max_position_embeddings=32)
_LONGROPE = dict(short_factor=_SHORT, long_factor=_LONG)
_V5 = dict(rope_type="longrope", factor=4.0, attention_factor=1.3, rope_theta=500.0)
_V5 |= dict(original_max_position_embeddings=32, **_LONGROPE)
_PHI3 = _BASE | dict(model_type="phi3", architectures=["Phi3ForCausalLM"], sliding_window=40)
_PHI3 |= dict(hidden_size=64, original_max_position_embeddings=32)
_QWEN2 = _BASE | dict(model_type="qwen2", architectures=["Qwen2ForCausalLM"])
_ALL_SLIDING = dict(use_sliding_window=True, sliding_window=20, max_window_layers=0)

# The extended ones have an original length of 32 tokens: 24 lies below, 100 beyond it and beyond
# the windows.
CASES = {
    "llama": _LLAMA,
    "llama tied with biases": (
        _LLAMA | dict(tie_word_embeddings=True, attention_bias=True, mlp_bias=True)
    ),
    "llama of v5, theta inside": (
        {key: v for key, v in _LLAMA.items() if key != "rope_theta"}
        | dict(rope_parameters=dict(rope_type="default", rope_theta=300.0))
    ),
    "llama linear": _LLAMA | dict(rope_scaling=dict(type="linear", factor=4.0)),
    "llama dynamic": (
        _LLAMA | dict(rope_scaling=dict(type="dynamic", factor=3.0), max_position_embeddings=32)
    ),
    "llama llama3": _LLAMA | dict(rope_scaling=_LLAMA3),
    "llama yarn": _LLAMA | dict(rope_scaling=_YARN),
    "llama yarn, fractional ramp": _LLAMA | dict(rope_scaling=_YARN | dict(truncate=False)),
    "llama yarn, mscale": _LLAMA | dict(rope_scaling=_YARN | dict(mscale=1.4, mscale_all_dim=0.6)),
    "llama yarn, attention factor": _LLAMA | dict(rope_scaling=_YARN | dict(attention_factor=1.7)),
    "llama longrope of v4": (
        _LLAMA
        | dict(
            rope_scaling=dict(rope_type="longrope", factor=4.0, **_LONGROPE),
            original_max_position_embeddings=32,
        )
    ),
    "llama longrope of v5": (
        {key: v for key, v in _LLAMA.items() if key != "rope_theta"} | dict(rope_parameters=_V5)
    ),
    "mistral": (
        _BASE | dict(model_type="mistral", architectures=["MistralForCausalLM"], sliding_window=20)
    ),
    "qwen2": _QWEN2,
    "qwen2, a window everywhere": _QWEN2 | _ALL_SLIDING,
    "phi3": _PHI3 | dict(rope_scaling=dict(type="longrope", **_LONGROPE)),
    "phi3 partial": (
        _PHI3
        | dict(
            rope_scaling=dict(type="longrope", short_factor=_SHORT[:6], long_factor=_LONG[:6]),
            partial_rotary_factor=0.75,
            tie_word_embeddings=True,
            sliding_window=None,
        )
    ),
}


def random_tensors(config: dict, seed: int = 0, dtype=np.float32) -> dict[str, np.ndarray]:
    """Returns weights large enough that attention is far from uniform."""
    rng = np.random.default_rng(seed)
    dim, mlp = config["hidden_size"], config["intermediate_size"]
    head = config.get("head_dim") or dim // config["num_attention_heads"]
    q, kv = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    family, bias = config["model_type"], config.get("attention_bias", False)
    shapes = {"model.embed_tokens.weight": (config["vocab_size"], dim), "model.norm.weight": (dim,)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], dim)
    if family == "phi3":
        linear = {"self_attn.qkv_proj": (q + 2 * kv, dim), "mlp.gate_up_proj": (2 * mlp, dim)}
    else:
        linear = {
            f"self_attn.{name}_proj": (n, dim) for name, n in zip("qkv", (q, kv, kv), strict=True)
        }
        linear |= {"mlp.gate_proj": (mlp, dim), "mlp.up_proj": (mlp, dim)}
    linear |= {"self_attn.o_proj": (dim, q), "mlp.down_proj": (dim, mlp)}
    for i in range(config["num_hidden_layers"]):
        for name, shape in linear.items():
            shapes[f"model.layers.{i}.{name}.weight"] = shape
            attention = name.startswith("self_attn")
            qwen = family == "qwen2" and name[10:] in ("q_proj", "k_proj", "v_proj")
            if qwen or (bias if attention else config.get("mlp_bias", False)):
                shapes[f"model.layers.{i}.{name}.bias"] = shape[:1]
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"model.layers.{i}.{name}.weight"] = (dim,)
    made = {name: rng.normal(size=shape) * 0.15 for name, shape in shapes.items()}
    return {
        name: (value + name.endswith("norm.weight")).astype(dtype) for name, value in made.items()
    }


def write(folder: Path, config: dict, *, seed: int = 0, dtype=np.float32) -> dict[str, np.ndarray]:
    """Writes config.json and model.safetensors, and returns the tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = random_tensors(config, seed, dtype)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return tensors
