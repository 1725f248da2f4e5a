"""The paper's claims: one function each, which judges the claim by the measurements."""

import numpy as np

from jaxrope.analyse import numbers
from jaxrope.analyse.findings import (
    Finding,
    Measured,
    above,
    describe,
    difference_of_means,
    finding,
    mean_of,
)
from jaxrope.analyse.numbers import Measurements
from jaxrope.analyse.plan import BASE, HALF, LONGER, PLAIN, TWICE, TWIN
from jaxrope.analysis import Prediction

AT_FLOOR = "The model does not retrieve inside its own window, so the claim cannot be tested."


def all_of(first: Measurements, second: Measurements | None, predicted) -> list[Finding]:
    """Returns all findings, in the paper's order.

    Args:
      first: of the first model.
      second: of the second, smaller one, or None.
      predicted: numbers.predictions over the first model's trained settings.
    """
    findings = [
        perplexity(first),
        patterns_within(first),
        patterns_beyond(first),
        nearer_to_native(first),
    ]
    if first.answers:
        findings += [*uncertainty(first, predicted), *longer_training(first)]
    if second is not None:
        findings += larger_helped(first, second)
    return [*findings, *retrieval_heads(first)]


def extensions(measurements: Measurements) -> list[str]:
    """Returns the trained settings that extend."""
    return [name for name in measurements.settings if name != PLAIN]


def perplexity(measurements: Measurements) -> Finding:
    """Figure 1: trained short, extensions hold perplexity far beyond, plain rope does not."""
    lengths = measurements.study.lengths(measurements.study.config.analysis.perplexity)
    longest = max(lengths)
    measured = [
        mean_of(
            f"{PLAIN} less {name} at {longest:,}",
            numbers.window_nll(measurements, PLAIN, longest)
            - numbers.window_nll(measurements, name, longest),
            unit="nats a token",
            **measurements.resamples,
        )
        for name in extensions(measurements)
    ]
    claim = (
        "Extensions trained at the pre-trained length keep a lower perplexity than plain RoPE far "
        "beyond it (Figure 1)"
    )
    return finding("perplexity-beyond", claim, measured)


def patterns_within(measurements: Measurements) -> Finding:
    """Table 1, first row: YaRN and NTK leave patterns as they were, PI does not."""
    half, rows = measurements.length(HALF), measurements.settings
    if "pi" not in rows:
        return finding("patterns-kept-within", _WITHIN, [], "PI is not among the settings.")
    base = measurements.curves(BASE, half)
    js = {name: numbers.divergence(measurements.curves(name, half), base) for name in rows}
    measured = [
        mean_of(
            f"JS of pi less {name} at {half:,}",
            js["pi"] - js[name],
            unit="nats",
            **measurements.resamples,
        )
        for name in ("ntk", "yarn", "abf")
        if name in js
    ]
    return finding("patterns-kept-within", _WITHIN, measured)


_WITHIN = "Within the trained length NTK and YaRN keep the patterns, PI does not (Table 1, 2K)"


def patterns_beyond(measurements: Measurements) -> Finding:
    """Figure 2: at twice the length, extensions have the shape that plain rope has at half."""
    twice = measurements.length(TWICE)
    plain = numbers.against_base(measurements, BASE, twice, "relative")
    measured = [
        mean_of(
            f"JS of {BASE} less {name} at {twice:,}",
            plain - numbers.against_base(measurements, name, twice, "relative"),
            unit="nats",
            **measurements.resamples,
        )
        for name in extensions(measurements)
    ]
    claim = (
        "Beyond the trained length extensions go back to the patterns of the trained length, plain "
        "RoPE does not (Figure 2)"
    )
    half = measurements.length(HALF)
    remark = f"Compared by distance / length with {BASE} at {half:,}, without the sink."
    return finding("patterns-kept", claim, measured, remark)


def nearer_to_native(measurements: Measurements) -> Finding:
    """Table 1, second row: extensions are nearer to a natively longer model than plain rope."""
    twice = measurements.length(TWICE)
    native = measurements.curves(TWIN, twice)
    plain = numbers.divergence(measurements.curves(BASE, twice), native)
    measured = [
        mean_of(
            f"JS of {BASE} less {name} at {twice:,}",
            plain - numbers.divergence(measurements.curves(name, twice), native),
            unit="nats",
            **measurements.resamples,
        )
        for name in extensions(measurements)
    ]
    claim = "Beyond it they are nearer to a natively longer model than plain RoPE (Table 1, 8K)"
    remark = f"The longer model is the same one, trained on with plain RoPE at {twice:,} tokens."
    return finding("nearer-to-native", claim, measured, remark)


def uncertainty(measurements: Measurements, predicted: dict[str, Prediction]) -> list[Finding]:
    """Figure 4: errors go with high entropy; and whether they still do at equal length."""
    if numbers.is_at_floor(measurements) or not predicted:
        return [finding("uncertainty-errors", _UNCERTAIN, [], AT_FLOOR)]
    entropy = predicted["entropy"]
    whole = above(Measured("AUROC of entropy less 0.5", *entropy.auroc), 0.5)
    normalised = predicted["normalised_entropy"]
    within = above(
        Measured("AUROC of entropy / ln(keys) at equal length less 0.5", *normalised.auroc_within),
        0.5,
    )
    partial = Measured("its partial correlation given length", *normalised.partial)
    counts = f"{entropy.failures} of {entropy.trials} answers are wrong."
    return [
        finding("uncertainty-errors", _UNCERTAIN, [whole], counts),
        finding(
            "uncertainty-errors-given-length",
            "It still does when the length, which drives both, is known (not in the paper)",
            [within, partial],
        ),
    ]


