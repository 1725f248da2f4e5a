"""Experts: routing, products, gradients and the router's loss, against transformers' classes and
against plain arithmetic.
"""

import dataclasses
import functools
import signal
import types

import hf_families
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_run
import training_test

from jaxrope import decoder, rope, train
from jaxrope.convert import config as hf_config
from jaxrope.convert import config_keys, consumers, exporting, layout, pretrained, rope_export
from jaxrope.convert.fields import Fields
from jaxrope.decoder import experts, grouped
from jaxrope.errors import InputError
from jaxrope.schema import training
from jaxrope.train import lora as lora_lib
from jaxrope.train import step as step_lib
from jaxrope.train.optimizer import Optimizer

CASES = ("qwen3_moe", "qwen3_moe, some MLPs are dense", "mixtral")
SGD = Optimizer(optax.sgd(1.0), optax.constant_schedule(1.0))  # new = old - gradient


@pytest.fixture(scope="module")
def torch():
    pytest.importorskip("transformers", reason="needs transformers (Python 3.11)")
    module = pytest.importorskip("torch", reason="needs torch (Python 3.11)")
    module.set_num_threads(1)
    return module


def small(tiny_config, **changes):
    """Returns (config, float64 parameters) of three layers, of which one is dense."""
    fields = dict(num_layers=3, dense_layers=(1,), num_experts=6, experts_per_token=2)
    fields |= dict(expert_dim=8, router_loss=0.3)
    config = dataclasses.replace(tiny_config, **fields | changes)
    leaves, tree = jax.tree.flatten(decoder.abstract_params(config))
    rng = np.random.default_rng(0)
    return config, tree.unflatten([0.3 * rng.normal(size=leaf.shape) for leaf in leaves])


def of_layer(rng, num_experts, dim, width):
    shapes = dict(expert_gate_LEDF=(dim, width), expert_up_LEDF=(dim, width))
    shapes |= dict(expert_down_LEFD=(width, dim))
    return {name: rng.normal(size=(num_experts, *shape)) for name, shape in shapes.items()}


def plainly(shares_BTK, chosen_BTK, x_BTD, weights):
    """Every expert multiplies every token, and its share is 0 where it was not chosen."""
    hot_BTKE = jax.nn.one_hot(chosen_BTK, len(weights["expert_gate_LEDF"]))
    share_BTE = jnp.einsum("BTK,BTKE->BTE", shares_BTK, hot_BTKE)
    gate, up = (
        jnp.einsum("BTD,EDF->BTEF", x_BTD, weights[f"expert_{name}_LEDF"])
        for name in ("gate", "up")
    )
    y_BTED = jnp.einsum("BTEF,EFD->BTED", jax.nn.silu(gate) * up, weights["expert_down_LEFD"])
    return jnp.einsum("BTED,BTE->BTD", y_BTED, share_BTE)


