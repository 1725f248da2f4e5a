"""Perplexity as the papers' scripts count it: their numbers, their traps, one test for each."""

import dataclasses
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrope import data, decoder, evaluate
from jaxrope.convert import pretrained
from jaxrope.errors import InputError
from jaxrope.evaluate import perplexity, protocols, statistics
from jaxrope.evaluate.protocols import Window, windows
from jaxrope.evaluate.scoring import EvalModel
from tests import benches

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "jaxrope" / "models" / "stdlib-3m"


@pytest.fixture(scope="module")
def model():
    loaded = pretrained.load(MODEL)
    return EvalModel(
        config=loaded.config,
        params=jax.tree.map(jnp.asarray, loaded.params),
        rope_fn=loaded.rope_fn,
        tokenizer=data.load_tokenizer(MODEL),
        settings=decoder.ForwardSettings(attention_block=32),
        label="none",
    )


@pytest.fixture(scope="module")
def without_bos(model):
    return dataclasses.replace(model, tokenizer=dataclasses.replace(model.tokenizer, bos_id=None))


@pytest.fixture(scope="module")
def documents(model, tmp_path_factory):
    """Four documents of 1069, 479, 1712 and 38 tokens: parts of the licence."""
    folder = tmp_path_factory.mktemp("protocols")
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    for i, (start, end) in enumerate([(0, 3000), (3000, 4200), (4200, 9000), (9000, 9100)]):
        (folder / f"{i}.txt").write_text(text[start:end], encoding="utf-8")
    found = data.load_documents(
        [str(folder / "?.txt")],
        model.tokenizer,
        cache_dir=folder / "cache",
        settings=data.ReadSettings("data.eval_files"),
    )
    assert found.lengths.tolist() == [1069, 479, 1712, 38]
    return found


def make_bench(documents=None, *, protocol, options=(), **changes):
    changes |= dict(protocol=protocol, protocol_options=dict(options), bootstrap_samples=200)
    return benches.make_bench(documents, suites=("perplexity",), **changes)


def measure(model, bench):
    """The one result of the suite "perplexity"."""
    (found,) = perplexity.evaluate(model, bench)
    return found


# compute_perplexity of jquesnelle/yarn (995db5b) and microsoft/LongRoPE (c9e56aa) in torch, on this
# model and these documents; truncated: the three that have 300 tokens or more.
YARN_TRUNCATED = {(64, True): 57.841961, (128, True): 46.966053}
YARN_TRUNCATED |= {(64, False): 85.691505, (128, False): 57.583935}
YARN_SLIDING = {
    (64, 16, True): 55.945171,
    (64, 50, True): 66.144241,
    (128, 50, True): 50.201336,
    (64, 50, False): 90.211571,
    (128, 50, False): 53.496292,
    # a stride of a window or more: tokens between windows are never scored
    (64, 64, True): 76.175529,
    (128, 200, True): 60.143024,
}
LONGROPE_LIMITED = {
    (64, 16, 10): 44.319202,
    (64, 50, 10): 64.153778,
    (64, 50, 3): 52.234295,
    (128, 50, 3): 48.903873,
}
LONGROPE_WHOLE = {(64, 16): 55.489582, (128, 50): 47.945412}  # branch cube_longrope


@pytest.mark.parametrize("length, has_bos", YARN_TRUNCATED)
def test_the_curve_of_yarn_on_proof_pile_is_one_truncated_window_of_a_document(
    model, without_bos, documents, length, has_bos
):
    options = dict(documents=3, min_tokens=300)
    bench = make_bench(
        documents, protocol="proof_pile_yarn", options=options, lengths=(length,), stride=7
    )
    found = measure(model if has_bos else without_bos, bench)
    wanted = YARN_TRUNCATED[length, has_bos]
    assert found.metrics["perplexity"] == pytest.approx(wanted, rel=1e-4)
    assert found.items["window_start"] == [0, 0, 0]  # eval.stride and every later token: unread
    assert found.items["window_scored"] == [length - 1] * 3
    assert found.nll_WT.shape == (3, length - 1)  # a loss for every position
    assert len(found.items["position_nll"]) == len(found.items["position_edges"]) - 1
    assert found.metrics["low"] < wanted < found.metrics["high"]


