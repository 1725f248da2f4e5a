"""The adapter of lm-evaluation-harness: an `LM` whose model is a `harness.Reader`.

It is the only module that imports lm-eval, which is an optional extra of the package; it is itself
imported where its tasks are requested, and nowhere else.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import lm_eval
import numpy as np
from lm_eval.api.model import TemplateLM
from lm_eval.tasks import TaskManager

from jaxrope import data
from jaxrope.errors import InputError
from jaxrope.evaluate.harness import Pair, Question, Reader

_MAX_NEW_TOKENS = 256  # where a task says nothing, as lm_eval's own models
_FEWSHOT_SEED = 1234  # the harness's own


class HarnessLM(TemplateLM):
    """A model as the harness sees it.

    Texts are encoded with bos in front, if the tokenizer puts it there and the text does not begin
    with it; an empty context is bos (else the end of text). Generation is greedy.
    """

    def __init__(
        self,
        reader: Reader,
        *,
        name: str = "jaxrope",
        chat_template: data.chat.ChatTemplate | None = None,
    ):
        """Args:
        reader: what answers.
        name: of the tokenizer, for caches of the harness.
        chat_template: Jinja, or None: it has none.
        """
        super().__init__()
        self._reader, self._name, self._template = reader, name, chat_template

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return self._special("eos_id", "bos_token_id")

    @property
    def prefix_token_id(self) -> int:
        """The token that stands before a text without context."""
        return self._special("bos_token_id", "eos_id")

    @property
    def max_length(self) -> int:
        """Tokens that are read at one time."""
        return self._reader.max_length

    @property
    def tokenizer_name(self) -> str:
        return self._name

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_) -> list[int]:
        """Returns ids; bos is in front unless add_special_tokens is False."""
        tokenizer = self._reader.model.tokenizer
        ids = tokenizer.encode(string)
        ids = ids if add_special_tokens is False else data.with_bos(tokenizer, ids)
        return ids.tolist()

    def _loglikelihood_tokens(self, requests, **_) -> list[tuple[float, bool]]:
        pairs = [Pair(_ids(context), _ids(target)) for _, context, target in requests]
        answers = self._reader.loglikelihoods(pairs)
        for (key, _, _), answer in zip(requests, answers, strict=True):
            if key is not None:
                self.cache_hook.add_partial("loglikelihood", key, answer)
        return answers

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
        """Returns the log-likelihood of each text, nats: every token of it once.

        lm_eval's own model of Hugging Face puts bos before a text that its tokenizer has put bos
        before, and scores the second one too, unless add_bos_token=False.
        """
        texts = [self.tok_encode(r.args[0], add_special_tokens=False) for r in requests]
        loglikelihoods = self._reader.rolling(map(_ids, texts), prefix=self.prefix_token_id)
        for request, answer in zip(requests, loglikelihoods, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, answer)
        return loglikelihoods

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        """Returns what the model writes after each context, before the first stop."""
        answers = self._reader.generate([self._question(*request.args) for request in requests])
        for request, answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, answer)
        return answers

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Returns the template that `apply_chat_template` uses, for the record."""
        return self._template.source if chat_template and self._template else None

    def apply_chat_template(self, chat_history, add_generation_prompt: bool = True) -> str:
        """Returns the text of a conversation.

        Raises:
          InputError: the tokenizer has no template, or it refuses the conversation.
        """
        if self._template is None:
            raise InputError(
                "eval.harness.chat_template is set, but the tokenizer has none (chat_template in "
                "tokenizer_config.json, or chat_template.jinja). Leave it out."
            )
        prompt = data.chat.render(
            self._template, chat_history, add_generation_prompt=add_generation_prompt
        )
        return prompt.text

    def _question(self, context: str, gen_kwargs: dict[str, Any]) -> Question:
        if gen_kwargs.get("do_sample") and gen_kwargs.get("temperature", 1.0) > 0:
            raise InputError(
                "eval.harness.tasks: a task samples (do_sample), which is not done here: answers "
                "are greedy. Set do_sample: false in the task, or leave it out."
            )
        until = gen_kwargs.get("until") or ()
        stops = (until,) if isinstance(until, str) else tuple(until)
        most = gen_kwargs.get("max_gen_toks", gen_kwargs.get("max_new_tokens", _MAX_NEW_TOKENS))
        return Question(_ids(self.tok_encode(context)), tuple(s for s in stops if s), int(most))

    def _special(self, *names: str) -> int:
        token_ids = (getattr(self._reader.model.tokenizer, name) for name in names)
        number = next((number for number in token_ids if number is not None), None)
        if number is None:
            raise InputError(
                "harness: the tokenizer has neither a begin nor an end token, so nothing can stand "
                "before a text. Name one in tokenizer_config.json."
            )
        return number