@pytest.mark.parametrize("sizes", [(300, 0, 1, 128, 129), (0, 0, 5, 0, 0), (256, 0, 0, 0, 0)])
@pytest.mark.parametrize("way", ["ragged", "in_blocks"])
def test_products_by_group(way, sizes):
    """XLA's kernel, and blocks of 128 rows: groups that end within one, and empty ones."""
    rng = np.random.default_rng(3)
    with jax.enable_x64(True):
        x_PD, dy_PF = (rng.normal(size=(sum(sizes), width)) for width in (6, 4))
        weight_EDF, ends = rng.normal(size=(5, 6, 4)), np.cumsum(sizes)
        spans = [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
        y_PF = np.concatenate([x_PD[span] @ w for span, w in zip(spans, weight_EDF, strict=True)])
        by_weight = np.stack([x_PD[span].T @ dy_PF[span] for span in spans])
        name = dict(ragged="ragged_weights", in_blocks="weights_in_blocks")[way]
        sizes_E = jnp.array(sizes, jnp.int32)
        found = getattr(grouped, way)(x_PD, jnp.asarray(weight_EDF), sizes_E)
        np.testing.assert_allclose(found, y_PF, atol=1e-12)
        found = getattr(grouped, name)(x_PD, dy_PF, sizes_E)
        np.testing.assert_allclose(found, by_weight, atol=1e-11)


@pytest.mark.parametrize("load", ["spread", "two experts have all tokens"])
def test_no_token_is_dropped(load):
    """Values and gradients, in float64."""
    rng = np.random.default_rng(1)
    with jax.enable_x64(True):
        x_BTD, weights = rng.normal(size=(2, 17, 6)), of_layer(rng, 5, 6, 4)
        chosen_BTK = np.argsort(rng.random((2, 17, 5)))[..., :2].astype(np.int32)
        if load != "spread":
            chosen_BTK = np.broadcast_to(np.array([4, 1], np.int32), (2, 17, 2))
        shares_BTK = rng.random((2, 17, 2))

        def value(fn, shares_BTK, x_BTD, weights):
            y_BTD = fn(shares_BTK, chosen_BTK, x_BTD, weights)
            return jnp.sum(jnp.sin(y_BTD)), y_BTD

        ours = functools.partial(value, functools.partial(experts.mixed, gate_fn=jax.nn.silu))
        how = dict(argnums=(0, 1, 2), has_aux=True)
        found, wanted = (
            jax.value_and_grad(fn, **how)(shares_BTK, x_BTD, weights)
            for fn in (ours, functools.partial(value, plainly))
        )
        same = functools.partial(np.testing.assert_allclose, rtol=1e-10)
        jax.tree.map(same, found, wanted)
        # candidates of a search: weights are shared
        gradient = jax.grad(lambda x_BTD: ours(shares_BTK, x_BTD, weights)[0])
        many = jax.vmap(gradient)(np.stack([x_BTD, x_BTD]))
        jax.tree.map(same, many, np.stack([wanted[1][1]] * 2))


@pytest.mark.parametrize("case", CASES)
def test_routing(torch, tmp_path, case):
    """Experts and their shares, wherever the last of the chosen is clear of the next."""
    theirs = hf_families.write(torch, tmp_path, case)
    model = pretrained.load(tmp_path)
    layer = model.config.expert_layers.index(True)
    x_TD = np.random.default_rng(5).normal(size=(300, 32)).astype(np.float32)
    with torch.no_grad():
        gate = theirs.model.layers[layer].mlp.gate
        logits, shares, chosen = (y.numpy() for y in gate(torch.as_tensor(x_TD)))
    router_DE = model.params["layers"]["router_LDE"][0]
    _, ours, which = experts.shares(model.config, jnp.asarray(x_TD @ router_DE)[None])
    best = -np.sort(-np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True), axis=-1)
    num = model.config.experts_per_token
    clear = best[:, num - 1] - best[:, num] > 1e-4
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(np.asarray(which)[0, clear], chosen[clear])
    np.testing.assert_allclose(np.asarray(ours)[0, clear], shares[clear], rtol=1e-5)


@pytest.mark.parametrize("chunk", (0, 16))
@pytest.mark.parametrize("case", CASES)
def test_gradients_of_a_step(torch, tmp_path, case, chunk):
    """With the router's loss."""
    result = assert_gradients(torch, tmp_path, case, chunk, output_router_logits=True)
    assert float(result.aux_loss.detach()) > 1


