"""Factors of each layer's own: searched, kept in rope.json, trained with, never exported."""

import functools
import json

import jax
import numpy as np
import pytest

from jaxrope import evaluate, report, rope, search, train
from jaxrope.convert import exporting, pretrained
from jaxrope.errors import InputError
from jaxrope.search import genome, journal, problem
from jaxrope.store import files
from tests import search_config
from tests.search_config import tiny, write_model

ONE = jax.devices()[:1]
SEARCH = dict(population=6, mutations=2, crossovers=2, parents=3, iterations=2)


@pytest.fixture(scope="module")
def base_config(tmp_path_factory):
    """A config of a search with a model of two layers."""
    folder = tmp_path_factory.mktemp("layers")
    config = tiny(folder)
    write_model(folder / "two", num_hidden_layers=2)
    config.model.path = str(folder / "two")
    config.search.compare = False
    config.search.per_layer = True
    config.search.algorithm.update(SEARCH)
    return config


def changed(config):
    return config.copy_and_resolve_references().unlock()


@pytest.fixture(scope="module")
def found(base_config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("found") / "search"
    return workdir, search.search(base_config, workdir)


def rows_of(workdir):
    return journal.candidates(search_config.rows_of(workdir))


def test_rope_json_has_a_row_for_every_layer(found):
    workdir, result = found
    (bucket,) = rope.load(workdir / "rope.json", num_layers=2).buckets
    best = min(rows_of(workdir), key=lambda row: row["fitness"])
    assert np.shape(bucket.factors) == (2, 4)
    assert np.array(bucket.factors).tolist() == best["factors"] == result.factors
    read = json.loads((workdir / "result.json").read_text())
    assert read["best"]["factors"] == best["factors"] == result.content["best"]["factors"]
    assert any(row["factors"][0] != row["factors"][1] for row in rows_of(workdir))
    seeds = rows_of(workdir)[:3]
    assert all(row["factors"][0] == row["factors"][1] for row in seeds)


def test_a_candidate_is_what_its_layers_say(base_config, found):
    """The fitness of a row, computed anew from one Rope for each layer, without vmap."""
    workdir, _ = found
    made = search.prepare(base_config)
    unlike = next(row for row in rows_of(workdir) if row["factors"][0] != row["factors"][1])
    build = functools.partial(
        rope.build,
        theta=1e4,
        start_tokens=unlike["start_tokens"],
        attention_factor=unlike["attention_factor"],
    )
    samples = made.objective.lay_out(made.objective.samples)

    def losses(rows):
        layers = rope.stack([build(row) for row in rows], per_layer=True)
        each = [{name: x[i] for name, x in samples.items()} for i in range(2)]
        return [
            float(made.objective.loss_fn(problem.weights(made), layers, sample)) for sample in each
        ]

    assert losses(unlike["factors"]) == pytest.approx(unlike["losses"], rel=1e-6)
    assert losses(unlike["factors"][::-1]) != pytest.approx(unlike["losses"], rel=1e-6)


def test_a_killed_search_goes_on(base_config, found, tmp_path):
    workdir, _ = found
    lines = (workdir / "journal.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "journal.jsonl").write_text("".join(lines[:-3]))
    search.search(base_config, tmp_path)
    assert (tmp_path / "rope.json").read_bytes() == (workdir / "rope.json").read_bytes()
    config = changed(base_config)
    config.search.per_layer = False
    with pytest.raises(
        InputError, match=r"another search: .*search\.per_layer \(true, now false\)"
    ):
        search.search(config, tmp_path)


@pytest.mark.slow
def test_training_takes_it(base_config, found, tmp_path):
    config = changed(base_config)
    config.rope = dict(method="file", path=str(found[0] / "rope.json"))
    config.train.update(seq_len=64, steps=1, batch_size=2)
    config.optimizer.schedule = dict(name="constant", warmup_steps=0)
    assert train.train(config, tmp_path, devices=ONE) == 0
    tuned = pretrained.load(tmp_path)
    assert tuned.rope_fn.buckets == rope.load(found[0] / "rope.json").buckets
    assert tuned.rope_fn(64).per_layer and tuned.rope_fn(64).factors_R.shape == (2, 4)
    (row,) = files.read_jsonl(tmp_path / "metrics.jsonl")[-1:]
    assert np.isfinite(row["loss"])


def test_evaluation_takes_it(base_config, found, tmp_path):
    config = changed(base_config)
    config.rope = dict(method="file", path=str(found[0] / "rope.json"))
    config.data.eval_files = config.data.train_files
    config.eval.update(suites=("perplexity",), lengths=(64,), num_windows=2, bootstrap_samples=100)
    evaluate.evaluate(config, tmp_path)
    rows = json.loads((tmp_path / "eval.json").read_text())["rows"]
    assert np.isfinite(rows[0]["metrics"]["perplexity"])


def test_no_other_program_takes_it(base_config, found, tmp_path):
    model = pretrained.with_rope(pretrained.load(base_config.model.path), found[0] / "rope.json")
    with pytest.raises(InputError, match="factors of each layer's own cannot be written") as caught:
        exporting.export_folder(model, tmp_path / "out", exporting.Settings(allow_lossy=True))
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_it_is_refused_where_layers_share_their_factors(base_config, found, tmp_path):
    config = changed(base_config)
    config.search.per_layer = False
    config.rope = dict(method="file", path=str(found[0] / "rope.json"))
    with pytest.raises(InputError, match=r"search\.per_layer must be True: .*'configured' are of"):
        search.search(config, tmp_path)
    config.search.per_layer = True
    made = search.prepare(config)
    names = [seed.name for seed in problem.seeds(made)]
    assert names[-1] == "configured" and np.ndim(made.baselines[-1].bucket.factors) == 2
    (loaded,) = rope.load(found[0] / "rope.json").buckets
    genes = problem.seed_genomes(made)[-1]
    assert genome.decode(made.space, genes).factors.tolist() == np.array(loaded.factors).tolist()


def test_a_file_for_another_number_of_layers_is_refused(base_config, tmp_path):
    geometry = dict(head_dim=8, theta=1e4, original_len=16)
    bucket = dict(max_len=64, factors=[[1, 1, 2, 2]] * 3, start_tokens=0, attention_factor=1.0)
    rope.save(tmp_path / "rope.json", rope.make("longrope", **geometry, buckets=[bucket]), {})
    config = changed(base_config)
    message = r"rope\.buckets\[0\]\.factors must hold a row for each of the model's 2 layers, got 3"
    config.rope = dict(method="file", path=str(tmp_path / "rope.json"))
    with pytest.raises(InputError, match=message):
        search.search(config, tmp_path / "run")
    config.rope = dict(method="longrope", buckets=[bucket])
    with pytest.raises(InputError, match=message):
        train.prepare(config, devices=ONE)
    with pytest.raises(InputError, match=message):
        pretrained.with_rope(pretrained.load(config.model.path), tmp_path / "rope.json")


def test_the_figure_draws_every_layer(found, tmp_path):
    _, result = found
    path = tmp_path / "search.png"
    drawn = dict(factors=result.factors, descents=result.descents)
    report.search_figure(result.generations, result.baselines, path, **drawn)
    assert path.stat().st_size > 1000


@pytest.mark.parametrize("name", ["piecewise", "critical"])
def test_every_encoding_has_layers(base_config, tmp_path, name):
    config = changed(base_config)
    config.search.form = name
    if name == "critical":
        config.search.algorithm.update(population=9, bound=2.0)
        config.search.critical_pairs = (1, 3)
    result = search.search(config, tmp_path)
    assert np.shape(result.factors) == (2, 4)
    if name == "critical":
        pairs = result.content["best_critical_pairs"]
        assert len(pairs) == 2 and set(pairs) <= {1, 2, 3}
        assert [row["pair"] for row in result.content["critical_pairs"]] == [1, 2, 3]
