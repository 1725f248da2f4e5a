"""Experiment files: what is loaded, how keys are overridden, and every message about a mistake."""

import json
import re
import textwrap

import pytest

from jaxrope.errors import InputError
from jaxrope.shell import experiment

FILE = """
from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference

def get_config(size="small"):
    config = ConfigDict()
    config.size = size
    config.train = dict(steps=100, learning_rate=2e-5, save=True, dtype="float32")
    config.rope = dict(method="model")
    config.lengths = (512, 1024)
    config.scales = (0.5, 1.0)
    config.suites = ("perplexity",)
    config.files = ()
    config.law = FieldReference("su", field_type=object)
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


def load(path, *pairs):
    return experiment.load(str(path), pairs)


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("train.steps", "7", 7),
        ("train.steps", "-7", -7),
        ("train.learning_rate", "1", 1.0),
        ("train.learning_rate", "3e-4", 3e-4),
        ("train.save", "false", False),
        ("train.save", None, True),
        ("train.dtype", "bfloat16", "bfloat16"),
        ("train.dtype", "7", "7"),
        ("lengths", "(512,2048)", (512, 2048)),
        ("lengths", "512,2048", (512, 2048)),
        ("lengths", "2048", (2048,)),
        ("lengths", "()", ()),
        ("scales", "1,2.5", (1, 2.5)),
        ("suites", "perplexity,passkey", ("perplexity", "passkey")),
        ("suites", "passkey", ("passkey",)),
        ("suites", "('perplexity','passkey')", ("perplexity", "passkey")),
        ("files", "books/*.txt, a b.txt", ("books/*.txt", "a b.txt")),
        ("files", "('a,b.txt',)", ("a,b.txt",)),
        ("files", "(('train.steps', (1, 2)),)", (("train.steps", (1, 2)),)),
        ("law", "yarn", "yarn"),
        ("law", "1.1", 1.1),
        ("law", "2", 2),
    ],
)
def test_text_becomes_a_value_of_the_key_s_type(file, key, text, value):
    found = experiment.dotted_keys(load(file, (key, text)))[key]
    assert found == value
    assert type(found) is type(value)


def test_nothing_else_changes(file):
    before, after = (experiment.dotted_keys(load(file, *p)) for p in ((), (("train.steps", "7"),)))
    assert {key for key in before if before[key] != after[key]} == {"train", "train.steps"}


def test_a_tuple_may_be_given_one_element_at_a_time(file):
    assert load(file, ("files", "a.txt"), ("files", "b.txt")).files == ("a.txt", "b.txt")


def test_of_two_values_the_last_one_counts(file):
    assert load(file, ("train.steps", "1"), ("train.steps", "2")).train.steps == 2


def test_a_section_that_selects_an_algorithm_is_replaced_before_its_keys_are_set(file):
    config = load(file, ("rope.factor", "4"), ("rope", "{'method': 'yarn', 'factor': 8.0}"))
    assert config.rope.to_dict() == {"method": "yarn", "factor": 4.0}


def test_the_config_is_locked(file):
    config = load(file)
    with pytest.raises(AttributeError, match="locked"):
        config.train.step = 3
    with pytest.raises(AttributeError, match="locked"):
        config.seeds = 3


def test_two_loads_share_nothing(file):
    load(file).train.steps = 3
    assert load(file).train.steps == 100


def test_the_text_after_a_colon_goes_to_get_config(file):
    assert load(f"{file}:large").size == "large"


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


def test_every_value_of_the_resolved_config_can_be_written_as_json(file):
    config = load(file, ("law", "1.1"))
    assert json.loads(config.to_json())["law"] == 1.1


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("train.stps", "7", "Unknown --config.train.stps. Did you mean --config.train.steps?"),
        ("trian.steps", "7", "Did you mean --config.train.steps?"),
        ("learning_rate", "7", "Did you mean --config.train.learning_rate?"),
        ("train.xyzzy", "7", "Known in config.train: dtype, learning_rate, save, steps."),
        ("xyzzy", "7", "Known in config: files, law, lengths, rope, scales, size, suites, train."),
        ("xyzzy.plugh", "7", "Known in config: files, law"),
        ("train.steps.x", "7", "Did you mean --config.train.steps"),
        ("rope.factor", "8", 'Another algorithm replaces the section: --config.rope="{...}"'),
        ("train.steps", "1e3", "--config.train.steps must be a whole number, got '1e3'. It is 100"),
        ("train.steps", "", "--config.train.steps must be a whole number, got ''"),
        ("train.learning_rate", "fast", "must be a number, got 'fast'. It is 2e-05"),
        ("train.learning_rate", "nan", "config.train.learning_rate must be finite, got nan"),
        ("train.learning_rate", "inf", "config.train.learning_rate must be finite, got inf"),
        ("train.save", "maybe", "--config.train.save must be true or false, got 'maybe'"),
        (
            "train.steps",
            None,
            "--config.train.steps has no value. Write --config.train.steps=VALUE",
        ),
        ("lengths", "a,b", "--config.lengths must be a tuple, each a whole number, got 'a,b'"),
        (
            "lengths",
            "(512,1.5)",
            "must be a tuple, each a whole number, got '(512,1.5)'. It is (512,",
        ),
        ("lengths", "(512,True)", "must be a tuple, each a whole number, got '(512,True)'"),
        ("lengths", "(512,", "--config.lengths must be a tuple, got '(512,', which is no Python"),
        ("suites", "3", "--config.suites must be a tuple, each text, got '3'"),
        ("train", "{'steps': 3}", "set its keys one at a time: --config.train.dtype, --config.tra"),
        ("rope", "yarn", "must be a Python dict that replaces the whole section, got 'yarn'"),
        ("rope", "[1]", "must be a Python dict that replaces the whole section, got '[1]'"),
        ("rope", None, "must be a Python dict that replaces the whole section, got 'None'"),
    ],
)
def test_a_mistake_is_told_in_one_line(file, key, text, message):
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        load(file, (key, text))
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
    with pytest.raises(InputError, match=r"line 6: AttributeError: .*Did you mean \"target_len\""):
        load(path)
