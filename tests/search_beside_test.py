"""What is told beside the verdict: the model's own window, and its own length, by transformers."""

import json

import numpy as np
import pytest

from jaxrope import search
from jaxrope.search import beside, verdict
from tests.search_config import changed, rows_of, tiny_default, write_texts

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(problem, workdir, result) of a search from 16 to 60 tokens."""
    folder = tmp_path_factory.mktemp("beside")
    config = changed(tiny_default(folder), target_len=60)
    return search.prepare(config), folder / "run", search.search(config, folder / "run")


def row(workdir, kind):
    (found,) = (row for row in rows_of(workdir) if kind in row)
    return found


def network(problem):
    path = problem.config.model.path
    return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def nll(model, tokens) -> np.ndarray:
    """Returns the loss of each token but the first."""
    with torch.no_grad():
        logits = model(torch.tensor([tokens]))[0][0, :-1]
    return torch.nn.functional.cross_entropy(
        logits, torch.tensor(tokens[1:]), reduction="none"
    ).numpy()


def test_the_models_own_window_slides_over_the_text_that_judges(run):
    """By hand: of 60 tokens, 16 in the first window, then 8 in each, 4 in the last."""
    problem, workdir, _ = run
    model, found = network(problem), row(workdir, "sliding")
    samples_WT = verdict.judge_of(problem).samples
    wanted = []
    for tokens_T in samples_WT[:, : 60 + 1].tolist():
        losses = nll(model, tokens_T[:17]).tolist()
        for begin, count in ((8, 8), (16, 8), (24, 8), (32, 8), (40, 8), (44, 4)):
            losses += nll(model, [256, *tokens_T[begin + 1 : begin + 17]])[-count:].tolist()
        assert len(losses) == 60
        wanted.append(np.mean(losses))
    assert len(wanted) == 8 and found["sliding"] == 16
    np.testing.assert_allclose(found["losses"], wanted, rtol=2e-5)
    assert found["fitness"] == pytest.approx(np.exp(np.mean(wanted)), rel=1e-5)
    assert found["tokens"] == 8 * 7 * 16
    assert found["tokens"] + row(workdir, "short")["tokens"] == beside.tokens(problem)


def extended(problem, workdir):
    """Returns the model with the rope of the result, as transformers computes."""
    saved = json.loads((workdir / "rope.json").read_text())["buckets"][0]
    model = network(problem)
    rotary = model.model.rotary_emb
    rotary.inv_freq = rotary.inv_freq / torch.tensor(saved["factors"])
    rotary.attention_scaling = saved["attention_factor"]
    return model


def test_what_the_result_costs_at_the_models_own_length(run):
    problem, workdir, _ = run
    found = row(workdir, "short")
    texts_WT = problem.unseen_at(16, 8).samples
    model = network(problem)
    wanted = [nll(model, tokens_T).mean() for tokens_T in texts_WT.tolist()]
    np.testing.assert_allclose(found["own_losses"], wanted, rtol=2e-5)
    model = extended(problem, workdir)
    wanted = [nll(model, tokens_T).mean() for tokens_T in texts_WT.tolist()]
    np.testing.assert_allclose(found["losses"], wanted, rtol=2e-4)


def test_both_are_told_with_the_difference_on_the_same_text(run):
    problem, workdir, result = run
    sliding, short = row(workdir, "sliding"), row(workdir, "short")
    (judged,) = (r for r in rows_of(workdir) if r.get("judged") == sliding["name"])
    assert sliding["name"] == short["name"] == result.content["verdict"]["result"]
    difference = np.mean(judged["losses"]) - np.mean(sliding["losses"])
    assert f"the result is {difference:+.4f} nats from it." in result.table
    change = np.mean(short["losses"]) - np.mean(short["own_losses"])
    assert f"({change:+.4f} nats)." in result.table
    assert {tuple(r) for r in result.content["beside"]} >= {
        tuple(x for x in sliding if x != "seconds")
    }


NEEDLES = dict(name="needle", num_samples=2, num_keys=1, place="start")


def test_another_objective_has_them_of_text_too(tmp_path):
    """Text is read for them alone: the result's own loss is measured there as well."""
    config = changed(tiny_default(tmp_path), target_len=500, search__objective=NEEDLES)
    config.search.gradient.update(steps=1)
    short_texts = search.prepare(config)
    assert beside.kinds(short_texts) == ["short"] and beside.tokens(short_texts) == 8 * 2 * 16
    write_texts(tmp_path / "texts", words=130, first=3)
    problem = search.prepare(config)
    result = search.search(config, tmp_path / "run")
    found, model = row(tmp_path / "run", "sliding"), extended(problem, tmp_path / "run")
    wanted = [
        nll(model, tokens_T).mean() for tokens_T in problem.unseen_at(500, 8).samples.tolist()
    ]
    np.testing.assert_allclose(found["result_losses"], wanted, rtol=1e-3)
    assert found["tokens"] == 8 * 62 * 16 + 8 * 500
    assert found["tokens"] + row(tmp_path / "run", "short")["tokens"] == beside.tokens(problem)
    assert "sliding over the same text" in result.table and "At 16 tokens" in result.table
