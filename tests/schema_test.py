"""Every key of the schema refuses a wrong type and what is out of its range, wherever it is set."""

import math
from pathlib import Path

import pytest

from configs import base
from jaxrope import schema
from jaxrope.analyse.__main__ import PROGRAM as ANALYSE
from jaxrope.errors import InputError
from jaxrope.recipe import stages
from jaxrope.schema import evaluation, rules
from jaxrope.search.__main__ import PROGRAM as SEARCH
from jaxrope.shell import cli, sweep
from jaxrope.train.__main__ import PROGRAM as TRAIN
from tests import tiny_run

ROOT = Path(__file__).resolve().parent.parent
BASE = schema.read(base.get_config())
MIXED = dict(name="mix", num_samples=6, text_weight=1.0, needle_weight=1.0, offset_tokens=0)
OTHERS = {  # section -> what else it may select, so that every field of the schema is a key once
    "model": [dict(tiny_run.MODEL, sliding_window=4, bos_id=1, eos_id=2)],
    "rope": [
        dict(method="file", path="rope.json"),
        dict(method="preset", name="ft_la2_128k"),
        dict(method="none"),
        *(dict(method=name, factor=2.0) for name in ("pi", "ntk", "dynamic_ntk")),
        dict(method="ntk_rcd", factor=2.0, critical_pair=2),
        dict(method="yarn", factor=2.0, attention_factor=1.0, mscale=1.0, mscale_all_dim=1.0),
        dict(method="llama3", factor=2.0, low_freq_factor=1.0, high_freq_factor=4.0),
        dict(method="abf", new_theta=1e6),
        dict(method="longrope", factors=(1.0,), attention_factor="su", max_len=64),
    ],
    "optimizer.schedule": [
        dict(name="cosine", warmup_steps=1, final_fraction=0.5),
        dict(name="constant", warmup_steps=1),
    ],
    "search.objective": [
        dict(name="needle", num_samples=6, num_keys=1, place="start"),
        MIXED | dict(num_keys=1, place="start"),
        *map(base.attention_objective, ("entropy_shift", "pattern", "needle_mass")),
    ],
    "search.prefilter": [dict(name=n, oversample=4) for n in ("decay", "divergence")],
}
ELSEWHERE = (rules.Anything,)  # checked once it is known whose the value is


def configs():
    """Yields BASE, and one config for each other thing that a section may select."""
    yield "", BASE
    for key, values in OTHERS.items():
        for value in values:
            yield f"{key}.", schema.replace(BASE, {key: value})


# (key, its rule, the config in which it is a key), every field of the schema
KEYS = {
    f"{key} of {schema.get(config, prefix[:-1]).to_dict()}" if prefix else key: (
        key,
        schema.rule_of(config.to_dict(), key),
        config,
    )
    for prefix, config in configs()
    for key, _ in schema.leaves(config)
    if key.startswith(prefix)
}


def of_wrong_type(rule):
    """Returns values of a type that a rule does not have."""
    if isinstance(rule, ELSEWHERE):
        return []
    if isinstance(rule, rules.Maybe):
        return [value for value in of_wrong_type(rule.rule) if value is not None]
    values = [None, {"a": 1}, b"a"]
    if isinstance(rule, rules.Whole | rules.Number):
        values += ["1", True, (1,), 1j]
    if isinstance(rule, rules.Whole):
        values += [1.0, 10.5]
    if isinstance(rule, rules.Switch):
        values += [1, 0, "true"]
    if isinstance(rule, rules.Text | rules.Choice | evaluation.RowName):
        values += [1, True, ("a",)]
    if isinstance(rule, rules.Many | rules.Fixed):
        values += ["ab", 1, {1}]
    return values


def out_of_range(rule):
    """Returns values of the right type that a rule refuses."""
    if isinstance(rule, rules.Whole):
        outside = [rule.least - 1, rule.least - 7, rule.most + 1, 10**400, 10**5000]
        return [value for value in outside if value != rule.also]
    if isinstance(rule, rules.Number):
        ends = [(rule.least, -1), (rule.above, 0), (rule.most, 1), (rule.below, 0)]
        outside = [end + side for end, side in ends if math.isfinite(end)]
        return [*outside, math.nan, math.inf, -math.inf, 10**400]
    if isinstance(rule, rules.Text):
        return ["a\0b", *([""] if rule.least else [])]
    if isinstance(rule, rules.Choice | evaluation.RowName):
        return ["nonsense", "a\0b"]
    if isinstance(rule, rules.Maybe):
        return out_of_range(rule.rule)
    if isinstance(rule, rules.NameOrNumber):
        return out_of_range(rule.names) + out_of_range(rule.number)
    if isinstance(rule, rules.Many):
        outside = [(value,) for value in of_wrong_type(rule.rule) + out_of_range(rule.rule)]
        return outside + ([()] if rule.least else [])
    if isinstance(rule, rules.Fixed):
        return [(), (1,)]
    return []


