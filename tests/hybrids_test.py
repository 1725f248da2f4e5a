"""Models with delta layers among full ones: gradients, states, keys of config.json, refusals."""

import dataclasses
import functools
import json

import experts_test
import generation_test
import hf_families
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxrope import decoder, generate
from jaxrope.analysis import measuring, texts
from jaxrope.convert import config as hf_config
from jaxrope.convert import config_keys, exporting, importing, layout, pretrained
from jaxrope.convert.fields import Fields
from jaxrope.errors import InputError
from jaxrope.mesh import sharding
from jaxrope.schema import training
from jaxrope.train import lora as lora_lib

torch, record = experts_test.torch, generation_test.record


@pytest.mark.parametrize("case, chunk", [("qwen3_next", 16), ("qwen3_5", 0)])
def test_gradients_of_a_step(torch, tmp_path, case, chunk):
    how = dict(output_router_logits=True) if case == "qwen3_next" else {}
    experts_test.assert_gradients(torch, tmp_path, case, chunk, **how)


HYBRID = dict(num_layers=4, layers=("delta", "delta", "full", "delta"), output_gate=True)
HYBRID |= dict(delta_key_heads=2, delta_value_heads=4, delta_key_dim=6, delta_value_dim=4)
HYBRID |= dict(delta_conv=4, num_heads=8, num_kv_heads=4, head_dim=8)


def test_every_token_is_that_of_the_whole_sequence(tiny_config, record):
    """Prompts shorter than the convolution, chunks that rows end within, and a border, where a row
    is read again from its first token.
    """
    model = generation_test.make_model(tiny_config, **HYBRID)
    options = generation_test.options(10)
    generate.generate(model, generation_test.batch((21, 1, 36, 60)), options)
    seen = generation_test.assert_whole(model, record, lambda row, now: now)
    assert {1, 2, 3, 24, 25, 40, 41} <= seen


def test_generation_on_a_mesh(tiny_config):
    mesh = sharding.make_mesh(dict(data=2, fsdp=1, context=2, tensor=2))
    alone, spread = (
        generation_test.make_model(tiny_config, **HYBRID, mesh=where) for where in (None, mesh)
    )
    prompts = generation_test.batch((21, 1, 36, 60, 5))
    options = generation_test.options(8, chunk=32)
    assert generate.generate(spread, prompts, options) == generate.generate(alone, prompts, options)


def test_the_cache_of_a_delta_layer_has_a_fixed_size(tiny_config):
    config, _ = generation_test.tiny(tiny_config, **HYBRID)
    settings, how = decoder.ForwardSettings(compute_dtype="bfloat16"), dict(batch=3, chunk=16)
    caches = [
        jax.eval_shape(lambda n=n: decoder.empty_caches(config, settings, slots=n, **how))
        for n in (64, 4096)
    ]
    assert caches[0]["delta"] == caches[1]["delta"] and caches[0]["full"] != caches[1]["full"]
    state = caches[0]["delta"]
    assert state.memory_BNHH.shape == (3, 3, 4, 6, 4) and state.memory_BNHH.dtype == jnp.float32
    assert state.v_BWNH.shape == (3, 3, 3, 4, 4) and state.v_BWNH.dtype == jnp.bfloat16


def test_adapters_are_of_full_layers(tiny_config):
    """Merged as they compute; what a delta layer has is frozen, its norms are trained."""
    section = training.Lora(
        rank=2, alpha=4.0, targets=("q", "o"), train_norms=True, train_embeddings=False
    )
    config, params = generation_test.tiny(tiny_config, **HYBRID)
    lora = lora_lib.make(section, config, param_dtype="float32", compute_dtype="float32")
    params = lora_lib.begin(params, config, lora, jax.random.key(1))
    trained, _ = lora_lib.split(params, lora)
    of_delta = {name for name in trained["layers"] if "delta" in name}
    assert of_delta == {"delta_norm_LH"}
    assert trained["layers"]["q_b_LUNH"].shape == (1, 2, 8, 16)  # queries and their gates
    changed = {name: x + 0.1 for name, x in trained["layers"].items() if "_b_" in name}
    assert len(changed) == 2
    params = params | {"layers": params["layers"] | changed}
    tokens_BT, r = jnp.arange(20)[None], decoder.own_rope(config)(20)
    apart = decoder.hidden(config, params, tokens_BT, r)
    merged = decoder.hidden(config, decoder.adapters.merged(params), tokens_BT, r)
    np.testing.assert_allclose(merged, apart, atol=1e-4)


