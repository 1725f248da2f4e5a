"""docs/python.md: every line of it runs, and does what it says."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxrope import rope, schema, search
from jaxrope.errors import InputError
from tests import processes

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


CHECKS = """
pi, ntk, yarn = perplexity
assert 1 < min(ntk, yarn) and max(ntk, yarn) < pi
assert best.factors_R.shape == (16,)
np.testing.assert_allclose(mine.factors_R, [1.0] * 4 + [4.0] * 12)
found = result_beyond.content
assert found["unit"] == "perplexity beyond"
assert found["config"]["rope"] == {"method": "halves", "factor": 2.0, "border": 0.5}
assert "configured" in {row["baseline"] for row in found["baselines"]}
"""


def test_the_page_runs(tmp_path):
    """On one device: on several, the few texts of a candidate are padded to one for each."""
    page = "".join(re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL))
    assert page.count("runs/python") == 1
    script = page.replace("runs/python", str(tmp_path)) + CHECKS
    command = [sys.executable, "-c", script]
    how = dict(cwd=DOCS.parent.parent, env=processes.environment(XLA_FLAGS=""), text=True)
    done = subprocess.run(command, capture_output=True, **how)
    assert done.returncode == 0, done.stderr[-2000:]


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
