"""configs/recipe_2m.py has the paper's numbers and fits its slices; recipe_books.py the twin's."""

import math

import pytest

from jaxrope import decoder
from jaxrope.recipe.stages import parse
from jaxrope.shell import experiment
from tests.config_test import ROOT

SLICES = ("v5p_64", "v5p_256", "v5e_256", "v6e_256")


def stages_of(name, argument=""):
    file = str(ROOT / "configs" / f"{name}.py")
    config = experiment.read(f"{file}:{argument}" if argument else file)
    return {stage.name: stage for stage in parse(config)}


def test_the_recipe_is_that_of_the_paper():
    """LongRoPE, sections 3.3 and 4.1, for LLaMA2-7B."""
    found = stages_of("recipe_2m")
    assert [(s.name, s.kind) for s in found.values()] == [
        ("search_128k", "search"),
        ("search_256k", "search"),
        ("finetune_128k", "train"),
        ("finetune_256k", "train"),
        ("second", "search"),
        ("recover_1x", "search"),
        ("recover_2x", "search"),
        ("join", "join"),
        ("measure", "evaluate"),
    ]
    lengths = {name: stage.config.target_len for name, stage in found.items()}
    assert lengths["search_128k"] == lengths["finetune_128k"] == 32 * 4096
    assert lengths["search_256k"] == lengths["finetune_256k"] == 64 * 4096
    assert (lengths["second"], lengths["recover_1x"], lengths["recover_2x"]) == (2**21, 4096, 8192)
    steps = [found[f"finetune_{n}k"].config.train.steps for n in (128, 256)]
    assert steps == [400, 600]
    for name in ("search_128k", "search_256k", "recover_1x"):
        algorithm = found[name].config.search.algorithm
        assert (algorithm.population, algorithm.iterations, algorithm.parents) == (64, 40, 32)
        assert found[name].config.search.objective.num_samples == 5
    second = found["second"].config.search
    assert (second.algorithm.population, second.objective.num_samples) == (32, 3)
    assert second.multiply and not found["search_256k"].config.search.multiply
    assert found["finetune_256k"].uses == ("search_256k", "finetune_128k")
    assert found["finetune_256k"].config.rope.path == "{search_256k}/rope.json"
    assert found["second"].config.model.path == "{finetune_256k}"
    assert found["recover_1x"].config.search.highest == 5.0
    assert found["recover_1x"].config.search.attention_factor == "rope"
    assert found["join"].uses == ("finetune_256k", "second", "recover_1x", "recover_2x")


@pytest.mark.parametrize("hardware", SLICES)
@pytest.mark.parametrize("model", ["llama2_7b", "llama3_8b", "mistral_7b", "qwen3_8b"])
def test_every_stage_fits_its_slice(model, hardware):
    shape, chips = decoder.SHAPES[model], int(hardware.rpartition("_")[2])
    for stage in stages_of("recipe_2m", f"{model},{hardware},quick").values():
        mesh, train = stage.config.mesh, stage.config.train
        assert math.prod(mesh.to_dict().values()) == chips
        assert shape.embed_dim % (mesh.fsdp * mesh.context) == 0
        length = train.seq_len if stage.kind == "train" else stage.config.target_len or 4096
        assert length % (2 * mesh.context * 128) == 0  # whole chunks of a zigzag, of whole lanes
        assert stage.config.model.shape == model
        if stage.kind == "train":
            assert train.batch_size == train.accumulation * mesh.fsdp
        if stage.kind == "search":
            assert stage.config.search.algorithm.iterations == 12  # quick


def test_the_search_of_the_paper_is_that_of_its_recipe():
    """LongRoPE, section 4.1: Algorithm 1 to the letter, wherever it is searched."""
    file = str(ROOT / "configs" / "longrope_paper.py")
    paper = experiment.load(file).search.to_dict()
    assert paper["start_tokens"] == (0, 1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 64, 128, 256)
    assert (paper["method"], paper["form"], paper["attention_factor"]) == (
        "evolution",
        "monotone",
        "su",
    )
    assert paper["judge"]["num_samples"] == 0 and paper["objective"]["num_samples"] == 5
    section = stages_of("recipe_2m")["search_128k"].config.search.to_dict()
    paper["objective"]["offset_tokens"] = 0  # of the novels
    assert section == paper


def test_places_of_a_pod():
    for stage in stages_of("recipe_2m", "gs://bucket/longrope").values():
        path = stage.config.model.path
        assert path.startswith(("gs://bucket/longrope/models/", "{"))


def test_the_twin_has_the_stages_of_the_issue():
    found = stages_of("recipe_books")
    lengths = {name: stage.config.target_len for name, stage in found.items()}
    assert {name: length for name, length in lengths.items() if length} == dict(
        search_2x=1024,
        search_4x=2048,
        finetune_2x=1024,
        finetune_4x=2048,
        second=8192,
        recover_1x=512,
        recover_2x=1024,
    )
    assert found["finetune_4x"].uses == ("search_4x", "finetune_2x")
    assert found["second"].config.search.multiply and found["second"].uses == ("finetune_4x",)
    assert found["join"].config.eval.lengths == (512, 1024, 2048, 4096, 8192)
    tiny = stages_of("recipe_books", "tiny")
    assert tiny.keys() == found.keys()
    assert tiny["finetune_2x"].config.train.steps < found["finetune_2x"].config.train.steps


@pytest.mark.parametrize(
    "name", ["recipe_2m", "recipe_2m:quick", "recipe_books", "recipe_books:tiny"]
)
def test_no_warm_up_is_longer_than_its_training(name):
    for stage in stages_of(*name.split(":")).values():
        if stage.kind == "train":
            schedule = stage.config.optimizer.schedule
            assert schedule.warmup_steps <= stage.config.train.steps, stage.name


def test_retrieval_is_measured_to_sixteen_times_the_window_of_six_rows():
    found = stages_of("retrieval_books", "runs/other")
    lengths = (1024, 2048, 4096, 8192)
    names = [f"search_{length}" for length in lengths]
    assert [*found] == [*names, "searched", "compare"] and found["searched"].uses == (*names,)
    assert tuple(found[name].config.target_len for name in names) == lengths
    section = found["compare"].config.eval
    assert (*section.methods, *(entry[0] for entry in section.checkpoints)) == (
        *("pi", "ntk", "yarn"),
        *("searched", "fine-tuned"),  # "none" is the model's own rope, the first row
    )
    assert section.checkpoints[1][1] == "runs/other/join"
    assert section.lengths == (256, 512, *lengths) and section.ruler.lengths == (512, *lengths)
    assert section.suites == ("passkey", "needle", "ruler") and section.needle_keys == (6,)
    assert [*stages_of("retrieval_books", "tiny")] == ["search_1024", "searched", "compare"]
