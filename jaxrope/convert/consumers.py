"""How each program applies a rope: to short prompts, to long ones, and where it switches.

As transformers 4.57 and 5.24, vLLM 0.32 and llama.cpp 0.6 were seen to run our files (`make
serve`), and llama.cpp's converter of October 2026 to convert them; SGLang as read in its source.
"""

import functools
import math

from jaxrope import rope
from jaxrope.convert.families import FAMILIES, Family
from jaxrope.convert.rope_export import HfRope

_ALL = ("transformers", "vLLM", "SGLang", "llama.cpp")
_WRITE, _SERVE = "write the GGUF with export --to=gguf.", "serve it with another program."
_READERS = {"gguf": ("llama.cpp",), "vllm": ("vLLM",)}  # of formats that not all programs read


def lines(hf_rope: HfRope, family: str, *, form: str | None = None) -> list[str]:
    """Returns a sentence or two for each program, which begins with its name.

    Args:
      hf_rope: the rope as config.json expresses it.
      family: layout of the model it is for, as in DecoderConfig.
      form: format it is written in; None: a whole Hugging Face folder.
    """
    kind = hf_rope.section["rope_type"]
    remedy = _WRITE if FAMILIES[family].has_gguf else _SERVE
    yarn = functools.partial(_yarn, remedy=remedy)
    describe_fns = {"longrope": _longrope, "yarn": yarn, "dynamic": _dynamic, "linear": _linear}
    if kind not in describe_fns or (kind in ("linear", "yarn") and form in _READERS):
        program = _READERS.get(form, ("Every program",))[0]
        same = f"{program} uses the same frequencies and attention factor at every length."
        return [same, *(_borders(hf_rope) if form == "gguf" and kind == "yarn" else ())]
    if kind != "longrope":
        return describe_fns[kind](hf_rope)
    return _longrope(hf_rope, FAMILIES[family], form, remedy)


def of_buckets(rope_fn: rope.RopeFn) -> list[str]:
    """Returns what jaxrope itself does with the length buckets of a rope.json."""
    limits = [bucket.max_len for bucket in rope_fn.buckets]
    if len(limits) < 2:
        return [f"jaxrope: one set of factors for sequences of up to {rope_fn.max_len} tokens."]
    lengths = ", ".join(str(limit) for limit in limits)
    return [
        f"jaxrope: each sequence takes the factors of its own length, up to {lengths} tokens,"
        " whatever else is in its batch."
    ]


def _longrope(hf_rope: HfRope, row: Family, form: str | None, remedy: str) -> list[str]:
    programs, by_law = _READERS.get(form, _ALL), is_by_law(hf_rope)
    if hf_rope.section["short_factor"] == hf_rope.section["long_factor"]:
        sentences = [
            "The factors are the same at every length, so no program can choose wrongly between"
            " short and long."
        ]
    else:
        sentences = [
            line for name in programs for line in _choice(name, hf_rope.original_len, row, form)
        ]
    if "vLLM" in programs and form != "vllm":
        sentences.append(
            f"vLLM opens at {hf_rope.original_len} tokens unless it is told: vllm serve FOLDER"
            f" --max-model-len={hf_rope.max_len}"
        )
    if "transformers" in programs:
        sentences.append(
            "transformers applies the attention factor at every length, short ones as well."
        )
    if not by_law and form not in ("gguf", "vllm"):
        sentences.append(
            "The attention factor is not the usual sqrt(1 + ln factor / ln original),"
            f" {law(hf_rope):.6g}. transformers reads `attention_factor`, vLLM `short_mscale` and"
            " `long_mscale` (both are written; transformers calls the latter unrecognised keys and"
            " passes over them); llama.cpp's converter computes the usual one: " + remedy
        )
    if row.longrope_alone and not by_law and form not in ("gguf", "vllm"):
        sentences.append(
            "transformers 4 refuses this config: its Phi-3 knows no attention factor of its own."
            " Use transformers 5."
        )
    if form not in _READERS:
        sentences.append(
            "llama.cpp's converter takes a Phi-3's tokenizer from tokenizer.model, or byte pairs if"
            f" tokenizer_class is GPT2Tokenizer: {remedy}"
            if row.longrope_alone
            else "llama.cpp's converter drops the factors of this architecture without a word (it"
            f" keeps them for Phi-3): {remedy}"
        )
    return sentences


