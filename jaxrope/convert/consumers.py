"""What each program will do with a rope: at short prompts, at long ones, and where it changes over.

The facts are those of transformers 5.23, vLLM since pull request 27431, SGLang, and llama.cpp, as
their sources have them.
"""

import math
from collections.abc import Sequence

from jaxrope import rope
from jaxrope.convert.rope_export import HfRope

_READERS = {  # format -> the programs that read it
    "hf-llama": ("transformers", "vLLM", "SGLang", "llama.cpp"),
    "hf-phi3": ("transformers", "vLLM", "SGLang", "llama.cpp"),
    "gguf": ("llama.cpp",),
    "vllm": ("vLLM",),
}
_FROM_METADATA = ("gguf",)  # where llama.cpp reads attn_factor, and no converter computes it


def lines(said: HfRope, family: str, *, form: str | None = None) -> list[str]:
    """Returns a sentence or two for each program, which begins with its name.

    Args:
      said: the rope in Hugging Face's words.
      family: layout of the model it is for, as in LlamaConfig.
      form: format it is written in, of `_READERS`; None: a whole Hugging Face folder.
    """
    kind = said.section["rope_type"]
    told = {"longrope": _longrope, "yarn": _yarn, "dynamic": _dynamic}
    if kind not in told:
        return ["Every program uses the same frequencies at every length."]
    if kind != "longrope":
        return told[kind](said)
    programs = _READERS[form or ("hf-phi3" if family == "phi3" else "hf-llama")]
    return _longrope(said, family, programs, form)


def of_buckets(rope_fn: rope.RopeFn) -> list[str]:
    """Returns what jaxrope itself does with the length buckets of a rope.json."""
    limits = [bucket.max_len for bucket in rope_fn.buckets]
    if len(limits) < 2:
        return [f"jaxrope: one set of factors for sequences of up to {rope_fn.max_len} tokens."]
    shown = ", ".join(str(limit) for limit in limits)
    return [
        f"jaxrope: each sequence takes the factors of its own length, up to {shown} tokens,"
        " whatever else is in its batch."
    ]


def _longrope(said: HfRope, family: str, programs: Sequence[str], form: str | None) -> list[str]:
    by_law = is_by_law(said)
    if said.section["short_factor"] == said.section["long_factor"]:
        found = [
            "The factors are the same at every length, so no program can choose wrongly between"
            " short and long."
        ]
    else:
        found = [line for name in programs for line in _choice(name, said.original_len, family)]
    if "transformers" in programs:
        found.append(
            "transformers applies the attention factor at every length, short ones as well."
        )
    if not by_law and form not in ("gguf", "vllm"):
        found.append(
            "The attention factor is not the usual sqrt(1 + ln factor / ln original),"
            f" {law(said):.6g}. transformers reads `attention_factor`, vLLM `short_mscale` and"
            " `long_mscale` (both are written; transformers calls the latter unrecognised keys and"
            " passes over them); llama.cpp computes the usual one and will differ."
        )
    if family == "phi3" and not by_law and form not in ("gguf", "vllm"):
        found.append(
            "transformers 4 refuses this config: its Phi-3 knows no attention factor of its own."
            " Use transformers 5."
        )
    if "llama.cpp" in programs and family != "phi3" and form not in _FROM_METADATA:
        found.append(
            "llama.cpp's converter drops the factors of this architecture without a word (it keeps"
            " them for Phi-3): do not convert it to GGUF."
        )
    return found


def _choice(program: str, original: int, family: str) -> list[str]:
    """Returns when a program takes which of two sets of factors; nothing where it takes neither."""
    if program == "transformers":
        crossing = (
            "its Phi-3 then computes the whole cache anew"
            if family == "phi3"
            else "keys cached on the short side are not rotated anew"
        )
        return [
            "transformers takes `short_factor` while the longest sequence of a batch has at"
            f" most {original} tokens, `long_factor` beyond. When a generation crosses that"
            f" border, {crossing}."
        ]
    if program == "vLLM":
        return [
            "vLLM takes one set for good: `long_factor` as soon as `--max-model-len` exceeds"
            f" {original}, for short prompts as well."
        ]
    if program == "SGLang":
        return [
            "SGLang takes `long_factor` for a whole batch once one sequence of it has more than"
            f" {original + 1} tokens, `short_factor` otherwise, and keeps the keys cached before."
            f" Token {original + 1} itself, where it comes last, is given the phase of position 0."
        ]
    if family != "phi3":
        return []
    return [
        "llama.cpp takes one set for a context, by its allocated size (`-c`) and not by the"
        f" prompt's length: beyond {original}, `long_factor`, for short prompts as well."
    ]


def _yarn(said: HfRope) -> list[str]:
    section = said.section
    found = ["transformers uses the same frequencies and attention factor at every length."]
    if section["factor"] * said.original_len != said.max_len:
        found.append(
            "transformers 4 takes max_position_embeddings / original length,"
            f" {said.max_len / said.original_len:g}, in place of the factor, {section['factor']:g}:"
            " use transformers 5."
        )
    usual = rope.attention_factor("yarn", factor=section["factor"], original_len=said.original_len)
    if not math.isclose(section["attention_factor"], usual, rel_tol=1e-9):
        found.append(
            f"vLLM and llama.cpp compute the attention factor as 0.1 ln(factor) + 1, {usual:.6g},"
            f" and will differ from {section['attention_factor']:.6g}."
        )
    return found


def _dynamic(said: HfRope) -> list[str]:
    return [
        f"transformers grows the base once a sequence exceeds {said.max_len} tokens, which is"
        f" therefore max_position_embeddings; vLLM fixes it for factor * {said.max_len}. Keys"
        " cached before a growth are not rotated anew."
    ]


def law(said: HfRope) -> float:
    """Returns the attention factor that a reader computes who is not told one."""
    factor = said.section["factor"]
    return rope.attention_factor("su", factor=factor, original_len=said.original_len)


def is_by_law(said: HfRope) -> bool:
    """Says whether every reader of longrope arrives at the attention factor that is meant."""
    return math.isclose(said.section["attention_factor"], law(said), rel_tol=1e-9)