def refused(key, value, fn):
    with pytest.raises(InputError) as caught:
        fn()
    line = str(caught.value)
    assert key in line, f"{rules.short(value)}: {line}"
    assert "\n" not in line and len(line) < 1500, line[:300]


def in_a_recipe(config, key, value):
    """Parses a recipe whose last stage has the value."""
    recipe = (("first", "search", ()), ("last", "train", ((key, value),)))
    stages.parse(schema.replace(config, {"recipe": recipe}))


def in_a_sweep(config, key, value):
    sweep.members(schema.replace(config, {"sweep": ((key, (value,)),)}))


def in_the_second_model(config, key, value):
    ANALYSE.check(schema.replace(config, {"analysis.second": ((key, value),)}))


def test_every_choice_of_a_section_is_tried():
    for key, values in OTHERS.items():
        rule = schema.rule_of(BASE.to_dict(), key)
        tried = {value[rule.selector] for value in [*values, schema.get(BASE, key).to_dict()]}
        assert tried == set(rule.sections), key


@pytest.mark.parametrize("name", KEYS, ids=lambda name: name[:60])
def test_a_value_that_breaks_its_rule_is_refused_in_one_line_wherever_it_is(name):
    key, rule, config = KEYS[name]
    values = of_wrong_type(rule) + out_of_range(rule)
    assert values or isinstance(rule, ELSEWHERE)
    for value in values:
        refused(key, value, lambda: schema.replace(config, {key: value}))  # noqa: B023
    for value in values[:1] + values[-1:]:
        for place in (in_a_recipe, in_a_sweep, in_the_second_model):
            refused(key, value, lambda: place(config, key, value))  # noqa: B023


@pytest.mark.parametrize("name", KEYS, ids=lambda name: name[:60])
def test_the_value_that_is_there_is_taken_everywhere(name):
    key, _, config = KEYS[name]
    value = schema.get(config, key)
    if key.partition(".")[0] in ("recipe", "stages", "sweep", "hosts"):
        return
    in_a_recipe(config, key, value)
    in_a_sweep(config, key, value)
    in_the_second_model(config, key, value)


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ("train.steps=0", "train.steps must be a whole number, 1 or more, got 0."),
        ("optimizer.learning_rate=nan", "optimizer.learning_rate must be a number above 0 and at"),
        (
            "data.mode=chnk",
            "Unknown data.mode 'chnk'. Did you mean 'chunk'? Known: chunk, concat, pack.",
        ),
        ("eval.lengths=(512,0)", "eval.lengths[1] must be a whole number of tokens, 1 or more"),
        ("search.compare=2", "search.compare must be True or False, got '2'."),
        ("data.tokenizer=('a',)", None),
    ],
)
@pytest.mark.parametrize("program", [SEARCH, TRAIN, ANALYSE], ids=lambda p: p.package)
def test_a_mistake_on_the_command_line(capsys, tmp_path, program, setting, line):
    argv = [f"--config={ROOT / 'configs' / 'base.py'}", f"--config.{setting}", "--print_config"]
    if line is None:  # any text may be the name of a folder
        cli.main(program, argv=argv)
        return
    with pytest.raises(SystemExit) as caught:
        cli.main(program, argv=argv)
    assert caught.value.code == 2
    out, error = capsys.readouterr()
    assert not out and error.startswith(f"error: {line}") and error.count("\n") == 1


def reasons(rule):
    """Yields why a value, or a part of it, has neither a range nor choices."""
    if isinstance(rule, rules.Text | rules.Anything):
        yield rule.because
    elif isinstance(rule, rules.Number):
        if not any(map(math.isfinite, (rule.least, rule.most, rule.above, rule.below))):
            yield rule.because
    elif isinstance(rule, rules.Many | rules.Maybe):
        yield from reasons(rule.rule)
    elif isinstance(rule, rules.Fixed):
        for part in rule.rules:
            yield from reasons(part)


def test_few_keys_have_neither_a_range_nor_choices_and_each_says_why():
    free = {name: [*reasons(rule)] for name, (_, rule, _) in KEYS.items() if [*reasons(rule)]}
    assert not [name for name, because in free.items() if not all(because)]
    in_base = [key for key, _ in schema.leaves(BASE) if key in free]
    share = len(in_base) / len([*schema.leaves(BASE)])
    assert share <= 0.15, f"{share:.1%}: {in_base}"
