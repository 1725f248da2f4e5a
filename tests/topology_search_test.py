"""What a search costs on a slice: the programs of every objective from a config alone, sizes of
batches that fit, and the cost of a whole search by method."""

import dataclasses
import json

import jax
import pytest

from jaxrope import recipe, search, topology
from jaxrope.errors import InputError
from jaxrope.mesh import chips, sharding
from jaxrope.topology import compile, jobs, report, roofline, schedule, searches
from tests import tiny_recipe, tiny_run

NEEDLE = dict(num_samples=2, num_keys=1, place="start")
OF_ATTENTION = NEEDLE | dict(needle_weight=0.0)
OF_HEADS = OF_ATTENTION | dict(heads=())
OBJECTIVES = {
    "perplexity": dict(num_samples=2, offset_tokens=3),
    "needle": NEEDLE,
    "entropy_shift": OF_HEADS | dict(needle_weight=0.5),
    "needle_mass": OF_HEADS | dict(heads=((0, 1),)),
    "pattern": OF_ATTENTION | dict(view="below", num_queries=4, num_bins=8),
}
MIX = dict(name="mix", num_samples=5, num_keys=1, place="spread", offset_tokens=0)
MIX |= {f"{kind}_weight": 1.0 for kind in ("text", "needle", "mass", "shift", "short")}
TRAINED, TARGET = 512, 1024


def config(tmp_path, objective, **mesh):
    """Returns a config of a search without data."""
    made = tiny_run.make_config(tmp_path / "no such texts")
    made.mesh = dict(data=1, fsdp=1, context=1, tensor=1) | mesh
    made.model.original_len = made.model.max_len = TRAINED
    made.target_len = TARGET
    made.search.batch_size = 8
    made.search.objective = objective
    return made


def outlined(made, num_devices=8):
    mesh = sharding.make_mesh(made.mesh, jax.devices()[:num_devices])
    return search.outline(made, mesh)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_programs_of_every_objective_need_nothing_but_a_config(tmp_path, name):
    made = config(tmp_path, dict(name=name) | OBJECTIVES[name], fsdp=2, context=2, data=2)
    problem = outlined(made)
    (batch,), (gradient,) = jobs.batch_jobs(problem, 2), jobs.gradient_jobs(problem)
    shared = 0 if name in ("perplexity", "needle") else TRAINED
    assert batch.work.tokens == 8 * TARGET + 4 * shared  # the latter once in each of four groups
    assert gradient.work.tokens == TARGET + 4 * shared
    assert "4 groups of devices compute the same one" in gradient.remarks[1]
    assert f", {TARGET + shared:,} tokens" in gradient.remarks[3]
    of_gradient = gradient.lower()
    assert {leaf.shape for leaf in jax.tree.leaves(of_gradient.in_avals)} >= {(TARGET,), (4,), ()}
    assert [leaf.shape for leaf in jax.tree.leaves(of_gradient.out_info)] == [(), (4,), ()]


def test_a_mix_has_a_program_for_each_kind_of_sample(tmp_path):
    problem = outlined(config(tmp_path, MIX), 1)
    batches = jobs.batch_jobs(problem, 8)
    tokens = [8 * TARGET] * 2 + [8 * TARGET + TRAINED] * 2 + [8 * TRAINED]
    assert [job.work.tokens for job in batches] == tokens
    assert [job.remarks[3].split()[1] for job in batches][:2] == ["perplexity,", "needle"]
    assert {job.runs for job in jobs.gradient_jobs(problem)} == {22}  # 4 draws, then 18


def test_batches_are_those_of_the_plan(tmp_path):
    made = config(tmp_path, dict(name="perplexity", num_samples=3, offset_tokens=0), fsdp=4)
    made.search.method, made.search.attention_factor = "evolution", "su"
    problem = outlined(made, 4)
    # 10 baselines, 64 candidates, then 39 times 32, 8 at a time; 8 samples that judge 5
    counts = dict(baselines=3 * 2, evolution=3 * (8 + 39 * 4), judging=8)
    beside = (3 * 512 + 2 * 512) * 8 // TARGET  # three windows of 512, and two more at 512
    assert search.cost.batches(problem, 8) == counts
    assert search.cost.samples_beside(problem) == beside
    methods = search.cost.by_method(problem)
    free = methods["gradient"].config
    assert search.cost.batches(methods["gradient"], 8)["ramp"] == 3 * 10
    assert search.descent.draws(methods["gradient"]) == 22
    assert list(methods) == ["evolution", "gradient", "hybrid"] and free.search.batch_size == 8
    planned = {name: sum(search.cost.planned(p).values()) for name, p in methods.items()}
    assert planned["hybrid"] > planned["evolution"] > planned["gradient"]
    made.search.compare = False
    assert list(search.cost.by_method(outlined(made, 4))) == ["evolution"]


def test_as_many_candidates_as_memory_allows(tmp_path):
    made = config(tmp_path, dict(name="perplexity", num_samples=1, offset_tokens=0))
    made.search.method, made.search.compare = "evolution", False
    made.search.judge.num_samples = 1
    problem = outlined(made, 1)
    tried = []

    def compiled(per_device, limit=10_000):
        tried.append(per_device)
        if 100 + 50 * per_device > limit:
            raise InputError("too much")
        return searches.Batch(per_device, 100 + 50 * per_device, 1.0 + 2.0 * per_device)

    def sizes(usable, first=1, limit=10_000):
        tried.clear()
        start = compiled(first)
        found = searches.compiled_sizes(problem, start, lambda n: compiled(n, limit), usable)
        return [batch.per_device for batch in found], tried[1:]

    assert searches.largest(problem) == 64
    assert sizes(1000) == ([1, 2, 18], [2, 18])  # 100 + 18 * 50
    assert sizes(10_000) == ([1, 2, 64], [2, 64])
    assert sizes(1000, first=4) == ([4, 1, 18], [1, 18])
    assert sizes(150) == ([1, 2], [2]) and sizes(150, limit=150) == ([1], [2])
    assert sizes(1000, limit=950) == ([1, 2, 17], [2, 18, 17])  # the line was too low
    batches = [compiled(n) for n in (1, 2, 64)]
    # of 64 and 32 candidates, 39 times: 64 at a time would leave half of the slots empty
    assert searches.best_size(problem, batches)[0] == 32
    assert searches.allowed(batches, 1000) == 18
    more = searches.Batch(4, 600, 1.0)  # 200 each from 2 on
    assert searches.allowed([more, *batches[:2]], 1000) == 6


