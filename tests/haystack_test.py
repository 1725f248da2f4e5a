"""A needle in a haystack: the original's prompts, ours to the token, and every trap by its name.

The hashes are of what generate_context and generate_prompt of the repository
FranxYao/Long-Context-Data-Engineering 2b38d52 make, with their "." tokens taken from the tokenizer.
"""

import hashlib
import random

import numpy as np
import pytest

from jaxrope import data
from jaxrope.data import BytesTokenizer
from jaxrope.data.words import NOUNS
from jaxrope.errors import InputError
from jaxrope.evaluate import haystack
from jaxrope.evaluate.items import Request
from jaxrope.evaluate.suites import TASKS
from tests.benches import make_bench

NEEDLE = (
    "\nThe best thing to do in San Francisco is eat a sandwich and sit in Dolores Park on a sunny "
    "day.\n"
)
ANSWER = "eat a sandwich and sit in Dolores Park on a sunny day."


@pytest.fixture(scope="module")
def shipped_tokenizer():
    return data.load_tokenizer("jaxrope/models/stdlib-3m")


def story(seed, sentences=60):
    rng, made = random.Random(seed), []
    for _ in range(sentences):
        words = [rng.choice(NOUNS) for _ in range(rng.randint(3, 14))]
        made.append(" ".join(words).capitalize() + rng.choice([".", ".", ".", "!", "...", ".\n\n"]))
    return " ".join(made) + "\n"


def request(length, files=(), *, tokenizer=None, documents=None, **changes):
    changes |= dict(haystack=tuple(map(str, files)))
    options = make_bench(niah=changes).options.niah
    used = tokenizer or BytesTokenizer()
    return Request(used, length, options.trials, 0, documents, options)


def make(length, files=(), **settings):
    return TASKS["niah"].make(request(length, files, **settings))


def write(folder, *texts):
    for i, text in enumerate(texts):
        (folder / f"{i}.txt").write_text(text, encoding="utf-8")
    return [folder / f"{i}.txt" for i in range(len(texts))]


def digest(items):
    rows = [np.array([len(item.tokens), *item.tokens], "<i4").tobytes() for item in items]
    return hashlib.sha256(b"".join(rows)).hexdigest()


MAT = {
    "needle": "\nThe key is under the mat.\n",
    "question": "Where is the key?",
    "answer": "under the mat.",
}


@pytest.mark.parametrize(
    "tokenizer, length, seed, changes, sha256",
    [
        (
            *("bytes", 1500, 1, {"buffer": 300}),
            "250d520b1ba136a6825e393db345dd495b31b8116d02e559263ce2874507df7f",
        ),
        (
            *("bytes", 900, 2, {"buffer": 280, **MAT}),
            "aba0272afe51722caf4d2826998e18e4b4fe80b0509acbbe346dfd1a9544d285",
        ),
        (
            *("file", 1500, 1, {"buffer": 300}),
            "2d90fc2a2b5b130b7dc2acda3f2dc73ada0477c376f4fd71e4c2817c527e0eef",
        ),
        (
            *("file", 900, 2, {"buffer": 280, **MAT}),
            "ba3b112449ac437aa28568c40eef6779f78fe0cabc2500ee62a82041660b7940",
        ),
    ],
)
def test_compat_prompts_are_those_of_fu_et_al(
    tokenizer, length, seed, changes, sha256, tmp_path, shipped_tokenizer
):
    used = BytesTokenizer() if tokenizer == "bytes" else shipped_tokenizer
    files = write(tmp_path, story(seed))
    assert digest(make(length, files, tokenizer=used, compat=True, **changes)) == sha256


@pytest.mark.parametrize("length", [500, 501, 1111])
def test_ours_has_exactly_the_length(length, tmp_path, shipped_tokenizer):
    files = write(tmp_path, story(3))
    for tokenizer in (BytesTokenizer(), shipped_tokenizer):
        items = make(length, files, tokenizer=tokenizer)
        assert len(items) == 10
        for item in items:
            assert len(item.tokens) + item.max_new_tokens == length and item.max_new_tokens == 50
            assert item.tokens[0] == tokenizer.bos_id and item.tokens.dtype == np.int32
            assert (item.tokens == tokenizer.bos_id).sum() == 1
            assert item.prompt.count(NEEDLE) == 1 and item.prompt == tokenizer.decode(item.tokens)