_UNCERTAIN = "High attention entropy goes with retrieval errors (Figure 4)"


def longer_training(measurements: Measurements) -> list[Finding]:
    """Figure 4(d)-(f): on equal tokens, longer rows give less entropy and more retrieval."""
    setting = measurements.study.config.analysis.longer_setting
    label = next(
        (s.label for s in measurements.study.subjects if s.model.endswith(f"{LONGER}}}")), None
    )
    claims = (
        ("longer-training-certain", "Longer continual training reduces uncertainty (Figure 4e, f)"),
        (
            "longer-training-retrieves",
            "Longer continual training improves retrieval (Figure 4e, f)",
        ),
    )
    if label is None:
        reason = f"'{setting}' is not among the settings."
        return [finding(name, claim, [], reason) for name, claim in claims]
    trained_len = measurements.study.trained_len
    short, long = (
        [r for r in measurements.items(n) if r["length"] > trained_len] for n in (setting, label)
    )
    if not short:
        reason = f"no needle is longer than {trained_len:,} tokens."
        return [finding(name, claim, [], reason) for name, claim in claims]
    measured = []
    for key, words, sign, unit in (
        ("entropy", "entropy of the short training less the long one's", 1, "nats"),
        ("found", "share found after the long training less the short one's", -1, ""),
    ):
        pairs = [sign * (float(a[key]) - float(b[key])) for a, b in zip(short, long, strict=True)]
        values = by_needle(short, pairs)
        measured.append(mean_of(words, values, unit=unit, **measurements.resamples))
    remark = AT_FLOOR if numbers.is_at_floor(measurements) else ""
    return [
        finding(*claims[0], [measured[0]]),
        finding(*claims[1], [] if remark else [measured[1]], remark),
    ]


def by_needle(rows, values) -> list[float]:
    """Returns the mean of each needle's values over lengths: the unit of resampling."""
    groups: dict[tuple, list[float]] = {}
    for row, value in zip(rows, values, strict=True):
        groups.setdefault((row["task"], row["trial"]), []).append(value)
    return [float(np.mean(needle_values)) for needle_values in groups.values()]


def larger_helped(first: Measurements, second: Measurements) -> list[Finding]:
    """Figures 5 and 7: PI helps the larger model more, the smaller little."""
    models = (first, second)
    names = [model.study.title for model in models]
    claims = [
        (f"pi-helps-the-larger-{key}", f"PI helps the larger model more: {what}")
        for key, what in (
            ("retrieval", "retrieval (Figures 5 and 7)"),
            ("perplexity", "perplexity"),
        )
    ]
    if not all("pi" in model.settings for model in models):
        return [finding(*claim, [], "PI is not among the settings of both.") for claim in claims]
    floors = [name for name, f in zip(names, models, strict=True) if _cannot_retrieve(f)]
    gains = [] if floors else [_retrieval_gain(model) for model in models]
    words = f"gain of {names[0]} less that of {names[1]}"
    how = first.resamples
    measured = [difference_of_means(words, *gains, **how)] if gains else []
    remark = f"{' and '.join(floors)} cannot retrieve inside its own window." if floors else ""
    nll = [_perplexity_gain(model) for model in models]
    return [
        finding(*claims[0], measured, remark),
        finding(
            *claims[1],
            [difference_of_means(words, *nll, unit="nats a token", **how)],
            f"PI against {PLAIN}, both trained, at twice each model's own length.",
        ),
    ]


def _cannot_retrieve(measurements: Measurements) -> bool:
    return not measurements.answers or numbers.is_at_floor(measurements)


def _retrieval_gain(measurements: Measurements) -> list[float]:
    trained_len = measurements.study.trained_len
    both = [[r for r in measurements.items(n) if r["length"] > trained_len] for n in ("pi", PLAIN)]
    values = [float(a["found"]) - float(b["found"]) for a, b in zip(*both, strict=True)]
    return by_needle(both[0], values)


def _perplexity_gain(measurements: Measurements) -> np.ndarray:
    twice = measurements.length(TWICE)
    return numbers.window_nll(measurements, PLAIN, twice) - numbers.window_nll(
        measurements, "pi", twice
    )


def retrieval_heads(measurements: Measurements) -> list[Finding]:
    """Wu et al.: few heads retrieve, and masking them costs more than masking others. The largest
    number of heads decides: when only some of several similar heads are masked, the others still
    retrieve.
    """
    findings = []
    for label, heads in measurements.heads.items():
        *fewer, most = [numbers.causal_effect(row) for row in heads["causal"]] or [None]
        more = "".join(f" Of fewer: {describe(effect)}." for effect in fewer)
        count, total = len(heads["retrieval_heads"]), np.size(heads["maps"]["retrieval"])
        findings.append(
            finding(
                f"retrieval-heads-{label}",
                f"Retrieval heads cause retrieval (not in the paper): {label} at "
                f"{heads['length']:,}",
                [] if most is None else [most],
                f"{count} of {total} heads are retrieval heads; with all heads "
                f"{heads['accuracy']:.2f} of {heads['trials']} questions are answered.{more}",
            )
        )
    return findings
