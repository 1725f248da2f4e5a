"""Quirks of NVIDIA's RULER, kept or refused, and where lm-evaluation-harness differs from it."""

import dataclasses
import hashlib
import itertools
import re

import pytest
from ruler_files import pieces_tokenizer
from tiny_ruler import generate, items, make_options

from jaxrope.data import BytesTokenizer
from jaxrope.errors import InputError, TooShort
from jaxrope.evaluate import ruler
from jaxrope.evaluate.items import Item
from jaxrope.evaluate.ruler import metrics, prompts, sources, words


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    return make_options(tmp_path_factory.mktemp("ruler"))


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    return pieces_tokenizer(tmp_path_factory.mktemp("pieces"))


@pytest.mark.parametrize("task", ruler.NAMES)
def test_quirk_1_what_cannot_fit_raises_where_nvidias_loop_never_ends(pieces, options, task):
    with pytest.raises(InputError) as caught:
        generate(pieces, options, task, 200)
    assert re.fullmatch(
        rf"eval\.lengths: ruler/{task} does not fit into 200 tokens, \d+ of them for the answer: "
        r"(its shortest prompt takes \d+|it takes more)\. Give longer lengths, or leave it out of "
        r"eval\.ruler\.tasks\.",
        str(caught.value),
    )


@pytest.mark.parametrize("task", ["niah_single_1", "niah_multikey_3", "vt", "fwe"])
def test_quirk_1_the_length_that_fits_is_said(pieces, options, task):
    with pytest.raises(TooShort) as caught:
        items(pieces, options, task, 150)
    least = caught.value.least
    assert f"it does into {least}. Give longer lengths" in str(caught.value)
    assert len(items(pieces, options, task, least)) == 3
    with pytest.raises(TooShort):
        items(pieces, options, task, least - 16)


def test_quirk_1_an_example_that_is_never_short_enough_raises(options):
    """vt hangs with tokenizers of few entries: its example has to fit into 500 tokens."""
    with pytest.raises(InputError, match="ruler/vt begins with a worked example of at most 500"):
        generate(BytesTokenizer(), options, "vt", 8192)


def test_quirk_1_more_questions_than_the_file_has_raise(pieces, options):
    with pytest.raises(InputError, match=r"samples is 13, but the file of eval\.ruler\.hotpotqa"):
        generate(pieces, options, "qa_2", 2048, count=13)


def test_quirk_2_index_is_the_number_of_the_question_not_the_place_of_the_answer(pieces, options):
    found = items(pieces, options, "niah_single_1", 1024)
    assert [item.about["index"] for item in found] == [0, 1, 2]
    for item in found:
        share = item.prompt.index(item.answers[0]) / len(item.prompt)
        assert abs(item.about["depth"] - share) <= 0.1


def test_quirk_3_cwe_does_not_read_english_words_until_it_needs_them(pieces, options):
    section = dataclasses.replace(options, english_words="")
    same = generate(pieces, section, "cwe", 1024)
    assert same == generate(pieces, options, "cwe", 1024)
    with pytest.raises(InputError, match="of 130000 tokens needs more than 8166 words. Give short"):
        generate(pieces, section, "cwe", 130_000, count=1)


