"""Experiment files: what is loaded, how keys are overridden, and every message about a mistake."""

import json
import re
import textwrap
from pathlib import Path

import pytest

from jaxrope import schema
from jaxrope.errors import InputError
from jaxrope.shell import experiment

ROOT = Path(__file__).resolve().parent.parent

FILE = """
from configs import base

def get_config(seed="0"):
    config = base.get_config()
    config.seed = int(seed)
    return config
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "experiment.py"
    path.write_text(FILE, encoding="utf-8")
    return path


def write(folder, text):
    path = folder / "broken.py"
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return path


def read(path, *pairs):
    return experiment.read(str(path), pairs)


def load(path):
    return experiment.load(str(path))


@pytest.fixture(scope="module")
def base():
    return experiment.read(str(ROOT / "configs" / "base.py"))


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("train.steps", "7", 7),
        ("mesh.data", "-1", -1),
        ("optimizer.learning_rate", "1", 1.0),
        ("optimizer.learning_rate", "3e-4", 3e-4),
        ("analysis.haystack", "false", False),
        ("analysis.haystack", "False", False),
        ("search.per_layer", None, True),
        ("train.param_dtype", "bfloat16", "bfloat16"),
        ("data.tokenizer", "7", "7"),
        ("data.tokenizer", "", ""),
        ("eval.lengths", "(512,2048)", (512, 2048)),
        ("eval.lengths", "[512]", (512,)),
        ("eval.lengths", "512,2048", (512, 2048)),
        ("eval.lengths", "2048", (2048,)),
        ("eval.ruler.lengths", "()", ()),
        ("search.critical_pairs", "1,2", (1, 2)),
        ("eval.suites", "perplexity,passkey", ("perplexity", "passkey")),
        ("eval.suites", "passkey", ("passkey",)),
        ("eval.suites", "('perplexity','passkey')", ("perplexity", "passkey")),
        ("data.train_files", "books/*.txt, a b.txt", ("books/*.txt", "a b.txt")),
        ("data.train_files", "('a,b.txt',)", ("a,b.txt",)),
        ("eval.methods", "yarn@su,a/rope.json", ("yarn@su", "a/rope.json")),
        ("sweep", "(('train.steps', (1, 2)),)", (("train.steps", (1, 2)),)),
        ("search.attention_factor", "yarn", "yarn"),
        ("search.attention_factor", "1.1", 1.1),
        ("search.attention_factor", "2", 2.0),
        (
            "search.objective",
            "{'name':'needle','num_samples':2,'num_keys':1,'place':'start'}",
            None,
        ),
    ],
)
def test_text_becomes_what_the_rule_of_the_key_asks_for(base, key, text, value):
    actual = schema.get(experiment.override(base, [(key, text)]), key)
    if value is None:
        assert actual.num_keys == 1
    else:
        assert actual == value and type(actual) is type(value)


def test_a_key_may_have_a_second_name(base):
    config = experiment.override(base, [("suites", "passkey,needle")])
    assert config.eval.suites == ("passkey", "needle")


def test_nothing_else_changes(base):
    before, after = map(dict, map(schema.leaves, (base, changed_steps(base))))
    assert {key for key in before if before[key] != after[key]} == {"train.steps"}


def changed_steps(base):
    return experiment.override(base, [("train.steps", "70")])


def test_a_tuple_may_be_given_one_element_at_a_time(base):
    pairs = [("data.train_files", "a.txt"), ("data.train_files", "b.txt")]
    assert experiment.override(base, pairs).data.train_files == ("a.txt", "b.txt")


def test_of_two_values_the_last_one_counts(base):
    pairs = [("train.steps", "30"), ("train.steps", "20")]
    assert experiment.override(base, pairs).train.steps == 20


def test_a_section_that_selects_an_algorithm_is_replaced_before_its_keys_are_set(base):
    pairs = [("rope.factor", "4"), ("rope", "{'method': 'yarn', 'factor': 8.0}")]
    config = experiment.override(base, pairs)
    assert (config.rope.method, config.rope.factor, config.rope.beta_fast) == ("yarn", 4.0, 32.0)


def test_keys_that_go_together_may_be_set_together(base):
    """Neither alone would be allowed."""
    pairs = [("search.objective.num_samples", "2"), ("search.racing.first", "0")]
    assert experiment.override(base, pairs).search.objective.num_samples == 2
    pairs = [("eval.niah.answer", "a b"), ("eval.niah.needle", "x a b")]
    assert experiment.override(base, pairs).eval.niah.answer == "a b"


def test_the_config_of_a_file_is_locked(file):
    config = load(file)
    with pytest.raises(AttributeError, match="locked"):
        config.train.step = 3
    with pytest.raises(AttributeError, match="locked"):
        config.seeds = 3


def test_two_loads_share_nothing(file):
    load(file).train.steps = 3
    assert load(file).train.steps == 100


def test_the_text_after_a_colon_goes_to_get_config(file):
    assert read(f"{file}:7").seed == 7


def test_a_file_finds_its_neighbours_and_the_search_path_is_left_alone(file, tmp_path, monkeypatch):
    import sys

    (tmp_path / "neighbour_of_a_test.py").write_text("STEPS = 3\n", encoding="utf-8")
    path = write(
        tmp_path,
        """
        from neighbour_of_a_test import STEPS
        import experiment_that_is_no_module_of_ours as other
        """,
    )
    before = list(sys.path)
    with pytest.raises(InputError, match="No module named 'experiment_that_is_no_module_of_ours'"):
        load(path)
    assert sys.path == before


def test_every_value_of_the_resolved_config_can_be_written_as_json(base):
    config = experiment.override(base, [("search.attention_factor", "1.1")])
    assert json.loads(json.dumps(config.to_dict()))["search"]["attention_factor"] == 1.1


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("train.stps", "7", "Unknown key 'train.stps'. Did you mean train.steps"),
        ("train.stps", None, "Unknown key 'train.stps'. Did you mean train.steps"),
        ("trian.steps", "7", "Did you mean train.steps"),
        ("steps", "7", "Did you mean train.steps or search.gradient.steps"),
        ("train.xyzzy", "7", "Known in train: seq_len, batch_size, accumulation, steps,"),
        ("xyzzy", "7", "Known: seed, model, rope, target_len, "),
        ("xyzzy.plugh", "7", "Known: seed, model"),
        ("train.steps.x", "7", "Did you mean train.steps"),
        ("rope.factor", "8", "Known in rope: method. Another method replaces the section: rope={"),
        ("train.steps", "1e3", "train.steps must be a whole number, 1 or more, got 1000.0."),
        ("train.steps", "", "train.steps must be a whole number, 1 or more, got ''"),
        ("optimizer.learning_rate", "fast", "at most 1, got 'fast'"),
        ("optimizer.learning_rate", "nan", "optimizer.learning_rate must be a number above 0"),
        ("optimizer.learning_rate", "1e400", "at most 1, got inf"),
        ("search.compare", "maybe", "search.compare must be True or False, got 'maybe'"),
        (
            "train.steps",
            None,
            "--config.train.steps has no value. Write --config.train.steps=VALUE",
        ),
        ("eval.lengths", "a,b", "eval.lengths[0] must be a whole number of tokens, 1 or more"),
        ("eval.lengths", "(512,1.5)", "eval.lengths[1] must be a whole number of tokens"),
        ("eval.lengths", "(512,True)", "eval.lengths[1] must be a whole number of tokens"),
        ("eval.lengths", "(512,", "--config.eval.lengths must be a tuple, got '(512,', which is"),
        ("eval.suites", "3", "eval.suites[0] must be one of perplexity, passkey"),
        ("train", "{'steps': 3}", "set its keys one at a time: train.seq_len, train.batch_size"),
        ("train", None, "train is a section; set its keys one at a time"),
        ("rope", "yarn", "must be a Python dict that replaces the whole section, got 'yarn'"),
        ("rope", "[1]", "must be a Python dict that replaces the whole section, got '[1]'"),
        ("rope", None, "--config.rope has no value"),
    ],
)
def test_a_mistake_is_told_in_one_line(base, key, text, message):
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        experiment.override(base, [(key, text)])
    assert "\n" not in str(caught.value)


def test_no_file_was_named(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="--config=FILE is missing"):
        experiment.load(None)


def test_a_file_that_is_not_there_is_answered_with_those_that_are(file):
    with pytest.raises(
        InputError, match=r"experimnt\.py: no such file\. Did you mean .*experiment"
    ):
        load(file.with_name("experimnt.py"))
    with pytest.raises(InputError, match="The folder .*nowhere has no experiment file"):
        load(file.parent / "nowhere" / "a.py")
    with pytest.raises(InputError, match="no such file"):
        load(file.parent)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "broken.py has no function get_config()"),
        ("get_config = 3", "broken.py has no function get_config()"),
        (
            "def get_config(): pass",
            "must return a ConfigDict, got NoneType. Is its `return config`",
        ),
        ("def get_config(): return {}", "must return a ConfigDict, got dict"),
        ("x = 1\ny = = 2", "broken.py, line 2: SyntaxError: invalid syntax"),
        ("\n\nimport nothing_like_it", "broken.py, line 3: ModuleNotFoundError: No module named"),
        (
            "def get_config():\n    return 1 / 0",
            "broken.py, line 2: ZeroDivisionError: division by",
        ),
        ("def get_config():\n    raise SystemExit(3)", "broken.py, line 2: SystemExit: 3"),
        ("def get_config(a, b):\n    return 1", "get_config() missing 2 required positional"),
        ("x = '\0'", "broken.py"),
    ],
)
def test_a_broken_file_is_told_with_its_line(tmp_path, text, message):
    with pytest.raises(InputError, match=re.escape(message)):
        load(write(tmp_path, text))


def test_a_misspelt_key_in_a_file_is_told_with_its_line(tmp_path):
    path = write(
        tmp_path,
        """
        from configs import base

        def get_config():
            config = base.get_config()
            config.target_lenn = 4096
            return config
        """,
    )
    with pytest.raises(
        InputError, match=r"line 6: AttributeError: .*Did you mean \"target_len\""
    ) as e:
        load(path)
    assert len(str(e.value)) < 300 and "\n" not in str(e.value)