@pytest.mark.parametrize("case", ("qwen3_next", "qwen3_5", "mixtral"))
def test_adapters_as_a_peft_folder(torch, tmp_path, case):
    """Read again it is the merged model; peft and transformers compute what that computes."""
    hf_families.write(torch, tmp_path / "base", case)
    model, rng = pretrained.load(tmp_path / "base", dtype=None), np.random.default_rng(0)
    section = training.Lora(
        rank=2, alpha=4.0, targets=("q", "k", "v", "o"), train_norms=True, train_embeddings=False
    )
    lora = lora_lib.make(section, model.config, param_dtype="float32", compute_dtype="float32")
    params = lora_lib.begin(model.params, model.config, lora, jax.random.key(1))
    trained, frozen = lora_lib.split(jax.tree.map(np.asarray, params), lora)
    trained = jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape).astype("f"), trained)
    model = dataclasses.replace(model, params=lora_lib.join(trained, frozen))
    exporting.export_adapter(model, tmp_path / "adapter", base=str(tmp_path / "base"))
    whole = dataclasses.replace(model, params=decoder.adapters.merged(model.params))
    exporting.export_folder(whole, tmp_path / "merged")
    ours, merged = (pretrained.load(tmp_path / name).params for name in ("adapter", "merged"))
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), ours, merged)

    library = pytest.importorskip("peft", reason="needs peft")
    of_base, of_merged = (
        hf_families.transformers_model(tmp_path / name) for name in ("base", "merged")
    )
    ids = torch.as_tensor(rng.integers(0, hf_families.VOCAB, (1, 100)))
    with torch.no_grad():
        before, wanted = of_base(ids).logits, of_merged(ids).logits
        found = library.PeftModel.from_pretrained(of_base, tmp_path / "adapter").eval()(ids).logits
    largest = wanted.abs().max()
    assert (found - wanted).abs().max() < 1e-4 * largest < 1e-3 * (before - wanted).abs().max()


def test_bfloat16(tiny_config):
    """States and decays stay float32: 150 tokens on, the hidden states are as near as at first."""
    config, params = generation_test.tiny(tiny_config, **HYBRID)
    tokens_BT, r = jnp.asarray([generation_test.prompt(150)]), decoder.own_rope(config)(150)
    few, wide = (
        decoder.hidden(
            config, params, tokens_BT, r, settings=decoder.ForwardSettings(compute_dtype=dtype)
        )
        for dtype in ("bfloat16", "float32")
    )
    assert few.dtype == jnp.bfloat16
    error_T = np.abs(np.asarray(few, np.float32) - wide)[0].mean(axis=-1)
    assert error_T[-50:].mean() < 1.5 * error_T[:50].mean() < 0.1


@pytest.mark.parametrize("layers", ("dfdf", "ddfd", "fddff"))
def test_what_is_probed_is_of_full_layers(tiny_config, layers):
    """In their order, however layers are scanned; the hidden states do not depend on it."""
    kinds = tuple(dict(d="delta", f="full")[letter] for letter in layers)
    more = dict(layers=kinds, num_layers=len(kinds))
    config, params = generation_test.tiny(tiny_config, **HYBRID | more)
    tokens_BT, r = jnp.arange(20)[None], decoder.own_rope(config)(20)

    def probe_fn(seen):
        return seen.index, jnp.sum(seen.k_BTKH)

    x_BTD, (index_L, sum_L) = decoder.probe(config, params, tokens_BT, r, probe_fn=probe_fn)
    full = [i for i, kind in enumerate(kinds) if kind == "full"]
    assert index_L.tolist() == full == list(config.attention_layers)
    assert len(set(sum_L.tolist())) == len(full)
    np.testing.assert_array_equal(x_BTD, decoder.hidden(config, params, tokens_BT, r))
    stats = measuring.measure(config, params, tokens_BT, r)
    how = dict(queries=4, settings=decoder.ForwardSettings())
    assert len(stats) == len(texts.read(config, params, r, tokens_BT[0], **how)[-1]) == len(full)


def test_operations():
    """Of the model card of Qwen3-Next-80B-A3B: 80 B parameters, 3 B of them active."""
    config = read(**NEXT)
    assert round(decoder.num_params(config) / 1e9) == 80
    assert round(decoder.active_params(config) / 1e9) == 4  # embedding and head, 0.6 B, with them
    short, long = (decoder.forward_operations(config, n) for n in (1000, 2000))
    assert decoder.keys_per_query(config, 1000) == 12 * 500
    # twice the tokens, and of 12 layers twice the keys
    assert long - 2 * short == pytest.approx(4 * 16 * 256 * 12 * 500 * 2000)
    recurrent = 36 * 6 * 32 * 128 * 128
    table = config.vocab_size * config.embed_dim
    products = 2 * (decoder.active_params(config) - table)
    assert short == pytest.approx(1000 * (products + recurrent + 4 * 16 * 256 * 12 * 500))


