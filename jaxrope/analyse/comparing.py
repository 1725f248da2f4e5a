"""What `python -m jaxrope.analyse compare` does: ropes on one model and one text, side by side.

Letters: W texts, T tokens, L layers, N heads, R rotary pairs.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxrope import data, decoder, rope
from jaxrope.analysis import compare, streaming
from jaxrope.convert import Pretrained, pretrained
from jaxrope.errors import InputError
from jaxrope.evaluate import EvalModel, method_row, scoring, statistics
from jaxrope.report import attention_panels, figures, tables
from jaxrope.rope import Rope
from jaxrope.schema import rules
from jaxrope.schema.evaluation import RowName
from jaxrope.shell import Progress, cli
from jaxrope.store import files, sealed

FORMAT = "jaxrope.compare/1"
OWN = "model"  # the rope that the checkpoint has
_SAMPLES, _SEED = 10_000, 0  # of intervals over texts
_SHOWN = ("entropy", "effective_tokens", "mean_distance", "local", "sink", "max_p")


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A comparison, checked before any weights are read.

    Attributes:
      loaded: the model, without weights.
      tokenizer: of the texts.
      ropes: by label, for the length; the others are compared with the first.
      rows_WT: tokens of the texts, bos first, and one more that is predicted.
      queries: of each text whose attention is measured.
    """

    loaded: Pretrained
    tokenizer: data.Tokenizer
    ropes: dict[str, Rope]
    rows_WT: np.ndarray
    queries: int

    @property
    def length(self) -> int:
        """Tokens of a text."""
        return self.rows_WT.shape[1] - 1


def prepare(args) -> Prepared:
    """Returns what the arguments ask for.

    Raises:
      InputError: there is no such model, rope or text, or one does not suit the other.
    """
    counts = {"texts": args.texts, "queries": args.queries}
    for name, value in counts.items():
        rules.Whole(1).read(value, f"--{name}")
    rules.Whole(2, unit="tokens", also=0).read(args.length, "--length")
    loaded = pretrained.load(args.checkpoint, weights=False)
    place = args.tokenizer or loaded.tokenizer_dir
    if place is None:
        raise InputError(
            f"{loaded.source} has no tokenizer.json. Name the model's own: --tokenizer=FOLDER, or "
            "--tokenizer=bytes."
        )
    place = pretrained.open_tokenizer(place)
    tokenizer = data.load_tokenizer(place, vocab_size=loaded.config.vocab_size)
    length = args.length or 2 * decoder.own_base(loaded.config).length
    ropes = {name: _rope(name, loaded, length) for name in _names(args.ropes)}
    documents = data.load_documents(
        args.text, tokenizer, template_at=place, settings=data.ReadSettings("--text")
    )
    windows = data.eval_windows(
        documents,
        length=length,
        num_windows=args.texts,
        windows_per_doc=args.texts,
        bos_id=tokenizer.bos_id,
    )
    return Prepared(loaded, tokenizer, ropes, np.asarray(windows.tokens_WT), args.queries)


def dry_run(args) -> str:
    """Returns what would be read, and what it costs."""
    prepared = prepare(args)
    count, passes = prepared.rows_WT[:, :-1].size, 2 * len(prepared.ropes) + 1
    operations = decoder.forward_operations(prepared.loaded.config, prepared.length)
    return "\n".join(
        [
            _title(prepared),
            f"{passes} passes over {count:,} tokens, "
            f"{passes * len(prepared.rows_WT) * operations:.1e} floating point operations and "
            "those of the statistics",
            *_notes(prepared),
        ]
    )


def run(args) -> None:
    """Compares, prints the tables, and writes them where --workdir says."""
    prepared = prepare(args)
    for note in _notes(prepared):
        cli.print_line(note)
    content = _measured(prepared, args.checkpoint)
    sections = _tables(prepared, content)
    cli.print_line(f"{_title(prepared)}\n\n{tables.as_text(sections)}")
    if not args.workdir:
        return
    folder = files.as_path(args.workdir)
    sealed.write_json(folder / "compare.json", {"command": cli.command_line()} | content)
    files.write_text_atomic(folder / "compare.md", tables.as_markdown(sections))
    try:
        figure = figures.one(lambda ax: attention_panels.draw_curves(ax, content["curves"]))
        files.write_bytes_atomic(folder / "compare.png", figures.png_file(figure))
    except InputError as error:  # no plotting library is no reason to fail
        cli.print_line(f"compare.png is left out: {error}")
    cli.print_line(f"wrote compare.json and compare.md into {folder}")


