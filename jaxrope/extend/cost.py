"""What an extension costs: the time of each phase, and memory.

Everything is counted in forward tokens: a search as its own dry run says, a trained token as four
(forward, backward, and once more for what was not kept), an evaluation as what it reads.
"""

import dataclasses
import math
from collections.abc import Callable

from jaxrope import schema, search, setup
from jaxrope.extend import recipes
from jaxrope.extend.facts import trial
from jaxrope.extend.request import Request

_TRAINED = 4  # forward passes that a trained token costs
# What each phase loads and compiles, in times what it takes to load the weights and to compile a
# forward pass; a measurement also once for every length and kind of text.
_READY = {"search": 4, "training": 4, "control": 4, "recovery": 4, "measurement": 2, "exports": 3}
_AGAIN = 4  # times the samples of its last word that a recovery needs more, for two candidates
_LAST = 30.0  # seconds for exports and the page
_OPENED = 4096  # tokens of what is compared with other programs, at most
_STATE = 3 * 4  # bytes of a trained parameter in memory: its gradient and both moments


def seconds(
    request: Request, facts: recipes.Facts, effort: recipes.Effort, *, speed: float, ready: float
) -> dict[str, int]:
    """Returns the seconds of each phase.

    Args:
      request: what was asked for.
      facts: about the model.
      effort: how much of everything.
      speed: forward tokens a second.
      ready: seconds that it takes to load the weights and to compile.
    """
    problem = search.prepare(recipes.base_config(request, dataclasses.asdict(effort)))
    tokens = {"search": sum(search.planned(problem).values())}
    if effort.train_steps:
        trained = effort.train_steps * recipes.rows(facts, effort) * request.target_len
        tokens["training"] = _TRAINED * trained
        if request.control:
            tokens["control"] = _TRAINED * trained
    if effort.recovers:
        tokens["recovery"] = _recovery_tokens(request, facts, effort, problem)
    rows = len(recipes.METHODS) + bool(effort.train_steps)  # but for that which slides
    texts = effort.windows * (
        rows * sum(effort.lengths)
        + (1 + request.control) * sum(map(_sliding(facts), effort.lengths))
    )
    texts += (2 + bool(effort.train_steps)) * facts.num_chats * facts.chat_len
    asked = recipes.retrieval_lengths(facts, effort)
    tokens["measurement"] = texts + rows * 2 * effort.trials * sum(asked)
    tokens["exports"] = 4 * sum(compared_lengths(request, facts))
    begun = dict(_READY)
    begun["measurement"] += 2 * (len(effort.lengths) + len(asked))
    foreseen = {name: count / speed + begun[name] * ready for name, count in tokens.items()}
    foreseen["exports"] += _LAST
    return {name: math.ceil(value) for name, value in foreseen.items()}


def _sliding(facts: recipes.Facts) -> Callable[[int], int]:
    """Returns (tokens of a text) -> what the model's own window, sliding over it, reads."""
    step = recipes.stride(facts)
    return lambda length: facts.length * (1 + math.ceil((length - facts.length) / step))


def _recovery_tokens(request, facts, effort, problem: search.Problem) -> int:
    """Returns the forward tokens of the search at the model's own length."""
    section = dict(method="file", path="rope.json")  # that is not there yet
    changes = {**recipes.recovery(request, facts), "rope": section}
    expected = setup.Expected(ropes={section["path"]: trial(problem, request.target_len)})
    config = schema.replace(problem.config, changes)
    again = _AGAIN * config.search.judge.num_samples * facts.length
    return sum(search.planned(search.prepare(config, expected)).values()) + again


def compared_lengths(request: Request, facts: recipes.Facts) -> tuple[int, int]:
    """Returns the lengths of what is compared with other programs, one inside the model's own
    length and one beyond it.
    """
    inside = max(1, min(facts.length // 2, _OPENED // 2))
    return inside, min(request.target_len, max(2 * facts.length, inside), _OPENED)


def memory(request: Request, facts: recipes.Facts, problem: search.Problem) -> str:
    """Returns what of it is needed on each device, in words."""
    model, needs = problem.model, problem.memory
    words = f"{_gib(needs.params + needs.candidate)} GiB for the search"
    if request.finetune == "none":
        return words
    trained = facts.num_params
    if request.finetune == "lora":  # what it trains beside adapters, which are small
        trained = model.vocab_size * model.embed_dim * (1 if model.tie_embeddings else 2)
    size = (4 * facts.num_params + _STATE * trained) / problem.mesh.size
    return f"{words}, {_gib(size)} GiB for training, beside what its rows need"


def _gib(size: float) -> str:
    return f"{size / 2**30:.2g}"