def assert_gradients(torch, tmp_path, case, chunk, **how):
    """Compares loss and gradients, of a batch whose second row ends early; returns torch's."""
    theirs = hf_families.write(torch, tmp_path / "model", case)
    model = pretrained.load(tmp_path / "model")
    assert model.config.router_loss == (0.05 if how else 0)
    rng, length = np.random.default_rng(2), 40
    tokens_BT = rng.integers(0, hf_families.VOCAB, (2, length))
    real_BT = np.arange(length) < np.array([[length], [25]])
    labels_BT = np.where(real_BT, tokens_BT, -100)
    result = theirs(
        *map(torch.as_tensor, (tokens_BT, real_BT.astype(np.int64))),
        labels=torch.as_tensor(labels_BT),
        **how,
    )
    result.loss.backward()

    segments_BT = real_BT.astype(np.int32)
    positions_BT = np.where(real_BT, np.arange(length), 0).astype(np.int32)
    weights_BT = np.roll(real_BT, -1, axis=1) & (np.arange(length) < length - 1)
    batch = dict(tokens_BT=tokens_BT.astype(np.int32), targets_BT=np.roll(tokens_BT, -1, axis=1))
    batch |= dict(positions_BT=positions_BT, segment_ids_BT=segments_BT)
    batch |= dict(loss_weights_BT=weights_BT.astype(np.float32))
    settings = decoder.ForwardSettings(attention_block=16, mlp_chunk=chunk, remat="full")
    step = jax.jit(step_lib.make_step(model.config, settings, SGD, chunk_tokens=16))
    state = step_lib.init_state(jax.tree.map(jnp.asarray, model.params), SGD.transform)
    batch = {key: jnp.asarray(x)[None] for key, x in batch.items()}
    after, metrics = step(state, batch, model.rope_fn(length))
    np.testing.assert_allclose(metrics["loss"], result.loss.item(), rtol=1e-5)

    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(parameter.grad)
    theirs.save_pretrained(tmp_path / "gradients")
    wanted = pretrained.load(tmp_path / "gradients").params
    found = jax.tree.map(lambda old, new: old - np.asarray(new), model.params, after.params)
    for (path, ours), wanted_leaf in zip(
        jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(wanted), strict=True
    ):
        error = np.abs(ours - wanted_leaf).max() / np.abs(wanted_leaf).max()
        assert error < 1e-3, (jax.tree_util.keystr(path), error)
    return result


def test_the_imbalance_of_an_even_load():
    """K where tokens are spread evenly, E where one expert of one a token has them all."""
    few = dict(num_experts=4, experts_per_token=2, num_layers=1)
    config = dataclasses.replace(decoder.SHAPES["qwen3_30b_a3b"], **few)
    even = experts.imbalance(config, jnp.full(4, 5.0), jnp.full(4, 2.5), jnp.float32(10))
    np.testing.assert_allclose(even, 2)
    config = dataclasses.replace(config, experts_per_token=1)
    one_E = jnp.array([10.0, 0, 0, 0])
    np.testing.assert_allclose(experts.imbalance(config, one_E, one_E, jnp.float32(10)), 4)


def test_equal_experts_are_a_dense_model(tiny_config):
    """Where all experts are the dense MLP, shares that sum to 1 change nothing."""
    sparse, params = small(tiny_config, dense_layers=(), num_layers=2)
    dense = dataclasses.replace(tiny_config, mlp_dim=8, num_layers=2)
    layers = params["layers"]
    one = {f"{n}_L{axes}": layers[f"expert_{n}_LE{axes}"][:, 0] for n, axes in
           (("gate", "DF"), ("up", "DF"), ("down", "FD"))}  # fmt: skip
    others = {k: w for k, w in layers.items() if "expert" not in k and "router" not in k}
    alike = {k: np.broadcast_to(w[:, :1], w.shape) for k, w in layers.items() if "expert" in k}
    tokens_BT, r = jnp.arange(20)[None], decoder.own_rope(dense)(20)
    with jax.enable_x64(True):
        settings = decoder.ForwardSettings(compute_dtype="float64")
        found, wanted = (
            decoder.logits(config, params | {"layers": of_layers}, tokens_BT, r, settings=settings)
            for config, of_layers in ((sparse, layers | alike), (dense, others | one))
        )
    np.testing.assert_allclose(found, wanted, rtol=1e-9)