@pytest.mark.parametrize("length, stride, has_bos", YARN_SLIDING)
def test_sliding_windows_are_those_of_yarn(model, without_bos, documents, length, stride, has_bos):
    bench = make_bench(
        documents,
        protocol="pg19_sliding_256",
        options=dict(documents=4, stride=stride),
        lengths=(length,),
        batch_tokens=2048,
    )
    found = measure(model if has_bos else without_bos, bench)
    wanted = YARN_SLIDING[length, stride, has_bos]
    assert found.metrics["perplexity"] == pytest.approx(wanted, rel=1e-4)
    assert found.nll_WT.shape == (len(found.items["window_nll"]), 1)


@pytest.mark.parametrize("length, stride, count", LONGROPE_LIMITED)
def test_max_sliding_count_of_longrope_ends_a_document_early(
    model, documents, length, stride, count
):
    bench = make_bench(
        documents,
        protocol="pg19_sliding_256",
        options=dict(documents=4, stride=stride, max_strides=count),
        lengths=(length,),
    )
    found = measure(model, bench)
    wanted = LONGROPE_LIMITED[length, stride, count]
    assert found.metrics["perplexity"] == pytest.approx(wanted, rel=1e-4)
    reads = {text.name: len(text.tokens) for text in protocols.texts(model, bench, length)}
    assert max(reads.values()) == stride * count and min(reads.values()) == 38


@pytest.mark.parametrize("length, stride", LONGROPE_WHOLE)
def test_the_branch_cube_longrope_leaves_windows_out_that_reach_beyond_the_text(
    model, documents, length, stride
):
    options = dict(documents=3, stride=stride, min_tokens=300, whole_windows=True)
    bench = make_bench(documents, protocol="pg19_sliding_256", options=options, lengths=(length,))
    found = measure(model, bench)
    assert found.metrics["perplexity"] == pytest.approx(LONGROPE_WHOLE[length, stride], rel=1e-4)


def test_a_stride_of_256_and_max_sliding_count_10_read_2560_tokens_whatever_the_length():
    for length in (4096, 8192, 131_072):  # every one is the same single window
        found = windows(10**6, length=length, stride=256, has_bos=True, max_strides=10)
        assert found == [Window(0, 2560, 2560)]


def test_max_sliding_count_changes_nothing_where_documents_are_truncated(model, documents):
    plain = dict(documents=3, min_tokens=300)
    benches = [
        make_bench(documents, protocol="proof_pile_yarn", options=options, lengths=(64,))
        for options in (plain, plain | dict(max_strides=1))
    ]
    plans = [[t.windows for t in protocols.texts(model, bench, 64)] for bench in benches]
    assert plans[0] == plans[1] == [[Window(0, 63, 63)]] * 3


def test_bos_takes_a_token_of_every_window():
    assert windows(30, length=11, stride=10, has_bos=True)[0] == Window(0, 10, 10)
    # without it the first token of a window is predicted from nothing
    assert windows(30, length=11, stride=11, has_bos=False) == [
        Window(0, 11, 10),
        Window(11, 22, 10),
        Window(22, 30, 7),
    ]


def test_the_last_window_keeps_the_stride_and_is_shorter():
    found = windows(25, length=11, stride=4, has_bos=True)
    assert found[0] == Window(0, 10, 10)
    assert found[1:-1] == [Window(4, 14, 4), Window(8, 18, 4), Window(12, 22, 4)]
    assert found[-1] == Window(16, 25, 3)  # lm-eval and `perplexity` begin it at 15


