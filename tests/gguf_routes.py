"""Tiny random models with every rope that llama.cpp can be told, as they are exported to GGUF."""

from pathlib import Path

import jax
import numpy as np

from jaxrope import decoder, rope
from jaxrope.convert import Pretrained
from jaxrope.convert import config as hf_config
from jaxrope.convert.fields import Fields
from tests import tiny_tokenizers

ORIGINAL, LONGEST = 256, 1024
SHORT = [1.0, 1.02, 1.1, 1.15, 1.3, 1.35, 1.5, 1.6]
LONG = [1.0, 1.1, 1.4, 1.9, 2.6, 3.1, 3.6, 4.2]
_BASE = dict(vocab_size=352, hidden_size=64, intermediate_size=96, num_hidden_layers=2)
_BASE |= dict(num_attention_heads=4, num_key_value_heads=2, head_dim=16, rms_norm_eps=1e-5)
_BASE |= dict(max_position_embeddings=ORIGINAL, rope_theta=10_000.0, tie_word_embeddings=False)
_BASE |= dict(bos_token_id=0, eos_token_id=1)
_BIASED = dict(attention_bias=True, mlp_bias=True, tie_word_embeddings=True)
_WINDOW = dict(model_type="mistral", sliding_window=LONGEST)
_PARTIAL = dict(model_type="phi3", partial_rotary_factor=0.5)
_GEMMA = dict(model_type="gemma3_text", num_hidden_layers=3, sliding_window=64)
_GEMMA |= dict(query_pre_attn_scalar=16, tie_word_embeddings=True, rope_local_base_freq=500.0)
_GEMMA |= dict(layer_types=["sliding_attention", "full_attention", "sliding_attention"])
_GEMMA |= dict(hidden_activation="gelu_pytorch_tanh")
_LLAMA, _QWEN2, _QWEN3, _PHI3 = (dict(model_type=n) for n in ("llama", "qwen2", "qwen3", "phi3"))


def _sets(*factors, attention=1.0):
    borders = (ORIGINAL, LONGEST)[-len(factors) :]
    rows = zip(borders, factors, strict=True)
    rows = [dict(max_len=n, factors=f, start_tokens=0) for n, f in rows]
    return dict(method="longrope", buckets=[r | dict(attention_factor=attention) for r in rows])


_YARN = dict(method="yarn", factor=4.0, beta_fast=32.0, beta_slow=1.0)
OWN_YARN = _YARN | dict(attention_factor=1.25)
BORDERS = OWN_YARN | dict(beta_fast=9.0, beta_slow=0.5)
_LLAMA3 = dict(method="llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=3.0)
_LLAMA3 |= dict(max_len=LONGEST)
_ONE, _TWO = _sets(LONG, attention=1.17), _sets(SHORT, LONG, attention=1.1)
# name -> (config.json, rope, the architecture in the file).
ROUTES = {
    "llama, plain": (_LLAMA, dict(method="none"), "llama"),
    "llama, one set": (_LLAMA, _ONE, "llama"),
    "llama, two sets": (_LLAMA, _TWO, "llama"),
    "llama, yarn": (_LLAMA, _YARN, "llama"),
    "llama, own yarn": (_LLAMA, OWN_YARN, "llama"),
    "llama, yarn's borders": (_LLAMA, BORDERS, "llama"),
    "llama, fractional yarn": (_LLAMA, _YARN | dict(truncate=False), "llama"),
    "llama, pi": (_LLAMA, dict(method="pi", factor=4.0), "llama"),
    "llama, ntk": (_LLAMA, dict(method="ntk", factor=4.0), "llama"),
    "llama, llama3": (_LLAMA, _LLAMA3, "llama"),
    "llama with biases": (_LLAMA | _BIASED, _TWO, "llama"),
    "mistral": (_WINDOW, _ONE, "llama"),
    "qwen2, yarn": (_QWEN2, OWN_YARN, "qwen2"),
    "qwen2, two sets": (_QWEN2, _TWO, "llama"),
    "qwen2, other heads": (_QWEN2 | dict(head_dim=24), dict(method="none"), "llama"),
    "qwen3, own yarn": (_QWEN3, OWN_YARN, "qwen3"),
    "qwen3, yarn's borders": (_QWEN3, BORDERS, "qwen3"),
    "phi3, one set": (_PHI3, _ONE, "phi3"),
    "phi3, two sets": (_PHI3, _TWO, "phi3"),
    "phi3, yarn": (_PHI3, OWN_YARN, "phi3"),
    "phi3, half turns": (_PARTIAL, _sets(SHORT[:4], LONG[:4], attention=1.2), "phi3"),
    "gemma3, yarn": (_GEMMA, _YARN, "gemma3"),
    "gemma3, pi": (_GEMMA, dict(method="pi", factor=4.0), "gemma3"),
}


def model(folder: Path, name: str, *, seed: int = 0) -> Pretrained:
    """Returns a model with random weights and a small tokenizer.

    Args:
      folder: where the tokenizer is written.
      name: of ROUTES.
      seed: of the weights.
    """
    changes, section, _ = ROUTES[name]
    config, _ = hf_config.from_hf(Fields(_BASE | changes, name))
    rng = np.random.default_rng(seed)

    def leaf(path, shape):
        values = rng.normal(size=shape.shape) * 0.1
        is_norm = "norm" in path[-1].key and "bias" not in path[-1].key
        return np.float32(values + (is_norm and not config.norm_offset))

    params = jax.tree_util.tree_map_with_path(leaf, decoder.abstract_params(config))
    geometry = dict(head_dim=config.head_dim, rotary_dim=config.rotary_dim)
    geometry |= dict(theta=config.theta, original_len=config.original_len)
    template = tiny_tokenizers.template("<s> $A")
    tokenizer = tiny_tokenizers.write(folder, tiny_tokenizers.bpe(template), tokenizer_config={})
    rope_fn = rope.make(**section, **geometry)
    return Pretrained(config, params, tokenizer, rope_fn, str(folder))


def logits(of: Pretrained, tokens: np.ndarray, length: int | None = None) -> np.ndarray:
    """Returns our logits, float32 [T, V], with the factors for a sequence of `length` tokens."""
    settings = decoder.ForwardSettings()
    rope = of.rope_fn(length or len(tokens))
    rows = decoder.logits(of.config, of.params, tokens[None], rope, settings=settings)
    return np.asarray(rows)[0]
