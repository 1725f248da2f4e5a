"""Tests of jaxrope.data.loader and jaxrope.data.shuffle."""

from collections import Counter

import numpy as np
import pytest

from jaxrope.data import TokenDocuments, TrainLoader
from jaxrope.data.shuffle import permutation
from jaxrope.errors import InputError

BOS, EOS = 1, 2


def documents_of(*documents, fingerprint="f") -> TokenDocuments:
    lengths = [len(ids) for ids in documents]
    return TokenDocuments(
        ids=np.concatenate(documents).astype(np.uint16),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        names=tuple(f"{doc}.txt" for doc in range(len(documents))),
        files=(),
        vocab_size=60_000,
        fingerprint=fingerprint,
        setting="data.train_files",
    )


def numbered(*lengths) -> TokenDocuments:
    """Document d has the tokens 1000 * d + 100, 1000 * d + 101, ..."""
    return documents_of(*[1000 * d + 100 + np.arange(length) for d, length in enumerate(lengths)])


def loader_of(documents, **settings) -> TrainLoader:
    settings = dict(seq_len=4, batch_size=2, seed=0, bos_id=BOS, eos_id=EOS) | settings
    return TrainLoader(documents, **settings)


def epoch_rows(loader, epoch=0) -> list[dict[str, list]]:
    """Every row of an epoch, smallest tokens first."""
    rows = []
    for number in range(epoch * loader.num_rows, (epoch + 1) * loader.num_rows):
        step, row = divmod(number, loader.batch_size)
        batch = loader.batch(step, rows=slice(row, row + 1))
        rows.append({key: value[0].tolist() for key, value in batch.items()})
    return sorted(rows, key=lambda row: row["targets_BT"])


def column(rows, key):
    return [row[f"{key}_BT"] for row in rows]


def test_chunk_golden():
    """The example of the package's docstring."""
    loader = loader_of(documents_of([10, 11, 12, 13, 14], [20]))
    rows = epoch_rows(loader)
    assert loader.num_rows == 3 and loader.num_targets == 8
    assert column(rows, "tokens") == [[1, 10, 11, 12], [1, 14, 0, 0], [1, 20, 0, 0]]
    assert column(rows, "targets") == [[10, 11, 12, 13], [14, 2, 0, 0], [20, 2, 0, 0]]
    assert column(rows, "positions") == [[0, 1, 2, 3], [0, 1, 0, 0], [0, 1, 0, 0]]
    assert column(rows, "segment_ids") == [[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0]]
    assert column(rows, "loss_weights") == [[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0]]


def test_pack_golden():
    """The example of the package's docstring."""
    rows = epoch_rows(loader_of(documents_of([10, 11, 12, 13, 14], [20]), mode="pack"))
    assert column(rows, "tokens") == [[1, 10, 11, 12], [1, 14, 1, 20]]
    assert column(rows, "targets") == [[10, 11, 12, 13], [14, 2, 20, 2]]
    assert column(rows, "positions") == [[0, 1, 2, 3], [0, 1, 0, 1]]
    assert column(rows, "segment_ids") == [[1, 1, 1, 1], [1, 1, 2, 2]]
    assert column(rows, "loss_weights") == [[1, 1, 1, 1], [1, 1, 1, 1]]


def test_a_document_that_ends_with_a_row():
    """Seven tokens and EOS are two rows of four targets; one token more needs a third row."""
    rows = epoch_rows(loader_of(numbered(7)))
    assert column(rows, "targets") == [[100, 101, 102, 103], [104, 105, 106, 2]]
    assert column(rows, "tokens") == [[1, 100, 101, 102], [1, 104, 105, 106]]
    rows = epoch_rows(loader_of(numbered(8)))
    assert column(rows, "targets")[0] == [2, 0, 0, 0] and column(rows, "tokens")[0] == [1, 0, 0, 0]
    assert column(rows, "loss_weights")[0] == [1, 0, 0, 0] and len(rows) == 3


def test_without_special_tokens():
    rows = epoch_rows(loader_of(numbered(7), bos_id=None, eos_id=None))
    assert column(rows, "tokens") == [[100, 101, 102, 103], [104, 105, 0, 0]]
    assert column(rows, "targets") == [[101, 102, 103, 104], [105, 106, 0, 0]]
    rows = epoch_rows(loader_of(numbered(7), bos_id=None))
    assert column(rows, "targets") == [[101, 102, 103, 104], [105, 106, 2, 0]]
    rows = epoch_rows(loader_of(numbered(7), eos_id=None))
    assert column(rows, "tokens") == [[1, 100, 101, 102], [1, 104, 105, 0]]
    assert column(rows, "targets") == [[100, 101, 102, 103], [104, 105, 106, 0]]
    assert loader_of(numbered(1, 6), bos_id=None, eos_id=None).num_targets == 5


