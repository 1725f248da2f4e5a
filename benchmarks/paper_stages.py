"""The recipe behind paper_tables.py: what is searched, trained and measured beside the twin recipe.

Stages take the model, the text and the training settings of the twin from its folders. Factors that
are a formula (start tokens on PI, methods on top of fine-tuned factors) are written as rope.json
files before the recipe runs.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from configs import base
from jaxrope import rope, setup
from jaxrope.search import baselines

STARTS = (0, 2, 4, 8, 16, 32, 64, 128, 256)  # n̂ of the paper's Table 2
# descent: steps of a search (whole and 16x); evolution: population, children, generations after a
# descent; steps and rows (of four times the original length) of every fine-tuning.
BUDGETS = {
    "whole": dict(windows=12, descent=(24, 16), evolution=(16, 8, 4), samples=2, steps=30, rows=8),
    "quick": dict(windows=2, descent=(1, 1), evolution=(4, 2, 1), samples=1, steps=2, rows=2),
}
# What is read of the twin; the rest is that of configs/base.py.
_OF_THE_TWIN = ("data", "forward", "optimizer")


@dataclasses.dataclass(frozen=True)
class Plan:
    """The recipe.

    Attributes:
      config: for recipe.run.
      evaluations: names of the stages that measure.
      base_len: tokens that the base model was trained on.
    """

    config: ConfigDict
    evaluations: tuple[str, ...]
    base_len: int


def make(source: Path, workdir: Path, spent: dict) -> Plan:
    """Returns the recipe; writes its formulas as rope.json files into `workdir`/ropes.

    Args:
      source: workdir of the twin, finished.
      workdir: of the tables.
      spent: one of BUDGETS.
    """
    config = _config(source, spent)
    base_len = setup.model_config(config).original_len
    config.eval.stride = base_len // 4  # of the base's sliding window; 128 of 512, the default
    lengths = [base_len * n for n in (1, 2, 4, 8, 16)]
    folder = workdir / "ropes"
    _write_starts(config, folder, lengths)
    _write_stretched(source, folder, lengths)
    _write_beyond(config, source, folder, lengths)
    made = (*_searches(source, spent, lengths), *_trainings(source, spent, lengths))
    measured = _evaluations(config, source, folder, lengths)
    with config.unlocked():
        config.recipe = (*made, *measured)
    return Plan(config, tuple(name for name, _, _ in measured), base_len)


def at(path: Path | str) -> tuple[str, dict]:
    """Returns the change of a stage's config that makes `path` its model."""
    return "model", dict(source="checkpoint", path=str(path), shape="")


def factors_of(path: Path | str) -> tuple[str, dict]:
    """Returns the change that makes a rope.json its rope."""
    return "rope", dict(method="file", path=str(path))


def measure(name: str, rows, lengths, suites=("perplexity",)) -> tuple:
    """Returns a stage that measures rows (label, model, "model" or a method or a rope.json)."""
    (label, model, method), *others = rows
    is_file = method.endswith(".json")
    first = factors_of(method) if is_file else ("rope", dict(method=method))
    others = tuple((other, str(path), str(how)) for other, path, how in others)
    changes = (("eval.label", label), ("eval.checkpoints", others), ("eval.lengths", lengths))
    return name, "evaluate", (at(model), first, ("eval.suites", suites), *changes)


def write_known(config: ConfigDict, names, folder: Path, length: int) -> list[tuple[str, str]]:
    """Writes methods for `length` as rope.json, as searched factors are: also for less.

    Returns:
      (method, path) of each.
    """
    shape, found = setup.model_config(config), []
    for name in names:
        path = folder / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        made = rope.make(name, **shape.geometry, factor=length / shape.original_len)
        rope.save(path, made, {"made_by": "benchmarks.paper_stages"})
        found.append((name, str(path)))
    return found


