"""Needle documents: the prompt to the token, what is random in it, and what cannot be built."""

import hashlib

import numpy as np
import pytest

from jaxrope import data
from jaxrope.data import BytesTokenizer, needles
from jaxrope.data.words import NOUNS
from jaxrope.errors import InputError


def make_source(tokenizer=BytesTokenizer(), documents=None, use="evaluation"):  # noqa: B008 (frozen)
    haystack = needles.text(documents) if documents else needles.grass(tokenizer)
    return needles.Source(tokenizer, haystack, use, "eval.lengths")


def make(source=None, **changes):
    chosen = dict(length=1500, num_keys=4, seed=7, index=0, depth=0.5) | changes
    return needles.make_document(source or make_source(), **chosen)


def text_of(document):
    return BytesTokenizer().decode(document.tokens)


def documents_of(tmp_path, *texts, tokenizer=BytesTokenizer()):  # noqa: B008 (frozen)
    for i, text in enumerate(texts):
        (tmp_path / f"{i}.txt").write_text(text)
    return data.load_documents(
        [f"{tmp_path}/*.txt"],
        tokenizer,
        cache_dir=tmp_path / "cache",
        settings=data.ReadSettings("data.eval_files"),
    )


def test_a_document_by_hand():
    found = make(length=900, num_keys=1)
    (word,), (number,) = found.words, found.numbers
    text = text_of(found)
    needle = f"\nOne of the special magic numbers for {word} is: {number}.\n"
    opening = (
        "A special magic number is hidden within the following text. Make sure to memorize it. "
        "I will quiz you about the number afterwards.\n"
    )
    question = (
        f"\nWhat is the special magic number for {word} mentioned in the provided text? The "
        f"special magic number for {word} mentioned in the provided text is {number}"
    )
    assert text.startswith(opening + "The grass is green.") and text.endswith(question)
    before, after = text[len(opening) : -len(question)].split(needle)
    assert abs(len(before) - len(after)) <= 1  # depth 0.5
    grass = (needles.GRASS + " ") * 20
    assert grass.startswith(before + after)
    assert found.tokens[0] == 256 and len(found.tokens) == 900
    assert found.answers == (tuple(range(893, 900)),)
    assert 10**6 <= int(number) < 10**7 and len(number) == 7


@pytest.mark.parametrize("depth", [None, 0.0, 0.4, 1.0])
def test_the_span_of_each_needle(depth):
    """One byte is one token, so that the lines can be read where the spans say."""
    for index in range(4):
        found = make(num_keys=5, index=index, depth=depth)
        lines = [BytesTokenizer().decode(found.tokens[begin:end]) for begin, end in found.spans]
        words = zip(found.words, found.numbers, strict=True)
        assert lines == [needles.NEEDLE.format(word=w, number=n) for w, n in words]


@pytest.mark.parametrize("num_keys", [1, 3, 6])
@pytest.mark.parametrize("length", [1111, 1112, 1600])
def test_every_document_has_exactly_the_length(num_keys, length, tmp_path):
    filled = make_source(documents=documents_of(tmp_path, "once upon a time " * 100))
    for source in (make_source(), filled):
        found = make(source, length=length, num_keys=num_keys)
        assert len(found.tokens) == length and found.tokens.dtype == np.int32
        text = text_of(found)
        for word, number in zip(found.words, found.numbers, strict=True):
            asked = word == found.words[0]
            assert text.count(f"magic numbers for {word} is: {number}.") == 1
            assert (
                text.count(number) == 1 + asked and text.count(f"number for {word} ") == 2 * asked
            )
        assert len(set(found.words)) == num_keys
        assert ("upon" in text) == (source is filled)


def test_needles_stand_where_their_depths_say():
    found = make(length=4000, num_keys=5, depth=0.25)
    text, room = text_of(found), 4000 - 1
    room -= len(needles.OPENING) + len(needles.QUESTION.format(word=found.words[0])) + 8
    lines = {
        word: needles.NEEDLE.format(word=word, number=number)
        for word, number in zip(found.words, found.numbers, strict=True)
    }
    room -= sum(map(len, lines.values()))
    places = sorted((text.index(line), word) for word, line in lines.items())
    passed = len(needles.OPENING)
    for place, word in places:
        depth = found.depths[found.words.index(word)]
        assert place - passed == round(depth * room), word
        passed += len(lines[word])
    assert found.depths[0] == 0.25 and len(set(found.depths)) == 5


def test_without_a_depth_all_stand_at_the_start():
    """LongRoPE2's: the needle, then the whole text, then the question."""
    orders = set()
    for index in range(12):
        found = make(num_keys=3, depth=None, index=index)
        text = text_of(found)[len(needles.OPENING) :]
        lines = [
            needles.NEEDLE.format(word=word, number=number)
            for word, number in zip(found.words, found.numbers, strict=True)
        ]
        places = [text.index(line) for line in lines]
        assert sorted(places)[0] == 0 and max(places) < sum(map(len, lines))
        assert found.depths == (0.0, 0.0, 0.0)
        orders.add(tuple(np.argsort(places)))
    assert len({order.index(0) for order in orders}) == 3  # the one asked is first, second or third


def test_several_keys_may_be_asked():
    found = make(length=2500, num_keys=4, num_asked=3)
    text = text_of(found)
    for word, number, places in zip(found.words, found.numbers, found.answers, strict=False):
        assert BytesTokenizer().decode(found.tokens[list(places)]) == number
        assert text.count(f"mentioned in the provided text is {number}") == 1
        assert text.count(f"for {word} mentioned") == 2
    assert len(found.answers) == 3 and found.answers[-1][-1] == 2499
    assert f"{found.numbers[0]}.\nWhat is" in text