def test_packing_is_best_fit_longest_first():
    """Pieces of 4, 2, 3, 3 and 2 targets in rows of 6: 4 + 2, 3 + 3, 2."""
    rows = epoch_rows(loader_of(numbered(3, 1, 2, 2, 1), seq_len=6, mode="pack"))
    assert column(rows, "targets") == [
        [100, 101, 102, 2, 1100, 2],
        [2100, 2101, 2, 3100, 3101, 2],
        [4100, 2, 0, 0, 0, 0],
    ]
    assert column(rows, "segment_ids") == [
        [1, 1, 1, 1, 2, 2],
        [1, 1, 1, 2, 2, 2],
        [1, 1, 0, 0, 0, 0],
    ]


@pytest.mark.parametrize("mode", ["chunk", "pack"])
@pytest.mark.parametrize("special", [(BOS, EOS), (BOS, None), (None, EOS), (None, None)])
def test_invariants_of_rows(mode, special):
    lengths = np.random.default_rng(0).integers(1, 40, 50)
    bos_id, eos_id = special
    loader = loader_of(numbered(*lengths), seq_len=16, mode=mode, bos_id=bos_id, eos_id=eos_id)
    seen = Counter()
    for row in epoch_rows(loader):
        row = {key: np.array(value) for key, value in row.items()}
        tokens, targets, segments = row["tokens_BT"], row["targets_BT"], row["segment_ids_BT"]
        real = segments > 0
        assert np.array_equal(row["loss_weights_BT"], real) and real[0]
        assert not np.any(real[1:] & ~real[:-1])  # padding is at the end
        seen.update(targets[real].tolist())
        for segment in range(1, segments.max() + 1):
            (places,) = np.nonzero(segments == segment)
            assert np.array_equal(places, np.arange(places[0], places[-1] + 1))
            assert np.array_equal(row["positions_BT"][places], np.arange(len(places)))
            assert np.array_equal(tokens[places][1:], targets[places][:-1])  # shifted by one
            text = [t for t in [*tokens[places], targets[places][-1]] if t not in (BOS, EOS)]
            assert len({token // 1000 for token in text}) <= 1  # one document
            if bos_id is not None:
                assert tokens[places[0]] == BOS
                assert BOS not in tokens[places][1:] and BOS not in targets[places]
            assert EOS not in tokens[places]
    first = 0 if bos_id is not None else 1
    expected = Counter(
        1000 * d + 100 + i for d, length in enumerate(lengths) for i in range(first, length)
    )
    if eos_id is not None:
        expected[EOS] = len(lengths)
    assert seen == expected and loader.num_targets == expected.total()
    if mode == "pack":
        assert loader.num_targets / (loader.num_rows * 16) > 0.95


@pytest.mark.parametrize("mode", ["chunk", "pack"])
def test_an_epoch_has_every_row_once_and_the_next_another_order(mode):
    loader = loader_of(numbered(*range(1, 30)), mode=mode, batch_size=5)
    assert loader.num_rows % 5 != 0  # a batch lies over the end of the epoch
    assert epoch_rows(loader, 0) == epoch_rows(loader, 1) == epoch_rows(loader, 5)
    stream = np.concatenate([loader.batch(step)["targets_BT"] for step in range(loader.num_rows)])
    epochs = stream.reshape(5, loader.num_rows, 4)
    orders = [[tuple(row) for row in epoch] for epoch in epochs.tolist()]
    assert len({tuple(order) for order in orders}) == 5  # no two epochs alike
    assert all(sorted(order) == sorted(orders[0]) for order in orders)


def test_a_batch_larger_than_an_epoch():
    loader = loader_of(numbered(7), batch_size=5)
    assert loader.num_rows == 2
    targets = loader.batch(0)["targets_BT"].tolist() + loader.batch(1)["targets_BT"].tolist()
    for epoch in range(5):
        assert sorted(targets[2 * epoch : 2 * epoch + 2])[0][0] == 100
        assert sorted(targets[2 * epoch : 2 * epoch + 2])[1][0] == 104


def equal(first, second):
    return first.keys() == second.keys() and all(
        np.array_equal(first[key], second[key]) and first[key].dtype == second[key].dtype
        for key in first
    )


@pytest.mark.parametrize("mode", ["chunk", "pack"])
def test_resume_and_any_split_over_hosts_give_the_same_batches(mode):
    def fresh():
        return loader_of(numbered(*range(1, 30)), mode=mode, batch_size=8, seed=5)

    loader = fresh()
    batches = [loader.batch(step) for step in range(40)]
    for step in (39, 0, 17, 16, 18):  # any order, from the start or in the middle
        assert equal(fresh().batch(step), batches[step])
        assert equal(loader.batch(step), batches[step])
        for hosts in (1, 2, 4, 8):
            per_host = 8 // hosts
            parts = [
                fresh().batch(step, rows=slice(host * per_host, (host + 1) * per_host))
                for host in range(hosts)
            ]
            joined = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
            assert equal(joined, batches[step])


def test_seed_changes_the_order_only():
    documents = numbered(*range(1, 30))
    first, second = loader_of(documents, seed=0), loader_of(documents, seed=1)
    assert not equal(first.batch(0), second.batch(0))
    assert epoch_rows(first) == epoch_rows(second)


def test_dtypes_and_shapes():
    batch = loader_of(numbered(9), batch_size=3).batch(0)
    assert {key: (value.dtype.name, value.shape) for key, value in batch.items()} == {
        "tokens_BT": ("int32", (3, 4)),
        "targets_BT": ("int32", (3, 4)),
        "positions_BT": ("int32", (3, 4)),
        "segment_ids_BT": ("int32", (3, 4)),
        "loss_weights_BT": ("float32", (3, 4)),
    }


def test_the_fingerprint_follows_every_setting():
    documents = numbered(9, 8)
    settings = dict(seq_len=4, batch_size=2, seed=0, mode="chunk", bos_id=BOS, eos_id=EOS)
    first = loader_of(documents, **settings).fingerprint
    assert loader_of(documents, **settings).fingerprint == first and len(first) == 64
    other = dict(seq_len=5, batch_size=3, seed=1, mode="pack", bos_id=3, eos_id=None)
    changed = [
        loader_of(documents, **(settings | {name: value})).fingerprint
        for name, value in other.items()
    ]
    changed.append(loader_of(documents_of([9] * 9, fingerprint="g"), **settings).fingerprint)
    assert len({first, *changed}) == 1 + len(changed)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        (dict(seq_len=0), "train.seq_len must be at least 1 token, got 0"),
        (dict(batch_size=0), "train.batch_size must be at least 1 row, got 0"),
        (dict(seed=-1), r"seed must be from 0 to 2\*\*64 - 1, got -1"),
        (dict(mode="chunks"), "Unknown data.mode 'chunks'. Did you mean 'chunk'"),
        (dict(eos_id=60_000), "eos_id must be below the tokenizer's 60000 ids, got 60000"),
        (dict(bos_id=-1), "bos_id must be below the tokenizer's 60000 ids, got -1"),
        (
            dict(seq_len=11),
            r"data.train_files: train.seq_len=11 needs a document of 10 tokens, the longest of 2 "
            r"has 9 \('1.txt'\)",
        ),
    ],
)
def test_messages(settings, match):
    with pytest.raises(InputError, match=match) as caught:
        loader_of(numbered(3, 9), **settings)
    assert "\n" not in str(caught.value)


