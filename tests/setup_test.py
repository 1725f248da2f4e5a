"""From a config to the rope, the model's shape and the text that it means."""

import dataclasses

import jax
import pytest

from configs import base
from jaxrope import data, decoder, rope, schema, setup
from jaxrope.attention import trial
from jaxrope.errors import InputError
from jaxrope.mesh import sharding


def rope_of(section, config):
    given = base.get_config()
    with given.unlocked():
        given.rope = section
    return setup.rope_fn(schema.read(given), config, decoder.own_rope(config))


@pytest.fixture
def phi_like(tiny_config):
    return dataclasses.replace(tiny_config, head_dim=96, rotary_dim=96)


def test_rope_of_the_model_of_a_method_of_a_preset_and_of_a_file(phi_like, tmp_path):
    assert rope_of(dict(method="model"), phi_like).method == "none"
    pi = rope_of(dict(method="pi", factor=2.0), phi_like)
    assert set(pi.bucket(64).factors) == {2.0}
    preset = rope_of(dict(method="preset", name="phi3.5_mini"), phi_like)
    assert preset.bucket(5000).factors == rope.preset("phi3.5_mini").bucket(5000).factors
    rope.save(tmp_path / "rope.json", preset, {})
    read = rope_of(dict(method="file", path=str(tmp_path / "rope.json")), phi_like)
    assert read.buckets == preset.buckets


@pytest.mark.parametrize(
    "section, message",
    [
        (dict(method="presets", name="x"), "Unknown rope.method 'presets'. Did you mean 'preset'"),
        (dict(method="preset"), "rope.name is missing. 'preset' has: method, name"),
        (dict(method="preset", name="phi5"), "Unknown rope.name 'phi5'. Known: 1024k_la2_128k, "),
        (dict(method="preset", name="ft_la2_128k"), "head_dim must equal the model's, 96, got 128"),
        (dict(method="preset", name="phi4_mini"), "head_dim must equal the model's, 96, got 128"),
        (dict(method="model", factor=2), "Unknown key rope.factor of 'model'. Known: method"),
        (dict(method="file", path="none.json"), "none.json: there is no such file"),
    ],
)
def test_rope_messages(phi_like, section, message):
    with pytest.raises(InputError, match=message):
        rope_of(section, phi_like)


def test_exclude_is_of_the_training_text_alone(tmp_path):
    for name in ("one.txt", "two.txt", "held.txt"):
        (tmp_path / name).write_text(f"text of {name}")
    config = base.get_config()
    config.data.cache_dir = str(tmp_path / "cache")
    config.data.train_files = (str(tmp_path / "*.txt"),)
    tokenizer = data.load_tokenizer("bytes")

    def names(**kwargs):
        files = config.data.train_files
        settings = dict(setting="data.train_files", **kwargs)
        found = setup.documents(config, files, tokenizer, "bytes", **settings)
        return list(found.names)

    assert names(exclude=("held.txt",)) == ["one.txt", "two.txt"]
    assert names() == ["held.txt", "one.txt", "two.txt"]


@pytest.mark.parametrize(
    "model, message",
    [
        (dict(source="hub"), "Unknown model.source 'hub'"),
        (dict(source="checkpoint", path=""), "model.path is not set"),
        (
            dict(source="scratch", vocab=3),
            "Unknown key model.vocab of 'scratch'. Did you mean 'v",
        ),
        (dict(source="scratch", vocab_size=3), "model.num_layers is missing"),
    ],
)
def test_model_messages(model, message):
    config = base.get_config()
    with config.unlocked():
        config.model = model
    with pytest.raises(InputError, match=message):
        setup.model_config(schema.read(config))