def test_a_document_is_a_function_of_seed_and_index():
    one, same = make(), make()
    assert np.array_equal(one.tokens, same.tokens) and one.words == same.words
    others = [make(seed=8), make(index=1), make(make_source(use="search"))]
    for other in others:
        assert other.numbers != one.numbers and other.words != one.words
    assert len({other.numbers for other in others}) == 3
    # a golden one: a run that is resumed must see what it saw
    digest = hashlib.sha256(one.tokens.astype("<i4").tobytes()).hexdigest()
    assert (one.words, one.numbers[0]) == (GOLDEN[0], GOLDEN[1])
    assert digest[:16] == GOLDEN[2]


GOLDEN = (("leg", "olive", "flock", "letter"), "2794451", "55a6106ea7baba35")


def test_training_has_words_of_its_own():
    drawn = {use: set() for use in ("evaluation", "search", "training")}
    for use, words in drawn.items():
        for index in range(100):
            words |= set(make(make_source(use=use), num_keys=6, index=index).words)
    assert len(drawn["evaluation"]) > 200 and len(drawn["training"]) > 200
    assert not drawn["training"] & (drawn["evaluation"] | drawn["search"])


def spelled(numbers):
    """Words of small letters, one for each number."""
    return ["word" + chr(97 + i // 26) + chr(97 + i % 26) for i in numbers]


def test_words_of_the_text_are_learned_from_and_never_asked(tmp_path):
    many = spelled(range(len(NOUNS)))
    text = " ".join(2 * many + ["once"] + 2 * ["Proper", "the", "a1b2", NOUNS[1]])
    documents = documents_of(tmp_path, text, "brook " * 2)
    found = needles.training_words(documents, BytesTokenizer())
    assert found == tuple(sorted({*many, "brook"} - set(NOUNS[1::2])))
    source = needles.Source(BytesTokenizer(), needles.text(documents), "training", "x", found)
    document = make(source, length=1500, num_keys=6)
    assert set(document.words) <= set(found) and len(set(document.words)) == 6
    assert needles.most_tokens(source, 6, 6) > needles.most_tokens(make_source(), 1, 1)


def test_a_text_of_too_few_words_is_learned_from_with_nouns(tmp_path):
    few = spelled(range(len(NOUNS) - 1))
    documents = documents_of(tmp_path, " ".join(2 * few))
    assert needles.training_words(documents, BytesTokenizer()) == NOUNS[::2]


def test_the_words_are_frozen():
    assert len(NOUNS) == len(set(NOUNS)) == 527
    assert all(word.isalpha() and word.islower() for word in NOUNS)
    digest = hashlib.sha256(" ".join(NOUNS).encode()).hexdigest()
    assert digest[:16] == WORDS


WORDS = "4452d722b3f29540"


def test_any_run_of_tokens_is_as_likely(tmp_path):
    """Documents of 5, 20 and 12 tokens have 0, 11 and 3 runs of 10."""
    documents = documents_of(tmp_path, "a" * 5, "b" * 20, "cdefghijklmn")
    haystack = needles.text(documents)
    runs = [bytes(haystack(10, word).tolist()) for word in range(14)]
    assert runs == [b"b" * 10] * 11 + [b"cdefghijkl", b"defghijklm", b"efghijklmn"]
    assert bytes(haystack(10, 14).tolist()) == b"b" * 10  # and round again


def test_depths_are_spread_for_any_number():
    for count in (3, 8, 21):
        depths = sorted(needles.spread_depth(i) for i in range(count))
        assert 0 <= depths[0] and depths[-1] < 1
        assert max(np.diff([depths[-1] - 1, *depths])) < 2 / count
    assert needles.spread_depth(0) == 0.5
    assert needles.spread_depth(1) == pytest.approx(0.1180339887, abs=1e-9)


@pytest.mark.parametrize("num_keys, num_asked", [(1, 1), (6, 2)])
def test_the_bound_of_tokens_is_none_too_small(num_keys, num_asked):
    source = make_source(use="training")
    bound = needles.most_tokens(source, num_keys, num_asked)
    needed = []
    for index in range(40):
        with pytest.raises(InputError) as refused:
            make(source, length=1, num_keys=num_keys, num_asked=num_asked, index=index)
        needed.append(int(str(refused.value).split("have ")[1].split(" tokens")[0]))
    assert max(needed) <= bound < 1.4 * max(needed)
    assert len(make(source, length=bound, num_keys=num_keys, num_asked=num_asked).tokens) == bound


def test_digits_of_a_real_tokenizer(books_6m, shared):
    tokenizer = data.load_tokenizer(books_6m)
    found = make(make_source(tokenizer), length=512)
    assert found.answers == (tuple(range(505, 512)),)  # not the space before them
    (places,) = found.answers
    assert [tokenizer.decode([found.tokens[i]]) for i in places] == list(found.numbers[0])
    assert tokenizer.decode([found.tokens[504]]) == " "


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            dict(length=300),
            r"eval.lengths: 4 needles and 1 questions .* have \d+ tokens, got .* 300",
        ),
        (
            dict(length=2000),
            r"data.eval_files: needles are .* in 1,\d+ tokens .* the longest of 1 has 5",
        ),
    ],
)
def test_what_cannot_be_built_is_refused(changes, message, tmp_path):
    with pytest.raises(InputError, match=message):
        make(make_source(documents=documents_of(tmp_path, "short")), **changes)


def test_more_are_never_asked_than_there_are():
    with pytest.raises(ValueError, match="1 <= num_asked <= num_keys <= 263, got 2, 1"):
        make(num_keys=1, num_asked=2)
