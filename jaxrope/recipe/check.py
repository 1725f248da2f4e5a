"""Checks of a stage before any stage runs: numbers out of range, missing inputs, lengths beyond its
factors.
"""

from collections.abc import Mapping

from jaxrope import data, evaluate, llama, rope, schema, setup
from jaxrope.errors import InputError, choose
from jaxrope.evaluate import rows
from jaxrope.mesh import sharding
from jaxrope.recipe.stages import WITH_MODEL, WITH_ROPE, Stage
from jaxrope.store import files
from jaxrope.train.program import make_program


def check(stage: Stage, stages: Mapping[str, Stage]) -> None:
    """Refuses a stage that would fail even if all earlier ones succeeded.

    Args:
      stage: the one to check.
      stages: all stages of the recipe by name.

    Raises:
      InputError: what is wrong.
    """
    try:
        _CHECKS[stage.kind](stage, stages)
        _check_evaluation(stage, stages)
    except InputError as error:
        raise InputError(f"stage '{stage.name}' of recipe: {error}") from None


def _check_search(stage: Stage, stages: Mapping[str, Stage]) -> None:
    config = stage.config
    _check_model(stage, stages)
    mesh, shape = sharding.make_mesh(config.mesh), _shape(stage, stages)
    llama.param_shardings(shape, mesh)  # refuses what does not divide
    setup.forward_settings(config, mesh, shape)
    schema.read(config)
    if config.target_len < 1:
        raise InputError(
            f"target_len must be the tokens to search for, got {config.target_len}. Set it."
        )
    for path in config.search.seeds:
        _check_place(stage, stages, "search.seeds", path, WITH_ROPE)
    _check_text(config, "train_files")


def _check_train(stage: Stage, stages: Mapping[str, Stage]) -> None:
    config = schema.read(stage.config)
    _check_model(stage, stages)
    make_program(config, sharding.make_mesh(config.mesh), _shape(stage, stages))
    longest, seq_len = _longest(stage, stages), config.train.seq_len
    if longest and seq_len > longest:
        raise InputError(
            f"train.seq_len is {seq_len:,} tokens, but its rope ends at {longest:,}. Use a rope "
            "with a longer last bucket, or shorter rows."
        )
    _check_text(config, "train_files")


def _check_join(stage: Stage, stages: Mapping[str, Stage]) -> None:
    if not stage.config.join.ropes:
        raise InputError("join.ropes is empty. List rope.json files, or workdirs with one.")
    _check_model(stage, stages)
    for path in stage.config.join.ropes:
        _check_place(stage, stages, "join.ropes", path, WITH_ROPE)


def _check_alone(stage: Stage, stages: Mapping[str, Stage]) -> None:
    if not stage.config.eval.suites:
        raise InputError("eval.suites is empty, so that an evaluation has nothing to do. Set it.")
    _check_model(stage, stages)


_CHECKS = {
    "search": _check_search,
    "train": _check_train,
    "join": _check_join,
    "evaluate": _check_alone,
}


def _check_model(stage: Stage, stages: Mapping[str, Stage]) -> None:
    """Checks that the model exists or will, and that the rope fits it if both exist already."""
    config = stage.config
    at_model = config.model.path if config.model.source == "checkpoint" else ""
    at_rope = config.rope.path if config.rope.method == "file" else ""
    if stage.from_stage(at_rope) and not at_rope.endswith("/rope.json"):
        raise InputError(f"rope.path must be a file, got '{at_rope}'. Write '{at_rope}/rope.json'.")
    if at_rope:
        _check_place(stage, stages, "rope.path", at_rope, WITH_ROPE)
    if stage.from_stage(at_model):
        _check_place(stage, stages, "model.path", at_model, WITH_MODEL)
        return
    loaded = setup.load_model(config, weights=False)
    if not stage.from_stage(at_rope):
        setup.rope_fn(config, loaded.config, loaded.rope_fn)


def _shape(stage: Stage, stages: Mapping[str, Stage]) -> llama.LlamaConfig:
    """Returns the shape of a stage's model: that of the first stage it descends from."""
    config = stage.config
    name = stage.from_stage(config.model.path) if config.model.source == "checkpoint" else ""
    return _shape(stages[name], stages) if name else setup.model_config(config)


def _check_place(
    stage: Stage, stages: Mapping[str, Stage], key: str, path: str, kinds: tuple[str, ...]
) -> None:
    """Checks that a path exists, or that a stage will make it."""
    name = stage.from_stage(path)
    if not name and not files.as_path(path).exists():
        raise InputError(f"{key}: '{path}' does not exist. Name a stage as '{{NAME}}', or a path.")
    if name and stages[name].kind not in kinds:
        what = "model" if kinds == WITH_MODEL else "rope.json"
        raise InputError(
            f"{key}: '{path}' is of kind '{stages[name].kind}', which leaves no {what}. Name a "
            f"stage of kind {' or '.join(kinds)}."
        )


def _check_method(stage: Stage, stages: Mapping[str, Stage], key: str, name: str) -> None:
    """Checks a row of a table: the name of a method, or a rope.json that exists or will."""
    if rows.is_file(name):
        _check_place(stage, stages, key, name, WITH_ROPE)
    else:
        choose(key, name.partition("@")[0], rows.METHODS)


def _check_text(config, key: str) -> None:
    exclude = config.data.exclude if key == "train_files" else ()
    data.find_files(config.data[key], exclude=exclude, setting=f"data.{key}")


def _check_evaluation(stage: Stage, stages: Mapping[str, Stage]) -> None:
    config = stage.config
    if not config.eval.suites:
        return
    bench = evaluate.bench(config.eval, documents=None, seed=config.seed)
    names = evaluate.chosen(bench, config.eval.suites)  # refuses unknown names
    for name in config.eval.methods:
        _check_method(stage, stages, "eval.methods", name)
    for entry in config.eval.checkpoints:
        if len(entry) == 3:  # if not, evaluate says what is wrong
            _check_place(stage, stages, "eval.checkpoints", entry[1], WITH_MODEL)
            if entry[2] != "model":
                _check_method(stage, stages, "eval.checkpoints", entry[2])
    if evaluate.needs_text(bench, config.eval.suites):
        _check_text(config, "eval_files")
    lengths = [length for name in names for length in evaluate.bench_of(name, bench).lengths]
    longest, tokens = _longest(stage, stages), config.eval.window or max(lengths)
    if longest and tokens > longest:
        raise InputError(
            f"eval.lengths has {tokens:,} tokens, but its rope ends at {longest:,}. Leave out what "
            "is longer, or extend the model further first."
        )


def _longest(stage: Stage, stages: Mapping[str, Stage]) -> int:
    """Returns the longest length that the stage's factors serve; 0: not known yet, or any."""
    config = stage.config
    if stage.kind == "search":
        return config.target_len
    if stage.kind == "join":
        names = [stage.from_stage(path) for path in config.join.ropes]
        return max(_longest(stages[name], stages) for name in names) if all(names) else 0
    if config.rope.method == "file":
        name = stage.from_stage(config.rope.path)
        return _longest(stages[name], stages) if name else rope.load(config.rope.path).max_len or 0
    name = stage.from_stage(config.model.path) if config.model.source == "checkpoint" else ""
    return _longest(stages[name], stages) if name and config.rope.method == "model" else 0
