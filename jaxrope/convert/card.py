"""The model card of an export: what the model is, and how each program applies its rope."""

from jaxrope.convert import consumers
from jaxrope.convert.rope_export import HfRope

_MAX_PROVENANCE_ROWS = 40
_FOR_PROGRAMS = ("identity", "versions")


def text(name: str, model, hf_rope: HfRope) -> str:
    """Returns README.md.

    Args:
      name: of the exported folder.
      model: an `exporting.Model`; of its `rope_provenance`, numbers and short words are shown.
      hf_rope: its rope as config.json expresses it.
    """
    parts = [
        f"---\nlibrary_name: transformers\npipeline_tag: text-generation\n---\n\n# {name}\n",
        _facts(model, hf_rope),
        _unfinished(model),
        _losses(hf_rope),
        _consumers(model, hf_rope),
        _provenance(model.rope_provenance),
    ]
    return "\n".join(part for part in parts if part)


def _facts(model, hf_rope: HfRope) -> str:
    config, rope_fn = model.config, model.rope_fn
    attention = (
        f"{hf_rope.section['attention_factor']:.6g}"
        if "attention_factor" in hf_rope.section
        else "none"
    )
    rows = [
        ("family", config.family),
        ("longest length", f"{hf_rope.max_len} tokens"),
        ("original length", f"{rope_fn.original_len} tokens"),
        ("rope method", rope_fn.method),
        ("written as rope_type", hf_rope.section["rope_type"]),
        ("rope_theta", f"{hf_rope.theta:g}"),
        ("attention factor on cos and sin", attention),
        ("made from", model.source.rstrip("/").rpartition("/")[2]),
    ]
    table = "".join(f"| {key} | {value} |\n" for key, value in rows)
    return f"Exported by jaxrope.\n\n| | |\n|---|---|\n{table}"


def _losses(hf_rope: HfRope) -> str:
    if not hf_rope.losses:
        return ""
    return (
        "## Not what was searched or trained\n\nHugging Face's config cannot express:\n\n"
        + "".join(f"- {loss}\n" for loss in hf_rope.losses)
    )


def _consumers(model, hf_rope: HfRope) -> str:
    rows = consumers.lines(hf_rope, model.config.family)
    return "## What programs do with it\n\n" + "".join(f"- {row}\n" for row in rows)


def _unfinished(model) -> str:
    if not model.unfinished:
        return ""
    return "## Unfinished\n\n" + "".join(f"- {sentence}\n" for sentence in model.unfinished)


def _provenance(provenance: dict) -> str:
    rows = list(scalars(provenance))
    if not rows:
        return ""
    return "## How the factors were found\n\n| | |\n|---|---|\n" + "".join(
        f"| {key} | {value} |\n" for key, value in rows[:_MAX_PROVENANCE_ROWS]
    )


def scalars(provenance: dict, above: str = ""):
    """Yields (key, value) of numbers and short words that are no paths, also of what it was made
    from, the nearest first.
    """
    inside = []
    for key, value in provenance.items():
        items = value if isinstance(value, list) else [value]
        inside += [(key, item) for item in items if isinstance(item, dict)]
        is_word = isinstance(value, str) and len(value) <= 80
        if isinstance(value, int | float) or (is_word and not {"/", "|"} & {*value}):
            yield above + key, value
    for key, value in inside:
        if key not in _FOR_PROGRAMS:
            yield from scalars(value, f"{above}{key}.")
