"""What `python -m jaxrope.analyse` trains and measures."""

import dataclasses

from jaxrope.errors import InputError
from jaxrope.schema.rules import (
    Anything,
    Choice,
    Fixed,
    Many,
    Number,
    One,
    Section,
    Switch,
    Text,
    Whole,
    field,
)

SETTINGS = ("none", "pi", "ntk", "yarn", "abf", "searched")
TASKS = ("passkey", "needle")
PAIR = Fixed(
    (Text("a dotted key, looked up when it is set", least=1), Anything("the rule of its key")),
    '("train.steps", 400)',
)
_MULTIPLE = Number(above=0, unit="the pre-trained length")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Heads(Section):
    """Retrieval heads."""

    PATH = "analysis.heads"

    setting: str = field(Choice(SETTINGS))
    multiple: float = field(_MULTIPLE)
    above: float = field(Number(least=0, most=1))
    sizes: tuple = field(Many(Whole(1), distinct=True))
    draws: int = field(Whole(1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Analysis(Section):
    """The experiments; lengths are multiples of the pre-trained one."""

    PATH = "analysis"

    settings: tuple = field(Many(Choice(SETTINGS), distinct=True, includes=("none",)))
    factor: float = field(Number(least=2))
    theta_times: float = field(Number(least=1))
    untrained: bool = field(Switch())
    perplexity: tuple = field(Many(_MULTIPLE, distinct=True, includes=(2.0,)))
    patterns: tuple = field(Many(_MULTIPLE, distinct=True, includes=(0.5, 2.0)))
    needles: tuple = field(Many(_MULTIPLE, distinct=True, includes=(1.0,)))
    sequences: int = field(Whole(2))
    queries: int = field(Whole(1))
    tasks: tuple = field(Many(Choice(TASKS), distinct=True))
    trials: int = field(Whole(2))
    depths: int = field(Whole(1))
    haystack: bool = field(Switch())
    twin_steps: int = field(Whole(1))
    longer: int = field(Whole(2))
    longer_setting: str = field(Choice(("", *SETTINGS)))
    heads: Heads = field(One(Heads))
    second: tuple = field(Many(PAIR))

    def check(self) -> None:
        """Every depth has as many trials, and no length is beyond the factor."""
        rule = f"be a multiple of analysis.depths, {self.depths}, so that every depth has as many"
        self.require(self.trials % self.depths == 0, "trials", rule)
        for name in ("perplexity", "patterns", "needles"):
            longest = max(getattr(self, name))
            if longest > self.factor:
                raise InputError(
                    f"analysis.{name} must be at most analysis.factor, {self.factor:g}, where the "
                    f"extensions end, got {longest:g}."
                )
        at_most = f"be at most analysis.factor, {self.factor:g}"
        self.require(self.longer <= self.factor, "longer", at_most)
