"""The known methods that a search starts from and is compared with."""

import dataclasses
import math

import numpy as np

from jaxrope import llama, rope, schema, setup
from jaxrope.errors import InputError
from jaxrope.schema import Config
from jaxrope.search.judging import Reference
from jaxrope.setup import NOTHING, Expected
from jaxrope.store import files

SEEDS = ("pi", "ntk", "yarn")  # LongRoPE, Algorithm 1: the first individuals
_YARN = schema.model.Yarn(method="yarn", factor=1.0)
BETAS = dict(beta_fast=_YARN.beta_fast, beta_slow=_YARN.beta_slow)  # those of its paper


@dataclasses.dataclass(frozen=True)
class Baseline:
    """A known choice for the target length.

    Attributes:
      name: "none" (the model's own scaling; in a second search the fine-tuned factors), "pi",
        "ntk", "yarn", "configured" (config.rope), or the folder of one of search.seeds.
      bucket: its factors, start tokens and own attention factor.
      is_seed: the evolution starts from it, rounded to the grid.
    """

    name: str
    bucket: rope.Bucket
    is_seed: bool


@dataclasses.dataclass(frozen=True)
class Extension:
    """How config.rope extends a model.

    Attributes:
      bucket: its last factors.
      reach: tokens that they serve; 0: unknown.
    """

    bucket: rope.Bucket
    reach: int


def extension(rope_fn: rope.RopeFn) -> Extension | None:
    """Returns what config.rope extends the model with; None where it does not."""
    if not rope_fn.buckets or np.all(np.array(rope_fn.buckets[-1].factors) == 1.0):
        return None
    by_formula = rope_fn.constants.get("factor", 0) * rope_fn.original_len
    return Extension(rope_fn.buckets[-1], int(rope_fn.max_len or by_formula))


def training_len(config: Config, model: llama.LlamaConfig, extended: Extension | None) -> int:
    """Returns the tokens the weights were trained on: search.training_len, else the original
    length; in a second search (search.multiply), else what the factors of config.rope serve.

    Raises:
      InputError: a length is out of range, or there is nothing to multiply.
    """
    target_len, configured_len = config.target_len, config.search.training_len
    if target_len < 1:
        raise InputError(f"target_len must be the tokens to search for, got {target_len}. Set it.")
    if config.search.multiply:
        return _fine_tuned_len(config, extended)
    recovers = is_recovery(config, extended)
    if target_len < model.original_len + (not recovers):
        rule = "be at least" if recovers else "exceed"
        raise InputError(
            f"target_len must {rule} original_len {model.original_len:,}, got {target_len:,}: the "
            "model serves that many tokens already. Raise target_len."
        )
    if configured_len >= target_len + recovers:
        raise InputError(
            f"search.training_len must be 0 (original_len) or from 1 to below target_len "
            f"{target_len:,}, got {configured_len:,}."
        )
    return configured_len or model.original_len


def reference(config: Config, model: llama.LlamaConfig, extended: Extension | None) -> Reference:
    """Returns the rope and the length that the weights were trained with: in a second search those
    of config.rope.
    """
    trained = training_len(config, model, extended)
    tuned = extended.bucket if config.search.multiply else llama.own_rope(model).bucket(trained)
    trained_rope = rope.build(
        tuned.factors,
        theta=model.theta,
        start_tokens=tuned.start_tokens,
        attention_factor=tuned.attention_factor,
    )
    return Reference(trained_rope, trained)


def is_recovery(config: Config, extended: Extension | None) -> bool:
    """Returns whether factors are searched for a length that the extended model serves already."""
    return extended is not None and config.target_len <= extended.reach


def _fine_tuned_len(config: Config, extended: Extension | None) -> int:
    if extended is None:
        raise InputError(
            "search.multiply needs factors to multiply, but config.rope does not extend the model. "
            "Name those that it was fine-tuned with (rope.method file), or set it to False."
        )
    fine_tuned_len = config.search.training_len or extended.reach
    if not 0 < fine_tuned_len < config.target_len:
        raise InputError(
            "search.multiply: target_len must exceed the length that the model was fine-tuned for "
            f"(search.training_len, 0 = that of config.rope), {fine_tuned_len:,}, got "
            f"{config.target_len:,}. Raise target_len, or set search.training_len."
        )
    return fine_tuned_len