def test_quirk_3_a_git_lfs_pointer_is_named_as_such(tmp_path):
    (tmp_path / "w.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(InputError, match=r"english_words: .*w\.json is a git-lfs pointer"):
        sources.read_words(str(tmp_path / "w.json"))


def test_quirk_4_the_words_are_those_of_one_version_of_wonderwords():
    nouns, adjectives, verbs = words.read()
    assert (len(nouns), len(adjectives), len(verbs)) == (6782, 910, 1041)
    found = words.all_words()
    assert len(found) == 8166
    assert hashlib.sha256("\n".join(found).encode()).hexdigest() == (
        "393572555cfe9c15fd065aa9df0e9e91368cff81418b4d78025e9a4f57fe2ac4"
    )


def test_quirk_4_changed_words_are_noticed(monkeypatch, tmp_path):
    (tmp_path / "words.txt").write_text("cat\n\nold\n\ngo\n")
    monkeypatch.setattr(words, "_FILE", tmp_path / "words.txt")
    with pytest.raises(AssertionError, match="words.txt was changed"):
        words.read()


def test_quirk_5_an_answer_counts_inside_a_longer_one():
    item = Item("", ("1234567", "cat"), 1, {})
    assert metrics.match_all("they are 91234567 and CONCATENATE", item) == 1.0
    assert metrics.match_all("they are 123456 7", item) == 0.0


def test_quirk_6_a_score_says_which_ruler_it_is_of():
    found = metrics.summary({"ruler/vt": {512: 0.5}})
    assert found["version"] == "NVIDIA/RULER v1, commit c3f5e3b; words of wonderwords 3.0.1"


# Where lm-evaluation-harness differs from NVIDIA


def test_lm_eval_1_one_right_answer_of_several_is_all_of_part():
    assert metrics.match_part("it is B", Item("", ("a1", "b", "c"), 1, {})) == 1.0


def test_lm_eval_2_cwe_has_its_example(pieces, options):
    (sample,) = generate(pieces, options, "cwe", 1024, count=1)
    assert sample.input.count("Below is a numbered list of words.") == 2
    example = sample.input.split("\nBelow")[0]
    assert re.search(r"in the list are: 1\. [^.]+( \d+\. [^.]+){9}$", example)


def test_lm_eval_3_vt_is_assigned_in_lines(pieces, options):
    (sample,) = generate(pieces, options, "vt", 1024, count=1)
    assert "assgined" not in sample.prompt
    assert len(re.findall(r"\nVAR [A-Z]+ = VAR [A-Z]+ (?=\n)", sample.input)) == 8  # two chains


def test_lm_eval_4_fwe_keeps_the_tokens_of_the_answer_free(pieces, options):
    (sample,) = generate(pieces, options, "fwe", 1024, count=1)
    assert sample.length == len(pieces.encode(sample.prompt)) + 50 <= 1024


def test_lm_eval_5_sizes_are_found_by_bisection(pieces, options, monkeypatch):
    """lm-eval adds lines one step after another, which is another size and other random numbers."""
    tried, real = [], ruler.fit.tokens

    def tokens(make, order, units):
        tried.append(units)
        return real(make, order, units)

    monkeypatch.setattr(ruler.fit, "tokens", tokens)
    generate(pieces, options, "niah_single_1", 2048, count=1)
    first, *rest = tried
    assert first == 5 and len(rest) <= 10  # of up to some hundred lines
    assert any(later < before for before, later in itertools.pairwise(rest))


def test_lm_eval_6_the_answer_of_cwe_begins_right_behind_its_colon(pieces, options):
    """lm-eval puts two new lines between the prompt and the answer."""
    (item,) = items(pieces, options, "cwe", 1024, count=1)
    assert item.prompt.endswith(" Answer: The top 10 words that appear most often in the list are:")


def test_trap_the_length_counts_the_answer(pieces, options):
    """max_seq_length is of prompt and tokens_to_generate together."""
    for task, tokens in (("niah_single_1", 128), ("vt", 30)):
        (sample,) = generate(pieces, options, task, 2048, count=1)
        assert sample.length == len(pieces.encode(sample.prompt)) + tokens <= 2048


def test_trap_the_depth_of_a_needle_is_drawn_and_not_spread(pieces, options):
    depths = [
        item.about["depth"] for item in items(pieces, options, "niah_single_1", 2048, count=10)
    ]
    assert len(set(depths)) < 10 and depths != sorted(depths)


def test_singular_and_plural_of_the_needles(pieces, options):
    (one,) = generate(pieces, options, "niah_single_1", 1024, count=1)
    assert one.input.startswith("A special magic number is hidden within the following text. Make")
    assert one.answer_prefix.endswith("mentioned in the provided text is")
    (four,) = generate(pieces, options, "niah_multiquery", 2048, count=1)
    assert four.input.startswith("Some special magic numbers are hidden within the following text.")
    assert re.search(r"magic numbers for [^,]+, [^,]+, [^,]+, and \S+ mentioned", four.input)
    assert len(four.outputs) == 4


def test_prompts_are_cut_at_the_last_answer():
    question, prefix = prompts.QA.split("x Answer: a\nQuestion: b Answer:")
    assert (question, prefix) == ("x Answer: a\nQuestion: b", " Answer:")
