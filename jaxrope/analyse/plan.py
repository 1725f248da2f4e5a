"""What is trained, what is measured, and at which lengths, of `config.analysis`.

All lengths are multiples of the pre-trained length, so that one config serves models of several
lengths. The paper uses twice and half of it (8,192 and 2,048 for 4,096). Of a model that is scaled
already it is the length that its scaling reaches, and the settings extend that scaling.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxrope import decoder, rope, schema, setup
from jaxrope.errors import InputError
from jaxrope.schema import Config

HALF, TWICE = 0.5, 2.0  # of the pre-trained length: where the paper compares patterns
PLAIN, SEARCHED = "none", "searched"
BASE, TWIN, LONGER = "base", "twin", "longer"
PERPLEXITY = "perplexity"  # the stage that measures it

# setting -> (config.analysis, shape) -> the constants of its rope; SEARCHED has those of the search
ROPES: dict[str, Callable[[Any, decoder.DecoderConfig], dict]] = {
    PLAIN: lambda section, shape: dict(method="none"),
    "pi": lambda section, shape: dict(method="pi", factor=section.factor),
    "ntk": lambda section, shape: dict(method="ntk", factor=section.factor),
    "yarn": lambda section, shape: dict(
        method="yarn", factor=section.factor, beta_fast=32.0, beta_slow=1.0
    ),
    "abf": lambda section, shape: dict(method="abf", new_theta=shape.theta * section.theta_times),
}


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model with a rope, to be measured.

    Attributes:
      label: its name in tables and figures.
      model: the folder of its weights; "{name}" is that of a stage.
      rope: a rope.json, or "": the model's own.
      trained_len: tokens of the rows it was trained on last.
      setting: of ROPES or SEARCHED: what its rope is.
      is_trained: it was continually trained with that rope.
    """

    label: str
    model: str
    rope: str
    trained_len: int
    setting: str
    is_trained: bool


@dataclasses.dataclass(frozen=True)
class Study:
    """One model with all its settings.

    Attributes:
      name: "" of the first model, else a prefix of its stages.
      config: of the program, with the changes for this model.
      shape: of the pre-trained model.
      stages: for config.recipe.
      subjects: what is measured; the first is the pre-trained model itself.
    """

    name: str
    config: Config
    shape: decoder.DecoderConfig
    stages: tuple
    subjects: tuple[Subject, ...]

    @property
    def trained_len(self) -> int:
        """The pre-trained length, tokens."""
        return decoder.own_base(self.shape).length

    @property
    def title(self) -> str:
        """The name of the model."""
        return Path(self.config.model.path).name

    def lengths(self, multiples: Sequence[float]) -> list[int]:
        """Returns multiples of the pre-trained length, tokens."""
        return [round(multiple * self.trained_len) for multiple in multiples]

    def subject(self, label: str) -> Subject:
        """Returns the subject of this label."""
        return next(subject for subject in self.subjects if subject.label == label)


def make(config: Config) -> list[Study]:
    """Returns the studies of the first model, and of the second if there is one.

    Raises:
      InputError: a key of config.analysis does not suit the model, or breaks its rule for the
        second one.
    """
    studies, second = [_study(config, "")], config.analysis.second
    if second:
        other = schema.replace(config, second, setting="analysis.second")
        studies.append(_study(other, "second_"))
    return studies


def untrained(setting: str) -> str:
    """Returns the label of a setting before its continual training."""
    return f"{setting}, untrained"


def _study(config: Config, name: str) -> Study:
    if config.model.source != "checkpoint":
        raise InputError(
            f"model.source must be 'checkpoint': a pre-trained model, got '{config.model.source}'. "
            "Give the folder of one."
        )
    shape = setup.model_config(config)
    _check(config, shape)
    return Study(
        name,
        config,
        shape,
        (*_trainings(config, name, shape), *_evaluations(config, name, shape)),
        _subjects(config, name, shape),
    )


def _trainings(config: Config, name: str, shape: decoder.DecoderConfig) -> tuple:
    """Returns the stages that train the subjects, all but the twin on equal tokens."""
    section, length = config.analysis, decoder.own_base(shape).length
    longest = round(section.factor * length)
    common = (*_second_changes(config, name), ("target_len", longest), ("eval.suites", ()))
    stages = []
    if SEARCHED in section.settings:
        stages.append((f"{name}search", "search", common))

    def train(stage: str, rope: dict, multiple: int, steps: int):
        rows = config.train.batch_size // multiple
        changes = (
            ("rope", rope),
            ("train.seq_len", multiple * length),
            ("train.batch_size", rows),
            ("train.steps", steps),
            ("train.accumulation", min(config.train.accumulation, rows)),
        )
        stages.append((name + stage, "train", (*common, *changes)))

    def rope_of(setting: str) -> dict:
        if setting == SEARCHED:
            return dict(method="file", path=f"{{{name}search}}/rope.json")
        return _further(ROPES[setting](section, shape), shape, _longest(section, length))

    for setting in section.settings:
        train(setting, rope_of(setting), 1, config.train.steps)
    train(TWIN, rope_of(PLAIN), round(TWICE), section.twin_steps)
    if section.longer_setting in section.settings:
        train(LONGER, rope_of(section.longer_setting), section.longer, config.train.steps)
    return tuple(stages)