def attention_factor(config: Config, model: llama.LlamaConfig, extended: Extension | None) -> float:
    """Returns the attention factor of every candidate: by a law with target length / original
    length, or that of config.rope.

    Raises:
      InputError: it is to be that of config.rope, which has none.
    """
    law = config.search.attention_factor
    if law == "rope" and extended is None:
        raise InputError(
            "search.attention_factor 'rope' is that of config.rope, which does not extend the "
            "model. Use su, yarn, none or a number."
        )
    if law == "rope":
        return extended.bucket.attention_factor
    factor = config.target_len / model.original_len
    return rope.attention_factor(law, factor=factor, original_len=model.original_len)


def make(
    config: Config,
    model: llama.LlamaConfig,
    rope_fn: rope.RopeFn,
    trained: int,
    expected: Expected = NOTHING,
) -> list[Baseline]:
    """Returns the baselines for config.target_len, then those of config.search.seeds.

    Args:
      config: of the program.
      model: its shape.
      rope_fn: of config.rope; one other than the model's own is one more baseline.
      trained: tokens the weights were trained on; PI, NTK and YaRN stretch that length.
      expected: ropes that are not there yet.
    """
    extended = extension(rope_fn)
    if config.search.multiply:
        baselines = _multiplied(config, model, extended.bucket, trained)
    else:
        baselines = _from_scratch(config, model, trained, is_recovery(config, extended))
        configured = _bucket(rope_fn, config.target_len)
        if configured.factors not in [baseline.bucket.factors for baseline in baselines]:
            baselines.append(Baseline("configured", configured, True))
    return baselines + _listed(config, model, [baseline.name for baseline in baselines], expected)


def _from_scratch(config: Config, model: llama.LlamaConfig, trained: int, recovers: bool):
    """Returns none, PI, NTK and YaRN for the model's own frequencies.

    In a recovery the model's own are a seed; where the target length equals the training length,
    all methods coincide with them.
    """
    target_len, plain = config.target_len, llama.own_rope(model)
    is_seed = recovers or plain.method != "none"
    baselines = [Baseline("none", _bucket(plain, target_len), is_seed)]
    if target_len > trained:
        buckets = _methods(model, target_len, trained)
        baselines += [Baseline(name, buckets[name], True) for name in SEEDS]
    return baselines


def _multiplied(config: Config, model: llama.LlamaConfig, tuned: rope.Bucket, trained: int):
    """Returns the fine-tuned factors unchanged ("none"), and PI, NTK and YaRN on top of them.

    Each method sees a model of `trained` tokens that is to serve target_len: s = target_len /
    trained. PI multiplies every factor by s, NTK by s^(i / (R - 1)) for pair i; YaRN ramps from 1
    to s where the fine-tuned frequencies make 32 to 1 turns in `trained` tokens. Attention factors
    multiply those of the fine-tuning as well, by YaRN's 0.1 ln s + 1 and by 1.
    """
    buckets = _methods(model, config.target_len, trained)
    ramp_R = yarn_on_top(
        np.array(tuned.factors),
        theta=model.theta,
        trained=trained,
        factor=config.target_len / trained,
        **BETAS,
    )
    buckets["yarn"] = dataclasses.replace(buckets["yarn"], factors=rope.as_factors(ramp_R))
    baselines = [Baseline("none", tuned, True)]
    for name in SEEDS:
        total = np.array(tuned.factors) * np.array(buckets[name].factors)
        bucket = dataclasses.replace(
            tuned,
            factors=rope.as_factors(total),
            attention_factor=tuned.attention_factor * buckets[name].attention_factor,
        )
        baselines.append(Baseline(name, bucket, True))
    return baselines


def yarn_on_top(
    factors_R: np.ndarray,
    *,
    theta: float,
    trained: int,
    factor: float,
    beta_fast: float,
    beta_slow: float,
) -> np.ndarray:
    """Returns the factors by which YaRN multiplies those of a fine-tuned model, [R] or [L, R].

    YaRN (arXiv 2309.00071, Eq. 17-23) ramps between the pairs that turn beta_fast and beta_slow
    times in the trained window. Its code computes them by a formula for plain frequencies,
    rounded outwards; here log turns are interpolated between pairs, which gives the same borders
    where all factors are equal.

    Args:
      factors_R: of the fine-tuning.
      theta: base of the plain frequencies.
      trained: tokens that the model was fine-tuned for.
      factor: target length / trained.
      beta_fast, beta_slow: turns.
    """
    constants = dict(theta=theta, trained=trained, beta_fast=beta_fast, beta_slow=beta_slow)
    if factors_R.ndim > 1:
        constants |= dict(factor=factor)
        return np.stack([yarn_on_top(layer_R, **constants) for layer_R in factors_R])
    return ramp_factors(*yarn_borders(factors_R, **constants), len(factors_R), factor)