def test_a_prompt_by_hand(tmp_path):
    text = "One two. Three four five six. Seven eight nine. Ten."
    files = write(tmp_path, text)
    head = "<|im_start|> This is a very long story book: <book> "
    tail = " </book>.\n Based on the content of the book, Question: Where is the key?\nAnswer:"
    length = 1 + len(head + MAT["needle"] + tail) + 40 + 50  # 40 bytes of the text
    shown = {item.about["depth"]: item.prompt for item in make(length, files, depths=6, **MAT)}
    assert list(shown) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    cut, key = text[:40], MAT["needle"]
    assert shown[0.0] == f"{head}{key}{cut}{tail}"  # no sentence ends before it: the beginning
    for depth in (0.2, 0.4, 0.6):
        assert shown[depth] == f"{head}One two.{key}{cut[8:]}{tail}"
    assert shown[0.8] == f"{head}{cut[:29]}{key}{cut[29:]}{tail}"
    assert cut[:29].endswith("five six.")
    assert shown[1.0] == f"{head}{cut}{key}{tail}"  # the end, though no sentence does


# traps of attention_eval.md §2.2, by name


def test_trap_depths_are_rounded_percents_and_sigmoid_keeps_its_ends():
    assert haystack.linear(10) == [0, 11, 22, 33, 44, 56, 67, 78, 89, 100]
    assert haystack.linear(35)[:4] == [0, 3, 6, 9] and haystack.linear(35)[-2:] == [97, 100]
    found = haystack.sigmoid(5)
    assert found == [0, 7.586, 50, 92.414, 100]  # 100 / (1 + exp(-0.1 (25 - 50))) = 7.586
    assert haystack.sigmoid(11)[1] == 1.799 and haystack.sigmoid(11)[0] == 0


def test_trap_depth_spacing_reaches_the_prompts(tmp_path):
    files = write(tmp_path, story(3))
    places = {
        spacing: [item.about["place"] for item in make(2000, files, depth_spacing=spacing)]
        for spacing in ("linear", "sigmoid")
    }
    assert all(sorted(found) == found for found in places.values())
    assert (
        places["sigmoid"][1] < places["linear"][1] and places["sigmoid"][-2] > places["linear"][-2]
    )


def test_trap_without_a_full_stop_the_needle_stands_first(tmp_path):
    files = write(tmp_path, "no end of it at all " * 100)
    for compat in (False, True):
        items = make(1000, files, compat=compat, buffer=250)
        assert [item.about["place"] for item in items[:-1]] == [0] * 9
    head = [256, *BytesTokenizer().encode(haystack.HEAD), 256, *BytesTokenizer().encode("\nThe")]
    assert items[0].tokens[: len(head)].tolist() == head  # before even the bos of the text


def test_trap_depth_100_is_the_end_wherever_that_is(tmp_path):
    files = write(tmp_path, "no end of it at all " * 100)
    for compat in (False, True):
        last = make(1000, files, compat=compat, buffer=250)[-1]
        assert f"{NEEDLE} </book>." in last.prompt and last.about["depth"] == 1.0


def test_trap_the_buffer_is_for_question_and_answer(tmp_path):
    files = write(tmp_path, story(1))
    question = haystack.HEAD + haystack.TAIL.format(
        question="What is the best thing to do in San Francisco?"
    )
    for buffer in (300, 400):
        for item in make(1500, files, compat=True, buffer=buffer):
            # bos of the prompt beside, the text with its needle has the rest
            assert len(item.tokens) - len(question) - 1 == 1500 - buffer
    message = r"eval.niah.buffer: prompt and answer are \d+ tokens longer than length 1500, got 100"
    with pytest.raises(InputError, match=message):
        make(1500, files, compat=True, buffer=100)


def test_trap_decoding_and_encoding_anew_drifts(tmp_path):
    class Pairs:
        """Two letters are a token: what is cut in between is cut otherwise the next time."""

        vocab_size, bos_id = 70_000, None

        def encode(self, text):
            padded = text + "\0" * (len(text) % 2)
            return np.frombuffer(padded.encode("latin-1"), "<u2").astype(np.int32)

        def decode(self, ids):
            return np.asarray(ids, "<u2").tobytes().decode("latin-1").replace("\0", "")

    files = write(tmp_path, "abc. " * 2000)
    odd = {
        "needle": "\nThe key is here.\n\n",
        "question": "Where is the key",
        "answer": "here.",
    }
    assert len(odd["needle"]) % 2 == 1
    sizes = {
        compat: {
            len(i.tokens)
            for i in make(600, files, tokenizer=Pairs(), compat=compat, buffer=150, **odd)
        }
        for compat in (False, True)
    }
    own = len(Pairs().encode(haystack.HEAD)) + len(Pairs().encode(haystack.TAIL.format(**odd)))
    assert sizes[False] == {550}  # ours has what it was asked for
    assert sizes[True] == {600 - 150 + own - 1}