def test_the_tpu_compiler_tells_what_a_search_by_gradient_costs(libtpu, tmp_path, capsys):
    made = config(tmp_path, dict(name="needle_mass") | OF_HEADS, context=4)
    made.search.batch_size = 1
    topology.compile_search(made, "v5e:2x2", tmp_path)
    text = capsys.readouterr().out
    assert "hidden by computation" in text and "; gradients 22; beside them" in text
    batch, gradient, whole = rows_of(tmp_path)
    assert batch["permutes"] < gradient["permutes"] and gradient["exposed_permutes"] == []
    costs = whole["methods"]["gradient"]
    runs = sum(costs["batches"].values()) + costs["beside"]
    seconds = runs * batch["step_seconds"] + 22 * gradient["step_seconds"]
    assert costs["gradients"] == 22 and costs["seconds"] == pytest.approx(seconds)
    assert costs["chip_hours"] == pytest.approx(4 * seconds / 3600)
    assert whole["methods"]["evolution"]["gradients"] == 0


def rows_of(workdir):
    return [json.loads(line) for line in (workdir / "compile.jsonl").read_text().splitlines()]


@pytest.fixture
def small_chips(monkeypatch):
    """As if devices were chips with room for 60 candidates on all of eight; a program whose name
    begins with what the list has is refused.
    """
    chip = dataclasses.replace(topology.CHIPS["v5p"], usable_bytes=6000)
    refused = []

    def compiled(job, mesh, where):
        count = job.work.tokens // TARGET
        if refused and job.what.startswith(refused[0]):
            raise InputError(f"The {job.what} needs more.")
        memory = report.Memory(0, 0, 0, 100 * count, 0, chip.usable_bytes)
        nothing = schedule.Schedule((), ())
        prediction = roofline.predict(job.work, nothing, chip, mesh.size)
        where = dict(where=where, versions={}, mesh=dict(mesh.shape), device_kind="chip")
        said = dict(what=job.what, runs=job.runs, remarks=job.remarks, seconds=1.0)
        return report.Report(
            **said, **where, memory=memory, work=job.work, schedule=nothing, prediction=prediction
        )

    monkeypatch.setattr(chips, "chip_of", lambda device: chip)
    monkeypatch.setattr(compile, "compile_job", compiled)
    monkeypatch.setattr(jobs, "_lower", lambda *arguments: Lowered(arguments[1:]))
    return refused


@dataclasses.dataclass
class Lowered:
    program: tuple

    def as_text(self):
        return str(self.program)


def test_sizes_and_costs_are_told(tmp_path, small_chips, capsys):
    made = config(tmp_path, dict(name="perplexity", num_samples=2, offset_tokens=0), data=8)
    made.search.batch_size, made.search.method = 0, "evolution"
    topology.compile_search(made, "", tmp_path)
    text = capsys.readouterr().out
    # where a batch gains nothing the least is that of the fewest empty slots
    assert "hold about 7 on each device; the largest round has 8" in text
    assert "search.batch_size=8 costs least" in text
    assert "evolution     0s" in text and "\ngradient      0s" in text
    *_, candidates, whole = rows_of(tmp_path)
    assert candidates["what"] == "candidates at one time" and candidates["batch_size"] == 8
    assert [size["per_device"] for size in candidates["sizes"]] == [1, 4, 7]
    assert list(whole["methods"]) == ["evolution", "gradient", "hybrid"]


def test_a_gradient_that_does_not_fit_is_an_error_only_where_it_is_needed(
    tmp_path, small_chips, capsys
):
    made = config(tmp_path, dict(name="perplexity", num_samples=2, offset_tokens=0), data=8)
    made.search.method = "evolution"
    small_chips.append("gradient")
    topology.compile_search(made, "", None)
    text = capsys.readouterr().out
    assert text.rstrip().endswith("The gradient of a search on one sample needs more.")
    assert "hybrid" not in text and "\nevolution" in text
    made.search.method = "gradient"
    with pytest.raises(InputError, match="The gradient of a search on one sample needs more"):
        topology.compile_search(made, "", None)


def test_stages_of_a_recipe_start_from_what_earlier_ones_would_leave(tmp_path, monkeypatch):
    made = tiny_recipe.make_config(tmp_path / "no such texts")
    made.stages = ("second", "recover_2x", "finetune_4x")
    stages = {}

    def compiled(stage_config, topology_name, workdir, expected):
        mesh = sharding.make_mesh(dict(data=8, fsdp=1, context=1, tensor=1), jax.devices())
        stages[stage_config.target_len] = search.outline(stage_config, mesh, expected)

    monkeypatch.setattr(topology, "compile_search", compiled)
    monkeypatch.setattr(topology, "compile_train", lambda *arguments: None)
    recipe.compile_stages(made, "", None)
    second, recovery = stages[256], stages[64]
    assert (second.trained_len, second.space.multiplier[-1]) == (128, 4.0)
    assert recovery.recovers and recovery.attention_factor == 1.0
    assert second.loaded.source == "finetune_4x"