def test_the_longest_document_may_just_fill_a_row():
    assert loader_of(numbered(3, 9), seq_len=10).num_rows == 2
    assert loader_of(numbered(3, 9), seq_len=11, mode="pack").num_rows == 2
    with pytest.raises(InputError, match="no document has a token to predict"):
        loader_of(numbered(1), mode="pack", bos_id=None, eos_id=None)


def philox_words(count, key):
    """Philox4x64-10 by its paper (Salmon et al. 2011), counters from 1 as NumPy starts."""
    words, mask = [], (1 << 64) - 1
    for counter in range(1, -(-count // 4) + 1):
        x, k = [counter, 0, 0, 0], list(key)
        for _ in range(10):
            a, b = 0xD2E7470EE14C6C93 * x[0], 0xCA5A826395121157 * x[2]
            x = [(b >> 64) ^ x[1] ^ k[0], b & mask, (a >> 64) ^ x[3] ^ k[1], a & mask]
            k = [(k[0] + 0x9E3779B97F4A7C15) & mask, (k[1] + 0xBB67AE8584CAA73B) & mask]
        words += x
    return words[:count]


@pytest.mark.parametrize("key", [(0, 0), (7, 3), (3, 7), (2**64 - 1, 10**12)])
def test_permutation_golden(key):
    """The same on every machine and with every NumPy."""
    words = philox_words(50, key)
    expected = sorted(range(50), key=words.__getitem__)
    assert permutation(50, seed=key[0], epoch=key[1]).tolist() == expected


def test_permutation_is_frozen():
    """A change of these would make resumed runs train on other batches."""
    assert permutation(8, seed=0, epoch=0).tolist() == [0, 2, 1, 5, 4, 3, 6, 7]
    assert permutation(8, seed=7, epoch=3).tolist() == [2, 5, 7, 3, 0, 6, 4, 1]


def test_permutations_are_uniform():
    """Of 2,400 seeds every order of 4 comes 100 times; 5 standard deviations are 49."""
    seen = Counter(tuple(permutation(4, seed=seed, epoch=0)) for seed in range(2400))
    assert len(seen) == 24 and max(abs(count - 100) for count in seen.values()) < 49
    epochs = Counter(tuple(permutation(4, seed=0, epoch=epoch)) for epoch in range(2400))
    assert len(epochs) == 24 and max(abs(count - 100) for count in epochs.values()) < 49
