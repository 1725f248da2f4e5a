"""The paper's claims, one function each: what of the measurements decides it."""

import numpy as np

from jaxrope.analyse import numbers
from jaxrope.analyse.findings import (
    Finding,
    Measured,
    above,
    difference_of_means,
    finding,
    mean_of,
    said,
)
from jaxrope.analyse.numbers import Found
from jaxrope.analyse.plan import BASE, HALF, LONGER, PLAIN, TWICE, TWIN
from jaxrope.analysis.prediction import Prediction

AT_FLOOR = "The model does not retrieve inside its own window, so that nothing can be said."


def all_of(first: Found, second: Found | None, predicted) -> list[Finding]:
    """Returns all findings, in the paper's order.

    Args:
      first: of the first model.
      second: of the second, smaller one, or None.
      predicted: numbers.predictions of the first model's trained settings.
    """
    made = [perplexity(first), kept_within(first), kept_beyond(first), nearer_to_native(first)]
    if first.answers:
        made += [*uncertainty(first, predicted), *longer_training(first)]
    if second is not None:
        made += larger_helped(first, second)
    return [*made, *retrieval_heads(first)]


def extensions(found: Found) -> list[str]:
    """Returns the trained settings that extend."""
    return [name for name in found.settings if name != PLAIN]


def perplexity(found: Found) -> Finding:
    """Figure 1: trained short, extensions hold perplexity far beyond, plain rope does not."""
    lengths = found.study.lengths(found.study.config.analysis.perplexity)
    longest = max(lengths)
    measured = [
        mean_of(
            f"{PLAIN} less {name} at {longest:,}",
            numbers.window_nll(found, PLAIN, longest) - numbers.window_nll(found, name, longest),
            unit="nats a token",
            **found.resamples,
        )
        for name in extensions(found)
    ]
    claim = (
        "Extensions trained at the pre-trained length keep a lower perplexity than plain RoPE far "
        "beyond it (Figure 1)"
    )
    return finding("perplexity-beyond", claim, measured)


def kept_within(found: Found) -> Finding:
    """Table 1, first row: YaRN and NTK leave patterns as they were, PI does not."""
    half, rows = found.length(HALF), found.settings
    if "pi" not in rows:
        return finding("patterns-kept-within", _WITHIN, [], "PI is not among the settings.")
    base = found.curves(BASE, half)
    js = {name: numbers.divergence(found.curves(name, half), base) for name in rows}
    measured = [
        mean_of(
            f"JS of pi less {name} at {half:,}", js["pi"] - js[name], unit="nats", **found.resamples
        )
        for name in ("ntk", "yarn", "abf")
        if name in js
    ]
    return finding("patterns-kept-within", _WITHIN, measured)


_WITHIN = "Within the trained length NTK and YaRN keep the patterns, PI does not (Table 1, 2K)"


def kept_beyond(found: Found) -> Finding:
    """Figure 2: at twice the length, extensions have the shape that plain rope has at half."""
    twice = found.length(TWICE)
    plain = numbers.against_base(found, BASE, twice, "relative")
    measured = [
        mean_of(
            f"JS of {BASE} less {name} at {twice:,}",
            plain - numbers.against_base(found, name, twice, "relative"),
            unit="nats",
            **found.resamples,
        )
        for name in extensions(found)
    ]
    claim = (
        "Beyond the trained length extensions go back to the patterns of the trained length, plain "
        "RoPE does not (Figure 2)"
    )
    remark = (
        f"Compared by distance / length with {BASE} at {found.length(HALF):,}, without the sink."
    )
    return finding("patterns-kept", claim, measured, remark)


def nearer_to_native(found: Found) -> Finding:
    """Table 1, second row: extensions are nearer to a natively longer model than plain rope."""
    twice = found.length(TWICE)
    native = found.curves(TWIN, twice)
    plain = numbers.divergence(found.curves(BASE, twice), native)
    measured = [
        mean_of(
            f"JS of {BASE} less {name} at {twice:,}",
            plain - numbers.divergence(found.curves(name, twice), native),
            unit="nats",
            **found.resamples,
        )
        for name in extensions(found)
    ]
    claim = "Beyond it they are nearer to a natively longer model than plain RoPE (Table 1, 8K)"
    remark = f"The longer model is the same one, trained on with plain RoPE at {twice:,} tokens."
    return finding("nearer-to-native", claim, measured, remark)


def uncertainty(found: Found, predicted: dict[str, Prediction]) -> list[Finding]:
    """Figure 4: errors go with high entropy; and what is left of that when the length is known."""
    if numbers.is_at_floor(found) or not predicted:
        return [finding("uncertainty-errors", _UNCERTAIN, [], AT_FLOOR)]
    entropy = predicted["entropy"]
    whole = above(Measured("AUROC of entropy less 0.5", *entropy.auroc), 0.5)
    given = predicted["normalised_entropy"]
    within = above(
        Measured("AUROC of entropy / ln(keys) at equal length less 0.5", *given.auroc_within), 0.5
    )
    partial = Measured("its partial correlation given length", *given.partial)
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


