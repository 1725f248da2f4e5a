"""A whole search by a tiny random model: files, resuming, messages, estimate."""

import dataclasses
import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jaxrope import rope, schema, search, setup
from jaxrope.convert import importing
from jaxrope.errors import InputError
from jaxrope.mesh import sharding
from jaxrope.search import evaluator, evolution, journal, problem, run
from tests.search_config import changed, rows_of, tiny, write_texts

EVALUATIONS = 6 + 2 * 4
BASELINES = 5 * 2  # with two attention factors
JUDGED = 3 + 2  # the best of the evolution, and of the baselines
BESIDE = 2 * (7 + 2) * 16  # windows of 16 tokens that begin every 8, and the result at 16 tokens


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """(config, workdir, result) of an undisturbed search."""
    folder = tmp_path_factory.mktemp("search")
    config = tiny(folder)
    return config, folder / "run", search.search(config, folder / "run")


def num_judged(workdir):
    """The best of the search, and one or two baselines."""
    count = sum("judged" in row for row in rows_of(workdir))
    assert JUDGED - 1 <= count <= JUDGED
    return count


def deterministic(workdir):
    """What must not depend on how often a search was killed."""
    rows = rows_of(workdir)
    timeless = [{k: v for k, v in row.items() if k != "seconds"} for row in rows]
    result = json.loads((workdir / "result.json").read_text())
    del result["seconds"], result["sha256"]
    return (workdir / "rope.json").read_bytes(), timeless, result


def test_rope_json_is_the_best_candidate(found):
    config, workdir, result = found
    loaded = rope.load(workdir / "rope.json", head_dim=8, rotary_dim=8, theta=10_000.0)
    (bucket,) = loaded.buckets
    rows = [row for row in rows_of(workdir) if "genome" in row or "baseline" in row]
    best = min(rows, key=lambda row: row["fitness"])
    assert bucket.max_len == 64 and loaded.original_len == 16
    assert list(bucket.factors) == best["factors"] == result.factors
    assert bucket.start_tokens == best["start_tokens"]
    assert bucket.attention_factor == best["attention_factor"]
    told = rope.provenance(workdir / "rope.json")
    assert told["perplexity"] == pytest.approx(best["fitness"], rel=1e-6)
    assert told["evaluations"] == EVALUATIONS + BASELINES + num_judged(workdir)
    assert told["forward_tokens"] == told["evaluations"] * 2 * 64 + BESIDE
    assert told["verdict"]["result"] in ("evolution", best.get("baseline"))
    assert len(told["model"]["digest"]) == 64 and told["seed"] == 0
    assert "seconds" not in json.dumps(told)


def test_baselines_have_both_attention_factors(found):
    """Where one number is for all; exact, and in the table as they are best."""
    config, workdir, result = found
    rows = [r for r in rows_of(workdir) if "baseline" in r]
    su, yarn = math.sqrt(1.5), 0.1 * math.log(4) + 1
    assert [(r["baseline"], round(r["attention_factor"], 9)) for r in rows] == [
        (name, round(factor, 9))
        for name, own in (("none", 1), ("pi", 1), ("ntk", 1), ("dynamic_ntk", 1), ("yarn", yarn))
        for factor in (own, su)
    ]
    assert list(result.baselines) == ["none", "pi", "ntk", "dynamic_ntk", "yarn"]
    best = min(rows[-2:], key=lambda row: row["fitness"])
    assert result.baselines["yarn"] == {k: v for k, v in best.items() if k != "seconds"}
    lines = result.table.splitlines()
    assert lines[0].split() == ["attention", "factor", "perplexity", "the", "same", "text"]
    told = ["yarn", f"{best['attention_factor']:.4f}", f"{best['fitness']:.4f}"]
    assert lines[5].split()[:3] == told
    judged = {line.split()[0] for line in lines[1:] if len(line.split()) == 4}
    assert {row["name"] for row in result.content["judged"]} >= judged > {"evolution"}
    told = next(place for place, line in enumerate(lines) if line.startswith("result: "))
    assert result.content["verdict"]["sentence"] in lines[told:]


def test_seeds_come_first_and_are_the_baselines_on_the_grid(found):
    config, workdir, _ = found
    rows = rows_of(workdir)
    compared = {r["baseline"]: r for r in rows if "baseline" in r}
    for row, name in zip(journal.candidates(rows), ("pi", "ntk", "yarn"), strict=False):
        exact = np.array(compared[name]["factors"])
        assert np.max(np.abs(row["factors"] - exact)) <= 0.005 + 1e-9
        assert row["start_tokens"] == 0


def test_generations_of_the_figure(found):
    _, workdir, result = found
    rows = journal.candidates(rows_of(workdir))
    best = np.inf
    for told in result.generations:
        fitness = [r["fitness"] for r in rows if r["generation"] == told["generation"]]
        best = min(best, *fitness)
        assert told["best"] == best and told["mean"] == pytest.approx(np.mean(fitness))
    assert [told["generation"] for told in result.generations] == [0, 1, 2]


