"""Ropes side by side: against dense attention, against what texts measures, and the program."""

import json

import numpy as np
import pytest

from jaxrope import decoder, rope
from jaxrope.analyse.__main__ import main
from jaxrope.analysis import compare, texts
from jaxrope.store import sealed
from tests.conftest import ROOT
from tests.tiny_heads import SETTINGS, attention_of, loud, probed

LENGTH, QUERIES = 33, 5
MODEL = ROOT / "jaxrope" / "models" / "stdlib-3m"


@pytest.fixture(scope="module")
def tokens_WT():
    return np.random.default_rng(0).integers(0, 7, (2, LENGTH)).astype(np.int32)


@pytest.fixture(scope="module")
def ropes(tiny_config):
    """A scaled one, the plain one, and one whose second layer has the plain factors."""
    plain = decoder.own_rope(tiny_config)(LENGTH)
    scaled = rope.build([1.0, 1.5, 3.0, 4.0], theta=plain.theta, attention_factor=1.2)
    layered = rope.stack([scaled, rope.with_factors(scaled, plain.factors_R)], per_layer=True)
    return {"scaled": scaled, "plain": plain, "layered": layered}


@pytest.fixture(scope="module")
def found(tiny_config, tiny_params, tokens_WT, ropes):
    params, ticks = loud(tiny_params), []
    how = dict(queries=QUERIES, settings=SETTINGS, tick=ticks.append)
    attention, pairs = compare.compare(tiny_config, params, ropes, tokens_WT, **how)
    assert sum(ticks) == (1 + len(ropes)) * tokens_WT.size
    return attention, pairs


def test_the_first_rope_differs_in_nothing_from_itself(found):
    attention, _ = found
    assert np.all(attention["scaled"].kl == 0) and np.all(attention["scaled"].reverse_kl == 0)
    assert attention["plain"].kl.min() > 0.005
    kl_WLN = attention["layered"].kl
    assert np.all(kl_WLN[:, 0] == 0) and kl_WLN[:, 1].min() > 0.001


def test_the_divergence_is_that_of_both_ropes_on_one_forward_pass(
    found, tiny_config, tiny_params, tokens_WT, ropes
):
    """From the queries and keys of each layer, whole, in float64."""
    params, chosen_M = loud(tiny_params), texts.places(LENGTH, QUERIES)
    for w, tokens_T in enumerate(tokens_WT):
        seen = probed(tiny_config, params, tokens_T, ropes["scaled"], lambda seen: seen)
        q, k = (np.asarray(x, np.float64)[:, 0] for x in (seen.q_BTNH, seen.k_BTKH))
        first, other = (log_weights(q, k, ropes[name])[:, :, chosen_M] for name in list(ropes)[:2])
        for name, (p, r) in {"kl": (other, first), "reverse_kl": (first, other)}.items():
            seen_keys = np.isfinite(p)
            p, r = (np.where(seen_keys, x, 0) for x in (p, r))
            terms = np.where(seen_keys, np.exp(p) * (p - r), 0)
            ours = getattr(found[0]["plain"], name)[w]
            np.testing.assert_allclose(ours, terms.sum(-1).mean(-1), rtol=1e-4, atol=1e-5)


