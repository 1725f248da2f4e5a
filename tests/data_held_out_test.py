"""data.held_out: the last documents, which evaluations read, and no search and no training."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from tiny_run import make_config, write_texts

from jaxrope import data, schema, setup
from jaxrope.errors import InputError
from tests.search_config import changed

TOKENIZER = data.load_tokenizer("bytes")


def corpus(folder: Path, *texts: str) -> data.TokenDocuments:
    lines = [json.dumps({"text": text}) for text in texts]
    (folder / "texts.jsonl").write_text("\n".join(lines))
    return data.load_documents([str(folder / "texts.jsonl")], TOKENIZER, cache_dir=folder / "cache")


@pytest.mark.parametrize(
    "lengths, share, count",
    [
        ((10, 10, 10, 10), 0.25, 1),
        ((10, 10, 10, 10), 0.26, 2),  # never less than was asked for
        ((10, 10, 10, 10), 0.01, 1),
        ((10, 10, 10, 10), 0.99, 3),  # one is left
        ((90, 5, 5), 0.1, 2),
        ((5, 5, 90), 0.1, 1),
    ],
)
def test_the_last_documents_are_held_out(tmp_path, lengths, share, count):
    whole = corpus(tmp_path, *("abcdefghij"[i] * n for i, n in enumerate(lengths)))
    rest, held_out = data.split(whole, share)
    assert len(held_out) == count and len(rest) == len(lengths) - count
    docs = [part.doc(i).tolist() for part in (rest, held_out) for i in range(len(part))]
    assert docs == [whole.doc(i).tolist() for i in range(len(whole))]
    assert rest.lengths.tolist() + held_out.lengths.tolist() == list(lengths)
    assert len({whole.fingerprint, rest.fingerprint, held_out.fingerprint}) == 3
    assert (*rest.names, *held_out.names) == whole.names


def test_one_document_is_cut(tmp_path):
    whole = corpus(tmp_path, "0123456789")
    rest, held_out = data.split(whole, 0.3)
    assert bytes(rest.doc(0).tolist()) == b"0123456"
    assert bytes(held_out.doc(0).tolist()) == b"789" and held_out.names[0].endswith(", its end")
    with pytest.raises(InputError, match="cannot be cut in two for data.held_out"):
        data.split(corpus(tmp_path, "0"), 0.3)


def test_roles_are_split_with_their_tokens(tmp_path):
    whole = corpus(tmp_path, "aaaa", "bb", "cccc")
    roles = np.array([0, 1, 2, 0, 0, 2, 0, 1, 2, 1], dtype=np.uint8)  # all begin as text
    rest, held_out = data.split(dataclasses.replace(whole, roles=roles), 0.4)
    assert (
        rest.roles.tolist() == roles[:6].tolist() and held_out.roles.tolist() == roles[6:].tolist()
    )
    assert [held_out.counted(0, 1, 3).tolist()] == [(roles[7:9] != 1).tolist()]


def test_text_and_conversations_are_split_apart(tmp_path):
    """The last of each kind, wherever they lie, with their roles."""
    texts = ("aaaa", "bb", "cccc", "dd", "eeee")
    whole = corpus(tmp_path, *texts)
    roles = np.repeat(np.array([0, 1, 0, 1, 1], np.uint8), [4, 2, 4, 2, 4])
    whole = dataclasses.replace(whole, roles=roles)
    rest, held_out = data.split(whole, 0.3)
    for part, wanted in ((rest, ("aaaa", "bb", "dd")), (held_out, ("cccc", "eeee"))):
        read = [bytes(part.doc(i).tolist()).decode() for i in range(len(part))]
        assert read == list(wanted)
    assert rest.roles.tolist() == [0] * 4 + [1] * 4 and held_out.are_chats.tolist() == [False, True]
    alone = dataclasses.replace(corpus(tmp_path, "bb", "dd", "eeee"), roles=np.ones(8, np.uint8))
    assert [part.lengths.tolist() for part in data.split(alone, 0.3)] == [[2, 2], [4]]


def test_programs_read_one_part_each(tmp_path):
    write_texts(tmp_path / "texts")
    changes = dict(data__eval_files=(), data__held_out=0.3)
    config = schema.read(changed(make_config(tmp_path / "texts"), **changes))
    tokenizer, place = setup.tokenizer(config, None, 264)
    trained = setup.train_documents(config, tokenizer, place)
    held_out = setup.held_out_documents(config, tokenizer, place)
    assert not set(trained.names) & set(held_out.names) and len(held_out) >= 1
    share = len(held_out.ids) / (len(held_out.ids) + len(trained.ids))
    assert share >= 0.3


def test_one_says_what_is_held_out_once(tmp_path):
    for changes, other in (
        (dict(data__eval_files=("x.txt",)), "data.eval_files"),
        (dict(data__train_files=(), data__sources=(("x.txt", 1.0),)), "data.sources"),
    ):
        changes = dict(data__eval_files=(), data__held_out=0.5) | changes
        with pytest.raises(InputError, match=f"got 0.5 beside {other}. Leave one of them out"):
            schema.read(changed(make_config(tmp_path), **changes))
