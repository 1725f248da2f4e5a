"""Rows: documents joined, sources with weights, a mix by length, conversations."""

import dataclasses
from collections import Counter
from fractions import Fraction

import jax
import numpy as np
import pytest

from jaxrope import data, train
from jaxrope.data import BytesTokenizer, Group, TokenDocuments, answers, make_groups
from jaxrope.data.loader import Blend, empty_rows
from jaxrope.errors import InputError
from jaxrope.train import plan as plan_lib
from tests import tiny_run
from tests.data_loader_test import (
    BOS,
    EOS,
    column,
    documents_of,
    epoch_rows,
    equal,
    loader_of,
    numbered,
)

MODES = ["chunk", "pack", "concat"]


def test_the_example_of_joined_documents():
    """The example of the package's docstring."""
    documents = documents_of([10, 11, 12, 13, 14], [20])
    loaders = (loader_of(documents, seed=seed, mode="concat") for seed in range(99))
    loader = next(one for one in loaders if one.rows._layout._docs.tolist() == [0, 1])
    rows = sorted(epoch_rows(loader), key=lambda row: -sum(row["segment_ids_BT"]))
    assert loader.num_rows == 3 and loader.num_targets == 8 and loader.num_real == 9
    assert column(rows, "tokens") == [[1, 10, 11, 12], [1, 14, 2, 1], [1, 0, 0, 0]]
    assert column(rows, "targets") == [[10, 11, 12, 13], [14, 2, 1, 20], [2, 0, 0, 0]]
    assert column(rows, "positions") == [[0, 1, 2, 3], [0, 1, 2, 3], [0, 0, 0, 0]]
    assert column(rows, "segment_ids") == [[1, 1, 1, 1], [1, 1, 1, 1], [1, 0, 0, 0]]
    assert column(rows, "loss_weights") == [[1, 1, 1, 1], [1, 1, 0, 1], [1, 0, 0, 0]]


def stream_of(documents, bos_id, eos_id, order) -> list[int]:
    ends = ([bos_id] if bos_id else []), ([eos_id] if eos_id else [])
    return [t for d in order for t in [*ends[0], *documents.doc(d).tolist(), *ends[1]]]


@pytest.mark.parametrize("special", [(BOS, EOS), (BOS, None), (None, EOS), (None, None)])
@pytest.mark.parametrize("seq_len", [4, 16, 61])
def test_joined_rows_are_the_joined_text_cut(special, seq_len):
    """Every token is a target once, in the order of some permutation of the documents."""
    bos_id, eos_id = special
    lengths = np.random.default_rng(1).integers(1, 40, 30)
    documents = numbered(*lengths)
    loader = loader_of(
        documents, seq_len=seq_len, mode="concat", bos_id=bos_id, eos_id=eos_id, seed=3
    )
    layout = loader.rows._layout
    expected = stream_of(documents, bos_id, eos_id, layout._docs.tolist())
    assert sorted(layout._docs.tolist()) == list(range(30))
    assert layout._docs.tolist() != list(range(30))
    stream, counted = [], 0
    for chosen in range(loader.num_rows):
        row = {key: array[0] for key, array in empty_rows(1, seq_len).items()}
        layout.fill(row, chosen)
        real = row["segment_ids_BT"] == 1
        count = int(real.sum())
        assert real[:count].all() and (count == seq_len or chosen == loader.num_rows - 1)
        assert np.array_equal(row["positions_BT"][:count], np.arange(count))
        assert np.array_equal(row["tokens_BT"][1:count], row["targets_BT"][: count - 1])
        begin = bos_id or expected[len(stream)]
        assert row["tokens_BT"][0] == begin
        weights = row["loss_weights_BT"]
        assert np.array_equal(weights[:count] == 0, row["targets_BT"][:count] == (bos_id or -1))
        assert not weights[count:].any()
        stream += row["targets_BT"][:count].tolist()
        counted += int(weights.sum())
    assert stream == expected[1:] and counted == loader.num_targets
    assert loader.num_real == len(stream)
    assert loader.real_share == len(stream) / (loader.num_rows * seq_len)


