"""From a config to the problem that it states; whatever can be refused is refused here, before
weights are read or anything is compiled.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from jax.sharding import AbstractMesh, Mesh

from jaxrope import data, decoder, schema, setup
from jaxrope.convert import Pretrained
from jaxrope.errors import InputError
from jaxrope.mesh import sharding
from jaxrope.search import (
    baselines,
    critical,
    evolution,
    genome,
    objective,
    plan,
    prefilter,
)
from jaxrope.search.baselines import Baseline
from jaxrope.search.problem import METHODS, Problem, seed_genomes
from jaxrope.setup import NOTHING, Expected


def prepare(config: Any, expected: Expected = NOTHING) -> Problem:
    """Returns the problem of a config. No weights are read and nothing is compiled.

    Args:
      config: see configs/base.py.
      expected: what earlier stages of a recipe will leave.

    Raises:
      InputError: a setting breaks its rule, there is no such model, or the text is too short.
    """
    config = schema.read(config)
    mesh = sharding.make_mesh(config.mesh, planned=True)
    loaded = setup.load_model(config, weights=False, expected=expected)
    problem = _problem(config, loaded, mesh, _text, expected)
    seen = _seen_notes(config, problem.task)
    problem = dataclasses.replace(problem, notes=(*problem.notes, *seen))
    _check_population(problem)
    return problem


def outline(config: Any, mesh: Mesh, expected: Expected = NOTHING) -> Problem:
    """Returns the problem of a config on a mesh whose devices need not be there. No text and no
    tokenizer need be there either, and no checkpoint if model.shape names its shape: as many tokens
    of nothing stand for the text.

    Args:
      config: see configs/base.py.
      mesh: of sharding.make_mesh.
      expected: what earlier stages of a recipe will leave.

    Raises:
      InputError: a setting breaks its rule.
    """
    config = schema.read(config)
    return _problem(config, setup.outlined(config, expected), mesh, _nothing, expected)


def _problem(
    config: schema.Config,
    loaded: Pretrained,
    mesh: Mesh | AbstractMesh,
    text_fn: Callable[[schema.Config, Pretrained], tuple[data.TokenDocuments, Any]],
    expected: Expected,
) -> Problem:
    """`text_fn`: (config, loaded) -> (documents, tokenizer)."""
    section, settings = config.search, config.search.algorithm.halved(config.target_len)
    shape = loaded.config
    decoder.param_shardings(shape, mesh)  # refuses what does not divide
    _check_kinds(shape, section)
    forward, remarks = setup.forward_settings(config, mesh, shape)
    rope_fn = setup.rope_fn(config, shape, loaded.rope_fn, expected)
    extended = baselines.extension(rope_fn, shape)
    trained = baselines.training_len(config, shape, extended)
    space = _space(config, shape, settings, extended)
    all_baselines = baselines.make(config, shape, rope_fn, trained, expected)
    _check_layers(space, all_baselines)
    documents, tokenizer = text_fn(config, loaded)
    task = objective.Task(
        config=shape,
        settings=forward,
        documents=documents,
        tokenizer=tokenizer,
        target_len=config.target_len,
        seed=config.seed,
        reference=baselines.reference(config, shape, extended),
    )
    judge = objective.make(section.objective, task)
    needs = dict(sample_tokens=judge.sample_tokens, mesh=mesh)
    memory = plan.memory(shape, forward, memory_gb=section.memory_gb, **needs)
    # without a population most rounds are of one ramp, in a batch that is filled up
    most = settings.population if METHODS[section.method].breeds else 1
    return Problem(
        config=config,
        loaded=loaded,
        rope_fn=rope_fn,
        task=task,
        objective=judge,
        settings=settings,
        space=space,
        prefilter=_prefilter(config, shape, all_baselines, trained),
        baselines=all_baselines,
        trained_len=trained,
        recovers=baselines.is_recovery(config, extended),
        attention_factor=baselines.attention_factor(config, shape, extended),
        attention_range=baselines.attention_range(config, shape, extended),
        mesh=mesh,
        memory=memory,
        per_device=plan.per_device(section.batch_size, memory, most=most, **needs),
        remarks=remarks,
        notes=(*loaded.notes, *tokenizer.notes, *_notes(config, shape, forward)),
    )


def _check_kinds(shape: decoder.DecoderConfig, section: Any) -> None:
    """Refuses factors for each layer where only some layers are extended."""
    if section.per_layer and len(set(shape.kinds)) > 1:
        raise InputError(
            "search.per_layer must be False for a model with layers of different kinds "
            f"({', '.join(dict.fromkeys(shape.kinds))}): only its full layers are extended."
        )


def _notes(
    config: schema.Config, shape: decoder.DecoderConfig, forward: decoder.ForwardSettings
) -> list[str]:
    legal = decoder.legal_length(forward, config.target_len)
    filled = decoder.lengths.describe(legal, legal - config.target_len)
    own = [*baselines.remark(config, shape), *setup.restated_notes(config, shape)]
    return own + filled + setup.window_notes(config, shape) + _elsewhere_notes(config.search)


def _elsewhere_notes(section: schema.search.Search) -> list[str]:
    """Returns which results only jaxrope could run, of those that the search may find."""
    unlike = [f"search.start_tokens {section.start_tokens}"] if max(section.start_tokens) else []
    unlike += ["search.per_layer"] if section.per_layer else []
    return [
        f"{key}: Hugging Face, llama.cpp and vLLM cannot express what it may find; only jaxrope "
        "can run that"
        for key in unlike
    ]


def _seen_notes(config: schema.Config, task: objective.Task) -> list[str]:
    """Returns whether the text that has the last word chooses too, for want of other text."""
    section = config.search.objective
    if not config.search.judge.num_samples or section.name not in ("perplexity", "mix"):
        return []
    room = task.documents.lengths - section.offset_tokens - config.target_len
    enough = int(np.count_nonzero(room >= 0))
    if enough > 1:
        short = section.num_samples > enough - max(1, enough // 4)
    else:
        short = room.max() < config.target_len
    if not short:
        return []
    return [
        f"only {enough} of the documents have {config.target_len:,} tokens: some of the text that "
        "judges in the end has also chosen. Give more or longer documents for a fair last word"
    ]


def _space(
    config: schema.Config,
    shape: decoder.DecoderConfig,
    settings: schema.search.Algorithm,
    extended: baselines.Extension | None,
) -> genome.Space:
    start = baselines.base(config, shape, extended)
    trained, allowed = start.length, baselines.attention_range(config, shape, extended)
    space = genome.make_space(
        num_pairs=shape.rotary_dim // 2,
        factor=config.target_len / trained,
        step=settings.step,
        highest=config.search.highest or settings.bound * config.target_len / trained,
        start_tokens=config.search.start_tokens,
        attention_factors=genome.attention_grid(*allowed),
        num_layers=shape.num_layers if config.search.per_layer else 1,
    )
    lowest = max(1, round(config.search.lowest * space.units))
    multiplier = () if start.is_plain else start.factors
    space = dataclasses.replace(space, lowest=lowest, multiplier=multiplier)
    return critical.narrow(
        space,
        config.search,
        theta=shape.theta,
        trained_len=trained,
        target_len=config.target_len,
    )


def _text(config: schema.Config, loaded: Pretrained) -> tuple[data.TokenDocuments, Any]:
    tokenizer, place = setup.tokenizer(config, loaded.tokenizer_dir, loaded.config.vocab_size)
    return setup.train_documents(config, tokenizer, place), tokenizer


def _nothing(config: schema.Config, loaded: Pretrained) -> tuple[data.TokenDocuments, Any]:
    """As many documents as there are samples, each with room for one, all of one token."""
    section = config.search.objective.to_dict()
    count = section["num_samples"]
    length = section.get("offset_tokens", 0) + config.target_len + 1
    documents = data.TokenDocuments(
        ids=np.broadcast_to(np.uint16(0), count * length),
        offsets=length * np.arange(count + 1),
        names=[""] * count,
        files=(),
        vocab_size=loaded.config.vocab_size,
        fingerprint="",
        setting="search",
    )
    return documents, data.load_tokenizer("bytes", vocab_size=loaded.config.vocab_size)


def _check_layers(space: genome.Space, all_baselines: list[Baseline]) -> None:
    for baseline in all_baselines:
        if np.ndim(baseline.bucket.factors) > 1 and space.num_layers == 1:
            raise InputError(
                f"search.per_layer must be True: the factors of '{baseline.name}' are of each "
                "layer's own, which candidates with one set for all layers cannot start from."
            )


def _check_population(problem: Problem) -> None:
    """Refuses an evolution that could not hold what it starts from."""
    descents, ends = problem.gradient, 0
    if descents:
        ends = min(descents.starts, len(problem.baselines) + bool(descents.ramps))
    if problem.method.breeds:
        distinct = evolution.distinct(problem.space, seed_genomes(problem))
        evolution.check_population(problem.settings, len(distinct), ends)


def _prefilter(
    config, model: decoder.DecoderConfig, all_baselines: list[Baseline], trained: int
) -> prefilter.Prefilter:
    trained_with = next(baseline for baseline in all_baselines if baseline.name == "none")
    return prefilter.Prefilter(
        config.search.prefilter.name,
        config.search.prefilter.oversample,
        theta=model.theta,
        trained_factors=trained_with.bucket.factors,
        trained_len=trained,
        target_len=config.target_len,
    )