def test_parameters_that_a_token_meets():
    """Qwen3-30B-A3B by its model card: 30.5 B in total, 3.3 B active."""
    config = decoder.SHAPES["qwen3_30b_a3b"]
    assert round(decoder.num_params(config) / 1e8) == 305
    assert int(decoder.active_params(config) / 1e8) == 33
    active = 6 * (decoder.active_params(config) - config.vocab_size * config.embed_dim)
    attention = 6 * 48 * 4096 * 100
    assert step_lib.flops_per_token(config, 100) == active + attention


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(experts_per_token=7), "experts_per_token must be at most model.num_experts 6, got 7"),
        (dict(expert_dim=0), "must be above 0 with experts, got 2 and 0"),
        (dict(mlp_bias=True), "model.mlp_bias must be False with experts"),
        (dict(dense_layers=(3,)), r"must name some of 3 layers with experts.* got \[3\]"),
        (dict(dense_layers=(1, 0)), r"got \[1, 0\]"),
        (dict(dense_layers=(0, 1, 2)), r"got \[0, 1, 2\]"),
    ],
)
def test_what_cannot_be(tiny_config, changes, message):
    with pytest.raises(InputError, match=message):
        small(tiny_config, **changes)


def test_adapters_are_of_attention(tiny_config, tmp_path):
    """Experts and routers are frozen; the dense MLPs of such a model may have adapters."""
    section = training.Lora(
        rank=2, alpha=4.0, targets=("q", "gate"), train_norms=True, train_embeddings=False
    )
    how = dict(param_dtype="float32", compute_dtype="float32")
    with pytest.raises(InputError, match="lora.targets must not name gate: the MLPs of this model"):
        lora_lib.make(section, small(tiny_config, dense_layers=())[0], **how)
    config, _ = small(tiny_config)
    lora = lora_lib.make(section, config, **how)
    params = decoder.init_params(config, jax.random.key(0))
    params = lora_lib.begin(params, config, lora, jax.random.key(1))
    trained, frozen = lora_lib.split(params, lora)
    assert {"router_LDE", "expert_up_LEDF"} <= {*frozen["layers"]}
    assert trained["layers"]["gate_a_LDU"].shape[0] == 1
    layers = params["layers"] | {"gate_b_LUF": trained["layers"]["gate_b_LUF"] + 1}
    changed = params | {"layers": layers}
    tokens_BT, r = jnp.arange(20)[None], decoder.own_rope(config)(20)
    apart = decoder.hidden(config, changed, tokens_BT, r)
    merged = decoder.hidden(config, decoder.adapters.merged(changed), tokens_BT, r)
    np.testing.assert_allclose(merged, apart, atol=1e-5)
    before = decoder.hidden(config, params, tokens_BT, r)
    assert np.abs(before - apart).max() > 1e-3
    model = types.SimpleNamespace(config=config, params=changed, source="runs/x")
    with pytest.raises(
        InputError, match="PEFT takes adapters of gate, up and down for those of ex"
    ):
        exporting.export_adapter(model, tmp_path / "out", base="base")


A3B = dict(
    model_type="qwen3_moe",
    vocab_size=96,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=64,
    rms_norm_eps=1e-6,
    rope_theta=1e4,
    num_experts=6,
    num_experts_per_tok=2,
    moe_intermediate_size=24,
)
MIXTRAL = {k: v for k, v in A3B.items() if k not in ("num_experts", "moe_intermediate_size")}
MIXTRAL |= dict(model_type="mixtral", num_local_experts=5)


def read(**values):
    return hf_config.from_hf(Fields(values, "config.json"))[0]


def test_keys_as_published():
    """Qwen's own spelling of the count, transformers 5's, and what is absent."""
    config = read(**A3B)
    assert (config.num_experts, config.expert_dim, config.mlp_dim) == (6, 24, 48)
    assert (config.dense_layers, config.shares_sum_to_one, config.router_loss) == ((), False, 1e-3)
    spelled = {k: v for k, v in A3B.items() if k != "num_experts"} | dict(num_local_experts=6)
    assert read(**spelled) == config
    assert read(**A3B, norm_topk_prob=True).shares_sum_to_one
    assert read(**A3B, decoder_sparse_step=2, mlp_only_layers=[3]).dense_layers == (0, 2, 3)
    assert read(**A3B, mlp_only_layers=[2, 9]).dense_layers == (2,)
    config = read(**MIXTRAL, router_aux_loss_coef=0.02)
    assert (config.num_experts, config.expert_dim, config.router_loss) == (5, 48, 0.02)
    assert config.shares_sum_to_one and config.experts_per_token == 2