def test_trap_bos_is_encoded_into_the_text(tmp_path, shipped_tokenizer):
    files = write(tmp_path, story(1))
    for item in make(1500, files, tokenizer=shipped_tokenizer, compat=True, buffer=300):
        head = 1 + len(shipped_tokenizer.encode(haystack.HEAD))
        bos = np.flatnonzero(item.tokens == shipped_tokenizer.bos_id)
        needle = bos[-1] if item.about["place"] else bos[1]
        text = shipped_tokenizer.decode(item.tokens[needle:])
        assert text.startswith(NEEDLE) and len(bos) == 4
        if item.about["place"]:
            assert bos[:3].tolist() == [0, head, head + 1]


def test_trap_what_ends_a_sentence(tmp_path):
    class Words:
        """A word with its space is a token."""

        vocab_size, bos_id = 1000, None
        words: list = []

        def encode(self, text):
            found = [part for part in text.replace(" ", "\0 ").split("\0") if part]
            self.words += [part for part in found if part not in self.words]
            return np.array([self.words.index(part) for part in found], np.int32)

        def decode(self, ids):
            return "".join(self.words[i] for i in ids)

    files = write(tmp_path, "Tea . coffee etc. milk! wine\n" * 400)
    before = {}
    for compat in (False, True):
        items = make(300, files, tokenizer=Words(), compat=compat, buffer=100)
        before[compat] = {item.prompt.split("\nThe best")[0][-5:] for item in items[1:-1]}
    assert before[False] == {"Tea .", " etc."}
    assert before[True] == {"Tea ."}  # the token "." itself, with or without a space


def test_trap_a_perfect_answer_scores_eleven_of_twelve():
    assert haystack.fu_compat(ANSWER, ANSWER) == pytest.approx(0.916667, abs=1e-6)
    assert haystack.overlap(ANSWER, ANSWER) == haystack.substring(ANSWER, ANSWER) == 1.0
    without_a_stop = ANSWER.rstrip(".")
    assert haystack.fu_compat(without_a_stop, ANSWER) == pytest.approx(10 / 12)
    assert haystack.overlap(without_a_stop, ANSWER) == 1.0
    assert haystack.substring(without_a_stop, ANSWER) == 1.0


@pytest.mark.parametrize(
    "text, fu, overlap, substring",
    [
        ("Eat a sandwich.", 2 / 12, 3 / 11, 0),  # "sandwich." is not "sandwich"
        ("EAT A SANDWICH AND SIT IN DOLORES PARK ON A SUNNY DAY", 10 / 12, 1, 1),
        ("The thing is to eat a  sandwich and\nsit in Dolores Park on a sunny day!", 10 / 12, 1, 1),
        ("sit in a park", 4 / 12, 4 / 11, 0),
        ("go to the museum", 0, 0, 0),
        ("", 0, 0, 0),
    ],
)
def test_scorers_by_hand(text, fu, overlap, substring):
    assert haystack.fu_compat(text, ANSWER) == pytest.approx(fu)
    assert haystack.overlap(text, ANSWER) == pytest.approx(overlap)
    assert haystack.substring(text, ANSWER) == substring


def test_the_scorer_is_the_one_that_is_asked_for(tmp_path):
    files, text = write(tmp_path, story(1)), "eat a sandwich and sit in Dolores Park"
    found = {
        name: TASKS["niah"].score(text, make(1000, files, score=name)[0])
        for name in haystack.SCORERS
    }
    assert found == pytest.approx(
        {"overlap": 8 / 11, "substring": 0, "rouge1": 2 * 8 / 20, "fu_compat": 8 / 12}
    )


def test_trap_the_printed_score_is_not_the_one_of_the_figure():
    """The script prints ten times ROUGE-1's F of the whole needle; the figure shows words found."""
    assert haystack.rouge1(ANSWER, NEEDLE) == pytest.approx(0.727, abs=1e-3)
    assert haystack.fu_compat(ANSWER, ANSWER) == pytest.approx(11 / 12)
    assert make_bench().options.niah.score == "overlap"


# rouge_score 0.1.2, RougeScorer(["rouge1"], use_stemmer=False).score(needle, response)
@pytest.mark.parametrize(
    "text, expected",
    [
        (ANSWER, 0.7272727272727273),
        ("The best thing is the best sandwiches, eaten in the-park!", 0.375),
        (" A a a DAY 12", 0.23076923076923073),
        ("nothing", 0.0),
    ],
)
def test_rouge1_is_that_of_rouge_score_without_stemming(text, expected):
    assert haystack.rouge1(text, NEEDLE) == pytest.approx(expected, abs=1e-12)