def _longest(section, length: int) -> int:
    """Returns the longest text that is trained on or measured, tokens."""
    multiples = (*section.perplexity, *section.patterns, *section.needles)
    return round(max(*multiples, section.factor, section.longer, TWICE) * length)


def _further(stated: dict, shape: decoder.DecoderConfig, longest: int) -> dict:
    """Returns the constants of a rope on top of the model's own scaling, for config.rope.

    Args:
      stated: what they are on top of plain frequencies.
      shape: of the model.
      longest: tokens that the rope has to serve.
    """
    own = decoder.own_base(shape)
    if own.is_plain:
        return stated
    if stated["method"] == PLAIN:
        return dict(method="model")
    geometry = dict(head_dim=shape.head_dim, rotary_dim=shape.rotary_dim, theta=shape.theta)
    extended = rope.extend(own, **stated, **geometry, original_len=shape.original_len)
    rows = [dataclasses.asdict(bucket) | dict(max_len=longest) for bucket in extended.buckets]
    return dict(method="longrope", buckets=rows)


def _second_changes(config: Config, name: str) -> tuple:
    """Returns the changes of config that all stages of the second model share."""
    return config.analysis.second if name else ()


def _evaluations(config: Config, name: str, shape: decoder.DecoderConfig) -> tuple:
    """Returns the stages that measure perplexity, and Fu's needle inside the window."""
    section, length = config.analysis, decoder.own_base(shape).length
    common = _second_changes(config, name)
    labels = tuple(
        (subject.label, subject.model, subject.rope or "model")
        for subject in _subjects(config, name, shape)[1:]
    )
    measured = (
        ("eval.suites", ("perplexity",)),
        ("eval.lengths", tuple(round(multiple * length) for multiple in section.perplexity)),
        ("eval.num_windows", section.sequences),
        ("eval.windows_per_doc", 1),
        ("eval.label", BASE),
        ("eval.checkpoints", labels),
        ("eval.baseline", BASE),
    )
    stages = [(f"{name}{PERPLEXITY}", "evaluate", (*common, *measured))]
    if section.haystack:
        haystack = (("eval.suites", ("niah",)), ("eval.lengths", (length,)), ("eval.label", BASE))
        stages.append((f"{name}haystack", "evaluate", (*common, *haystack)))
    return tuple(stages)


def _subjects(config: Config, name: str, shape: decoder.DecoderConfig) -> tuple[Subject, ...]:
    section, length = config.analysis, decoder.own_base(shape).length
    path = config.model.path
    subjects = [Subject(BASE, path, "", length, PLAIN, False)]
    for setting in section.settings:
        subjects.append(Subject(setting, f"{{{name}{setting}}}", "", length, setting, True))
    if section.untrained:
        for setting in section.settings:
            if setting != PLAIN:
                at = f"{{{name}{setting}}}/rope.json"
                subjects.append(Subject(untrained(setting), path, at, length, setting, False))
    at_twin, twice = f"{{{name}{TWIN}}}", round(TWICE * length)
    subjects.append(Subject(TWIN, at_twin, "", twice, PLAIN, True))
    if section.longer_setting in section.settings:
        longer = section.longer * length
        at, rope = f"{{{name}{LONGER}}}", section.longer_setting
        subjects.append(Subject(f"{rope}, trained longer", at, "", longer, rope, True))
    return tuple(subjects)


def _check(config: Config, shape: decoder.DecoderConfig) -> None:
    """Refuses what the schema cannot know: what does not suit the model."""
    section, trained = config.analysis, decoder.own_base(shape).length
    longest, end = _longest(section, trained), decoder.own_rope(shape).max_len
    if end is not None and longest > end:
        raise InputError(
            f"model.path: the model's own factors end at {end:,} tokens, so that it cannot be "
            f"measured at {longest:,}, as analysis asks. Name the model that it was extended from."
        )
    for key in ("perplexity", "patterns", "needles"):
        multiples = getattr(section, key)
        lengths = [multiple * trained for multiple in multiples]
        if any(length != round(length) or length < 2 for length in lengths):
            raise InputError(
                f"analysis.{key} must be multiples of the {trained:,} tokens of the "
                f"pre-training that are whole numbers of tokens, got {multiples}."
            )
    for multiple, what in ((round(TWICE), "the twin"), (section.longer, "analysis.longer")):
        if config.train.batch_size % multiple:
            raise InputError(
                f"train.batch_size must be a multiple of {multiple}, the rows of {what} being so "
                f"many times as long and a step having equal tokens, got {config.train.batch_size}."
            )
    total = shape.num_attention_layers * shape.num_heads
    for size in section.heads.sizes:
        if size > total // 2:
            raise InputError(
                f"analysis.heads.sizes must be from 1 to {total // 2}, half of the model's heads, "
                f"so that as many others can be drawn, got {size}."
            )