def load(name: str, *, shots: int | None, include_path: str, metadata: dict) -> dict:
    """Returns a task or a group of tasks with its data, as `run` takes it.

    Args:
      name: of the task.
      shots: examples before each question; None = the task's own number. A task that fixes 0 keeps
        it, as in the harness.
      include_path: folder of further tasks; "" = none.
      metadata: passed to the tasks: "tokenizer" and "max_seq_lengths" are for RULER.

    Raises:
      InputError: there is no such task, or its data is not at hand.
    """
    try:
        loaded = TaskManager(include_path=include_path or None, metadata=metadata).load([name])
    except KeyError:
        raise InputError(
            f"Unknown task '{name}' in eval.harness.tasks. `lm-eval ls tasks` lists those there are"
            "; eval.harness.include_path names a folder of your own."
        ) from None
    except (OSError, ImportError, ValueError, AssertionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"eval.harness.tasks: '{name}' cannot be loaded here ({reason}). Its data is "
            "downloaded by lm-eval once, where there is a network; or leave the task out."
        ) from None
    for task in loaded["tasks"].values():
        task_shots = task.get_config("num_fewshot")
        if shots is not None and task_shots != 0:
            task.set_config(key="num_fewshot", value=shots)
        elif task_shots is None:
            task.set_config(key="num_fewshot", value=0)
    return loaded


def ask(lm: HarnessLM, loaded: dict, *, limit: int, with_chat_template: bool) -> None:
    """Makes the requests that `run` makes, and discards the answers."""
    for task in loaded["tasks"].values():
        task.set_fewshot_seed(seed=_FEWSHOT_SEED)
        task.build_all_requests(
            limit=limit or None,
            rank=0,
            world_size=1,
            apply_chat_template=with_chat_template,
            chat_template=lm.apply_chat_template if with_chat_template else None,
            tokenizer_name=lm.tokenizer_name if with_chat_template else "",
        )
        kinds = dict.fromkeys(instance.request_type for instance in task.instances)
        for kind in kinds:
            requests = [
                i for i in task.instances if i.request_type == kind for _ in range(i.repeats)
            ]
            getattr(lm, kind)(requests, disable_tqdm=True)


def run(lm: HarnessLM, loaded: dict, *, limit: int, with_chat_template: bool) -> dict:
    """Returns lm_eval's results: "results", "groups", "samples", ... of the loaded tasks.

    Args:
      lm: what answers.
      loaded: of `load`; the same examples are drawn each time.
      limit: questions of each task; 0 = all.
      with_chat_template: whether prompts are put into it.
    """
    for task in loaded["tasks"].values():
        task.set_fewshot_seed(seed=_FEWSHOT_SEED)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lm_eval|datasets")
        return lm_eval.evaluate(
            lm,
            loaded,
            limit=limit or None,
            bootstrap_iters=100,
            apply_chat_template=with_chat_template,
        )


def shots_of(loaded: dict) -> Sequence[int]:
    """Returns the numbers of examples that the tasks have, each once."""
    return sorted({task.get_config("num_fewshot") for task in loaded["tasks"].values()})


def _ids(tokens: Sequence[int]) -> np.ndarray:
    return np.asarray(tokens, np.int32)