def test_a_window_of_one_token_without_bos_is_left_out():
    found = windows(9, length=4, stride=4, has_bos=False)
    assert found == [Window(0, 4, 3), Window(4, 8, 3)]  # the scripts: the mean of nothing, NaN


def test_a_stride_beyond_the_window_leaves_tokens_unscored():
    # books3_256k at 128k: half of every book
    found = windows(2_097_152, length=131_072, stride=262_144, has_bos=True)
    assert len(found) == 8 and all(w.scored == 131_071 for w in found)
    # and at 256k itself the last token of each stride, which bos has taken the place of
    found = windows(2_097_152, length=262_144, stride=262_144, has_bos=True)
    assert sum(w.scored for w in found) == 2_097_152 - 8


@pytest.mark.parametrize("num_tokens", [1, 10, 11, 57])
@pytest.mark.parametrize("length", [2, 8, 40])
@pytest.mark.parametrize("stride", [1, 3, 7])
def test_a_stride_within_the_window_scores_every_token_once(num_tokens, length, stride):
    if stride > length - 1:
        return
    found = windows(num_tokens, length=length, stride=stride, has_bos=True)
    scored = [t for w in found for t in range(w.end - w.scored, w.end)]
    assert scored == list(range(num_tokens))
    if stride == 1:  # every later token has the longest context there is
        assert all(w.end - w.begin == length - 1 for w in found) or num_tokens < length
    if stride == length - 1:  # disjoint windows
        assert all(w.scored == w.end - w.begin for w in found)


def test_truncated_windows_are_those_of_the_plain_suite(model, documents):
    """Its windows of length - 1 tokens from the beginning of a document; there bos reads all."""
    options = dict(documents=3, min_tokens=300)
    bench = make_bench(documents, protocol="proof_pile_yarn", options=options, lengths=(64,))
    plain = make_bench(documents, protocol="", num_windows=3, windows_per_doc=1, lengths=(63,))
    ours, theirs = measure(model, bench), measure(model, plain)
    np.testing.assert_allclose(ours.nll_WT, theirs.nll_WT, atol=1e-4)
    assert ours.metrics["perplexity"] == pytest.approx(theirs.metrics["perplexity"], rel=1e-5)


def test_windows_weigh_the_same_however_many_tokens_they_score(model, documents):
    options = dict(documents=4, stride=50)
    bench = make_bench(documents, protocol="pg19_sliding_256", options=options, lengths=(128,))
    found = measure(model, bench)
    means, counts = np.array(found.items["window_nll"]), np.array(found.items["window_scored"])
    assert counts.sum() == 1069 + 479 + 1712 + 38 and len(set(counts.tolist())) > 3
    assert found.metrics["nll"] == pytest.approx(means.mean(), abs=1e-9)
    by_token = math.exp((means * counts).sum() / counts.sum())
    assert found.metrics["token_perplexity"] == pytest.approx(by_token, rel=1e-5)
    assert abs(by_token / found.metrics["perplexity"] - 1) > 0.01
    # and a document with more windows weighs more
    docs = np.array(found.items["window_doc"])
    assert [int((docs == name).sum()) for name in documents.names] == [20, 9, 33, 1]


def test_the_interval_draws_documents_not_windows():
    sums, counts = [10.0, 300.0], [10, 100]
    low, high = statistics.clustered_interval(sums, counts, num_samples=400, seed=0)
    assert (low, high) == (1.0, 3.0)  # a draw of one document twice, or of the other
    middle = statistics.clustered_interval(sums, counts, num_samples=400, seed=0, level=0.2)
    assert middle == pytest.approx([310 / 110] * 2)  # of each once: values weigh, not documents
    one = statistics.clustered_interval([6.0], [3], num_samples=100, seed=0)
    assert one == (2.0, 2.0)
    with pytest.raises(ValueError, match="One sum and one count for each document"):
        statistics.clustered_interval([6.0], [0], num_samples=100, seed=0)