# config.json of Qwen/Qwen3-Next-80B-A3B-Instruct; the text part of Qwen/Qwen3.5-27B, made small
NEXT = dict(
    architectures=["Qwen3NextForCausalLM"],
    attention_bias=False,
    decoder_sparse_step=1,
    eos_token_id=151645,
    full_attention_interval=4,
    head_dim=256,
    hidden_act="silu",
    hidden_size=2048,
    intermediate_size=5120,
    linear_conv_kernel_dim=4,
    linear_key_head_dim=128,
    linear_num_key_heads=16,
    linear_num_value_heads=32,
    linear_value_head_dim=128,
    max_position_embeddings=262144,
    mlp_only_layers=[],
    model_type="qwen3_next",
    moe_intermediate_size=512,
    norm_topk_prob=True,
    num_attention_heads=16,
    num_experts=512,
    num_experts_per_tok=10,
    num_hidden_layers=48,
    num_key_value_heads=2,
    partial_rotary_factor=0.25,
    rms_norm_eps=1e-06,
    rope_scaling=None,
    rope_theta=10000000,
    router_aux_loss_coef=0.001,
    shared_expert_intermediate_size=512,
    tie_word_embeddings=False,
    vocab_size=151936,
)
TEXT = dict(
    attention_bias=False,
    eos_token_id=248044,
    full_attention_interval=4,
    head_dim=256,
    hidden_act="silu",
    hidden_size=64,
    intermediate_size=96,
    layer_types=["linear_attention"] * 3 + ["full_attention"],
    linear_conv_kernel_dim=4,
    linear_key_head_dim=16,
    linear_num_key_heads=2,
    linear_num_value_heads=6,
    linear_value_head_dim=16,
    max_position_embeddings=262144,
    model_type="qwen3_5_text",
    mtp_num_hidden_layers=1,
    num_attention_heads=4,
    num_hidden_layers=4,
    num_key_value_heads=2,
    rms_norm_eps=1e-06,
    rope_parameters=dict(
        mrope_interleaved=True,
        mrope_section=[11, 11, 10],
        rope_type="default",
        rope_theta=10000000,
        partial_rotary_factor=0.25,
    ),
    vocab_size=96 * 3000,
)


def read(**values):
    return hf_config.from_hf(Fields(values, "config.json"))[0]


def test_keys_as_published(tmp_path):
    config = read(**NEXT)
    assert config == decoder.SHAPES["qwen3_next_80b_a3b"]
    assert config.layers == ("delta", "delta", "delta", "full") * 12
    assert (config.rotary_dim, config.norm_offset, config.output_gate) == (64, 1.0, True)
    assert (config.delta_key_heads, config.delta_value_heads, config.delta_conv) == (16, 32, 4)
    assert (config.num_experts, config.shared_dim, config.dense_layers) == (512, 512, ())
    values = dict(model_type="qwen3_5", text_config=TEXT, vision_config=dict(depth=27))
    (tmp_path / "config.json").write_text(json.dumps(values | dict(tie_word_embeddings=True)))
    config, notes = hf_config.read(tmp_path)
    assert (config.family, config.theta, config.rotary_dim) == ("qwen3_5_text", 1e7, 64)
    assert config.tie_embeddings and config.layers[2:] == ("delta", "full")
    assert "the text part of a qwen3_5 is read, the rest left out" in notes
    again = read(**config_keys.to_hf(config, dtype="float32"), **NEXT_ROPE)
    assert again == dataclasses.replace(config, stored_dtype=None)
    values |= dict(quantization_config=dict(quant_method="fp8"))
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"the weights are quantised \(fp8\), which is not read"):
        hf_config.read(tmp_path)


