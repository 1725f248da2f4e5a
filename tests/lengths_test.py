"""The lengths that programs are compiled for: how few, how much is padding, and that it changes
nothing."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from tiny_harness import eval_model, make_bench

from jaxrope import decoder
from jaxrope.decoder import lengths
from jaxrope.evaluate import filling, harness, longppl, protocols, scoring
from jaxrope.evaluate.harness import Pair, Reader
from jaxrope.generate import state as states
from jaxrope.mesh import sharding


def share(texts, sizes):
    """Returns the share of padding in texts that are filled up to the next one of `sizes`."""
    filled = [min(size for size in sizes if size >= n) for n in texts]
    return 1 - sum(texts) / sum(filled)


@pytest.mark.parametrize("count", [200, 1000, 20_000])
def test_padding_of_uniform_lengths_is_below_a_tenth(count):
    texts = np.random.default_rng(count).integers(64, 8193, count).tolist()
    sizes = lengths.choose(texts, 8192)
    assert len(sizes) <= 16 and share(texts, sizes) < 0.1
    # and where they come one by one: slots of a cache, and what is read of a prompt
    slots = [states.capacity(n, 512, 16) for n in texts]
    assert len(set(slots)) <= 16 and 1 - sum(texts) / sum(slots) < 0.1
    read = [sum(states.pieces(n, 512, 16)[-1]) for n in texts]
    assert 1 - sum(texts) / sum(read) < 0.05


def test_the_ladder_is_what_the_module_says():
    steps = list(itertools.takewhile(lambda n: n <= 16_384, lengths.ladder()))
    strides = [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32]
    assert steps == [64, 128, 256, *(512 * n for n in strides)]
    assert list(itertools.islice(lengths.ladder(16, 48), 4)) == [16, 32, 48, 96]
    every = np.arange(64, 8193)
    assert share(every.tolist(), steps) == pytest.approx(0.083, abs=5e-4)


def test_few_texts_have_one_length():
    assert lengths.choose([9, 70, 200], 8192) == [256]
    assert lengths.choose([9, 70, 8000], 8192) == [128, 8192]
    assert lengths.choose([5], 40) == [40]
    assert lengths.choose([], 40) == []


@pytest.mark.parametrize("rows_fn", [lambda n, size: n, lambda n, size: -(-n // 4) * 4])
def test_no_other_lengths_cost_less(rows_fn):
    """All subsets of the 9 lengths up to 3,000, divisible by 48."""
    ladder = [96, 144, 288, 528, 1056, 1536, 2064, 2592, 3000]  # of 64, 128, ..., 2560
    for seed, count in enumerate((1, 6, 30, 90)):
        texts = np.random.default_rng(seed).integers(1, 3001, count)
        costs = {}
        for number in range(1, len(ladder) + 1):
            for sizes in itertools.combinations(ladder, number):
                if sizes[-1] >= texts.max():
                    ends = [int(np.sum(texts <= size)) for size in sizes]
                    counts = np.diff(ends, prepend=0).tolist()
                    rows = [rows_fn(n, size) for n, size in zip(counts, sizes, strict=True)]
                    costs[sizes] = 4096 * number + np.dot(sizes, rows)
        sizes = lengths.choose(texts.tolist(), 3000, divisor=48, rows_fn=rows_fn)
        assert costs[tuple(sizes)] == min(costs.values())


def test_never_more_than_the_most():
    texts = np.random.default_rng(0).integers(1, 131_073, 50_000).tolist()
    assert len(list(itertools.takewhile(lambda n: n <= 131_072, lengths.ladder()))) > 16
    assert len(lengths.choose(texts, 131_072)) == 16


@pytest.fixture
def model(tiny_model):
    return eval_model(tiny_model)


def all_sizes(monkeypatch, compilation):
    """Makes a compilation cost nothing, or more than everything."""
    monkeypatch.setattr(lengths, "COMPILATION", compilation)


def with_widths(monkeypatch):
    """Returns a list that takes the width of every array of rows that is read."""
    widths, score_fn = [], scoring._batches

    def batches(model, rope, rows, size):
        widths.append(rows.shape[1] - 1)
        return score_fn(model, rope, rows, size)

    monkeypatch.setattr(scoring, "_batches", batches)
    return widths


def test_a_request_has_one_score_whatever_it_is_filled_up_to(model, monkeypatch):
    rng = np.random.default_rng(2)
    ids = [rng.integers(0, 256, n).astype(np.int32) for n in (9, 60, 100, 129, 250, 257, 300)]
    pairs = [Pair(row[:-4], row[-4:]) for row in ids]
    widths, found = with_widths(monkeypatch), []
    for compilation in (0, 10**9):
        all_sizes(monkeypatch, compilation)
        found.append(Reader(model, make_bench(), 300).loglikelihoods(pairs))
    assert widths == [64, 128, 256, 300, 300]
    np.testing.assert_allclose(*([value for value, _ in answers] for answers in found), rtol=1e-5)
    assert [greedy for _, greedy in found[0]] == [greedy for _, greedy in found[1]]


def test_a_request_has_the_factors_of_a_formula_at_the_next_power_of_2(model):
    """Whatever it is filled up to: here all three to 300."""
    rng = np.random.default_rng(2)
    rows = [rng.integers(0, 256, n).astype(np.int32) for n in (60, 100, 280)]
    told = []

    def rope_fn(length):
        told.append(length)
        return dataclasses.replace(model.rope_fn(64), factors_R=np.full(4, float(length)))

    formula = dataclasses.replace(model, rope_fn=rope_fn)
    assert harness.factor_lengths(rope_fn, 300) == [64, 128, 256, 300]
    pairs = [Pair(row[:-4], row[-4:]) for row in rows]
    together = Reader(formula, make_bench(), 300).loglikelihoods(pairs)
    for row, length, (value, _) in zip(rows, (64, 128, 300), together, strict=True):
        alone = dataclasses.replace(model, rope_fn=lambda n, length=length: rope_fn(length))
        nll_WT, _ = scoring.score(alone, row[None], batch_tokens=512)
        assert value == pytest.approx(-nll_WT[0, -4:].sum(), rel=1e-5)


def test_the_cost_of_several_sizes_is_what_is_read(model, monkeypatch):
    all_sizes(monkeypatch, 0)
    ids = np.arange(300, dtype=np.int32) % 256
    pairs = [Pair(ids[: n - 3], ids[n - 3 : n]) for n in (9, 60, 61, 100, 129, 250, 257, 300)]
    told = []
    bench = dataclasses.replace(make_bench(), tick=told.append)
    counter = harness.Counter(model, bench, 300)
    for reader in (counter, Reader(model, bench, 300)):
        reader.loglikelihoods(pairs)
    sizes = [64, 64, 64, 128, 128, 256, 256, 300]
    assert counter.tokens == sum(told) == sum(sizes)
    assert counter.padding == sum(sizes) - sum(n - 1 for n in (9, 60, 61, 100, 129, 250, 257, 300))


def test_a_window_of_a_protocol_has_one_loss_whatever_it_is_filled_up_to(model, monkeypatch):
    rng = np.random.default_rng(5)
    texts = []
    for i, count in enumerate((40, 90, 200, 900)):
        tokens = rng.integers(0, 256, count).astype(np.int32)
        plan = protocols.windows(count, length=256, stride=100, has_bos=True)
        texts.append(protocols.Text(str(i), tokens, plan))
    widths, found = with_widths(monkeypatch), []
    for compilation in (0, 10**9):
        all_sizes(monkeypatch, compilation)
        found.append(protocols.score(model, texts, 256, make_bench(batch_tokens=100_000)))
    assert set(widths[:-1]) == {64, 128, 256} and widths[-1] == 256
    (nlls, hits), (one_nlls, one_hits) = found
    for text, *arrays in zip(texts, nlls, hits, one_nlls, one_hits, strict=True):
        assert [len(nll_T) for nll_T in arrays[0]] == [window.scored for window in text.windows]
        nll, hit, one_nll, one_hit = map(np.concatenate, arrays)
        np.testing.assert_allclose(nll, one_nll, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(hit, one_hit)


def test_a_piece_of_longppl_has_one_loss_whatever_it_is_filled_up_to(model, monkeypatch):
    rng = np.random.default_rng(7)
    pieces = [rng.integers(0, 256, n).astype(np.int32) for n in (30, 65, 66, 150, 200)]
    widths, found = with_widths(monkeypatch), []
    for compilation in (0, 10**9):
        all_sizes(monkeypatch, compilation)
        how = dict(size=200, length=200)
        found.append(longppl._losses(model, make_bench(), pieces, **how))
    assert widths == [64, 128, 200, 200]
    for piece, nll_T, one_T in zip(pieces, *found, strict=True):
        assert len(nll_T) == len(piece) - 1
        np.testing.assert_allclose(nll_T, one_T, rtol=1e-5, atol=1e-6)


def test_lengths_are_those_that_a_mesh_can_have():
    mesh = sharding.make_mesh(dict(data=1, fsdp=2, context=4, tensor=1))
    settings = decoder.ForwardSettings(attention="ring", attention_kernel="flash", mesh=mesh)
    unit = decoder.legal_length(settings, 1)
    assert unit == 1024  # two chunks of 128 tokens for each of 4 devices
    texts = [100, *[900] * 9, *[1500] * 9, *[2900] * 9]
    groups = filling.by_size(settings, texts, 3000, batch_tokens=1)
    assert {size: len(group) for size, group in groups.items()} == {1024: 10, 2048: 9, 3000: 9}
    assert filling.over_mesh(settings, 3000, 6000) == (2 * 3072, 2 * 72)


def test_rows_of_a_batch_are_counted():
    assert filling.num_rows(3, 64, 256) == 3 and filling.num_rows(5, 64, 256) == 8
    assert filling.num_rows(5, 1000, 256) == 5
    assert math.isclose(share([60, 30], [64]), 38 / 128)


def test_the_line_is_printed_where_there_is_padding():
    assert lengths.describe(1000, 0) == []
    assert lengths.describe(4000, 1000) == ["padding: 25.0% of the 4,000 tokens that are computed"]
