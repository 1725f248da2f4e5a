"""Pass keys of other projects' scripts: the same prompts, and every trap of theirs by name.

The hashes are of what those scripts make: generate_prompt of microsoft/LongRoPE c9e56aa,
jquesnelle/yarn 995db5b (its whole length search too) and epfml/landmark-attention d963e50, and
build_passkey and build_number_string of OpenBMB/InfiniteBench 88b3daa.
"""

import hashlib
import random
import re

import pytest

from jaxrope import data
from jaxrope.data import BytesTokenizer
from jaxrope.data.needles import GRASS
from jaxrope.errors import InputError
from jaxrope.evaluate import infinitebench, passkey_compat
from jaxrope.evaluate.items import Item, Request
from jaxrope.evaluate.suites import TASKS
from tests.benches import make_bench

NAMES = ("passkey_longrope", "passkey_yarn", "passkey_infinitebench", "number_string")


@pytest.fixture(scope="module")
def shipped_tokenizer():
    return data.load_tokenizer("jaxrope/models/stdlib-3m")


def request(name, length, tokenizer=None, run_seed=0, **changes):
    section = TASKS[name].section
    options = getattr(make_bench(**{section: changes}).options, section)
    return Request(tokenizer or BytesTokenizer(), length, options.trials, run_seed, None, options)


def make(name, length, tokenizer=None, run_seed=0, **changes):
    return TASKS[name].make(request(name, length, tokenizer, run_seed, **changes))


def digest(items):
    return hashlib.sha256("\0".join(item.prompt for item in items).encode()).hexdigest()


@pytest.mark.parametrize(
    "num_chars, sha256",
    [
        (0, "9ab0420ea570d8e698f9e78084f1fdd1b73213a3b5851589abf7d1d60e41cae9"),
        (500, "7c8ecab71fae1004afb17031041df680a834aef3440191bdfe5912f6d5bab6d4"),
        (38_000, "b9f6b79722af6ea1e5dc8f602d87399c59960a073fc85b969d3df0c393cc8b5b"),
    ],
)
def test_a_prompt_is_that_of_landmark_yarn_and_longrope(num_chars, sha256):
    rng, garbage = random.Random(num_chars + 1), " ".join([GRASS] * 2000)
    prompts = [passkey_compat.draw_prompt(rng, garbage, num_chars)[0] for _ in range(5)]
    assert hashlib.sha256("\0".join(prompts).encode()).hexdigest() == sha256


@pytest.mark.parametrize(
    "length, seed, sha256",
    [
        (1024, 42, "246d87d3a7c6f64a0f0b7cac1bbae838c420541600eab683d32575cac318edea"),
        (4096, 42, "42b4416a1f4cbaa3aed1fa45b5e4fac62b8c9dd5c5e6ff5e1a99084c0a56391b"),
        (4096, 7, "36e1118c6731d8836fd9bc867d54600ba84aaae063a291cb5c29786b55021c50"),
    ],
)
def test_longrope_prompts_are_those_of_its_script(length, seed, sha256):
    assert digest(make("passkey_longrope", length, run_seed=3, seed=seed)) == sha256


@pytest.mark.parametrize(
    "tokenizer, length, seed, step_chars, sha256",
    [
        ("bytes", 700, 42, 128, "9e1ef3c5c92a3f954ca9bbd123118ba46f65f953e9782b7f10ec85dd03ffdb3d"),
        (
            "bytes",
            2048,
            42,
            128,
            "729fa2c7971edc3e2f16ecc5ec9760b026bdf365712afba9e01a3a29197f15d9",
        ),
        ("bytes", 2048, 5, 64, "1d65ea3afd3bad69579861eaf20889e35c4254d49f795393e13c46a41c6dc239"),
        ("file", 700, 42, 128, "97009185e48438b758cded4b7b11730b15dd6baacfbe4a1b529eb4f07a2a1dec"),
        ("file", 2048, 42, 128, "b60910d78ff88f501bc3e4bd0f55deef98d10cc4e285fab58c695cd5c6394fa7"),
        ("file", 2048, 5, 64, "856ace55b8a8d09e1a0c67a78468d3e06b6c3583b556b28e9b040b45a4db0ff3"),
    ],
)
def test_yarn_prompts_are_those_of_its_script(
    tokenizer, length, seed, step_chars, sha256, shipped_tokenizer, monkeypatch
):
    monkeypatch.setattr(passkey_compat, "STEP_CHARS", step_chars)
    used = BytesTokenizer() if tokenizer == "bytes" else shipped_tokenizer
    items = make("passkey_yarn", length, used, seed=seed)
    assert digest(items) == sha256