def longer_training(found: Found) -> list[Finding]:
    """Figure 4(d)-(f): on equal tokens, longer rows give less entropy and more retrieval."""
    setting = found.study.config.analysis.longer_setting
    label = next((s.label for s in found.study.subjects if s.model.endswith(f"{LONGER}}}")), None)
    claims = (
        ("longer-training-certain", "Longer continual training reduces uncertainty (Figure 4e, f)"),
        (
            "longer-training-retrieves",
            "Longer continual training improves retrieval (Figure 4e, f)",
        ),
    )
    if label is None:
        told = f"'{setting}' is not among the settings."
        return [finding(name, claim, [], told) for name, claim in claims]
    own = found.study.shape.original_len
    short, long = ([r for r in found.items(n) if r["length"] > own] for n in (setting, label))
    if not short:
        told = f"no needle is longer than {own:,} tokens."
        return [finding(name, claim, [], told) for name, claim in claims]
    measured = []
    for key, words, sign, unit in (
        ("entropy", "entropy of the short training less the long one's", 1, "nats"),
        ("found", "share found after the long training less the short one's", -1, ""),
    ):
        pairs = [sign * (float(a[key]) - float(b[key])) for a, b in zip(short, long, strict=True)]
        values = by_needle(short, pairs)
        measured.append(mean_of(words, values, unit=unit, **found.resamples))
    remark = AT_FLOOR if numbers.is_at_floor(found) else ""
    return [
        finding(*claims[0], [measured[0]]),
        finding(*claims[1], [] if remark else [measured[1]], remark),
    ]


def by_needle(rows, values) -> list[float]:
    """Returns the mean of each needle's values over lengths: what is resampled."""
    groups: dict[tuple, list[float]] = {}
    for row, value in zip(rows, values, strict=True):
        groups.setdefault((row["task"], row["trial"]), []).append(value)
    return [float(np.mean(some)) for some in groups.values()]


def larger_helped(first: Found, second: Found) -> list[Finding]:
    """Figures 5 and 7: PI helps the larger model more, the smaller little."""
    models = (first, second)
    names = [found.study.title for found in models]
    claims = [
        (f"pi-helps-the-larger-{key}", f"PI helps the larger model more: {what}")
        for key, what in (
            ("retrieval", "retrieval (Figures 5 and 7)"),
            ("perplexity", "perplexity"),
        )
    ]
    if not all("pi" in found.settings for found in models):
        return [finding(*claim, [], "PI is not among the settings of both.") for claim in claims]
    floors = [name for name, f in zip(names, models, strict=True) if _cannot_retrieve(f)]
    gains = [] if floors else [_retrieval_gain(found) for found in models]
    words = f"gain of {names[0]} less that of {names[1]}"
    how = first.resamples
    measured = [difference_of_means(words, *gains, **how)] if gains else []
    told = f"{' and '.join(floors)} cannot retrieve inside its own window." if floors else ""
    nll = [_perplexity_gain(found) for found in models]
    return [
        finding(*claims[0], measured, told),
        finding(
            *claims[1],
            [difference_of_means(words, *nll, unit="nats a token", **how)],
            f"PI against {PLAIN}, both trained, at twice each model's own length.",
        ),
    ]


def _cannot_retrieve(found: Found) -> bool:
    return not found.answers or numbers.is_at_floor(found)


def _retrieval_gain(found: Found) -> list[float]:
    own = found.study.shape.original_len
    both = [[r for r in found.items(n) if r["length"] > own] for n in ("pi", PLAIN)]
    values = [float(a["found"]) - float(b["found"]) for a, b in zip(*both, strict=True)]
    return by_needle(both[0], values)


def _perplexity_gain(found: Found) -> np.ndarray:
    twice = found.length(TWICE)
    return numbers.window_nll(found, PLAIN, twice) - numbers.window_nll(found, "pi", twice)


def retrieval_heads(found: Found) -> list[Finding]:
    """Wu et al.: few heads retrieve, and masking them costs more than masking others. The largest
    number of heads decides: what one of several like it does, the others do without it.
    """
    made = []
    for label, told in found.heads.items():
        *fewer, most = [numbers.causal_effect(row) for row in told["causal"]] or [None]
        more = "".join(f" Of fewer: {said(one)}." for one in fewer)
        count, total = len(told["retrieval_heads"]), np.size(told["maps"]["retrieval"])
        made.append(
            finding(
                f"retrieval-heads-{label}",
                f"Retrieval heads cause retrieval (not in the paper): {label} at "
                f"{told['length']:,}",
                [] if most is None else [most],
                f"{count} of {total} heads are retrieval heads; with all heads "
                f"{told['accuracy']:.2f} of {told['trials']} questions are answered.{more}",
            )
        )
    return made