def _config(source: Path, spent: dict) -> ConfigDict:
    """Returns base.py with the sections of the twin that count, and this one's budget."""
    said = json.loads((source / "finetune_4x" / "config.json").read_text(encoding="utf-8"))
    model = json.loads((source / "search_2x" / "config.json").read_text(encoding="utf-8"))["model"]
    config = base.get_config()
    with config.unlocked(), config.ignore_type():
        config.model = dict(model)
        for name in _OF_THE_TWIN:
            for key in config[name]:
                if key in said[name]:
                    config[name][key] = _tuples(said[name][key])
        config.eval.offset_tokens = said["eval"]["offset_tokens"]
    config.search.objective = dict(
        name="perplexity",
        num_samples=spent["samples"],
        offset_tokens=config.eval.offset_tokens,
    )
    schedule = dict(config.optimizer.schedule)
    schedule["warmup_steps"] = min(schedule["warmup_steps"], spent["steps"] // 4)
    with config.unlocked():
        config.optimizer.schedule = schedule
    config.eval.suites = ()
    config.eval.num_windows, config.eval.windows_per_doc = spent["windows"], 1
    config.search.attention_factor = "su"
    config.search.gradient.steps = spent["descent"][0]
    config.search.judge.num_samples = min(8, spent["windows"])
    config.search.gradient.ramps = 0  # as in the run that docs/paper_tables.md tells of
    algorithm = config.search.algorithm
    algorithm.population, children, algorithm.iterations = spent["evolution"]
    algorithm.parents = algorithm.population // 2
    algorithm.mutations = algorithm.crossovers = children // 2
    config.checkpoint.keep_last, config.checkpoint.every = 1, 20
    return config


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _searches(source: Path, spent: dict, lengths) -> tuple:
    """Returns the searches, and the joins that make one model of factors for several lengths."""
    hybrid = ("search.method", "hybrid")
    starts = ("search.start_tokens", (0, 1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 64, 128, 256))
    _, _, four, eight, sixteen = lengths
    tuned = source / "finetune_4x"
    base_ropes = (
        str(source / "search_2x"),
        str(source / "search_4x"),
        "{search_8x}",
        "{search_16x}",
    )
    return (
        ("search_4x", "search", (("target_len", four), hybrid)),
        ("starts_4x", "search", (("target_len", four), hybrid, starts)),
        ("search_8x", "search", (("target_len", eight), hybrid)),
        ("starts_8x", "search", (("target_len", eight), hybrid, starts)),
        (
            "search_16x",
            "search",
            (
                ("target_len", sixteen),
                ("search.method", "gradient"),
                ("search.gradient.steps", spent["descent"][1]),
                ("search.objective.num_samples", 1),
            ),
        ),
        (
            "second_2x",
            "search",
            (
                at(tuned),
                factors_of(tuned / "rope.json"),
                ("target_len", eight),
                ("search.multiply", True),
                ("search.method", "gradient"),
            ),
        ),
        ("searched", "join", (("join.ropes", base_ropes),)),
        ("second", "join", (at(tuned), ("join.ropes", ("{second_2x}", str(source / "second"))))),
    )


def _trainings(source: Path, spent: dict, lengths) -> tuple:
    """Returns fine-tunings at 4x on equal tokens, the last one half at 2x and half at 4x."""
    _, two, four, _, _ = lengths
    rows, steps = spent["rows"], spent["steps"]
    at_four = (
        ("target_len", four),
        ("train.seq_len", four),
        ("train.batch_size", rows),
        ("train.steps", steps),
        ("train.log_every", max(1, steps // 3)),
    )
    searched = factors_of(source / "search_4x" / "rope.json")
    return (
        ("tuned_pi", "train", (*at_four, ("rope", dict(method="pi", factor=4.0)))),
        (
            "tuned_yarn",
            "train",
            (
                *at_four,
                ("rope", dict(method="yarn", factor=4.0)),
            ),
        ),
        ("tuned_searched", "train", (*at_four, searched)),
        (
            "half_2x",
            "train",
            (
                *at_four,
                factors_of(source / "search_2x" / "rope.json"),
                ("target_len", two),
                ("train.seq_len", two),
                ("train.batch_size", 2 * rows),
                ("train.steps", steps // 2),
            ),
        ),
        (
            "half_4x",
            "train",
            (
                *at_four,
                at("{half_2x}"),
                searched,
                ("train.steps", steps - steps // 2),
            ),
        ),
    )


def _evaluations(config: ConfigDict, source: Path, folder: Path, lengths) -> tuple:
    """Returns the stages that measure; what paper_verdicts.py calls rows has these labels."""
    _, two, four, eight, sixteen = lengths
    model = config.model.path
    methods = ("pi", "ntk", "yarn", "sliding")
    untrained = [("none", model, "model"), *((name, model, name) for name in methods)]
    starts = [
        (f"{method}, first {n}", model, str(folder / f"{method}_{n}.json"))
        for method in ("pi", "dynamic_ntk")
        for n in STARTS
    ]
    two_x, four_x = source / "finetune_2x", source / "finetune_4x"
    return (
        measure("untrained", [*untrained, ("searched", "{searched}", "model")], lengths),
        measure("starts", starts, (two, four)),
        measure(
            "uniformity_4x",
            [
                ("per dim 4x", model, "{search_4x}/rope.json"),
                ("per dim and start 4x", model, "{starts_4x}/rope.json"),
            ],
            (four,),
        ),
        measure(
            "uniformity_8x",
            [
                ("per dim 8x", model, "{search_8x}/rope.json"),
                ("per dim and start 8x", model, "{starts_8x}/rope.json"),
            ],
            (eight,),
        ),
        measure(
            "extended",
            [
                ("fine-tuned 2x", two_x, str(folder / "finetune_2x.json")),
                ("fine-tuned 4x", four_x, str(folder / "finetune_4x.json")),
                ("extended", source / "join", "model"),
            ],
            lengths,
        ),
        measure(
            "short",
            [
                ("without recovery", four_x, str(folder / "second.json")),
            ],
            (lengths[0], two),
        ),
        measure(
            "tuned",
            [
                ("pi, fine-tuned", "{tuned_pi}", "model"),
                ("yarn, fine-tuned", "{tuned_yarn}", "model"),
                ("searched, fine-tuned", "{tuned_searched}", "model"),
                ("progressive", "{half_4x}", "model"),
            ],
            lengths[:3],
        ),
        measure(
            "beyond",
            [
                ("pi on top", four_x, str(folder / "pi_on_top.json")),
                ("yarn on top", four_x, str(folder / "yarn_on_top.json")),
                ("searched on top", "{second}", "model"),
            ],
            (eight, sixteen),
        ),
    )


def _write_starts(config: ConfigDict, folder: Path, lengths) -> None:
    """Writes PI and dynamic NTK at 2x and 4x with their first n̂ tokens not interpolated."""
    shape = setup.model_config(config)
    for method in ("pi", "dynamic_ntk"):
        buckets = []
        for length in lengths[1:3]:
            factor = length / shape.original_len
            made = rope.make(method, **shape.geometry, factor=factor)
            buckets.append(dataclasses.replace(made.bucket(length), max_len=length))
        for start in STARTS:
            changed = [dataclasses.replace(bucket, start_tokens=start) for bucket in buckets]
            _save(folder / f"{method}_{start}.json", shape.geometry, changed)


def _write_stretched(source: Path, folder: Path, lengths) -> None:
    """Writes fine-tuned and second factors as the only ones for all lengths."""
    for name in ("finetune_2x", "finetune_4x", "second"):
        loaded = rope.load(source / name / "rope.json")
        bucket = dataclasses.replace(loaded.buckets[-1], max_len=lengths[-1])
        _save(folder / f"{name}.json", dataclasses.asdict(loaded.geometry), [bucket])


def _write_beyond(config: ConfigDict, source: Path, folder: Path, lengths) -> None:
    """Writes PI and YaRN on top of the factors of finetune_4x, for 2x and 4x more."""
    made = config.copy_and_resolve_references()
    with made.unlocked():
        made.model = at(source / "finetune_4x")[1]
        made.rope = factors_of(source / "finetune_4x" / "rope.json")[1]
        made.search.multiply = True
    loaded = setup.load_model(made, weights=False)
    found: dict[str, list[rope.Bucket]] = {"pi": [], "yarn": []}
    for length in lengths[3:]:
        made.target_len = length
        for known in baselines.make(made, loaded.config, loaded.rope_fn, lengths[2]):
            if known.name in found:
                bucket = dataclasses.replace(known.bucket, max_len=length)
                found[known.name].append(bucket)
    for name, buckets in found.items():
        _save(folder / f"{name}_on_top.json", loaded.config.geometry, buckets)


def _save(path: Path, geometry: dict, buckets) -> None:
    rows = [dataclasses.asdict(bucket) for bucket in buckets]
    made = rope.make("longrope", **geometry, buckets=rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    rope.save(path, made, {"made_by": "benchmarks.paper_tables"})