def test_another_seed_joins_otherwise_and_another_epoch_shuffles_rows():
    documents = numbered(*range(1, 30))
    first, second = (loader_of(documents, mode="concat", seed=seed) for seed in (0, 1))
    assert epoch_rows(first) != epoch_rows(second)
    assert epoch_rows(first, 0) == epoch_rows(first, 3)
    assert not equal(first.batch(0), first.batch(first.num_rows))


def grouped(**settings):
    documents = numbered(*[3] * 10, *[9] * 10, *[20] * 10)
    shares = {"a": (range(10), "1/2"), "b": (range(10, 20), "1/3"), "c": (range(20, 30), "1/6")}
    groups = [Group(n, np.array(docs), Fraction(share)) for n, (docs, share) in shares.items()]
    return loader_of(documents, groups=groups, **dict(eos_id=None) | settings)


@pytest.mark.parametrize("mode", ["pack", "concat"])
def test_groups_have_their_shares_and_epochs_of_their_own(mode):
    loader = grouped(mode=mode, batch_size=6, seq_len=8)
    rows = [loader.batch(step) for step in range(100)]
    targets = np.concatenate([batch["targets_BT"] for batch in rows])
    of_row = [int(row.max()) // 1000 // 10 for row in targets]
    for group, share in enumerate((1 / 2, 1 / 3, 1 / 6)):
        counts = np.cumsum([number == group for number in of_row])
        assert np.all(np.abs(counts - share * np.arange(1, 601)) <= 3)
    used = Counter(tuple(row) for row, number in zip(targets.tolist(), of_row, strict=True))
    for group, (num_rows, share) in enumerate(loader.parts.values()):
        uses = [n for row, n in used.items() if max(t for t in row if t >= 100) // 10_000 == group]
        assert len(uses) <= num_rows and max(uses) - min(uses) <= max(uses)
        assert sum(uses) == pytest.approx(600 * share)


@pytest.mark.parametrize("mode", MODES)
def test_any_step_and_any_split_over_hosts_gives_the_same_batch(mode):
    def fresh():
        if mode == "chunk":
            return loader_of(numbered(*range(1, 30)), mode=mode, batch_size=8)
        return grouped(mode=mode, batch_size=8, seq_len=8)

    loader = fresh()
    batches = [loader.batch(step) for step in range(30)]
    for step in (29, 0, 14, 13):
        assert equal(fresh().batch(step), batches[step])
        parts = [fresh().batch(step, rows=slice(4 * i, 4 * i + 4)) for i in (0, 1)]
        joined = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        assert equal(joined, batches[step])


def test_a_blend_counts_its_rows():
    shares = [Fraction(1, 7), Fraction(2, 7), Fraction(4, 7)]
    loader = loader_of(numbered(9))
    blend = Blend([loader.rows] * 3, shares)
    seen: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for number in range(700):
        part, index = blend.part(number)
        seen[part].append(index)
    assert [seen[part] for part in seen] == [list(range(n)) for n in (100, 200, 400)]


def test_the_fingerprint_follows_groups():
    prints = {grouped(mode="pack").fingerprint, grouped(mode="concat").fingerprint}
    documents = numbered(*[3] * 10, *[9] * 10, *[20] * 10)
    prints.add(loader_of(documents, mode="pack").fingerprint)
    for docs, share in ((range(20), 1), (range(30), 1)):
        group = Group("x", np.array(docs), Fraction(share))
        prints.add(loader_of(documents, mode="pack", groups=[group]).fingerprint)
    assert len(prints) == 5


@pytest.fixture
def corpus(tmp_path):
    for name, sizes in {"a": (5, 50), "b": (7, 70, 700)}.items():
        (tmp_path / name).mkdir()
        for i, size in enumerate(sizes):
            (tmp_path / name / f"{i}.txt").write_text("x" * size)
    (tmp_path / "a" / "c.jsonl").write_text('{"text": "one"}\n{"text": "three"}\n')

    def load():
        return data.load_documents(
            [str(tmp_path / "**/*.*")], BytesTokenizer(), cache_dir=tmp_path / "cache"
        )

    return tmp_path, load()


def names(documents, group) -> list[str]:
    return [documents.names[doc] for doc in group.docs]


def test_sources_are_told_apart_by_their_files(corpus):
    folder, documents = corpus
    sources = ((f"{folder}/a/*", 3.0), (f"{folder}/b/*.txt", 1.0))
    first, second = make_groups(documents, sources, long_share=0.0, long_tokens=0)
    assert names(documents, first) == ["a/0.txt", "a/1.txt", "a/c.jsonl:1", "a/c.jsonl:2"]
    assert names(documents, second) == ["b/0.txt", "b/1.txt", "b/2.txt"]
    assert (first.share, second.share) == (Fraction(3, 4), Fraction(1, 4))
    assert make_groups(documents, (), long_share=0.0, long_tokens=9) == ()
    twice = ((f"{folder}/a/*", 3.0), (f"{folder}/**/0.txt", 1.0), (f"{folder}/b/[12]*", 1.0))
    with pytest.raises(InputError, match="a/0.txt' belongs to two sources, '.*/a/.*' and '"):
        make_groups(documents, twice, long_share=0.0, long_tokens=0)


def test_conversations_have_their_share(corpus):
    _, documents = corpus
    begins = np.isin(np.arange(len(documents)), [1, 3]).astype(np.uint8)
    chats = dataclasses.replace(documents, roles=np.repeat(begins, documents.lengths))
    text, spoken = make_groups(chats, (), long_share=0.0, long_tokens=0, chat_share=0.2)
    assert spoken.docs.tolist() == [1, 3] and len(text.docs) == len(documents) - 2
    assert (text.share, spoken.share) == (Fraction(4, 5), Fraction(1, 5))
    with pytest.raises(InputError, match="data.chat_share is 0.2, and .* has no conversations"):
        make_groups(documents, (), long_share=0.0, long_tokens=0, chat_share=0.2)


def test_long_documents_have_their_share_of_every_source(corpus):
    folder, documents = corpus
    (long, short) = make_groups(documents, (), long_share=0.6, long_tokens=50)
    assert names(documents, long) == ["a/1.txt", "b/1.txt", "b/2.txt"]
    assert (long.share, short.share) == (Fraction(3, 5), Fraction(2, 5))
    sources = ((f"{folder}/a/*", 1.0), (f"{folder}/b/*", 3.0))
    groups = make_groups(documents, sources, long_share=0.2, long_tokens=50)
    assert [float(group.share) for group in groups] == [0.05, 0.2, 0.15, 0.6]
    assert len({group.name for group in groups}) == 4
    with pytest.raises(
        InputError, match="no document of '.*/a/.' is long: has data.long_tokens=99 "
    ):
        make_groups(documents, sources, long_share=0.2, long_tokens=99)
    with pytest.raises(InputError, match="no document is short: has less than data.long_tokens=1 "):
        make_groups(documents, (), long_share=0.2, long_tokens=1)


# ---- conversations: P is a prompt's token, A an answer's ----


def chats(*documents: str) -> TokenDocuments:
    """Each document is a string of P and A (a conversation) or T (a text)."""
    kinds = {"T": answers.TEXT, "P": answers.PROMPT, "A": answers.ANSWER}
    plain = numbered(*map(len, documents))
    roles = np.array([kinds[letter] for text in documents for letter in text], np.uint8)
    fields = {name: getattr(plain, name) for name in plain.__dataclass_fields__}
    return TokenDocuments(**fields | {"roles": roles})


def test_a_conversation_is_packed_whole_with_its_own_ends():
    loader = loader_of(chats("PPAA", "TT", "PPAPA"), seq_len=8, mode="pack")
    rows = epoch_rows(loader)
    assert column(rows, "tokens") == [
        [1, 1100, 1101, 0, 0, 0, 0, 0],
        [2100, 2101, 2102, 2103, 100, 101, 102, 0],
    ]
    flat = [
        (target, weight)
        for row in rows
        for target, weight in zip(row["targets_BT"], row["loss_weights_BT"], strict=True)
        if target
    ]
    assert sorted(flat) == [
        (2, 1),
        *[(101, 0), (102, 1), (103, 1)],
        *[(1100, 1), (1101, 1)],
        *[(2101, 0), (2102, 1), (2103, 0), (2104, 1)],
    ]
    assert loader.num_targets == 7 and loader.num_real == 10


def test_a_long_conversation_loses_its_end_and_one_without_answers_goes():
    loader = loader_of(chats("PPAAPAAAAA", "PPPPPPPA", "PA"), seq_len=4, mode="pack")
    rows = epoch_rows(loader)
    assert sorted(column(rows, "targets")) == [[101, 102, 103, 104], [2101, 0, 0, 0]]
    assert loader.num_targets == 3
    with pytest.raises(InputError, match="no document has a token to predict"):
        loader_of(chats("PPPPPA"), seq_len=4, mode="pack")


def test_joined_conversations_count_their_answers():
    loader = loader_of(chats("PPAA", "TT", "PPAPA"), seq_len=4, mode="concat")
    seen = Counter()
    for row in epoch_rows(loader):
        for target, weight in zip(row["targets_BT"], row["loss_weights_BT"], strict=True):
            seen[target] += weight
    counted = {t for t, weight in seen.items() if weight}
    assert counted == {102, 103, 1100, 1101, 2, 2102, 2104}
    assert sum(seen.values()) == loader.num_targets == 7


def test_windows_of_conversations_score_answers_alone():
    """The third has no answer in a window, the fourth less than half of one."""
    documents = chats("PPAAPA", "TTTTTTTT", "PPPPPPA", "PA", "PPA")
    windows = data.eval_windows(documents, length=4, num_windows=2, bos_id=BOS)
    assert windows.tokens_WT.tolist() == [[100, 101, 102, 103, 104], [1, 1100, 1101, 1102, 1103]]
    assert windows.weights_WT.tolist() == [[0, 2, 2, 0], [1, 1, 1, 1]]
    assert windows.doc_ids_W.tolist() == [0, 1] and windows.starts_W.tolist() == [1, 0]
    short = data.eval_windows(documents, length=3, num_windows=4, windows_per_doc=2, bos_id=BOS)
    assert short.doc_ids_W.tolist() == [0, 1, 1, 4]
    assert short.tokens_WT[3].tolist() == [4100, 4101, 4102, 0]
    assert short.weights_WT[3].tolist() == [0, 3, 0]
    with pytest.raises(InputError, match="2 of 5|give 2"):
        data.eval_windows(documents, length=4, num_windows=3, bos_id=BOS)
    plain = data.eval_windows(numbered(9), length=4, num_windows=1, bos_id=BOS)
    assert plain.weights_WT is None


def test_windows_to_search_with_begin_as_a_conversation_does():
    documents = chats("PPAAPA", "TTTTTTTT")
    windows = data.search_windows(documents, length=5, num_windows=2, seed=0, bos_id=BOS)
    rows = sorted(windows.tokens_WT.tolist())
    assert rows == [[1, 1100, 1101, 1102, 1103, 1104], [100, 101, 102, 103, 104, 105]]
    fresh = data.fresh_windows(documents, length=2, numbers=range(60), seed=0, bos_id=BOS)
    for tokens, doc, start in zip(fresh.tokens_WT, fresh.doc_ids_W, fresh.starts_W, strict=True):
        first = 100 if doc == 0 and start == 1 else BOS
        assert tokens.tolist() == [first, *documents.tokens(doc, start, start + 2)]


# ---- a run ----


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    tiny_run.write_texts(folder)
    words = (folder / "train-0.txt").read_text().split()
    short = [" ".join(words[i : i + 3]) for i in range(0, 90, 3)]
    (folder / "short.jsonl").write_text("".join(f'{{"text": "{text}"}}\n' for text in short))
    (folder / "tiny.jsonl").write_text('{"text": "of words"}\n' * 100)
    return folder


def run_config(texts, **changes):
    config = tiny_run.make_config(texts)
    config.train.steps, config.checkpoint.every, config.eval.suites = 4, 2, ()
    config.train.log_every = 1
    config.data.update(changes)
    return config


KINDS = {
    "concat": dict(mode="concat"),
    "sources": dict(
        train_files=(),
        sources=(("{}/train-[01].txt", 0.7), ("{}/short.jsonl", 0.3)),
        mode="pack",
    ),
    "lengths": dict(
        train_files=("{}/train-0.txt", "{}/short.jsonl"),
        mode="pack",
        long_share=0.5,
        long_tokens=100,
    ),
}


def changes_of(kind: str, texts) -> dict:
    changes = dict(KINDS[kind])
    if "sources" in changes:
        changes["sources"] = tuple((p.format(texts), w) for p, w in changes["sources"])
    if changes.get("train_files"):
        changes["train_files"] = tuple(p.format(texts) for p in changes["train_files"])
    return changes


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_is_resumed_to_the_bit(texts, tmp_path, monkeypatch, kind):
    real, one = plan_lib.Plan.put_batch, jax.devices()[:1]
    config = run_config(texts, **changes_of(kind, texts))
    assert train.train(config, tmp_path / "whole", devices=one) == 0

    def put_batch(plan, step):
        if step == 3:
            raise KeyboardInterrupt
        return real(plan, step)

    monkeypatch.setattr(plan_lib.Plan, "put_batch", put_batch)
    with pytest.raises(KeyboardInterrupt):
        train.train(config, tmp_path / "cut", devices=one)
    monkeypatch.undo()
    assert train.train(config, tmp_path / "cut", devices=one) == 0
    assert tiny_run.differences(tmp_path / "cut", tmp_path / "whole") == []


def test_what_is_told_of_rows(texts):
    def told(**changes):
        plan = train.prepare(run_config(texts, **changes), devices=jax.devices()[:1])
        return "\n".join(plan.remarks)

    short = (f"{texts}/tiny.jsonl", f"{texts}/train-0.txt")
    low = told(train_files=short)
    assert 'padding; data.mode="pack" fills rows with several documents' in low
    length = len((texts / "train-0.txt").read_text())
    rows = 100 + -(-(length + 1) // 32)
    real = (100 * len("of words+") + length + 1) / (32 * rows)
    assert f"rows (chunk): {real:.1%} of a batch's tokens are real" in low and real < 0.8
    for mode in ("concat", "pack"):
        full = told(train_files=short, mode=mode)
        assert f"rows ({mode}): " in full and "data.mode" not in full
    mixed = told(**changes_of("sources", texts))
    assert f"rows of {texts}/train-[01].txt: 70.0%, 0." in mixed
    assert "data.sources: 3 files (1 JSON Lines, text in 'text'; 2 plain text), 32 doc" in mixed
    with pytest.raises(InputError, match="data.sources and data.train_files both name"):
        told(sources=(("x", 1.0),))


def test_other_shares_are_another_run(texts, tmp_path):
    changes = changes_of("sources", texts)
    config = run_config(texts, **changes)
    assert train.train(config, tmp_path, devices=jax.devices()[:1]) == 0
    (first, _), (second, _) = changes["sources"]
    config.data.sources = ((first, 0.5), (second, 0.5))
    with pytest.raises(InputError, match="began otherwise: the batches of data.sources"):
        train.train(config, tmp_path, devices=jax.devices()[:1])
