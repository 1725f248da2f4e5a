"""What a result depends on: every key but those that are listed, and all content."""

import json
from pathlib import Path

import pytest

from jaxrope import schema
from jaxrope.schema import identity
from jaxrope.shell import experiment

ROOT = Path(__file__).resolve().parent.parent
CONTENT = {"weights": "1" * 64, "text": "2" * 64, "tokenizer": "3" * 64}


@pytest.fixture(scope="module")
def config():
    return schema.read(experiment.load(str(ROOT / "configs" / "base.py")))


def test_every_listed_key_is_a_key(config):
    keys = [key for key, _ in schema.leaves(config)]
    tops = {key.partition(".")[0] for key in keys}
    for place in {*schema.FREE, *(p for places in schema.UNREAD.values() for p in places)}:
        absent = {"analysis.second", "rope.path"} | tops
        assert place in absent or any(identity.is_in(key, (place,)) for key in keys), place


@pytest.mark.parametrize("program", schema.UNREAD)
def test_content_and_program_count(config, program):
    first = schema.identify(program, config, CONTENT)
    for name in CONTENT:
        changed = schema.identify(program, config, CONTENT | {name: "4" * 64})
        assert changed.digest != first.digest
        assert first.changes(changed) == [
            f"the {name} (digest {CONTENT[name][:12]}, now 444444444444)"
        ]
    again = identity.Identity.from_json(json.loads(json.dumps(first.to_json())))
    assert again == first and first.changes(again) == []


def test_what_changes_is_said(config):
    now = schema.replace(config, {"train.seq_len": 64, "mesh.data": 1})
    before, after = (schema.identify("train", c, CONTENT) for c in (config, now))
    assert before.changes(after) == ["train.seq_len (512, now 64)"]
    assert schema.identify("search", now, CONTENT) == schema.identify("search", config, CONTENT)
    now = schema.replace(config, {"train.param_dtype": "bfloat16"})  # in which weights are read
    assert schema.identify("search", now, CONTENT) != schema.identify("search", config, CONTENT)