def test_keys_of_a_mixture_as_published(tmp_path):
    """Of Qwen/Qwen3.5-397B-A17B: all layers have experts, whatever mlp_only_layers says (published:
    none), and no key says how wide a dense MLP would be.
    """
    text = {key: value for key, value in TEXT.items() if key != "intermediate_size"}
    text |= dict(model_type="qwen3_5_moe_text", num_hidden_layers=60, hidden_size=4096)
    text |= dict(layer_types=TEXT["layer_types"] * 15, num_attention_heads=32, vocab_size=248_320)
    text |= dict(linear_num_key_heads=16, linear_num_value_heads=64, mlp_only_layers=[1])
    text |= dict(linear_key_head_dim=128, linear_value_head_dim=128, num_experts=512)
    text |= dict(num_experts_per_tok=10, moe_intermediate_size=1024, router_aux_loss_coef=0.001)
    text |= dict(shared_expert_intermediate_size=1024)
    values = dict(model_type="qwen3_5_moe", text_config=text, tie_word_embeddings=False)
    (tmp_path / "config.json").write_text(json.dumps(values))
    config, notes = hf_config.read(tmp_path)
    assert notes == ["the text part of a qwen3_5_moe is read, the rest left out"]
    assert (config.family, config.dense_layers) == ("qwen3_5_moe_text", ())
    assert round(decoder.num_params(config) / 1e9) == 396  # 397 B with the vision part
    assert round(decoder.active_params(config) / 1e9) == 17
    again = read(**config_keys.to_hf(config, dtype="float32"), **NEXT_ROPE)
    assert again == dataclasses.replace(config, stored_dtype=None)


NEXT_ROPE = dict(rope_theta=10000000, max_position_embeddings=262144)


@pytest.mark.parametrize(
    "values, message",
    [
        (dict(layer_types=["full_attention"] * 4), "layer_types must name layers of both types"),
        (dict(layer_types=["sliding_attention"] * 4), "must name linear_attention or full_att"),
        (dict(linear_num_key_heads=4), "delta_value_heads must be a multiple .* got 6 and 4"),
        (dict(linear_key_head_dim=2.5), "delta_key_dim must be a whole number"),
        (dict(linear_conv_kernel_dim=0), "linear_conv_kernel_dim must be above 0"),
        (dict(num_experts=4), "num_experts must be None or 0 or 1"),
        (dict(model_type="qwen3_5_moe_text", num_experts=4), "experts_per_token must be at most"),
    ],
)
def test_keys_that_are_refused(values, message):
    with pytest.raises(InputError, match=message):
        read(**TEXT | values)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(layers=("delta",) * 4), "must name a full layer: a delta layer has no rope"),
        (dict(delta_conv=0), "must be above 0 with layers called delta, got 2, 4, 6, 4, 0"),
        (dict(layers=()), "must be 0 without layers called delta"),
        (dict(delta_key_heads=3), "delta_value_heads must be a multiple .* got 4 and 3"),
        (dict(shared_dim=3), "shared_dim must be 0 without model.num_experts, got 3"),
    ],
)
def test_what_cannot_be(tiny_config, changes, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(tiny_config, **HYBRID | changes)


def test_what_is_refused(tiny_config):
    config, _ = generation_test.tiny(tiny_config, **HYBRID)
    with pytest.raises(InputError, match="one that has delta layers .qwen3_next, qwen3_5_text, q"):
        layout.tensors(config)
    with pytest.raises(InputError, match="--arch=phi3: norm_offset must be 0.0, got 1.0"):
        exporting.check_arch("phi3", read(**TEXT | dict(head_dim=16, rope_parameters=None)))


def test_what_is_passed_over(tmp_path):
    """Names as Qwen3.5 publishes them: text under language_model, vision and a head for more
    tokens beside it.
    """
    values = TEXT | dict(vocab_size=96, eos_token_id=2, model_type="qwen3_5_moe_text")
    values |= dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24)
    config = read(**values)
    rng, tensors = np.random.default_rng(0), {}
    for tensor in layout.tensors(config):
        name = tensor.name.replace("model.", "model.language_model.", 1)
        tensors[name] = rng.normal(size=tensor.shape).astype(np.float32)
    plain = dict(tensors)
    tensors["model.visual.blocks.0.attn.qkv.weight"] = np.zeros((3, 3), np.float32)
    tensors["mtp.layers.0.self_attn.q_proj.weight"] = np.zeros((3, 3), np.float32)
    for folder, content in ((tmp_path / "a", tensors), (tmp_path / "b", plain)):
        folder.mkdir()
        save_file(content, folder / "model.safetensors")
        text = dict(model_type="qwen3_5_moe", text_config=values, vision_config={})
        (folder / "config.json").write_text(json.dumps(text))
    shape = tensors["model.language_model.layers.3.mlp.experts.gate_up_proj"].shape
    assert shape == (4, 48, 64)
    source = importing.open_model(tmp_path / "a")
    assert any("1 tensors of the vision part (model.visual.blocks" in n for n in source.notes)
    assert any("multi-token-prediction head (mtp.layers.0" in note for note in source.notes)
    found, wanted = (pretrained.load(tmp_path / name).params for name in "ab")
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
