"""The configs for pods: the numbers of the paper, meshes as large as the hardware, any argument."""

import importlib.util
import itertools
import re
from pathlib import Path

import pytest

from jaxrope import decoder, rope, schema
from jaxrope.errors import InputError
from jaxrope.shell import experiment
from jaxrope.train import optimizer

ROOT = Path(__file__).resolve().parent.parent
TRAIN = {"128k": 131_072, "256k": 262_144, "512k": 524_288, "2m": 2_097_152}
SEARCH = {"search_128k": 131_072, "search_256k": 262_144, "search_2m": 2_097_152}
NAMES = [*TRAIN, *SEARCH, "eval_2m"]
MODELS = ("llama2_7b", "llama3_8b", "mistral_7b")


def load(name, argument=""):
    file = str(ROOT / "configs" / f"{name}.py")
    return experiment.load(f"{file}:{argument}" if argument else file)


def module(name):
    spec = importlib.util.spec_from_file_location(f"pod_{name}", ROOT / "configs" / f"{name}.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def chips(hardware):
    """Devices of a slice, from its name: v5p_64 has 64."""
    return int(hardware.rpartition("_")[2])


def every_case():
    for name in NAMES:
        for model, hardware in itertools.product(MODELS, module(name).MESHES):
            yield pytest.param(name, model, hardware, id=f"{name}-{model}-{hardware}")


@pytest.mark.parametrize(("name", "model", "hardware"), list(every_case()))
def test_a_mesh_has_as_many_devices_as_its_hardware_and_fits_the_model(name, model, hardware):
    config = load(name, f"{model},{hardware}")
    mesh, shape = dict(config.mesh), decoder.SHAPES[model]
    assert mesh["data"] * mesh["fsdp"] * mesh["context"] * mesh["tensor"] == chips(hardware)
    length = config.train.seq_len if name in TRAIN else config.target_len
    assert length % (2 * mesh["context"] * 128) == 0  # whole chunks of a zigzag, of whole lanes
    assert shape.embed_dim % (mesh["fsdp"] * mesh["context"]) == 0
    assert shape.num_kv_heads % mesh["tensor"] == 0
    if name in TRAIN:
        train = config.train
        assert train.batch_size == train.accumulation * mesh["fsdp"]  # a row of a device at a time


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("model", MODELS)
def test_every_rope_that_is_published_fits_its_model_and_length(name, model):
    config = load(name, model)
    section = dict(config.rope)
    assert config.model.shape == model
    if section["method"] != "preset":
        wanted = {"method": "model"} if name in SEARCH else None
        assert section == wanted or section["path"].startswith("runs/search_")
        assert model == "llama3_8b" or name in SEARCH
        return
    found, shape = rope.preset(section["name"]), decoder.SHAPES[model]
    assert found.max_len >= config.target_len
    assert (found.theta, found.rotary_dim) == (shape.theta, shape.rotary_dim)
    assert found.original_len == (config.original_len or shape.original_len)


def rates(config, steps):
    """The learning rates of the optimizer that a config makes."""
    section = schema.read(config).optimizer
    schedule = optimizer.make(section, num_steps=config.train.steps).schedule
    return [float(schedule(step)) for step in steps]


@pytest.mark.parametrize(("name", "steps"), [("128k", 400), ("256k", 600)])
@pytest.mark.parametrize("argument", ["", "llama2_7b", "llama3_8b"])
def test_the_recipe_of_llama(name, steps, argument):
    """LongRoPE, section 4.1 and the research template."""
    config = load(name, argument)
    assert config.train.seq_len == config.target_len == TRAIN[name]
    assert (config.train.batch_size, config.train.steps) == (32, steps)
    o = config.optimizer
    assert (o.b1, o.b2, o.eps, o.weight_decay, o.clip_norm) == (0.9, 0.999, 1e-8, 0.0, 1.0)
    assert (config.forward.compute_dtype, config.train.param_dtype) == ("bfloat16", "float32")
    halfway = 20 + (steps - 20) // 2
    assert rates(config, (0, 19, 20, halfway, steps)) == pytest.approx([1e-6, 2e-5, 2e-5, 1e-5, 0])


@pytest.mark.parametrize("name", ["128k", "256k"])
def test_the_recipe_of_mistral(name):
    """LongRoPE, section A.3: 16k tokens, 64 rows, 400 steps, a constant 1e-6."""
    config = load(name, "mistral_7b")
    train = config.train
    assert (train.seq_len, train.batch_size, train.steps) == (16_384, 64, 400)
    assert config.target_len == TRAIN[name]
    assert config.original_len == 4096
    assert rates(config, (20, 200, 399)) == pytest.approx([1e-6] * 3)


def test_each_stage_starts_where_the_one_before_it_ended():
    assert load("128k").model.path == "models/Llama-2-7b-hf"
    stages = [load(name).model.path for name in ("256k", "512k", "2m", "search_2m", "eval_2m")]
    assert stages == ["runs/128k", "runs/256k", "runs/512k", "runs/256k", "runs/256k"]
    assert load("256k", "mistral_7b").model.path == "runs/128k_mistral_7b"
    assert load("256k", "mistral_7b").rope.name == "ft_mis_256k"
    assert load("256k").rope.name == "ft_la2_256k"
    assert load("128k", "llama3_8b").rope.path == "runs/search_128k_llama3_8b/rope.json"
    assert load("eval_2m", "llama3_8b").rope.path == "runs/search_2m_llama3_8b/rope.json"


def test_beyond_the_paper_a_step_has_no_more_tokens():
    tokens = {name: load(name).train.batch_size * TRAIN[name] for name in ("256k", "512k", "2m")}
    assert set(tokens.values()) == {32 * 262_144}


@pytest.mark.parametrize(
    ("argument", "numbers"),
    [
        ("search_128k", (64, 16, 16, 32, 40, 5)),
        ("search_256k", (64, 16, 16, 32, 40, 5)),
        ("search_256k:quick", (32, 8, 8, 16, 12, 3)),
        ("search_2m", (32, 8, 8, 16, 12, 3)),
    ],
)
def test_a_search_has_the_numbers_of_section_4_1(argument, numbers):
    name, _, text = argument.partition(":")
    config = load(name, text)
    found = config.search.algorithm
    sizes = (found.population, found.mutations, found.crossovers, found.parents, found.iterations)
    assert (*sizes, config.search.objective.num_samples) == numbers
    assert (found.mutation_probability, found.step, found.bound) == (0.3, 0.01, 1.25)
    assert len(config.search.start_tokens) == 14 and config.search.start_tokens[-1] == 256
    section = config.search
    assert (section.method, section.form) == ("evolution", "monotone")
    assert (section.attention_factor, section.judge.num_samples) == ("su", 0)
    assert config.target_len == SEARCH[name]
    assert not 0 < found.halve_above < config.target_len  # halved once, here


def test_the_evaluation_is_the_paper_s():
    plain, sliding = load("eval_2m"), load("eval_2m", "sliding")
    assert plain.eval.lengths == (131_072, 262_144, 524_288, 1_048_576, 2_097_152)
    assert (plain.eval.num_windows, plain.eval.passkey_trials, plain.eval.window) == (20, 10, 0)
    assert (sliding.eval.window, sliding.eval.suites) == (262_144, ("perplexity",))


def test_the_parts_of_an_argument_stand_in_any_order():
    found = load("256k", "v5e_256,gs://bucket/a,mistral_7b")
    assert found.to_dict() == load("256k", "gs://bucket/a/,mistral_7b,v5e_256").to_dict()
    assert found.model.path == "gs://bucket/a/runs/128k_mistral_7b"
    assert found.data.train_files[0].startswith("gs://bucket/a/data/")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("argument", "text"),
    [
        ("llama2_7", "unknown 'llama2_7'. Did you mean 'llama2_7b'? Known: llama2_7b, "),
        ("v5p_265", "unknown 'v5p_265'. Did you mean 'v5p_"),
        ("llama3_8b,llama2_7b", "two parts for the model, 'llama3_8b' and 'llama2_7b'"),
    ],
)
def test_an_unknown_argument_is_refused_with_the_nearest(name, argument, text):
    with pytest.raises(InputError, match=re.escape(text)) as error:
        load(name, argument)
    assert f"--config=configs/{name}.py:{argument}: " in str(error.value)
    assert "\n" not in str(error.value)
