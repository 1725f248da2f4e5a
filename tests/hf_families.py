"""Small random models of every family, made and written by transformers' own classes."""

import argparse
from pathlib import Path

import chat_test
import numpy as np
import tiny_tokenizers

from jaxrope.generate import __main__ as generate_main
from jaxrope.generate import command

VOCAB = 96
_SIZES = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=128,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)
_WINDOW = dict(sliding_window=20)
_MIXED = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]

# name -> (model_type, what differs from `_SIZES`)
CASES = {
    "qwen3": ("qwen3", {}),
    "qwen3, biases, some layers slide": (
        "qwen3",
        dict(attention_bias=True, use_sliding_window=True, max_window_layers=2, **_WINDOW),
    ),
    "qwen2, some layers slide": (
        "qwen2",
        dict(use_sliding_window=True, max_window_layers=1, head_dim=8, **_WINDOW),
    ),
    "ministral": ("ministral", dict(layer_types=_MIXED, **_WINDOW)),
    "ministral3": ("ministral3", {}),
    "smollm3": ("smollm3", dict(head_dim=8)),
    "smollm3, layers without rope slide": (
        "smollm3",
        dict(head_dim=8, no_rope_layer_interval=2, use_sliding_window=True, **_WINDOW),
    ),
    "olmo2": ("olmo2", dict(head_dim=8)),
    "olmo3": ("olmo3", dict(head_dim=8, **_WINDOW)),
    "gemma2": ("gemma2", dict(query_pre_attn_scalar=24, attn_logit_softcapping=5.0, **_WINDOW)),
    "gemma3": ("gemma3_text", dict(query_pre_attn_scalar=24, layer_types=_MIXED, **_WINDOW)),
    "granite": (
        "granite",
        dict(
            embedding_multiplier=3.0,
            residual_multiplier=0.7,
            attention_multiplier=0.2,
            logits_scaling=0.5,
            head_dim=8,
        ),
    ),
    "stablelm": (
        "stablelm",
        dict(hidden_size=64, use_qkv_bias=True, partial_rotary_factor=0.5, layer_norm_eps=1e-2),
    ),
}
_EXPERTS = dict(num_experts_per_tok=2, router_aux_loss_coef=0.05)
CASES |= {
    "qwen3_moe": (
        "qwen3_moe",
        dict(num_experts=6, moe_intermediate_size=24, norm_topk_prob=True, **_EXPERTS),
    ),
    "qwen3_moe, some MLPs are dense": (
        "qwen3_moe",
        dict(
            num_experts=6,
            moe_intermediate_size=24,
            decoder_sparse_step=2,
            mlp_only_layers=[3],
            num_hidden_layers=5,
            **_EXPERTS,
        ),
    ),
    "mixtral": ("mixtral", dict(num_local_experts=5, num_hidden_layers=3, **_EXPERTS)),
}
_DELTA = dict(
    linear_num_key_heads=2,
    linear_num_value_heads=6,
    linear_key_head_dim=8,
    linear_value_head_dim=4,
    linear_conv_kernel_dim=3,
    partial_rotary_factor=0.5,
)
CASES |= {
    "qwen3_next": (
        "qwen3_next",
        dict(
            num_experts=6,
            moe_intermediate_size=24,
            shared_expert_intermediate_size=20,
            mlp_only_layers=[1],
            full_attention_interval=2,
            num_hidden_layers=5,
            **_EXPERTS,
            **_DELTA,
        ),
    ),
    "qwen3_5": ("qwen3_5_text", _DELTA),
    "qwen3_5_moe": (
        "qwen3_5_moe_text",
        dict(
            num_experts=6,
            moe_intermediate_size=24,
            shared_expert_intermediate_size=20,
            **_EXPERTS,
            **_DELTA,
        ),
    ),
}
_ORIGINAL = dict(original_max_position_embeddings=32)
SHORT = [1.0, 1.1, 0.9, 1.2, 1.9, 2.5, 3.0, 3.5]  # of 8 pairs; a factor below 1 is legal
LONG = [1.0, 1.4, 0.95, 2.0, 3.1, 4.4, 5.0, 6.5]
SCALINGS = {
    "plain": {},
    "yarn": dict(rope_type="yarn", factor=4.0, beta_fast=4.0, beta_slow=0.5, **_ORIGINAL),
    "longrope": dict(rope_type="longrope", factor=4.0, **_ORIGINAL),
}
ONE_ROPE = ("qwen3, biases, some layers slide", "qwen2, some layers slide", "ministral", "gemma2")
BY_LAYER = ("olmo3", "gemma3_text")  # each kind of layer has a rope
THETA = {
    "mixtral": 1_000_000.0,
    "olmo3": 500_000.0,
    "gemma3_text": 1_000_000.0,
    "smollm3": 2_000_000.0,
}


def rope_parameters(model_type: str, scaling: str, rotary_dim: int) -> dict:
    """Returns the section of transformers 5."""
    full = SCALINGS[scaling] | dict(rope_theta=THETA.get(model_type, 10_000.0))
    full.setdefault("rope_type", "default")
    if scaling == "longrope":
        pairs = rotary_dim // 2
        full |= dict(short_factor=SHORT[:pairs], long_factor=LONG[:pairs])
    if model_type == "ministral3":
        full |= dict(llama_4_scaling_beta=0.3, **_ORIGINAL)
    if model_type not in BY_LAYER:
        return full
    theta = 10_000.0 if model_type == "gemma3_text" else full["rope_theta"]
    return dict(full_attention=full, sliding_attention=dict(rope_type="default", rope_theta=theta))


