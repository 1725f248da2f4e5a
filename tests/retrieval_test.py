"""Key-value pairs and lines: the prompts of the original scripts, and how many records fit.

The hashes are of what those scripts make: make_kv_retrieval_data.py and prompting.py of
nelson-liu/lost-in-the-middle 29b8a6d, with uuid4 and choice drawing from one seeded generator, and
generate_lines_testcases of DachengLi1/LongChat 4b5faa5, with our names in place of wonderwords'.
"""

import hashlib
import json
import re

import pytest

from jaxrope import data
from jaxrope.data import BytesTokenizer
from jaxrope.data.words import ADJECTIVES, NOUNS
from jaxrope.errors import InputError
from jaxrope.evaluate import fitting, retrieval
from jaxrope.evaluate.items import Item, Request
from jaxrope.evaluate.suites import TASKS
from tests.benches import make_bench

ROOM = 10_000_000  # a length that everything fits


@pytest.fixture(scope="module")
def shipped_tokenizer():
    return data.load_tokenizer("jaxrope/models/stdlib-3m")


def make(name, length, tokenizer=None, seed=0, **changes):
    options = getattr(make_bench(**{name: changes}).options, name)
    used = tokenizer or BytesTokenizer()
    return TASKS[name].make(Request(used, length, options.trials, seed, None, options))


def digest(items):
    return hashlib.sha256("\0".join(item.prompt for item in items).encode()).hexdigest()


@pytest.mark.parametrize(
    "pairs, trials, seed, query_first, sha256",
    [
        (75, 4, 0, False, "e4f69071eba3eeee8a400db857c75b1b03eb6c5c18c21b4bb6283c2865d6186d"),
        (140, 3, 9, False, "ce4c4dd4abd10e77785c326fd94c1faecf1bcabdae539e37e5b7ac43b5b2ec0a"),
        (5, 6, 1, True, "202a175b0ea02315b0905e30b32778efa7de273e0d7ab10e4b019b032455283f"),
    ],
)
def test_pairs_are_those_of_lost_in_the_middle(pairs, trials, seed, query_first, sha256):
    options = {"pairs": pairs, "trials": trials, "query_first": query_first}
    assert digest(make("kv", ROOM, seed=seed, **options)) == sha256


@pytest.mark.parametrize(
    "lines, trials, seed, names, completion, sha256, first",
    [
        (
            200,
            3,
            0,
            "numbers",
            True,
            "b7fe74bd8d9e9c78c1c0a42af8bb6672d22317436bf03474a3e0405f251b1041",
            "29163",
        ),
        (
            680,
            2,
            3,
            "numbers",
            False,
            "4171ca99bcb645b614ec82f59b7bd8dfca431269ee3bb2dbf080cec24f18de21",
            "38429",
        ),
        (
            200,
            3,
            0,
            "words",
            True,
            "828175005b9b8b3920e7bc58d614e76f57df28f28cea51bf77263168f2f72e34",
            "29163",
        ),
        (
            31,
            4,
            8,
            "words",
            False,
            "c6ec5375c7e61025d9c38746c6e2e8344399c7d2265dd19a2dd48b26de298b23",
            "42066",
        ),
    ],
)
def test_lines_are_those_of_longeval(lines, trials, seed, names, completion, sha256, first):
    options = {"lines": lines, "trials": trials, "names": names, "completion": completion}
    items = make("lines", ROOM, seed=seed, **options)
    assert digest(items) == sha256 and items[0].answers == (first,)


def test_the_names_of_lines_are_frozen():
    joined = " ".join(ADJECTIVES)
    assert hashlib.sha256(joined.encode()).hexdigest() == (
        "6ade2be37879b45c5c01647069c56d22ea64a4641e259a235e90c6634f55a682"
    )
    assert (
        hashlib.sha256(" ".join(NOUNS).encode()).hexdigest()
        == "4452d722b3f29540a18a4ebbc6153d514225c4fc54663abc0dfba1c8869b20f2"
    )
    assert len(set(ADJECTIVES)) == len(ADJECTIVES) == 287 and len(NOUNS) == 527
    assert retrieval.word_names(3, 0, 0) == ["swift-herd", "silent-doctor", "low-curtain"]


# traps of attention_eval.md §2.1, by name


@pytest.mark.parametrize(
    "text, found",
    [
        (' "ABCDEF12-3456-4abc-8def-0123456789AB"', 1),  # whatever the case
        ("abcdef12-3456-4abc-8def-0123456789ab, and more", 1),
        ('the value is "abcdef12-3456-4abc-8def-0123456789ab', 1),  # anywhere
        ("abcdef12-3456-4abc-8def-0123456789a", 0),
        ("abcdef12 3456", 0),
        ("", 0),
    ],
)
def test_trap_a_value_counts_anywhere_in_the_answer_in_any_case(text, found):
    item = Item("", ("abcdef12-3456-4abc-8def-0123456789ab",), 100, {})
    assert TASKS["kv"].score(text, item) == found


@pytest.mark.parametrize(
    "text, last, first",
    [
        (" <4711>", 1, 1),
        (" <4711>\nLine <x>: <REGISTER_CONTENT> is <9>", 0, 1),  # it went on
        ("line 7 has <4711>", 1, 0),
        ("04711", 1, 1),
        ("47110", 0, 0),
        ("none", 0, 0),
        ("", 0, 0),
    ],
)
def test_trap_longeval_takes_the_last_number(text, last, first):
    for name, found in (("last", last), ("first", first)):
        item = Item("", ("4711",), 15, {"score": name})
        assert TASKS["lines"].score(text, item) == found
    assert make("lines", 2000, trials=1)[0].about["score"] == "last"