@pytest.mark.parametrize(
    "values, message",
    [
        (A3B | dict(mlp_only_layers="1"), "mlp_only_layers must be a list of layers"),
        (A3B | dict(mlp_only_layers=[-1]), "mlp_only_layers must be a list of layers"),
        (A3B | dict(num_experts_per_tok=7), "experts_per_token must be at most .* 6, got 7"),
        (A3B | dict(num_experts=0), "num_experts must be a whole number from 1"),
        (A3B | dict(decoder_sparse_step=9), "dense_layers must name some of 4 layers"),
        (MIXTRAL | dict(router_jitter_noise=0.1), "router_jitter_noise must be None or 0"),
        (A3B | dict(model_type="qwen3"), "num_experts must be None or 0 or 1"),
    ],
)
def test_keys_that_are_refused(values, message):
    with pytest.raises(InputError, match=message):
        read(**values)


def test_what_a_folder_cannot_say():
    config = read(**A3B)
    with pytest.raises(InputError, match="--arch=llama: qk_norm must be 'none', got 'head'"):
        exporting.check_arch("llama", config)
    with pytest.raises(InputError, match=r"family must be one that has experts \(qwen3_moe, mixtr"):
        layout.tensors(dataclasses.replace(config, family="qwen3"))
    mixtral = read(**MIXTRAL)
    with pytest.raises(InputError, match="--arch=phi3: num_experts must be 0, got 5"):
        exporting.check_arch("phi3", dataclasses.replace(mixtral, head_dim=8, rotary_dim=8))
    for changes, message in (
        (dict(dense_layers=(1,)), r"model_type mixtral: dense_layers must be \(\), got \(1,\)"),
        (dict(expert_dim=24), "expert_dim must be model.mlp_dim 48, got 24. Export it as qwen3"),
    ):
        with pytest.raises(InputError, match=message):
            config_keys.to_hf(dataclasses.replace(mixtral, **changes), dtype="float32")


@pytest.mark.parametrize("method", ["yarn", "longrope"])
def test_no_line_names_a_gguf_that_is_refused(tiny_config, method):
    factors, shape = [1.0, 1.5, 2.0, 4.0], dict(head_dim=8, theta=10_000.0, original_len=64)
    rows = [dict(max_len=256, factors=factors, start_tokens=0, attention_factor=1.2)]
    constants = dict(buckets=rows) if method == "longrope" else dict(factor=4.0, beta_fast=8.0)
    hf_rope = rope_export.express(tiny_config, rope.make(method, **constants, **shape))
    dense, mixture = (" ".join(consumers.lines(hf_rope, name)) for name in ("llama", "qwen3_moe"))
    assert "export --to=gguf" in dense and "--to=gguf" not in mixture
    assert "serve it with another program" in mixture


@pytest.mark.slow
def test_a_run_is_resumed_to_the_bit(tmp_path, monkeypatch):
    """With parts of a batch and recomputation; exports of it open here again."""
    tiny_run.write_texts(tmp_path / "texts")
    config = tiny_run.make_config(tmp_path / "texts")
    few = dict(num_experts=4, experts_per_token=2, expert_dim=64, router_loss=0.1)
    config.model.update(family="mixtral", **few)
    config.train.accumulation, config.forward.remat = 2, "full"
    one = jax.devices()[:1]
    assert train.train(config, tmp_path / "whole", devices=one) == 0
    training_test.call_at(monkeypatch, 4, training_test.send(signal.SIGTERM))
    assert train.train(config, tmp_path / "cut", devices=one) == 128 + signal.SIGTERM
    monkeypatch.undo()
    assert train.train(config, tmp_path / "cut", devices=one) == 0
    found = tiny_run.differences(tmp_path / "cut", tmp_path / "whole")
    assert not found or found == ["other steps are kept"]
    trained = pretrained.load(tmp_path / "whole", dtype=None)
    exporting.export_folder(trained, tmp_path / "out")
    again = pretrained.load(tmp_path / "out", dtype=None)
    jax.tree.map(np.testing.assert_array_equal, again.params, trained.params)