@pytest.mark.parametrize(
    "length, seed, sha256",
    [
        (8192, 42, "7a7c842e4c2dd23f7d9b938a5691addd543b53e13c2fd317a67172a91a465694"),
        (8192, 7, "d5295d69e067b5cf3bcb6251454cbaa57b7763abcd89aa76e20ade6fe877d0ff"),
        (16384, 42, "bfd778dde795d135983cad2ef8d2ec5e36ce96cb3de4c206e7b809e1aedfb51f"),
    ],
)
def test_infinitebench_pass_keys_are_those_of_its_script(monkeypatch, length, seed, sha256):
    # what a prompt comes to in tokens is not what is compared, and takes a while
    monkeypatch.setattr(infinitebench, "num_tokens", lambda tokenizer, text: 0)
    assert digest(make("passkey_infinitebench", length, run_seed=seed, official=True)) == sha256


# as published the script has 590 prompts of 0.5 MB: here it was run with fewer lines
@pytest.mark.parametrize(
    "lines, step, seed, sha256",
    [
        (30, 7, 42, "b8b81c2ed038080716bb409f1438c7318ba534892dd47c10acbe95b866eb30cf"),
        (30, 7, 7, "80de859b01a156d70e7312101f62d9b909ba547626544d0153739be4d44bb309"),
        (
            28,
            7,
            42,
            "b110957551bf23ee88c4d89b69201b5a686b5a76479ea1ad91bfd240c89b01f3",
        ),  # the last place is the end
        (11, 3, 42, "4117703d37eff34a8841987b880f17fbacce9cfb6cf6f64af7a80eae022ca376"),
    ],
)
def test_number_strings_are_those_of_infinitebench(monkeypatch, lines, step, seed, sha256):
    assert infinitebench.OFFICIAL[131_072] == (5220, 90)
    monkeypatch.setitem(infinitebench.OFFICIAL, 131_072, (lines, step))
    assert digest(make("number_string", 131_072, run_seed=seed, official=True)) == sha256


# traps of attention_eval.md §2.1, by name


def test_trap_the_garbage_is_cut_at_a_character():
    item = make("passkey_longrope", 1024)[0]
    before = item.prompt.split("\nThe pass key is")[0].split("\n", 1)[1]
    assert len(before) == round(item.about["depth"] * 3737) and before[-1].isalpha()
    assert (f"{GRASS} " * 50).startswith(before) and not before.endswith((".", " "))


def test_trap_keys_have_one_to_five_digits_though_papers_say_five():
    rng = random.Random(0)
    keys = [passkey_compat.draw_prompt(rng, "", 0)[1] for _ in range(30_000)]
    assert {len(str(key)) for key in keys} == {1, 2, 3, 4, 5}
    assert min(keys) >= 1 and 49_900 < max(keys) <= 50_000


@pytest.mark.parametrize(
    "text, found",
    [
        (" 4711.", 1),
        ("4711 and 12", 1),
        ("\nis: 4711", 1),
        ("04711", 1),  # compared as a number
        ("12 4711", 0),  # the first integer counts
        ("47110", 0),
        ("4,711", 0),
        ("no digits at all, but many words", 0),  # theirs: the first 20 characters
        ("", 0),
    ],
)
def test_trap_the_first_integer_is_the_answer(text, found):
    item = Item("", ("4711",), 10, {})
    assert TASKS["passkey_yarn"].score(text, item) == found
    assert TASKS["passkey_longrope"].score(text, item) == found


