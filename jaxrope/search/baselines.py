"""The known methods that a search starts from and is compared with.

They are made on top of what the model has: its own scaling, or in a second search the factors that
it was fine-tuned with (rope.extend).
"""

import dataclasses

import numpy as np

from jaxrope import decoder, rope, schema, setup
from jaxrope.errors import InputError
from jaxrope.schema import Config
from jaxrope.search.judging import Reference
from jaxrope.setup import NOTHING, Expected
from jaxrope.store import files

SEEDS = ("pi", "ntk", "yarn")  # LongRoPE, Algorithm 1: the first individuals
METHODS = ("pi", "ntk", "dynamic_ntk", "yarn")
CONFIGURED = "configured"  # config.rope
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
      is_own: it is the scaling that the model came with, the base of every search.
    """

    bucket: rope.Bucket
    reach: int
    is_own: bool = False


def extension(rope_fn: rope.RopeFn, model: decoder.DecoderConfig) -> Extension | None:
    """Returns what config.rope extends the model with; None where it does not."""
    if not rope_fn.buckets or np.all(np.array(rope_fn.buckets[-1].factors) == 1.0):
        return None
    if setup.is_own_rope(rope_fn, model):
        return Extension(rope_fn.buckets[-1], decoder.own_base(model).length, is_own=True)
    by_formula = rope_fn.constants.get("factor", 0) * rope_fn.original_len
    return Extension(rope_fn.buckets[-1], int(rope_fn.max_len or by_formula))


def base(config: Config, model: decoder.DecoderConfig, extended: Extension | None) -> rope.Base:
    """Returns what a search starts from, with the length that its weights were trained on: the
    model's own scaling; in a second search the factors of config.rope.
    """
    trained = training_len(config, model, extended)
    if not config.search.multiply:
        return dataclasses.replace(decoder.own_base(model), length=trained)
    tuned = extended.bucket
    return rope.Base(tuned.factors, trained, tuned.start_tokens, tuned.attention_factor)


def training_len(config: Config, model: decoder.DecoderConfig, extended: Extension | None) -> int:
    """Returns the tokens the weights were trained on: search.training_len, else what the model's
    own scaling reaches, original_len without one; in a second search (search.multiply), else what
    the factors of config.rope serve.

    Raises:
      InputError: a length is out of range, or there is nothing to multiply.
    """
    target_len, configured_len = config.target_len, config.search.training_len
    if target_len < 1:
        raise InputError(f"target_len must be the tokens to search for, got {target_len}. Set it.")
    if config.search.multiply:
        return _fine_tuned_len(config, extended)
    recovers, own = is_recovery(config, extended), decoder.own_base(model)
    if target_len < own.length + (not recovers):
        rule = "be at least" if recovers else "exceed"
        name = f"what the model reaches with its own scaling, {_own_name(model)}:"
        name = "original_len" if own.is_plain else name
        raise InputError(
            f"target_len must {rule} {name} {own.length:,}, got {target_len:,}: the "
            "model serves that many tokens already. Raise target_len."
        )
    if configured_len >= target_len + recovers:
        raise InputError(
            f"search.training_len must be 0 (original_len) or from 1 to below target_len "
            f"{target_len:,}, got {configured_len:,}."
        )
    return configured_len or own.length


def reference(
    config: Config, model: decoder.DecoderConfig, extended: Extension | None
) -> Reference:
    """Returns the rope and the length that the weights were trained with: in a second search those
    of config.rope.
    """
    trained = training_len(config, model, extended)
    tuned = extended.bucket if config.search.multiply else decoder.own_rope(model).bucket(trained)
    trained_rope = rope.build(
        tuned.factors,
        theta=model.theta,
        start_tokens=tuned.start_tokens,
        attention_factor=tuned.attention_factor,
    )
    return Reference(trained_rope, trained)


def is_recovery(config: Config, extended: Extension | None) -> bool:
    """Returns whether factors are searched for a length that the extended model serves already."""
    is_other = extended is not None and not extended.is_own
    return is_other and config.target_len <= extended.reach


def _own_name(model: decoder.DecoderConfig) -> str:
    factor = model.rope.get("factor")
    return f"{model.rope['method']} {factor:g}" if factor else str(model.rope["method"])


def remark(config: Config, model: decoder.DecoderConfig) -> list[str]:
    """Returns what the model's own scaling means for a search; nothing of a plain model."""
    own = decoder.own_base(model)
    if own.is_plain or config.search.multiply:
        return []
    return [
        f"the model's own scaling, {_own_name(model)}, serves {own.length:,} tokens and is the "
        f"base: methods are made on top of it (PI to {config.target_len:,} has factors up to "
        f"{max(own.factors) * config.target_len / own.length:g}), and those of the search multiply "
        "its own"
    ]


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