def _notes(prepared: Prepared) -> list[str]:
    return [f"note: {note}" for note in (*prepared.loaded.notes, *prepared.tokenizer.notes)]


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if len(names) < 2 or len({*names}) < len(names):
        raise InputError(
            f"--ropes must name two ropes or more, each once, got '{text}'. For example "
            "--ropes=none,yarn,rope.json."
        )
    return [RowName((OWN,)).read(name, "--ropes") for name in names]


def _rope(name: str, loaded: Pretrained, length: int) -> Rope:
    if name == "sliding":
        raise InputError("--ropes: 'sliding' is a window, and no rope. Leave it out.")
    if name == OWN:
        return loaded.rope_fn(length)
    return method_row(name, loaded.config, rope_len=length).rope_fn(length)


def _title(prepared: Prepared) -> str:
    trained = decoder.own_base(prepared.loaded.config).length
    return (
        f"{prepared.loaded.source}, trained at {trained:,} tokens: "
        f"{', '.join(prepared.ropes)} on {len(prepared.rows_WT)} texts of {prepared.length:,} "
        f"tokens, at {prepared.queries} queries of each"
    )


def _measured(prepared: Prepared, checkpoint: str) -> dict[str, Any]:
    """Returns the content of compare.json."""
    loaded = pretrained.load(checkpoint)
    shape, params = loaded.config, jax.device_put(loaded.params, jax.devices()[0])
    settings = decoder.ForwardSettings()
    done, total = 0, (2 * len(prepared.ropes) + 1) * prepared.rows_WT[:, :-1].size
    with Progress(total, unit="tokens") as progress:

        def tick(tokens: int) -> None:
            nonlocal done
            done += tokens
            progress.update(done)

        nlls = {}
        for label, r in prepared.ropes.items():
            model = EvalModel(shape, params, lambda _, r=r: r, prepared.tokenizer, settings, label)
            how = dict(batch_tokens=prepared.length, tick=tick)
            nlls[label], _ = scoring.score(model, prepared.rows_WT, **how)
        attention, pairs = compare.compare(
            shape,
            params,
            prepared.ropes,
            prepared.rows_WT[:, :-1],
            queries=prepared.queries,
            settings=settings,
            tick=tick,
        )
    return {
        "format": FORMAT,
        "model": {"source": loaded.source, "original_len": decoder.own_base(shape).length},
        "length": prepared.length,
        "texts": len(prepared.rows_WT),
        "queries": prepared.queries,
        "ropes": _rope_rows(prepared.ropes, nlls, attention),
        "curves": _curve_rows(attention, prepared.length),
        "pairs": _pair_rows(prepared.ropes, pairs),
    }


def _rope_rows(ropes: Mapping[str, Rope], nlls, attention) -> list[dict[str, Any]]:
    """Returns a row for each rope: means with intervals over texts, and maps of layers and heads;
    what is compared is compared with the first rope, text by text.
    """
    rows, first = [], next(iter(ropes))
    for label in ropes:
        found = attention[label]
        numbers = {name: x.mean(axis=(1, 2)) for name, x in found.statistics.items()}
        numbers |= {"kl": found.kl.mean(axis=(1, 2))}
        numbers |= {"reverse_kl": found.reverse_kl.mean(axis=(1, 2))}
        numbers |= {"nll": nlls[label].mean(axis=1, dtype=np.float64)}
        difference = {
            "nll": numbers["nll"] - nlls[first].mean(axis=1, dtype=np.float64),
            "entropy": numbers["entropy"]
            - attention[first].statistics["entropy"].mean(axis=(1, 2)),
        }
        rows.append(
            {
                "label": label,
                "means": {name: _interval(values_W) for name, values_W in numbers.items()},
                "differences": {}
                if label == first
                else {name: _interval(values_W) for name, values_W in difference.items()},
                "kl_LN": found.kl.mean(axis=0).tolist(),
                "entropy_LN": found.statistics["entropy"].mean(axis=0).tolist(),
            }
        )
    return rows


