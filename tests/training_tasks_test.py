"""Tasks that are answered by generation, asked on the way through training."""

import pytest

from jaxrope import train
from jaxrope.evaluate import answering, suites
from jaxrope.evaluate.items import Item, Task
from tests import tiny_run


def make(request):
    return [Item("abcdefgh"[i:], ("a",), 3, {}) for i in range(request.count)]


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Four steps of training, without held-out text, on all devices of the mesh."""
    task = Task("lines", "lines", make, lambda text, item: float(len(text) > 0))
    monkeypatch.setitem(suites.SUITES, "lines", answering.suite(task))
    tiny_run.write_texts(tmp_path / "texts")
    config = tiny_run.make_config(tmp_path / "texts")
    config.data.eval_files = ()
    config.train.update(steps=4, eval_every=2)
    config.eval.suites = ("lines",)
    config.eval.lines.trials = 5
    return config


def test_train_asks_a_task_as_it_asks_any_suite(config, tmp_path):
    assert train.train(config, tmp_path / "run") == 0
    found = {row["step"]: row["eval"] for row in tiny_run.rows(tmp_path / "run") if "eval" in row}
    assert list(found) == [2, 4]
    assert all(list(scores) == ["lines/32"] for scores in found.values())
    assert all(0 <= scores["lines/32"] <= 1 for scores in found.values())
    assert not (tmp_path / "run" / "items.jsonl").exists()  # other weights at every step