def _choice(program: str, original: int, row: Family, form: str | None) -> list[str]:
    """Returns when a program takes short and when long factors; empty if it takes neither."""
    if program == "transformers":
        crossing = (
            "its Phi-3 then computes the whole cache anew"
            if row.longrope_alone
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
            "SGLang, as read in its source, takes `long_factor` for a whole batch once one sequence"
            f" of it has more than {original + 1} tokens, `short_factor` otherwise, and keeps the"
            f" keys cached before. Token {original + 1} itself, where it comes last, is given the"
            " phase of position 0."
        ]
    if not (row.longrope_alone or form == "gguf"):
        return []
    return [
        "llama.cpp takes one set for a context, by its allocated size (`-c`), a multiple of 256"
        f" that the slots of a server share, and not by the prompt's length: beyond {original},"
        " `long_factor`, for short prompts as well."
    ]


def _linear(hf_rope: HfRope) -> list[str]:
    max_len = hf_rope.max_len
    return [
        "Every program uses the same frequencies at every length.",
        f"vLLM multiplies max_position_embeddings, {max_len}, by the factor once more, unless it is"
        f" told: vllm serve FOLDER --max-model-len={max_len}",
    ]


def _yarn(hf_rope: HfRope, remedy: str) -> list[str]:
    section = hf_rope.section
    sentences = ["Every program uses the same frequencies and attention factor at every length."]
    if section["factor"] * hf_rope.original_len != hf_rope.max_len:
        sentences.append(
            "transformers 4 takes max_position_embeddings / original length,"
            f" {hf_rope.max_len / hf_rope.original_len:g}, in place of the factor,"
            f" {section['factor']:g}: use transformers 5."
        )
    usual = rope.attention_factor(
        "yarn", factor=section["factor"], original_len=hf_rope.original_len
    )
    borders = (section["beta_fast"], section["beta_slow"])
    if borders != (32.0, 1.0) or not math.isclose(section["attention_factor"], usual, rel_tol=1e-9):
        sentences.append(
            "llama.cpp's converter takes the usual borders, 32 and 1 turns, and attention factor,"
            f" {usual:.6g}, in place of its own: {remedy}"
        )
    return sentences


def _borders(hf_rope: HfRope) -> list[str]:
    fast, slow = hf_rope.section["beta_fast"], hf_rope.section["beta_slow"]
    if (fast, slow) == (32.0, 1.0):
        return []
    return [
        "llama.cpp reads the borders of YaRN's ramp from its command line alone: pass"
        f" --yarn-beta-fast={fast:g} --yarn-beta-slow={slow:g}."
    ]


def _dynamic(hf_rope: HfRope) -> list[str]:
    return [
        f"transformers grows the base once a sequence exceeds {hf_rope.max_len} tokens, which is"
        " therefore max_position_embeddings. Keys cached before a growth are not rotated anew.",
        f"vLLM 0.32 does not extend by it: beyond {hf_rope.max_len} tokens it answers NaN. Give it"
        " the factors of one length: convert rope FOLDER OUT --format=vllm --allow_lossy",
        "llama.cpp's converter drops it without a word.",
    ]


def law(hf_rope: HfRope) -> float:
    """Returns the attention factor that a reader computes if the file gives none."""
    factor = hf_rope.section["factor"]
    return rope.attention_factor("su", factor=factor, original_len=hf_rope.original_len)


def is_by_law(hf_rope: HfRope) -> bool:
    """Returns whether every reader of longrope computes the intended attention factor."""
    return math.isclose(hf_rope.section["attention_factor"], law(hf_rope), rel_tol=1e-9)