def test_trap_answers_have_ten_tokens():
    for name in ("passkey_longrope", "passkey_yarn"):
        assert {item.max_new_tokens for item in make(name, 1024)} == {10}


def test_trap_longrope_counts_characters_and_only_records_tokens(shipped_tokenizer):
    for length, chars in ((1024, 3737), (4096, 14950)):
        for item in make("passkey_longrope", length, shipped_tokenizer):
            assert item.about["characters"] == chars == int(length * 3.65)
            assert item.about["tokens"] == 1 + len(shipped_tokenizer.encode(item.prompt))
            assert item.about["tokens"] > length  # it asks for more than it says


def test_trap_longrope_seeds_anew_for_each_length():
    keys = [[i.answers for i in make("passkey_longrope", length)] for length in (1024, 2048, 4096)]
    assert keys[0] == keys[1] == keys[2] and keys[0][:2] == [("7297",), ("48599",)]
    random.seed(1)  # nor does it share Python's generator
    assert [i.answers for i in make("passkey_longrope", 1024)] == keys[0]


def test_trap_yarn_takes_the_length_before_the_last_probe():
    tokenizer, rng = BytesTokenizer(), random.Random(42)
    own = 1 + len(passkey_compat.OPENING + passkey_compat.QUESTION)
    for target in (700, 2048):
        chars = passkey_compat.yarn_chars(tokenizer, target, rng=rng)
        assert chars % 128 == 0 and own + chars + 60 <= target <= own + chars + 128 + 70


def test_trap_yarn_stops_at_a_probe_that_has_just_the_tokens():
    rng, garbage = random.Random(3), f"{GRASS} " * 100
    probes = [passkey_compat.draw_prompt(rng, garbage, 128 * (i + 1))[0] for i in range(9)]
    for i in (4, 8):
        exactly = 1 + len(probes[i])
        found = [
            passkey_compat.yarn_chars(BytesTokenizer(), target, rng=random.Random(3))
            for target in (exactly, exactly + 1)
        ]
        assert found == [128 * i, 128 * (i + 1)]


