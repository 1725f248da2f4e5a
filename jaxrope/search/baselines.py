"""The known methods that a search starts from and is compared with."""

import dataclasses
import math

from jaxrope import llama, rope, setup
from jaxrope.errors import InputError, choose
from jaxrope.evaluation.rows import USUAL_CONSTANTS

SEEDS = ("pi", "ntk", "yarn")  # LongRoPE, Algorithm 1: the first individuals
_LAWS = dict.fromkeys(("su", "yarn", "none"))


@dataclasses.dataclass(frozen=True)
class Baseline:
    """A known choice for the target length.

    Attributes:
      name: "none" (the model's own scaling), "pi", "ntk", "yarn", or "configured" (config.rope).
      bucket: its factors, start tokens and own attention factor.
      is_seed: the evolution starts from it, rounded to the grid.
    """

    name: str
    bucket: rope.Bucket
    is_seed: bool


def training_len(config, model: llama.LlamaConfig) -> int:
    """Returns the tokens the weights were trained on: search.training_len, else the original
    length.

    Raises:
      InputError: a length is out of range.
    """
    target_len, given = config.target_len, config.search.training_len
    if target_len < 1:
        raise InputError(f"target_len must be the tokens to search for, got {target_len}. Set it.")
    if target_len <= model.original_len:
        raise InputError(
            f"target_len must exceed original_len {model.original_len:,}, got {target_len:,}: the "
            "model serves that many tokens already. Raise target_len."
        )
    if given < 0 or given >= target_len:
        raise InputError(
            f"search.training_len must be 0 (original_len) or from 1 to below target_len "
            f"{target_len:,}, got {given:,}."
        )
    return given or model.original_len


def attention_factor(config, model: llama.LlamaConfig) -> float:
    """Returns the attention factor of every candidate, with target length / original length.

    Raises:
      InputError: search.attention_factor is neither a law nor a number.
    """
    law = config.search.attention_factor
    if isinstance(law, str):
        choose("search.attention_factor", law, _LAWS)
    elif isinstance(law, bool) or not isinstance(law, int | float) or not 0 < law < math.inf:
        raise InputError(
            f"search.attention_factor must be su, yarn, none or a number above 0, got {law}."
        )
    factor = config.target_len / model.original_len
    return rope.attention_factor(law, factor=factor, original_len=model.original_len)


def attention_factors(config, number: float) -> tuple[float, ...]:
    """Returns what a candidate's attention factor may be: `number` times each of the multiples.

    Raises:
      InputError: search.attention_multiples breaks its rule.
    """
    multiples = tuple(config.search.attention_multiples)
    valid = (
        multiples
        and all(isinstance(m, int | float) and 0 < m < math.inf for m in multiples)
        and list(multiples) == sorted(set(multiples))
    )
    if not valid:
        raise InputError(
            f"search.attention_multiples must list ascending numbers above 0, got {multiples}. "
            "Use (1.0,) to search none."
        )
    return tuple(number * multiple for multiple in multiples)


def make(config, model: llama.LlamaConfig, own: rope.RopeFn, trained: int) -> list[Baseline]:
    """Returns the baselines for config.target_len.

    Args:
      config: of the program; a rope there other than the model's own is one more baseline.
      model: its shape.
      own: the rope that came with the checkpoint.
      trained: tokens the weights were trained on; PI, NTK and YaRN stretch that length.
    """
    target_len = config.target_len
    geometry = dict(head_dim=model.head_dim, rotary_dim=model.rotary_dim, theta=model.theta)
    plain = llama.own_rope(model)
    found = [Baseline("none", _bucket(plain, target_len), plain.method != "none")]
    for name in SEEDS:
        constants = USUAL_CONSTANTS[name](target_len / trained)
        made = rope.make(name, **geometry, original_len=trained, **constants)
        found.append(Baseline(name, _bucket(made, target_len), True))
    configured = _bucket(setup.rope_fn(config, model, own), target_len)
    if configured.factors not in [baseline.bucket.factors for baseline in found]:
        found.append(Baseline("configured", configured, True))
    return found


def comparisons(known: list[Baseline], number: float) -> list[tuple[str, rope.Bucket]]:
    """Returns each baseline with its own attention factor, then with `number` if that differs."""
    found = []
    for baseline in known:
        found.append((baseline.name, baseline.bucket))
        if baseline.bucket.attention_factor != number:
            changed = dataclasses.replace(baseline.bucket, attention_factor=number)
            found.append((baseline.name, changed))
    return found


def _bucket(rope_fn: rope.RopeFn, target_len: int) -> rope.Bucket:
    """The last bucket stands for what is longer: it is where a search for more starts."""
    return rope_fn.bucket(min(target_len, rope_fn.max_len or target_len))
