"""The model card of an export: what the model is, and what each program will do with it."""

import math

from jaxrope import rope
from jaxrope.convert.rope_export import HfRope

_MAX_PROVENANCE_ROWS = 30


def text(name: str, model, said: HfRope) -> str:
    """Returns README.md.

    Args:
      name: of the exported folder.
      model: an `exporting.Model`; of its `rope_provenance`, numbers and short words are shown.
      said: its rope in Hugging Face's words.
    """
    parts = [
        f"---\nlibrary_name: transformers\npipeline_tag: text-generation\n---\n\n# {name}\n",
        _facts(model, said),
        _losses(said),
        _consumers(model, said),
        _provenance(model.rope_provenance),
    ]
    return "\n".join(part for part in parts if part)


def _facts(model, said: HfRope) -> str:
    config, rope_fn = model.config, model.rope_fn
    attention = (
        f"{said.section['attention_factor']:.6g}" if "attention_factor" in said.section else "none"
    )
    rows = [
        ("family", config.family),
        ("longest length", f"{said.max_len} tokens"),
        ("original length", f"{rope_fn.original_len} tokens"),
        ("rope method", rope_fn.method),
        ("written as rope_type", said.section["rope_type"]),
        ("rope_theta", f"{said.theta:g}"),
        ("attention factor on cos and sin", attention),
        ("made from", model.source.rstrip("/").rpartition("/")[2]),
    ]
    table = "".join(f"| {key} | {value} |\n" for key, value in rows)
    return f"Exported by jaxrope.\n\n| | |\n|---|---|\n{table}"


def _losses(said: HfRope) -> str:
    if not said.losses:
        return ""
    return (
        "## Not what was searched or trained\n\nHugging Face's config cannot express:\n\n"
        + "".join(f"- {loss}\n" for loss in said.losses)
    )


def _consumers(model, said: HfRope) -> str:
    kind = said.section["rope_type"]
    lines = {"longrope": _longrope_lines, "yarn": _yarn_lines, "dynamic": _dynamic_lines}
    rows = (
        lines[kind](model, said)
        if kind in lines
        else ["Every program uses the same frequencies at every length."]
    )
    return "## What programs do with it\n\n" + "".join(f"- {row}\n" for row in rows)


def _longrope_lines(model, said: HfRope) -> list[str]:
    section, original = said.section, said.original_len
    law = rope.attention_factor("su", factor=section["factor"], original_len=original)
    by_law = math.isclose(section["attention_factor"], law, rel_tol=1e-9)
    if section["short_factor"] == section["long_factor"]:
        choice = [
            "The factors are the same at every length, so no program can choose wrongly between"
            " short and long."
        ]
    else:
        crossing = (
            "its Phi-3 then computes the whole cache anew"
            if model.config.family == "phi3"
            else "keys cached on the short side are not rotated anew"
        )
        choice = [
            (
                "transformers takes `short_factor` while the longest sequence of a batch has at"
                f" most {original} tokens, `long_factor` beyond. When a generation crosses that"
                f" border, {crossing}."
            ),
            (
                "vLLM takes one set for good: `long_factor` as soon as `--max-model-len` exceeds"
                f" {original}, for short prompts as well."
            ),
            (
                "llama.cpp likewise chooses by the allocated context, not by the prompt's length:"
                f" beyond {original}, `long_factor`."
            ),
        ]
    choice.append("transformers applies the attention factor at every length, short ones as well.")
    if not by_law:
        choice.append(
            f"The attention factor is not the usual sqrt(1 + ln factor / ln original), {law:.6g}."
            " transformers reads `attention_factor`, vLLM `short_mscale` and `long_mscale` (both"
            " are written; transformers calls the latter unrecognised keys and passes over them);"
            " llama.cpp computes the usual one and will differ."
        )
    if model.config.family == "phi3" and not by_law:
        choice.append(
            "transformers 4 refuses this config: its Phi-3 knows no attention factor of its own."
            " Use transformers 5."
        )
    if model.config.family != "phi3":
        choice.append(
            "llama.cpp's converter drops the factors of this architecture without a word (it keeps"
            " them for Phi-3): do not convert it to GGUF."
        )
    return choice


def _yarn_lines(model, said: HfRope) -> list[str]:
    section = said.section
    lines = ["transformers uses the same frequencies and attention factor at every length."]
    if section["factor"] * said.original_len != said.max_len:
        lines.append(
            "transformers 4 takes max_position_embeddings / original length,"
            f" {said.max_len / said.original_len:g}, in place of the factor, {section['factor']:g}:"
            " use transformers 5."
        )
    law = rope.attention_factor("yarn", factor=section["factor"], original_len=said.original_len)
    if not math.isclose(section["attention_factor"], law, rel_tol=1e-9):
        lines.append(
            f"vLLM and llama.cpp compute the attention factor as 0.1 ln(factor) + 1, {law:.6g}, and"
            f" will differ from {section['attention_factor']:.6g}."
        )
    return lines


def _dynamic_lines(model, said: HfRope) -> list[str]:
    return [
        f"transformers grows the base once a sequence exceeds {said.max_len} tokens, which is"
        f" therefore max_position_embeddings; vLLM fixes it for factor * {said.max_len}. Keys"
        " cached before a growth are not rotated anew."
    ]


def _provenance(provenance: dict) -> str:
    rows = [
        (key, value)
        for key, value in provenance.items()
        if isinstance(value, int | float)
        or (isinstance(value, str) and len(value) <= 80 and "/" not in value and "|" not in value)
    ]
    if not rows:
        return ""
    return "## How the factors were found\n\n| | |\n|---|---|\n" + "".join(
        f"| {key} | {value} |\n" for key, value in rows[:_MAX_PROVENANCE_ROWS]
    )