def test_trap_yarn_draws_a_prompt_at_each_probe():
    rng, again = random.Random(42), random.Random(42)
    chars = passkey_compat.yarn_chars(BytesTokenizer(), 2048, rng=rng)
    for probe in range(chars // 128 + 1):
        again.randint(0, 128 * (probe + 1))
        again.randint(1, 50_000)
    assert rng.getstate() == again.getstate()


def test_trap_yarn_ends_at_its_900_000_characters(monkeypatch):
    assert len(passkey_compat._garbage(passkey_compat.YARN_REPEATS)) == 899_999
    monkeypatch.setattr(passkey_compat, "YARN_REPEATS", 40)
    message = r"'passkey_yarn' has 3,599 characters of filler, .* fewer than 4,096 tokens"
    with pytest.raises(InputError, match=message):
        make("passkey_yarn", 4096)


def test_trap_longrope_doubles_its_sentences_until_they_are_enough(monkeypatch):
    monkeypatch.setattr(passkey_compat, "YARN_REPEATS", 40)
    (first, *_) = make("passkey_longrope", 4096)
    own = len(passkey_compat.OPENING + passkey_compat.KEY_LINE + passkey_compat.QUESTION)
    assert len(first.prompt) > 14_950 > 40 * len(GRASS) and len(first.prompt) < 14_950 + own + 10


def test_trap_the_scripts_differ_in_their_number_of_trials():
    assert len(make("passkey_longrope", 1024)) == 10 and len(make("passkey_yarn", 1024)) == 20
    assert len(make("passkey_longrope", 1024, trials=3)) == 3
    assert len(make("passkey_yarn", 1024, trials=4)) == 4


def test_trap_infinitebench_keys_may_begin_with_zeros_and_are_compared_as_text():
    rng = random.Random(1)
    keys = [infinitebench.draw_passkey(rng) for _ in range(200)]
    assert all(re.fullmatch("[0-9]{5}", key) for key in keys) and any(k[0] == "0" for k in keys)
    item = Item("", ("00123",), 6, {})
    score = TASKS["passkey_infinitebench"].score
    assert score(" 00123.", item) == 1 and score("123", item) == 0 and score("0012", item) == 0
    assert score("7 00123", item) == 0 and score("none", item) == 0


def test_trap_a_number_string_repeats_five_of_its_digits():
    rng = random.Random(1)
    for _ in range(100):
        key = infinitebench.draw_number_string(rng)
        runs = [len(match.group()) for match in re.finditer(r"(\d)\1*", key)]
        assert len(key) == 10 and sum(run - 1 for run in runs) >= 5


def test_trap_infinitebench_knows_its_lengths_only():
    with pytest.raises(InputError, match="knows 8192, 16384, .*, got length 4096. Use those, or"):
        make("number_string", 4096, official=True)
    items = make("passkey_infinitebench", 8192, official=True)
    assert len(items) == 275 and items[0].about["lines"] == 326  # 55 places, 5 keys at each
    assert [item.about["depth"] for item in items[:6]] == [0, 0, 0, 0, 0, 6 / 326]


def test_trap_infinitebench_answers_have_few_tokens():
    assert {item.max_new_tokens for item in make("passkey_infinitebench", 2048)} == {6}
    assert {item.max_new_tokens for item in make("number_string", 2048)} == {12}


# what is our own


@pytest.mark.parametrize("name", ["passkey_infinitebench", "number_string"])
@pytest.mark.parametrize("length", [700, 2048])
def test_infinitebench_fits_a_length(name, length, shipped_tokenizer):
    for tokenizer in (BytesTokenizer(), shipped_tokenizer):
        items = make(name, length, tokenizer, trials=8)
        planned = [item.about["tokens"] + item.max_new_tokens for item in items]
        line = len(tokenizer.encode(f"{GRASS}\n"))
        assert length - line - 4 < max(planned) <= length
        for item in items:
            assert item.about["tokens"] == 1 + len(tokenizer.encode(item.prompt))
        lines = items[0].about["lines"]
        assert [i.about["depth"] for i in items] == [
            int(lines * (n + 0.5) / 8) / lines for n in range(8)
        ]


def test_an_infinitebench_prompt_by_hand():
    (item,) = make("number_string", 700, trials=1)
    key = item.answers[0]
    grass = f"{GRASS}\n"
    assert item.about["lines"] == 4
    assert item.prompt == (
        "There is an important info hidden inside a lot of irrelevant text. Find it. I will quiz "
        f"you about the important information there.\n\n{grass}{grass}The sequence of digits "
        f"is {key}. Remember it. {key} is the sequence of digits.\n{grass}{grass}\n\nWhat is the "
        "sequence of digits?\n\nThe sequence of digits is"
    )


@pytest.mark.parametrize("name", NAMES)
def test_who_knows_the_key_scores_one_and_who_does_not_scores_zero(name):
    task = TASKS[name]
    for item in make(name, 1024):
        (key,) = item.answers
        assert task.score(f" {key}. Remember", item) == 1.0
        assert f" is {key}. Remember it. {key} is the " in item.prompt
        assert task.score(" 98765432109", item) == 0.0 and task.score("", item) == 0.0


@pytest.mark.parametrize("name", NAMES)
def test_a_length_without_room_is_refused(name):
    with pytest.raises(
        InputError, match=r"eval.lengths: .* got length 200. Leave it out, or leave"
    ):
        make(name, 200)


def test_the_same_request_gives_the_same_items():
    for name in NAMES:
        first, second = make(name, 1024), make(name, 1024)
        assert [i.fingerprint() for i in first] == [i.fingerprint() for i in second]
    seeds = [make("number_string", 1024, run_seed=seed)[0].answers for seed in (0, 1)]
    assert seeds[0] != seeds[1]
