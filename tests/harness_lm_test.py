"""Our model as a class of lm-evaluation-harness: its requests, bos, spaces, chat templates.

Skips where lm-eval is not installed (extra `harness`).
"""

import dataclasses

import pytest
from tiny_harness import books_model, eval_model, ids, make_reader, needs_lm_eval

from jaxrope.data.chat import ChatTemplate
from jaxrope.errors import InputError
from jaxrope.evaluate.harness import Pair


@pytest.fixture
def model(tiny_model):
    return eval_model(tiny_model)


class Request:
    """What lm_eval calls an Instance."""

    def __init__(self, *args):
        self.args = args


@needs_lm_eval
def test_an_empty_context_is_bos(model):
    from jaxrope.evaluate import harness_lm

    lm = harness_lm.HarnessLM(make_reader(model))
    (found,) = lm.loglikelihood([Request("", "abc")], disable_tqdm=True)
    assert found == make_reader(model).loglikelihoods([Pair(ids(256), ids(*b"abc"))])[0]
    assert lm.prefix_token_id == 256 and lm.eot_token_id == 257
    (rolled,) = lm.loglikelihood_rolling([Request("abc")])
    assert rolled == pytest.approx(found[0], abs=1e-6)
    bare = dataclasses.replace(model.tokenizer, bos_token_id=None)
    assert (
        harness_lm.HarnessLM(
            make_reader(dataclasses.replace(model, tokenizer=bare))
        ).prefix_token_id
        == 257
    )
    none = dataclasses.replace(bare, eos_id=None)
    with pytest.raises(InputError, match="has neither a begin nor an end token"):
        _ = harness_lm.HarnessLM(
            make_reader(dataclasses.replace(model, tokenizer=none))
        ).prefix_token_id


@needs_lm_eval
def test_spaces_at_the_end_of_a_context_belong_to_the_continuation(model):
    from jaxrope.evaluate import harness_lm

    lm = harness_lm.HarnessLM(make_reader(model))
    moved = lm.loglikelihood([Request("ab ", "c"), Request("ab", " c")], disable_tqdm=True)
    assert moved[0] == moved[1]


@needs_lm_eval
def test_bos_is_put_in_front_once(books_6m):
    from jaxrope.evaluate import harness_lm

    lm = harness_lm.HarnessLM(make_reader(books_model(books_6m)))
    assert lm.tok_encode("A text")[0] == 1 and lm.tok_encode("A text").count(1) == 1
    assert lm.tok_encode("<s>A text") == lm.tok_encode("A text")
    assert lm.tok_encode("A text", add_special_tokens=False) == lm.tok_encode("A text")[1:]


@needs_lm_eval
def test_gen_kwargs_are_understood(model):
    from jaxrope.evaluate import harness_lm

    lm = harness_lm.HarnessLM(make_reader(model))
    (plain,) = lm.generate_until([Request("abc", {"until": [], "max_gen_toks": 8})])
    stop = plain[4]
    (cut,) = lm.generate_until([Request("abc", {"until": stop, "max_gen_toks": 8})])
    assert cut == plain[: plain.find(stop)]
    question = lm._question("abc", {"until": ["", "x"], "do_sample": False, "temperature": 0.7})
    assert question.stops == ("x",) and question.max_new_tokens == 256  # lm_eval's own default
    with pytest.raises(InputError, match="a task samples"):
        lm._question("abc", {"do_sample": True, "temperature": 0.7})


@needs_lm_eval
def test_a_chat_template_is_used_if_there_is_one(model):
    from jaxrope.evaluate import harness_lm

    template = (
        "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
    )
    template += "{% if add_generation_prompt %}[assistant]{% endif %}"
    template = ChatTemplate(template, {"bos_token": "<s>"}, "t")
    lm = harness_lm.HarnessLM(make_reader(model), name="x", chat_template=template)
    history = [{"role": "user", "content": "hello"}]
    assert lm.apply_chat_template(history) == "<s>[user]hello[assistant]"
    assert lm.apply_chat_template(history, add_generation_prompt=False) == "<s>[user]hello"
    assert lm.chat_template(True) == template.source and lm.chat_template(False) is None
    assert lm.tokenizer_name == "x" and lm.max_length == 64
    bare = harness_lm.HarnessLM(make_reader(model))
    with pytest.raises(InputError, match="chat_template is set, but the tokenizer has none"):
        bare.apply_chat_template(history)
    strict = ChatTemplate("{{ raise_exception('no system') }}", {}, "t")
    strict = harness_lm.HarnessLM(make_reader(model), chat_template=strict)
    with pytest.raises(InputError, match="t refuses the messages: no system"):
        strict.apply_chat_template(history)