def yarn_borders(
    factors_R: np.ndarray, *, theta: float, trained: int, beta_fast: float, beta_slow: float
) -> tuple[int, int]:
    """Returns the pairs between which YaRN ramps on top of factors; arguments as `yarn_on_top`."""
    pairs = np.arange(len(factors_R))
    inv_freq_R = rope.base_inv_freq(theta, 2 * len(pairs)) / factors_R
    falling_R = np.minimum.accumulate(np.log(trained * inv_freq_R / (2 * np.pi)))
    slope = math.log(theta) / len(pairs)  # of plain frequencies, beyond the ends

    def pair_of(turns: float) -> float:
        log_turns = math.log(turns)
        if log_turns > falling_R[0]:
            return float((falling_R[0] - log_turns) / slope)
        if log_turns < falling_R[-1]:
            return float(pairs[-1] + (falling_R[-1] - log_turns) / slope)
        return float(np.interp(-log_turns, -falling_R, pairs))

    low = max(math.floor(pair_of(beta_fast)), 0)
    return low, min(math.ceil(pair_of(beta_slow)), 2 * len(pairs) - 1)


def ramp_factors(low: int, high: int, num_pairs: int, factor: float) -> np.ndarray:
    """Returns 1 up to pair `low`, `factor` from `high` on, between them frequencies that ramp."""
    ramp_R = np.clip((np.arange(num_pairs) - low) / (high - low or 0.001), 0, 1)
    return 1 / (ramp_R / factor + 1 - ramp_R)


def _methods(model: llama.LlamaConfig, target_len: int, trained: int) -> dict[str, rope.Bucket]:
    """Returns PI, NTK and YaRN from `trained` tokens to `target_len`."""
    geometry = dict(head_dim=model.head_dim, rotary_dim=model.rotary_dim, theta=model.theta)
    geometry |= dict(original_len=trained)
    factor = target_len / trained
    ropes = {name: rope.make(name, **geometry, factor=factor) for name in SEEDS}
    return {name: _bucket(rope_fn, target_len) for name, rope_fn in ropes.items()}


def _listed(
    config: Config, model: llama.LlamaConfig, names: list[str], expected: Expected
) -> list[Baseline]:
    """Returns the seeds that config.search.seeds lists, each named after its folder; `names` are in
    use already."""
    geometry = dict(head_dim=model.head_dim, rotary_dim=model.rotary_dim, theta=model.theta)
    baselines: list[Baseline] = []
    for path in config.search.seeds:
        file = path if path in expected.ropes else f"{path}/rope.json"
        loaded = expected.ropes.get(file)
        file = files.as_path(file) if loaded else setup.rope_file(path)
        name = files.absolute(file).parent.name
        while name in names:
            name += "'"
        names = [*names, name]
        try:
            loaded = loaded or rope.load(file, **geometry, num_layers=model.num_layers)
        except InputError as error:
            raise InputError(f"search.seeds: {error}") from None
        baselines.append(Baseline(name, _bucket(loaded, config.target_len), True))
    return baselines


def comparisons(baselines: list[Baseline], number: float) -> list[tuple[str, rope.Bucket]]:
    """Returns each baseline with its own attention factor, then with `number` if that differs."""
    pairs = []
    for baseline in baselines:
        pairs.append((baseline.name, baseline.bucket))
        if baseline.bucket.attention_factor != number:
            changed = dataclasses.replace(baseline.bucket, attention_factor=number)
            pairs.append((baseline.name, changed))
    return pairs


def _bucket(rope_fn: rope.RopeFn, target_len: int) -> rope.Bucket:
    """Beyond the longest bucket the last one serves: a search for more tokens starts from it."""
    return rope_fn.bucket(min(target_len, rope_fn.max_len or target_len))