def write(
    torch, folder: Path, case: str, scaling: str = "plain", seed: int = 0, noise=0.15, **sizes
):
    """Writes a folder with `save_pretrained`; returns transformers' model.

    `noise` is of the matrices within layers; with more of it greedy text repeats itself less.
    `sizes` are keys of other values than the case has.
    """
    import transformers

    model_type, differing = CASES[case]
    values = _SIZES | differing | sizes
    rotary_dim = int(values["head_dim"] * values.get("partial_rotary_factor", 1))
    values["rope_parameters"] = rope_parameters(model_type, scaling, rotary_dim)
    if values["head_dim"] == 8:
        del values["head_dim"]  # hidden_size / num_attention_heads: some classes have no such key
    config = transformers.AutoConfig.for_model(model_type, **values)
    model = transformers.AutoModelForCausalLM.from_config(config).to(torch.float32).eval()
    _randomize(torch, model, seed, noise, ones=not model_type.startswith("gemma"))
    model.save_pretrained(folder)
    return transformers_model(folder)


def _randomize(torch, model, seed: int, noise: float, ones: bool) -> None:
    """Draws all parameters; those of norms around 1 or 0."""
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = noise if "proj" in name else 0.15
            values = torch.as_tensor(rng.normal(size=tuple(parameter.shape)) * scale)
            parameter.copy_(values.to(torch.float32) + (ones and "norm" in name))


def write_seeing(torch, folder: Path, case: str, **sizes) -> None:
    """Writes a case of Qwen3.5 as published, the text part beside one for vision."""
    import transformers

    model_type, differing = CASES[case]
    text = _SIZES | differing | sizes | dict(tie_word_embeddings=True)
    part = text.pop("partial_rotary_factor")
    quarter = int(text["head_dim"] * part) // 8  # of the pairs that turn
    text["rope_parameters"] = rope_parameters(model_type, "plain", 0) | dict(
        mrope_section=[2 * quarter, quarter, quarter],
        mrope_interleaved=True,
        partial_rotary_factor=part,
    )
    vision = dict(depth=1, hidden_size=16, intermediate_size=16, num_heads=2)
    vision |= dict(out_hidden_size=text["hidden_size"], patch_size=4, num_position_embeddings=16)
    places = dict(image_token_id=5, video_token_id=6, vision_start_token_id=7)
    config = transformers.AutoConfig.for_model(
        model_type.removesuffix("_text"),
        text_config=text,
        vision_config=vision,
        vision_end_token_id=8,
        tie_word_embeddings=True,
        **places,
    )
    model = transformers.AutoModelForImageTextToText.from_config(config).to(torch.float32)
    _randomize(torch, model, 0, 0.15, ones=True)
    model.save_pretrained(folder)


def transformers_model(folder: Path):
    """Returns transformers' model of a folder, in float32."""
    import torch
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def write_tokenizer(folder: Path) -> None:
    """Writes a tokenizer of letters, which has fewer words than the models, and a chat template."""
    import tokenizers

    letters = "abcdefgh \nijklmnopqrstuvwxyz"
    words = ["<unk>", "<s>", "</s>", *letters, "<|im_start|>", "<|im_end|>"]
    vocab = {word: number for number, word in enumerate(words)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, [], unk_token="<unk>"))
    tokenizer.add_special_tokens([word for word in words if len(word) > 1])
    settings = dict(bos_token="<s>", eos_token="</s>", chat_template=chat_test.TEMPLATES["chatml"])
    tiny_tokenizers.write(folder, tokenizer, tokenizer_config=settings)


def write_speaker(torch, folder: Path, case: str):
    """Writes a model whose greedy text varies, with its tokenizer; returns transformers' model."""
    model = write(torch, folder, case, seed=3, noise=0.5)
    write_tokenizer(folder)
    return model


_TALK = dict(system="be brief", user="does the sea fade")


def our_chat(folder: Path):
    """Returns what `generate --chat` makes of a user's question: prompt, options, model."""
    parser = argparse.ArgumentParser()
    generate_main.add_arguments(parser)
    line = [f"--checkpoint={folder}", "--chat", "--max_new_tokens=40", "--chunk=16"]
    line += [f"--system={_TALK['system']}", f"--prompt={_TALK['user']}"]
    return command.prepare(parser.parse_args(line))


def their_chat(torch, folder: Path, model) -> tuple[list[int], list[int]]:
    """Returns transformers' tokens of the same question, and of its answer, greedy."""
    import transformers

    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    messages = [dict(role=role, content=content) for role, content in _TALK.items()]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True).input_ids
    ids_BT = torch.as_tensor([ids])
    with torch.no_grad():
        whole = model.generate(
            ids_BT, attention_mask=torch.ones_like(ids_BT), max_new_tokens=40, do_sample=False
        )
    return ids, whole[0, len(ids) :].tolist()
