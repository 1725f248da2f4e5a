"""What a result depends on: every key but those that are listed, and all content."""

import json
from pathlib import Path

import pytest

from jaxrope import schema
from jaxrope.errors import InputError
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


def other_values(value):
    """Yields values of the same kind, of which a rule may refuse some."""
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield from (value + 1, 2 * value, value - 1, 2, 0)
    elif isinstance(value, float):
        yield from (value / 2, 2 * value, value + 1, 0.5)
    elif isinstance(value, str):
        yield from (f"{value}x", "harness", "0.9")
    elif isinstance(value, tuple):
        yield from ((*value, 3), (*value, 0.75), (*value, 512.0), (*value, "x"), value[1:])
        yield from ((("last", "train", ()),), (("seed", (1,)),), (("seed", 1),), ((0, 1),))
        yield from (("none",), ("niah",), ("niah_single_1",), (("a", "b", "none"),))


def changed(config, key):
    """Returns the config with another legal value of one key."""
    names = schema.rule_of(config.to_dict(), key)
    names = getattr(names, "names", ()) or getattr(getattr(names, "rule", None), "names", ())
    before = schema.get(config, key)
    for value in (*other_values(before), *(names if isinstance(names, tuple) else names.names)):
        try:
            now = schema.replace(config, {key: value})
        except InputError:
            continue
        if schema.get(now, key) != before:
            return now
    return None


@pytest.mark.parametrize("program", schema.UNREAD)
def test_a_result_depends_on_every_key_but_those_that_are_listed(config, program):
    first, tried = schema.identify(program, config, CONTENT), 0
    keys = [key for key, _ in schema.leaves(config)]
    for key in keys:
        now = changed(config, key)
        if now is None:
            continue  # the selector of a section, whose other arguments differ
        tried += 1
        same = schema.identify(program, now, CONTENT) == first
        assert same == identity.is_in(key, (*schema.FREE, *schema.UNREAD[program])), key
    assert tried > 0.94 * len(keys)