def log_weights(q_LTNH, k_LTKH, r):
    """Logarithms of causal attention [L, N, T, S]; what lies ahead is -inf in both."""
    positions = np.arange(LENGTH)[:, None, None]
    angle = positions * rope.base_inv_freq(r.theta, 8) / np.asarray(r.factors_R, np.float64)

    def turn(x):
        one, two = np.split(x, 2, axis=-1)
        c, s = np.cos(angle), np.sin(angle)
        turned = np.concatenate([one * c - two * s, two * c + one * s], axis=-1)
        return float(r.attention_factor) * turned

    k = np.repeat(turn(k_LTKH), q_LTNH.shape[2] // k_LTKH.shape[2], axis=2)
    logits = np.einsum("ltnh,lsnh->lnts", turn(q_LTNH), k) / np.sqrt(8)
    seen = np.tril(np.ones((LENGTH, LENGTH), bool))
    shifted = np.where(seen, logits - logits.max(-1, keepdims=True), -np.inf)
    with np.errstate(invalid="ignore"):
        return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


@pytest.mark.parametrize("label", ["scaled", "plain"])
def test_statistics_are_those_of_each_ropes_own_pass(
    found, label, tiny_config, tiny_params, tokens_WT, ropes
):
    attention, params = found[0][label], loud(tiny_params)
    how = dict(queries=QUERIES, settings=SETTINGS)
    read = texts.read(tiny_config, params, ropes[label], tokens_WT[1], **how)
    for name, values_LN in read.statistics.items():
        np.testing.assert_allclose(attention.statistics[name][1], values_LN, rtol=1e-5, atol=1e-6)
    # distances 2 and 3 are one bin
    weights = attention_of(tiny_config, params, tokens_WT[1], ropes[label])
    chosen_M = texts.places(LENGTH, QUERIES)
    near = [weights[:, :, chosen_M, chosen_M - back] for back in (2, 3)]
    np.testing.assert_allclose(attention.curve[1, ..., 2], np.mean(near, axis=(0, -1)), atol=1e-6)


def test_slopes_say_how_the_entropy_answers_to_a_factor(
    found, tiny_config, tiny_params, tokens_WT, ropes
):
    """In the first layer, whose queries and keys do not depend on the factors."""
    params, step, slopes = loud(tiny_params), 2e-3, []
    for pair in range(4):
        entropies = []
        for sign in (1, -1):
            factors = np.array(ropes["scaled"].factors_R, np.float64)
            factors[pair] *= 1 + sign * step
            changed = rope.with_factors(ropes["scaled"], factors)
            how = dict(queries=QUERIES, settings=SETTINGS)
            read = [texts.read(tiny_config, params, changed, t, **how) for t in tokens_WT]
            entropies.append(np.mean([text.statistics["entropy"][0] for text in read], axis=0))
        slopes.append((entropies[0] - entropies[1]) / (2 * step))
    np.testing.assert_allclose(found[1].slope[0].T, slopes, rtol=0.02, atol=3e-3)


def run(tmp_path, *more):
    text = tmp_path / "text.txt"
    text.write_text((ROOT / "LICENSE").read_text(encoding="utf-8")[:6000])
    main(["compare", f"--checkpoint={MODEL}", f"--text={text}", *more])


def test_the_program(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    asked = ["--ropes=none,yarn@su", "--length=128", "--texts=2", "--queries=4"]
    run(tmp_path, *asked, f"--workdir={tmp_path / 'run'}")
    printed = capsys.readouterr().out
    assert "KL(rope || none), nats: mean over heads" in printed and "dH/d ln factor" in printed
    content = sealed.read_json(tmp_path / "run" / "compare.json", form="jaxrope.compare/1")
    first, second = content["ropes"]
    assert (first["label"], second["label"]) == ("none", "yarn@su")
    assert first["means"]["kl"] == [0, 0, 0] and first["differences"] == {}
    assert {*second["differences"]} == {"nll", "entropy"}
    assert [row["label"] for row in content["curves"]] == ["none", "yarn@su"]
    assert sum(row["share"] for row in content["pairs"]) == pytest.approx(1, abs=1e-3)
    assert json.loads(json.dumps(content)) == content
    assert (tmp_path / "run" / "compare.md").read_text().startswith("## Means over texts")
    assert (tmp_path / "run" / "compare.png").stat().st_size > 5_000


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--ropes=yarn"], "--ropes must name two ropes or more, each once, got 'yarn'"),
        (["--ropes=yarn,yarm"], "Unknown --ropes 'yarm'. Did you mean 'yarn'"),
        (["--ropes=none,sliding"], "--ropes: 'sliding' is a window, and no rope"),
        (["--ropes=none,none.json"], "none.json"),
        (["--ropes=none,pi", "--queries=0"], "--queries must be a whole number, 1 or more, got 0"),
        (["--ropes=none,pi", "--length=9000"], "9,001 tokens|9000 tokens|9,000"),
        (["--ropes=none,pi", "--rope=x"], "Unknown flag '--rope'. Did you mean '--ropes'"),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(SystemExit) as stopped:
        run(tmp_path, *arguments, "--dry_run")
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1
    assert any(part in error for part in message.split("|")), error