def test_a_row_whose_window_slides_scores_the_same_tokens(model, documents):
    options = dict(documents=3, min_tokens=300)
    bench = make_bench(
        documents, protocol="proof_pile_yarn", options=options, lengths=(128,), stride=16
    )
    slow = dataclasses.replace(model, window=64, label="sliding")
    whole, slid = measure(model, bench), measure(slow, bench)
    assert slid.nll_WT.shape == whole.nll_WT.shape and slid.fingerprint == whole.fingerprint
    np.testing.assert_allclose(slid.nll_WT[:, :63], whole.nll_WT[:, :63], atol=1e-4)
    assert np.abs(slid.nll_WT[:, 63:] - whole.nll_WT[:, 63:]).max() > 0.01
    assert slid.items["window_start"][:3] == [0, 16, 32]


@pytest.mark.parametrize("batch_tokens", [512, 100_000])
def test_the_cost_is_what_is_read_and_batches_change_nothing(model, documents, batch_tokens):
    told = []
    options = dict(documents=4, stride=50)
    bench = make_bench(
        documents,
        protocol="pg19_sliding_256",
        options=options,
        lengths=(64,),
        batch_tokens=batch_tokens,
    )
    bench = dataclasses.replace(bench, tick=told.append)
    found = measure(model, bench)
    assert sum(told) == found.tokens == perplexity.forward_tokens(model, bench, 64)
    assert found.metrics["perplexity"] == pytest.approx(YARN_SLIDING[64, 50, True], rel=1e-4)


def test_the_constants_are_those_of_the_scripts():
    found = {name: dataclasses.astuple(p)[:3] for name, p in protocols.PROTOCOLS.items()}
    assert found == {
        "proof_pile_yarn": (10, 131_072, 0),
        "pg19_sliding_256": (100, 1, 256),
        "books3_256k": (20, 2_097_152, 262_144),
    }


def test_documents_are_the_same_at_every_length(model, documents):
    options = dict(documents=2, min_tokens=1000)
    bench = make_bench(documents, protocol="proof_pile_yarn", options=options, lengths=(64, 128))
    names = [[t.name for t in protocols.texts(model, bench, n)] for n in (64, 128)]
    assert names[0] == names[1] == [documents.names[0], documents.names[2]]


@pytest.mark.parametrize(
    "protocol, options, length, message",
    [
        (
            "proof_pile_yarn",
            {},
            64,
            r"reads 10 documents of 131,072 tokens or more; of the 4 of data.eval_files 0 are so "
            r"long, the longest has 1,712. Name more text, or change eval.protocol_options",
        ),
        (
            "books3_256k",
            dict(documents=3, min_tokens=1000),
            64,
            "reads 3 documents of 1,000 tokens or more; of the 4 of data.eval_files 2 are so long",
        ),
        (
            "proof_pile_yarn",
            dict(documents=2, min_tokens=100),
            128,
            "documents of 100 tokens or more, too few for length 128. Set "
            "eval.protocol_options.min_tokens=127",
        ),
        ("pg19_sliding_256", dict(documents=4), 1, "eval.lengths is 2 or more for eval.protocol"),
        (
            "pg19_sliding_256",
            dict(documents=4, whole_windows=True),
            64,
            "whole_windows leaves out documents shorter than length 64. Set .*min_tokens=63",
        ),
        (
            "pg19_sliding_256",
            dict(documents=2, min_tokens=300, stride=16, whole_windows=True, max_strides=3),
            64,
            "with max_strides a document ends at 48 tokens, and whole_windows leaves nothing",
        ),
    ],
)
def test_refused_before_anything_runs(model, documents, protocol, options, length, message):
    bench = make_bench(documents, protocol=protocol, options=options, lengths=(length,))
    with pytest.raises(InputError, match=message):
        evaluate.check(model, bench)


def test_a_protocol_needs_text(model):
    bench = make_bench(protocol="pg19_sliding_256")
    with pytest.raises(InputError, match="which needs text: set data.eval_files"):
        protocols.texts(model, bench, 64)