def _interval(values_W: np.ndarray) -> list[float]:
    """Returns the mean over texts, and the ends of its 95% interval."""
    how = dict(num_samples=_SAMPLES, seed=_SEED)
    return [float(values_W.mean()), *statistics.bootstrap_interval(values_W, **how)]


def _curve_rows(attention, length: int) -> list[dict[str, Any]]:
    """Returns rows for report.attention_panels.draw_curves."""
    rows = []
    for label, found in attention.items():
        heads_XE = found.curve.mean(axis=0).reshape(-1, found.curve.shape[-1])
        row = {"label": label, "length": length, "axis": "distance"}
        row |= {"edges": streaming.edges(length), "mass": heads_XE.mean(axis=0).tolist()}
        rows.append(row)
    return rows


def _pair_rows(ropes: Mapping[str, Rope], pairs: compare.Pairs) -> list[dict[str, Any]]:
    """Returns a row for each rotary pair, means over layers and heads; factors, over layers."""
    first = next(iter(ropes.values()))
    count = np.shape(first.factors_R)[-1]
    plain = rope.base_inv_freq(first.theta, 2 * count)
    factors = {
        label: np.reshape(r.factors_R, (-1, count)).mean(axis=0, dtype=np.float64)
        for label, r in ropes.items()
    }
    slope = pairs.slope.sum(axis=(0, 1)) / pairs.slope[..., 0].size
    return [
        {
            "pair": i,
            "wavelength": 2 * math.pi / float(plain[i]),
            "factors": {label: float(values[i]) for label, values in factors.items()},
            "share": float(pairs.share[..., i].mean()),
            "correlation": float(pairs.correlation[..., i].mean()),
            "slope": float(slope[i]),
            "query_norm": float(pairs.query_norm[..., i].mean()),
            "key_norm": float(pairs.key_norm[..., i].mean()),
        }
        for i in range(count)
    ]


def _tables(prepared: Prepared, content: Mapping[str, Any]) -> list[tuple[str, list[list[str]]]]:
    rows, first = content["ropes"], content["ropes"][0]["label"]
    names = (*_SHOWN, "kl")
    cells = [["", "perplexity", *names, f"nats more than {first}", "entropy more"]]
    for row in rows:
        means = row["means"]
        differences = [_signed(row["differences"].get(name)) for name in ("nll", "entropy")]
        perplexity = math.exp(min(means["nll"][0], 700.0))
        shown = [tables.number(means[name][0]) for name in names]
        cells.append([row["label"], tables.number(perplexity), *shown, *differences])
    layers = [["layer", *(row["label"] for row in rows[1:])]]
    for i, layer in enumerate(prepared.loaded.config.attention_layers):
        of_layer = [row["kl_LN"][i] for row in rows[1:]]
        shown = [
            f"{np.mean(heads):.4f} (head {np.argmax(heads)}: {max(heads):.4f})"
            for heads in of_layer
        ]
        layers.append([str(layer), *shown])
    of_pairs = [["pair", "wavelength", *prepared.ropes, "share", "correlation", "dH/d ln factor"]]
    for row in content["pairs"]:
        factors = [f"{value:.3f}" for value in row["factors"].values()]
        shown = [f"{row['share']:.4f}", f"{row['correlation']:+.3f}", f"{row['slope']:+.5f}"]
        of_pairs.append([str(row["pair"]), f"{row['wavelength']:,.1f}", *factors, *shown])
    return [
        ("Means over texts, queries, layers and heads; differences [95%], * excludes 0", cells),
        (f"KL(rope || {first}), nats: mean over heads (the largest)", layers),
        (f"Rotary pairs: factors, and what they do with {first}", of_pairs),
    ]


def _signed(interval: Sequence[float] | None) -> str:
    if interval is None:
        return ""
    mean, low, high = interval
    mark = "" if statistics.verdict(low, high) is None else "*"
    return f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]{mark}"
