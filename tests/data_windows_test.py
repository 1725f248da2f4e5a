"""Tests of jaxrope.data.windows."""

import numpy as np
import pytest

from jaxrope.data import TokenDocuments, eval_windows, fresh_windows, search_windows
from jaxrope.errors import InputError


def documents_of(*lengths) -> TokenDocuments:
    """Document d has the tokens 1000 * d + 100, 1000 * d + 101, ..."""
    ids = [1000 * doc + 100 + np.arange(length) for doc, length in enumerate(lengths)]
    return TokenDocuments(
        ids=np.concatenate(ids).astype(np.uint16),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        names=tuple(f"{doc}.txt" for doc in range(len(lengths))),
        files=(),
        vocab_size=60_000,
        fingerprint="f",
        setting="data.eval_files",
    )


def test_golden():
    windows = eval_windows(documents_of(5, 2, 9), length=3, num_windows=2, bos_id=1)
    assert windows.tokens_WT.tolist() == [[1, 100, 101, 102], [1, 2100, 2101, 2102]]
    assert windows.targets_WT.tolist() == [[100, 101, 102], [2100, 2101, 2102]]
    assert windows.doc_ids_W.tolist() == [0, 2] and windows.starts_W.tolist() == [0, 0]
    assert windows.tokens_WT.dtype == np.int32 and len(windows) == 2


def test_several_windows_of_a_document_and_an_offset():
    settings = dict(length=2, offset_tokens=1, windows_per_doc=3, bos_id=1)
    documents = documents_of(6, 2, 3, 100)
    windows = eval_windows(documents, num_windows=5, **settings)
    assert windows.doc_ids_W.tolist() == [0, 0, 2, 3, 3]
    assert windows.starts_W.tolist() == [1, 3, 1, 1, 3]
    assert windows.tokens_WT.tolist() == [
        [1, 101, 102],
        [1, 103, 104],
        [1, 2101, 2102],
        [1, 3101, 3102],
        [1, 3103, 3104],
    ]
    fewer = eval_windows(documents, num_windows=2, **settings)
    assert fewer.tokens_WT.tolist() == windows.tokens_WT[:2].tolist()
    assert len(eval_windows(documents, num_windows=6, **settings)) == 6
    with pytest.raises(InputError, match="give 6"):
        eval_windows(documents, num_windows=7, **settings)


def test_a_document_that_just_fits():
    documents = documents_of(4)
    windows = eval_windows(documents, length=3, num_windows=1, offset_tokens=1, bos_id=7)
    assert windows.tokens_WT.tolist() == [[7, 101, 102, 103]]
    with pytest.raises(InputError, match="need documents of 5 tokens"):
        eval_windows(documents, length=3, num_windows=1, offset_tokens=2, bos_id=7)


def test_without_a_begin_token_the_text_before_takes_its_place():
    documents = documents_of(7)
    windows = eval_windows(documents, length=3, num_windows=2, windows_per_doc=2, bos_id=None)
    assert windows.tokens_WT.tolist() == [[100, 101, 102, 103], [103, 104, 105, 106]]
    assert windows.starts_W.tolist() == [1, 4]
    later = eval_windows(documents, length=3, num_windows=1, offset_tokens=4, bos_id=None)
    assert later.tokens_WT.tolist() == [[103, 104, 105, 106]]


def test_too_little_text_says_what_is_needed_and_what_there_is():
    with pytest.raises(InputError) as caught:
        eval_windows(
            documents_of(50, 900, 70), length=4096, num_windows=16, offset_tokens=100, bos_id=1
        )
    assert str(caught.value) == (
        "data.eval_files: 16 windows (at most 1 of a document) of 4,096 tokens need documents of "
        "4,196 tokens (100 are passed over); 0 of 3 are so long and give 0, the longest has 900 "
        "('1.txt'). Give longer or more documents, or ask for shorter or fewer windows."
    )
    with pytest.raises(InputError, match=r"2 of 3 are so long and give 2, the longest has 900"):
        search_windows(documents_of(50, 900, 70), length=60, num_windows=3, seed=0, bos_id=1)


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("length", 0, "eval.lengths must be at least 1, got 0"),
        ("num_windows", 0, "eval.num_windows must be at least 1, got 0"),
        ("offset_tokens", -1, "eval.offset_tokens must be at least 0, got -1"),
        ("windows_per_doc", 0, "eval.windows_per_doc must be at least 1, got 0"),
    ],
)
def test_numbers_out_of_range(name, value, match):
    settings = dict(length=2, num_windows=1, bos_id=1) | {name: value}
    with pytest.raises(InputError, match=match):
        eval_windows(documents_of(9), **settings)
    if name != "windows_per_doc":
        with pytest.raises(InputError, match=f"must be at least .*, got {value}"):
            search_windows(documents_of(9), seed=0, **settings)


