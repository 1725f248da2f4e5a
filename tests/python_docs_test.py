"""docs/python.md: every line of it runs, and does what it says."""

import argparse
import re
from pathlib import Path

import numpy as np
import pytest

from jaxrope import rope, schema, search
from jaxrope.errors import InputError

DOCS = Path(__file__).resolve().parent.parent / "docs" / "python.md"


@pytest.fixture
def unregistered():
    """Takes what a test registers out again."""
    tables = rope.METHODS, search.objective.OBJECTIVES
    tables += tuple(s.sections for s in (schema.model.METHOD, schema.model.ROPE))
    tables += (schema.search.OBJECTIVE.sections,)
    before = [dict(table) for table in tables]
    yield
    for table, content in zip(tables, before, strict=True):
        table.clear()
        table.update(content)


def test_the_page_runs(tmp_path, monkeypatch, unregistered):
    monkeypatch.chdir(DOCS.parent.parent)
    names = {"argparse": argparse, "workdir": tmp_path}
    for block in re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL):
        exec(block, names)
    pi, ntk, yarn = names["perplexity"]
    assert 1 < yarn < ntk and yarn < pi
    assert names["best"].factors_R.shape == (16,)
    np.testing.assert_allclose(names["mine"].factors_R, [1.0] * 4 + [4.0] * 12)
    found = names["result_beyond"].content
    assert found["unit"] == "perplexity beyond" and found["search"] if "search" in found else True
    assert found["config"]["rope"] == {"method": "halves", "factor": 2.0, "border": 0.5}
    assert "configured" in {row["baseline"] for row in found["baselines"]}


def factors(geometry, *, factor: float):
    return np.ones(geometry.rotary_dim // 2), 1.0


@pytest.mark.parametrize(
    "register, name, function, message",
    [
        (rope.register, "yarn", factors, "rope.method: there is a 'yarn' already"),
        (rope.register, "mine", lambda geometry, factor: 0, "must be annotated with one of bool"),
        (search.register, "mine", lambda task: 0, "must have an argument num_samples"),
    ],
)
def test_what_cannot_be_registered(register, name, function, message, unregistered):
    with pytest.raises(InputError, match=message):
        register(name, function)


def test_constants_of_a_method_are_checked(unregistered):
    rope.register("mine", factors)
    shape = dict(head_dim=8, theta=1e4, original_len=64)
    assert list(rope.make("mine", factor=2, **shape).bucket(64).factors) == [1.0] * 4
    for constants, message in (
        (dict(), "rope.factor is missing"),
        (dict(factor=0.5), "rope.factor must be"),
        (dict(factor=2.0, other=1.0), "rope.other"),
    ):
        with pytest.raises(InputError, match=message):
            rope.make("mine", **constants, **shape)