def test_trap_values_of_lines_are_1_to_50000():
    values = [
        int(value)
        for item in make("lines", ROOM, lines=2000, trials=10)
        for value in re.findall(r"is <(\d+)>\n", item.prompt)
    ]
    assert len(values) == 20_000 and 1 <= min(values) < 20 and 49_980 < max(values) <= 50_000


def test_trap_a_model_without_instructions_gets_the_beginning_of_the_answer():
    with_it, without = (
        make("lines", 2000, trials=1, lines=20, completion=on)[0] for on in (True, False)
    )
    name = re.search(r"in line (\S+)\?", with_it.prompt).group(1)
    assert with_it.prompt.endswith(f"I need the number.Line <{name}>: <REGISTER_CONTENT> is")
    assert without.prompt.endswith(f"in line {name}? I need the number.")


# what is our own


@pytest.mark.parametrize("name", ["kv", "lines"])
@pytest.mark.parametrize("length", [1024, 3000])
def test_as_many_records_as_fit(name, length, shipped_tokenizer):
    unit = {"kv": "pairs", "lines": "lines"}[name]
    for tokenizer in (BytesTokenizer(), shipped_tokenizer):
        items = make(name, length, tokenizer, trials=3)
        planned = [item.about["tokens"] + item.max_new_tokens for item in items]
        assert [i.about["tokens"] for i in items] == [
            1 + len(tokenizer.encode(i.prompt)) for i in items
        ]
        assert max(planned) <= length
        (records,) = {item.about[unit] for item in items}
        with pytest.raises(InputError, match=f"eval.{name}.{unit}: {records + 1} of them and the"):
            make(name, length, tokenizer, trials=3, **{unit: records + 1})
        same = make(name, length, tokenizer, trials=3, **{unit: records})
        assert [i.fingerprint() for i in same] == [i.fingerprint() for i in items]


def test_a_pair_stands_at_its_depth_and_has_its_value():
    for pairs, places in ((10, [1, 3, 6, 8]), (75, [9, 28, 46, 65])):
        items = make("kv", ROOM, pairs=pairs, trials=4)
        for item, place in zip(items, places, strict=True):
            records = json.loads(re.search(r"\{.*?\}", item.prompt, re.DOTALL).group())
            key = re.search('Key: "(.*)"', item.prompt).group(1)
            assert list(records).index(key) == place and records[key] == item.answers[0]
            assert item.about["depth"] == place / (pairs - 1) and len(records) == pairs
            assert item.prompt.endswith(f'}}\n\nKey: "{key}"\nCorresponding value:')


def test_a_line_is_asked_for_with_its_own_value():
    for item in make("lines", 3000, trials=20):
        name = re.search(r"in line (\S+)\?", item.prompt).group(1)
        lines = re.findall(r"^line (\S+): REGISTER_CONTENT is <(\d+)>$", item.prompt, re.MULTILINE)
        assert dict(lines)[name] == item.answers[0] and len(dict(lines)) == item.about["lines"]
        place = [key for key, _ in lines].index(name)
        assert item.about["depth"] == place / (len(lines) - 1)


def test_names_differ_from_text_to_text_and_never_within_one():
    names = retrieval.word_names(5000, 0, 0)
    assert len(set(names)) == 5000 and all(re.fullmatch("[a-z]+-[a-z]+", name) for name in names)
    assert retrieval.word_names(10, 0, 1) != names[:10] != retrieval.word_names(10, 1, 0)
    with pytest.raises(InputError, match=r"has 151,249 names, got 151,250 lines. Use 'numbers'"):
        retrieval.word_names(151_250, 0, 0)


@pytest.mark.parametrize("name", ["kv", "lines"])
def test_who_knows_the_value_scores_one_and_who_does_not_scores_zero(name):
    task, items = TASKS[name], make(name, 2500)
    assert len(items) == 20
    for item, other in zip(items, items[1:] + items[:1], strict=True):
        assert task.score(f" {item.answers[0]}", item) == 1.0
        assert task.score(f" {other.answers[0]}", item) == 0.0 and task.score("", item) == 0.0


def test_seeds_and_lengths():
    for name in ("kv", "lines"):
        first, again = make(name, 2000), make(name, 2000)
        assert [i.fingerprint() for i in first] == [i.fingerprint() for i in again]
        assert make(name, 2000, seed=1)[0].answers != first[0].answers


@pytest.mark.parametrize(
    "name, length, changes, message",
    [
        ("kv", 300, {}, r"shortest prompt of 'kv' and its answer have \d+ tokens, got length 300"),
        ("lines", 300, {}, r"shortest prompt of 'lines' .* got length 300. Leave it out, or leave"),
        ("kv", 1000, {"pairs": 75}, r"kv.pairs: 75 of them .* got length 1,000. Use fewer, or 0"),
        ("lines", 1000, {"lines": 200}, r"eval.lines.lines: 200 of them .* got length 1,000"),
    ],
)
def test_what_cannot_be_made_is_refused(name, length, changes, message):
    with pytest.raises(InputError, match=message):
        make(name, length, **changes)


@pytest.mark.parametrize("per_unit, own, least", [(1, 0, 0), (7, 30, 1), (26, 400, 2)])
def test_the_most_units_that_fit(per_unit, own, least):
    asked = []

    def count(units):
        asked.append(units)
        return own + per_unit * units + units % 3  # nearly in proportion

    for limit in (own + per_unit * least + 2, 500, 5_000, 100_000):
        asked.clear()
        units = fitting.most_units(count, limit=limit, least=least, setting="x")
        assert count(units) <= limit < count(units + 1) and units >= least
        assert len(asked) < 30