def test_search_windows_are_of_different_documents_drawn_by_the_seed():
    documents = documents_of(*[30, 5] * 20)
    settings = dict(length=8, num_windows=5, offset_tokens=2, bos_id=1)
    draws = {}
    for seed in range(20):
        windows = search_windows(documents, seed=seed, **settings)
        assert len(set(windows.doc_ids_W.tolist())) == 5
        assert set(windows.doc_ids_W % 2) == {0}  # the short ones are passed over
        assert windows.starts_W.tolist() == [2] * 5
        for row, doc in enumerate(windows.doc_ids_W):
            assert windows.tokens_WT[row].tolist() == [
                1,
                *range(1000 * doc + 102, 1000 * doc + 110),
            ]
        draws[seed] = windows.doc_ids_W.tolist()
    assert search_windows(documents, seed=3, **settings).doc_ids_W.tolist() == draws[3]
    assert len({tuple(draw) for draw in draws.values()}) == 20
    longest = settings | {"num_windows": 20, "length": 28}  # 2 + 28 tokens are all there is
    assert len(search_windows(documents, seed=0, **longest)) == 20
    with pytest.raises(InputError, match="0 of 40 are so long and give 0"):
        search_windows(documents, seed=0, **(longest | {"length": 29}))
    everything = search_windows(documents, seed=0, **(settings | {"num_windows": 20}))
    assert sorted(everything.doc_ids_W.tolist()) == list(range(0, 40, 2))


def fresh(documents, part, seed=0, numbers=range(40), length=5):
    settings = dict(length=length, numbers=numbers, seed=seed, bos_id=1)
    return fresh_windows(documents, part=part, **settings)


@pytest.mark.parametrize("lengths", [(9, 30, 4, 50) * 10, (30, 40), (30,), (12,), (10,)], ids=len)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_token_is_in_two_parts(lengths, seed):
    """Of many documents, of two, and of a single one that has room for two windows."""
    documents = documents_of(*lengths)
    first, last = fresh(documents, "first", seed), fresh(documents, "last", seed)
    assert not set(first.targets_WT.flat) & set(last.targets_WT.flat)
    assert len(first) == len(last) == 40
    # the list is endless and the same, wherever it is cut
    tail = fresh(documents, "last", seed, range(30, 40))
    assert np.array_equal(tail.tokens_WT, last.tokens_WT[30:])
    whole = set(fresh(documents, "all", seed, range(400)).doc_ids_W.tolist())
    parts = [set(fresh(documents, part, seed, range(400)).doc_ids_W) for part in ("first", "last")]
    assert parts[0] | parts[1] == whole == {i for i, n in enumerate(lengths) if n >= 5}


def test_the_last_part_is_a_quarter_of_the_documents():
    documents = documents_of(*[20] * 16)
    parts = {part: fresh(documents, part, numbers=range(48)) for part in ("first", "last")}
    assert len(set(parts["last"].doc_ids_W)) == 4 and len(set(parts["first"].doc_ids_W)) == 12
    # every document once before any comes again, each time from another place
    assert len(set(parts["first"].doc_ids_W[:12])) == 12
    assert len(set(parts["last"].starts_W)) > 5
    # search_windows takes others first
    chosen = search_windows(documents, length=5, num_windows=12, seed=0, bos_id=1)
    assert not set(chosen.doc_ids_W) & set(parts["last"].doc_ids_W)


def test_a_single_short_document_is_in_both_parts():
    """Eight tokens have no room for two windows of five."""
    documents = documents_of(8)
    for part in ("first", "last"):
        assert set(fresh(documents, part).starts_W) == {0, 1, 2, 3}