def test_original_len_of_a_model_that_scales_already():
    """Its own scaling is a formula in that length: changing it would make another model of it."""
    llama3 = dict(method="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)
    shape = dict(vocab_size=9, num_layers=1, embed_dim=8, num_heads=1, num_kv_heads=1, head_dim=8)
    shape |= dict(mlp_dim=8, norm_eps=1e-5, theta=1e4, original_len=64, max_len=512, rotary_dim=8)
    config = base.get_config()
    with config.unlocked():
        config.model = dict(source="scratch", tie_embeddings=True, rope=llama3, **shape)
    assert setup.model_config(schema.read(config)).original_len == 64
    config.original_len = 32
    with pytest.raises(InputError, match="must be 0 or 64 for a model whose own rope is 'llama3'"):
        setup.model_config(schema.read(config))
    config.model.rope = dict(method="none")
    assert setup.model_config(schema.read(config)).original_len == 32


def config_of(path, shape, original_len=0):
    config = base.get_config()
    config.model.path, config.model.shape = str(path), shape
    config.original_len = original_len
    return schema.read(config)


def test_a_shape_needs_no_checkpoint():
    found = setup.outlined(config_of("nowhere", "llama3_8b")).config
    assert found == decoder.SHAPES["llama3_8b"]
    assert setup.outlined(config_of("nowhere", "llama2_7b", 2048)).config.original_len == 2048


@pytest.mark.parametrize(
    "name, millions, window, rope",
    [
        ("llama2_7b", 6738, None, (1e4, 4096)),
        ("llama3_8b", 8030, None, (5e5, 8192)),
        ("mistral_7b", 7242, 4096, (1e4, 4096)),
        ("qwen3_8b", 8191, None, (1e6, 32_768)),
        ("olmo3_7b", 7298, 4096, (5e5, 8192)),
        ("smollm3_3b", 3075, None, (5e6, 65_536)),
        ("gemma3_4b", 3880, 1024, (1e6, 131_072)),
    ],
)
def test_published_shapes_have_the_published_number_of_parameters(name, millions, window, rope):
    """Of the model cards and config.json files: 6.74, 8.03, 7.24, 8.2, 7.3, 3.08, 3.88 billion."""
    shape = decoder.SHAPES[name]
    assert round(decoder.num_params(shape) / 1e6) == millions
    assert shape.sliding_window == window
    assert (shape.theta, shape.original_len) == rope


@pytest.mark.parametrize("name, value", [("mlp_dim", 11_007), ("theta", 20_000.0)])
def test_a_checkpoint_of_another_shape_is_refused(tmp_path, monkeypatch, name, value):
    other = dataclasses.replace(decoder.SHAPES["llama2_7b"], **{name: value})
    wanted = getattr(decoder.SHAPES["llama2_7b"], name)
    message = f"model.shape 'llama2_7b' has {name} {wanted}, the checkpoint {tmp_path} has {value}"
    monkeypatch.setattr(setup.pretrained, "read_config", lambda path: other)
    with pytest.raises(InputError, match=message):
        setup.model_config(config_of(tmp_path, "llama2_7b"))
    assert setup.model_config(config_of(tmp_path, "")) == other


def test_what_training_changes_is_no_other_shape(tmp_path, monkeypatch):
    """A workdir at 131,072 tokens goes on as the model that it began with."""
    extended = dataclasses.replace(decoder.SHAPES["llama2_7b"], max_len=131_072, eos_id=5)
    monkeypatch.setattr(setup.pretrained, "read_config", lambda path: extended)
    assert setup.model_config(config_of(tmp_path, "llama2_7b")) == extended


def test_an_unknown_shape_is_refused():
    with pytest.raises(InputError, match="Unknown model.shape 'llama2-7b'. Did you mean 'llama2"):
        setup.outlined(config_of("nowhere", "llama2-7b"))


def settings_of(sizes, **changes):
    config = base.get_config()
    for name, value in changes.items():
        config.forward[name] = value
    mesh = sharding.make_mesh(dict(data=1, fsdp=1, context=1, tensor=1) | sizes)
    shape = decoder.SHAPES["llama3_8b"]
    return setup.forward_settings(schema.read(config), mesh, shape, seq_len=4096)


def test_auto_says_what_it_picked():
    settings, remarks = settings_of(dict(data=2, context=4))
    assert (settings.attention, settings.attention_kernel) == ("ring", "blockwise")
    assert remarks == (
        "forward.attention: auto is ring",
        "forward.attention_kernel: auto is blockwise",
    )
    settings, remarks = settings_of(
        dict(context=8), attention="ulysses", attention_kernel="blockwise"
    )
    assert settings.attention == "ulysses" and settings.mesh.shape["context"] == 8
    assert remarks == ()


def test_a_gpu_has_cudnn_where_it_can_and_else_says_why(monkeypatch):
    monkeypatch.setattr(sharding, "platform", lambda mesh: "gpu")
    monkeypatch.setattr(sharding, "capability", lambda mesh: 9.0)
    how = dict(data=2, context=4)
    monkeypatch.setattr(trial, "_trial", lambda *_: "packed rows on this GPU, by a trial: no")
    settings, remarks = settings_of(how, compute_dtype="bfloat16")
    assert settings.attention_kernel == "blockwise"
    assert remarks[-1] == "cuDNN's attention cannot do packed rows on this GPU, by a trial: no"
    monkeypatch.setattr(trial, "_trial", lambda *_: None)
    settings, remarks = settings_of(how, compute_dtype="bfloat16")
    assert (settings.attention, settings.attention_kernel) == ("ring", "cudnn")
    assert len(remarks) == 2
    settings, remarks = settings_of(dict(data=2, context=4))
    assert settings.attention_kernel == "blockwise"
    why = "cuDNN's attention cannot do float32 (set forward.compute_dtype to bfloat16)"
    assert remarks[-1] == why
    with pytest.raises(InputError, match="cannot do float32.*Use blockwise or auto"):
        settings_of(dict(data=2, context=4), attention_kernel="cudnn")


def test_one_device_is_no_mesh():
    config, shape = schema.read(base.get_config()), decoder.SHAPES["llama2_7b"]
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    settings, _ = setup.forward_settings(config, mesh, shape)
    assert settings.mesh is None and settings.attention == "blockwise"