def attention_factor(
    config: Config, model: decoder.DecoderConfig, extended: Extension | None
) -> float:
    """Returns the attention factor of the search: a number, that of config.rope, or by a law (su
    where it is searched) with target length / what the model reaches, times the one of its own
    scaling. (The su law does not care in how many parts a length is reached.)

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
    if not isinstance(law, str):
        return law
    law = "su" if law == schema.search.FREE else law
    return decoder.own_base(model).attention_factor * _by_law(config, model, law)


def attention_range(
    config: Config, model: decoder.DecoderConfig, extended: Extension | None
) -> tuple[float, float]:
    """Returns the smallest and the largest attention factor of a candidate: the same number, or
    where it is searched somewhat more than what lies between the model's own and that of the laws.
    """
    if config.search.attention_factor != schema.search.FREE:
        return (attention_factor(config, model, extended),) * 2
    own = decoder.own_base(model).attention_factor
    return own * 0.9, own * 1.05 * max(_by_law(config, model, law) for law in ("su", "yarn"))


def _by_law(config: Config, model: decoder.DecoderConfig, law: str) -> float:
    own = decoder.own_base(model)
    factor = max(1.0, config.target_len / own.length)
    return rope.attention_factor(law, factor=factor, original_len=own.length)


def make(
    config: Config,
    model: decoder.DecoderConfig,
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
    extended = extension(rope_fn, model)
    if config.search.multiply:
        baselines = _multiplied(config, model, extended.bucket, trained)
    else:
        baselines = _of_model(config, model, trained, is_recovery(config, extended))
        configured = _bucket(rope_fn, config.target_len)
        if configured.factors not in [baseline.bucket.factors for baseline in baselines]:
            baselines.append(Baseline(CONFIGURED, configured, True))
    baselines += _listed(config, model, [baseline.name for baseline in baselines], expected)
    return [
        Baseline(b.name, dataclasses.replace(b.bucket, max_len=config.target_len), b.is_seed)
        for b in baselines
    ]


def _of_model(config: Config, model: decoder.DecoderConfig, trained: int, recovers: bool):
    """Returns none, PI, NTK, dynamic NTK and YaRN on top of the model's own scaling, and published
    factors that fit.

    In a recovery the model's own are a seed; where the target length equals the training length,
    all methods coincide with them.
    """
    target_len, own = config.target_len, decoder.own_rope(model)
    is_seed = recovers or own.method != "none"
    baselines = [Baseline("none", _bucket(own, target_len), is_seed)]
    if target_len > trained:
        start = dataclasses.replace(decoder.own_base(model), length=trained)
        buckets = _methods(model, start, target_len)
        baselines += [Baseline(name, buckets[name], name in SEEDS) for name in METHODS]
        baselines += _published(model, target_len)
    return baselines


def _published(model: decoder.DecoderConfig, target_len: int) -> list[Baseline]:
    """Returns the published factors for the least length that reaches the target, of models of this
    geometry that are not scaled otherwise.
    """
    if not decoder.own_base(model).is_plain:
        return []
    names = ("head_dim", "rotary_dim", "theta", "original_len")
    ropes = {
        name: rope.preset(name)
        for name, entry in rope.catalogue().items()
        if all(entry[key] == getattr(model, key) for key in names)
    }
    buckets = {
        name: rope_fn.bucket(target_len)
        for name, rope_fn in ropes.items()
        if rope_fn.max_len >= target_len
    }
    least = min((bucket.max_len for bucket in buckets.values()), default=0)
    return [Baseline(name, b, True) for name, b in buckets.items() if b.max_len == least]


def _multiplied(config: Config, model: decoder.DecoderConfig, tuned: rope.Bucket, trained: int):
    """Returns the fine-tuned factors unchanged ("none"), and PI, NTK and YaRN on top of them.

    Each method sees a model of `trained` tokens that is to serve target_len: s = target_len /
    trained. PI multiplies every factor by s, NTK by s^(i / (R - 1)) for pair i; YaRN ramps from 1
    to s where the fine-tuned frequencies make 32 to 1 turns in `trained` tokens. Attention factors
    multiply those of the fine-tuning as well, by YaRN's 0.1 ln s + 1 and by 1.
    """
    start = rope.Base(tuned.factors, trained, tuned.start_tokens, tuned.attention_factor)
    buckets = _methods(model, start, config.target_len)
    baselines = [Baseline("none", tuned, True)]
    for name in METHODS:
        baselines.append(Baseline(name, buckets[name], name in SEEDS))
    return baselines


def _methods(
    model: decoder.DecoderConfig, start: rope.Base, target_len: int
) -> dict[str, rope.Bucket]:
    """Returns PI, NTK, dynamic NTK and YaRN from a base to `target_len`."""
    geometry = dict(head_dim=model.head_dim, rotary_dim=model.rotary_dim, theta=model.theta)
    geometry |= dict(original_len=model.original_len)
    factor = target_len / start.length
    ropes = {name: rope.extend(start, name, **geometry, factor=factor) for name in METHODS}
    return {name: _bucket(rope_fn, target_len) for name, rope_fn in ropes.items()}


def _listed(
    config: Config, model: decoder.DecoderConfig, names: list[str], expected: Expected
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


def _bucket(rope_fn: rope.RopeFn, target_len: int) -> rope.Bucket:
    """Beyond the longest bucket the last one serves: a search for more tokens starts from it."""
    return rope_fn.bucket(min(target_len, rope_fn.max_len or target_len))