def test_finished_search_is_read_not_run(found, monkeypatch):
    config, workdir, result = found
    before = deterministic(workdir)
    monkeypatch.setattr(evaluator, "evaluate", lambda *_: pytest.fail("evaluated again"))
    assert search.search(config, workdir).content == result.content
    assert deterministic(workdir) == before


@pytest.mark.parametrize("cut", [5, 17])
def test_resumes_to_the_same_files(found, tmp_path, cut):
    """The real program, from a journal that ends in the baselines, or within a generation."""
    config, workdir, _ = found
    lines = (workdir / "journal.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "journal.jsonl").write_text("".join(lines[:cut]) + lines[cut][:9])
    search.search(config, tmp_path)
    assert deterministic(tmp_path) == deterministic(workdir)


def test_batch_size_that_memory_forced_is_kept(found, tmp_path):
    """A resumed search does not try again what did not fit; a batch size that is set is obeyed."""
    config, workdir, _ = found
    made = search.prepare(config)
    event = {"event": "out_of_memory", "generation": 0, "batch_size": 32, "seconds": 0.1}
    told = None  # no progress
    sizes = dict(data=4, fsdp=1, context=1, tensor=1)
    four = sharding.make_mesh(sizes, jax.devices()[:4])
    eight = dataclasses.replace(made, per_device=8, mesh=four)
    failed, fresh = (SimpleNamespace(rows=rows) for rows in ([event], []))
    assert run._bench(eight, failed, told).evaluator.per_device == 4
    assert run._bench(eight, fresh, told).evaluator.per_device == 8
    set_by_hand = schema.replace(made.config, {"search.batch_size": 32})
    asked = dataclasses.replace(eight, config=set_by_hand)
    assert run._bench(asked, failed, told).evaluator.per_device == 8


def test_another_search_in_the_workdir_is_refused(found):
    config, workdir, _ = found
    before = (workdir / "journal.jsonl").read_bytes()
    with pytest.raises(InputError, match=r"another search: .*seed \(0, now 1\)"):
        search.search(changed(config, seed=1), workdir)
    with pytest.raises(InputError, match=r"search\.attention_factor \(.su., now .yarn.\)"):
        search.search(changed(config, search__attention_factor="yarn"), workdir)
    assert (workdir / "journal.jsonl").read_bytes() == before


def test_weights_and_text_that_changed_under_their_names_are_another_search(tmp_path):
    """A finished result is of what was read, not of its path."""
    config = changed(tiny(tmp_path), search__algorithm=ONCE)
    workdir = tmp_path / "run"
    first = search.search(config, workdir).content
    columns = search.finished(config, workdir)
    assert columns["fitness"] == first["perplexity"] and columns["unit"] == "perplexity"
    assert columns["forward tokens"] == first["forward_tokens"]
    assert columns["best baseline"] == min(row["fitness"] for row in first["baselines"])
    weights = tmp_path / "model" / "model.safetensors"
    before = weights.read_bytes()
    weights.write_bytes(before[:-8] + bytes(8))
    assert search.finished(config, workdir) is None
    with pytest.raises(InputError, match=r"is of another search: the weights \(digest \w+, now"):
        search.search(config, workdir)
    weights.write_bytes(before)
    assert search.finished(config, workdir) == columns
    write_texts(tmp_path / "texts", seed=1)
    assert search.finished(config, workdir) is None
    with pytest.raises(InputError, match=r"another search: the samples .*, the text \(digest"):
        search.search(config, workdir)


ONCE = dict(population=4, mutations=0, crossovers=0, parents=1, iterations=1)
ONCE |= dict(mutation_probability=0.3, crossover_tries=0, step=0.01, bound=1.25, halve_above=0)


@pytest.mark.parametrize("name", ["result.json", "rope.json"])
def test_a_damaged_result_is_told_and_written_again(found, tmp_path, capsys, name):
    config, workdir, _ = found
    shutil.copytree(workdir, tmp_path / "run")
    path = tmp_path / "run" / name
    path.write_text(path.read_text().replace("attention_factor", "attention_faktor", 1))
    (tmp_path / "run" / ".result.json.1a2b.tmp").write_text("{")  # of a killed process
    assert search.finished(config, tmp_path / "run") is None
    assert f"note: {path} is damaged or was edited" in capsys.readouterr().out
    search.search(config, tmp_path / "run")
    out = capsys.readouterr().out
    assert out.count("writes it again from its journal") == 1
    assert deterministic(tmp_path / "run") == deterministic(workdir)
    assert not list((tmp_path / "run").glob(".*.tmp"))
    assert search.finished(config, tmp_path / "run") is not None


def test_a_damaged_row_ends_in_the_same_bits(found, tmp_path, capsys):
    """The real program: what follows the damaged candidate is measured again."""
    config, workdir, _ = found
    lines = (workdir / "journal.jsonl").read_text().splitlines(keepends=True)
    lines[12] = lines[12].replace('"failure"', '"failur"')
    (tmp_path / "journal.jsonl").write_text("".join(lines))
    search.search(config, tmp_path)
    assert "line 13: damaged. It and what follows are measured again" in capsys.readouterr().out
    assert deterministic(tmp_path) == deterministic(workdir)


def test_the_identity_is_in_both_results(found):
    config, workdir, result = found
    of_rope = rope.provenance(workdir / "rope.json")["identity"]
    assert of_rope == result.content["identity"] == search.prepare(config).identity.to_json()
    assert set(of_rope["content"]) == {"weights", "rope", "text", "samples", "tokenizer", "seeds"}
    header = json.loads((workdir / "journal.jsonl").read_text().splitlines()[0])
    assert header["identity"] == of_rope and header["original_len"] == 16
    assert list(header["seeds"]) == ["pi", "ntk", "yarn"] and "jax" in header["versions"]


def test_nothing_is_read_of_the_weights_before_the_search_runs(tmp_path, monkeypatch):
    """Whatever can be known to be wrong is found without them, on a mesh that is not here, too."""
    config = tiny(tmp_path)
    monkeypatch.setattr(
        importing, "load_params", lambda *_, **__: pytest.fail("the weights were read")
    )
    config.mesh = dict(data=32, fsdp=1, context=2, tensor=1)
    problem_ = search.prepare(config)
    assert problem_.num_groups == 32 and problem_.memory.available is None
    text = search.dry_run(config)
    assert "the mesh has 64 devices, this machine 8. Only they can tell" in text
    assert "what may be used, only its devices can tell" in text
    with pytest.raises(InputError, match=r"mesh .* needs 64 devices, there are 8"):
        search.search(config, tmp_path / "run")
    config.mesh = dict(data=2, fsdp=1, context=1, tensor=4)
    with pytest.raises(InputError, match=r"mesh\.tensor = 4 must divide"):
        search.prepare(config)


def test_a_plan_of_what_earlier_stages_will_leave(tmp_path):
    config = tiny(tmp_path)
    model = setup.load_model(config, weights=False)
    geometry = dict(head_dim=8, theta=1e4, original_len=16)
    bucket = dict(max_len=64, factors=[1, 2, 3, 4], start_tokens=0, attention_factor="su")
    earlier = rope.make("longrope", **geometry, buckets=[bucket])
    config.model.path = "{tuned}"
    config.search.seeds = ("{first}", "{second}/rope.json")
    ropes = {"{first}/rope.json": earlier, "{second}/rope.json": earlier}
    expected = setup.Expected(models={"{tuned}": model}, ropes=ropes)
    made = search.prepare(config, expected)
    assert [seed.name for seed in problem.seeds(made)][-2:] == ["{first}", "{second}"]
    assert "not known: the model is not there yet" in search.dry_run(config, expected=expected)
    with pytest.raises(InputError, match="{tuned}"):
        search.prepare(config)


def test_the_population_holds_what_it_starts_from(tmp_path):
    config = tiny(tmp_path)
    config.search.algorithm.update(population=3)
    search.prepare(config)
    config.search.method = "hybrid"
    with pytest.raises(InputError, match="must hold the 3 seeds and 1 end of descents, got 3"):
        search.prepare(config)


def test_workdir_of_a_model_is_refused(found, tmp_path):
    (tmp_path / "model.json").write_text("{}")
    with pytest.raises(InputError, match="holds a model, whose files a search would overwrite"):
        search.search(found[0], tmp_path)


def test_piecewise_search_runs(tmp_path):
    config = tiny(tmp_path)
    config.search.form = "piecewise"
    result = search.search(config, tmp_path / "run")
    assert max(result.factors) <= 4.0
    judged = num_judged(tmp_path / "run")
    assert result.content["evaluations"] == EVALUATIONS + BASELINES + judged


def test_halved_search_is_written_down(tmp_path):
    config = tiny(tmp_path)
    config.search.algorithm.update(population=12, mutations=4, crossovers=4, halve_above=63)
    content = search.search(config, tmp_path / "run").content
    assert content["search"]["algorithm"]["population"] == 6
    assert content["evaluations"] == EVALUATIONS + BASELINES + num_judged(tmp_path / "run")


def test_state_is_a_function_of_the_journal(found):
    """The same candidates come from `init` and `tell` alone: no random stream is kept anywhere."""
    config, workdir, _ = found
    made = search.prepare(config)
    rows = journal.candidates(rows_of(Path(workdir)))
    state = problem.first_state(made)
    while evolution.stop_reason(state) is None:
        generation = [r for r in rows if r["generation"] == state.generation]
        assert [r["genome"] for r in generation] == evolution.ask(state).tolist()
        state = evolution.tell(state, np.array([r["fitness"] for r in generation]))
    assert len(state.seen_EG) == EVALUATIONS