def test_trap_essays_that_are_not_the_original_are_marked(tmp_path, monkeypatch):
    files = write(tmp_path, story(1), story(2))
    assert {item.about["haystack"] for item in make(1000, files)} == {"niah-pd"}
    sums = sorted(hashlib.sha256(file.read_bytes()).hexdigest() for file in files)
    known = hashlib.sha256("".join(sums).encode()).hexdigest()
    monkeypatch.setattr(haystack, "ORIGINAL_ESSAYS", (known,))
    assert {item.about["haystack"] for item in make(1000, files)} == {"niah"}
    assert {item.about["haystack"] for item in make(1000, files[:1])} == {"niah-pd"}


def test_trap_texts_follow_in_the_order_of_their_names_and_repeat(tmp_path):
    texts = "First one. " * 5, "Second one. " * 5
    write(tmp_path, *texts)
    (item,) = make(1000, [tmp_path / "*.txt"], depths=1)
    context = item.prompt.split("<book> ")[1].split(" </book>")[0].replace(NEEDLE, "", 1)
    assert ("".join(texts) * 10).startswith(context) and len(context) > 3 * len("".join(texts))


# what is our own


def test_a_cut_within_a_word_changes_no_token():
    class Words:
        bos_id = None

        def encode(self, text):
            return np.array([hash(word) % 2**31 for word in text.split()], np.int32)

    text = "ten-letter " + "sevenly " * 500  # eight characters a word, but for the first
    source = haystack.Source(1, lambda i, chars: text[:chars], "niah-pd")
    for count in (10, 100):
        found = haystack._leading_tokens(Words(), source, 0, count)
        assert found.tolist() == Words().encode(text)[:count].tolist()


def test_every_haystack_begins_with_another_text(tmp_path):
    files = write(tmp_path, "Aa. " * 900, "Bb. " * 900, "Cc. " * 900)
    items = make(800, files, trials=3, depths=2)
    assert [item.about["trial"] for item in items] == [0, 0, 1, 1, 2, 2]
    assert [item.prompt.split(NEEDLE)[1][:2] for item in items[::2]] == ["Aa", "Bb", "Cc"]
    message = "trials is the number of haystacks, .* there are 3, got 4. Name more texts"
    with pytest.raises(InputError, match=message):
        make(800, files, trials=4)


def test_documents_are_a_haystack_like_files(tmp_path, shipped_tokenizer):
    files = write(tmp_path, story(1), story(2))
    documents = data.load_documents(
        list(map(str, files)), shipped_tokenizer, cache_dir=tmp_path / "cache"
    )
    of_files = make(1500, files, tokenizer=shipped_tokenizer)
    of_documents = make(1500, documents=documents, tokenizer=shipped_tokenizer)
    assert [i.fingerprint() for i in of_files] == [i.fingerprint() for i in of_documents]


def test_who_knows_the_answer_scores_one_and_who_does_not_scores_zero(tmp_path):
    task = TASKS["niah"]
    assert task.columns == ("depth",)
    for item in make(1000, write(tmp_path, story(1)), trials=1):
        assert task.score(f" {item.answers[0]}", item) == 1.0
        assert task.score(" 1234 nothing", item) == 0.0 and task.score("", item) == 0.0


@pytest.mark.parametrize(
    "length, changes, message",
    [
        (300, {}, r"without a haystack have \d+ tokens, got length 300. Leave it out, or leave"),
        (300, {"compat": True, "buffer": 250}, r"needle and eval.niah.buffer have 348 tokens, got"),
        (
            900,
            {"answer": "a taco."},
            "eval.niah.answer must be a part of eval.niah.needle .*taco.'",
        ),
        (900, {"answer": "."}, "eval.niah.answer must be a part of eval.niah.needle with a word"),
    ],
)
def test_what_cannot_be_made_is_refused(length, changes, message, tmp_path):
    with pytest.raises(InputError, match=message):
        make(length, write(tmp_path, story(1)), **changes)


def test_a_haystack_needs_text(tmp_path):
    with pytest.raises(InputError, match="set eval.niah.haystack or data.eval_files"):
        make(900)
    with pytest.raises(InputError, match=r"eval.niah.haystack: there is no text in"):
        make(900, write(tmp_path, "  \n"))
    with pytest.raises(InputError, match="eval.niah.haystack: .*none.txt"):
        make(900, [tmp_path / "none.txt"])
