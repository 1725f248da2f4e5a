"""Tasks that are answered by generation: what is asked, what is written, what comes of it."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrope import decoder, evaluate, generate
from jaxrope.data import BytesTokenizer
from jaxrope.errors import InputError
from jaxrope.evaluate import answering, journal, statistics, suites
from jaxrope.evaluate.answering import Prompt, Writing
from jaxrope.evaluate.items import Item, Request, Task
from jaxrope.evaluate.scoring import EvalModel
from jaxrope.mesh import sharding
from tests import benches
from tests.written import replace_generation

TOKENIZER = BytesTokenizer()


def make_sums(request: Request) -> list[Item]:
    """Returns prompts of different lengths that end in a number, which is the answer."""
    rng = np.random.default_rng([request.seed, request.length])
    sizes = rng.integers(20, request.length - 10, request.count)
    return [
        Item(f"{'.' * int(size - 2)}{i:02d}", (f"{i:02d}",), 4, {"depth": i / request.count})
        for i, size in enumerate(sizes)
    ]


def last_two(prompt) -> str:
    return TOKENIZER.decode(prompt[-2:])


def in_text(text: str, item: Item) -> float:
    return float(item.answers[0] in text)


SUMS = Task("lines", "lines", make_sums, in_text, columns=("depth",))


@pytest.fixture
def model(tiny_model):
    config, params = tiny_model
    return EvalModel(
        config=config,
        params=params,
        rope_fn=decoder.own_rope(config),
        tokenizer=TOKENIZER,
        settings=decoder.ForwardSettings(attention_block=16),
        label="none",
    )


@pytest.fixture
def sums(monkeypatch):
    """A function that puts SUMS, with changes, in the place of the suite "lines"; it is there."""

    def put(**changes):
        task = dataclasses.replace(SUMS, **changes)
        monkeypatch.setitem(suites.SUITES, "lines", answering.suite(task))

    put()
    return put


def make_bench(trials=7, lengths=(64,), **values):
    usual = dict(suites=("lines",), chunk_tokens=16, batch_tokens=256, bootstrap_samples=200)
    usual |= dict(lengths=lengths, lines=dict(trials=trials))
    return benches.make_bench(seed=3, **usual | values)


def prompts_of(*sizes, limit=5, seed=0):
    rng = np.random.default_rng(seed)
    return [Prompt(rng.integers(0, 256, size).astype(np.int32), limit) for size in sizes]


def written(model, prompts, **values):
    how = dict(length=64, stops=(), rows=2, chunk=16) | values
    found = {}
    for batch in answering.write(model, prompts, Writing(**how)):
        found |= batch
    return [found[i] for i in range(len(prompts))]


def generated(monkeypatch, prompts, model, **values):
    """Returns the tokens that were made for each prompt, and the answers."""
    made, real = {}, generate.stream

    def stream(model, rows, options, **more):
        for new in real(model, rows, options, **more):
            for row, token in new:
                made.setdefault(tuple(rows[row]), []).append(token)
            yield new

    monkeypatch.setattr(generate, "stream", stream)
    answers = written(model, prompts, **values)
    return [made[tuple(prompt.tokens.tolist())] for prompt in prompts], answers


def test_it_writes_what_one_forward_pass_of_the_whole_text_would(model, monkeypatch):
    """Without a cache, in one piece, on the text that came out: each token is the first choice."""
    prompts = prompts_of(40, 9, 33, 17)
    made, answers = generated(monkeypatch, prompts, model)
    rows = np.zeros((4, 64), np.int32)
    for row, prompt, tokens in zip(rows, prompts, made, strict=True):
        row[: len(prompt.tokens) + len(tokens)] = [*prompt.tokens, *tokens]
    logits = np.asarray(decoder.logits(model.config, model.params, rows, model.rope_fn(64)))
    for i, (prompt, tokens, answer) in enumerate(zip(prompts, made, answers, strict=True)):
        start = len(prompt.tokens) - 1
        assert logits[i, start : start + len(tokens)].argmax(-1).tolist() == tokens
        assert len(tokens) == 5 or tokens[-1] == 257
        assert answer.num_tokens == len(tokens)
        stream = generate.TextStream(TOKENIZER, prompt.tokens)
        text = "".join([stream.push(token) for token in tokens if token != 257])
        assert answer.text == text + stream.finish()
    assert written(model, prompts[:1], rows=3)[0] == answers[0]  # whoever its mates are


def test_answers_are_the_same_on_a_mesh(model, tiny_config, monkeypatch):
    prompts = prompts_of(40, 9, 33)
    alone = written(model, prompts)
    mesh = sharding.make_mesh(dict(data=2, fsdp=1, context=2, tensor=2))
    settings = dataclasses.replace(model.settings, mesh=mesh)
    params = sharding.put(model.params, decoder.param_shardings(tiny_config, mesh))
    spread = dataclasses.replace(model, settings=settings, params=params)
    assert written(spread, prompts, chunk=32) == alone


def test_the_factors_are_those_of_the_column(model, monkeypatch):
    asked = []
    other = dataclasses.replace(model, rope_fn=lambda n: asked.append(n) or model.rope_fn(n))
    calls = replace_generation(monkeypatch, TOKENIZER, last_two)
    written(other, prompts_of(9, 30), length=50)
    assert asked == [50]
    rope_fn = calls[0][0].rope_fn
    assert rope_fn(7) is rope_fn(50) and rope_fn.max_len == 50
    assert rope_fn.bucket(7) == rope_fn.bucket(50)


def test_prompts_are_batched_by_length_and_few_shapes_are_compiled(model, monkeypatch):
    calls = replace_generation(monkeypatch, TOKENIZER, last_two)
    prompts = prompts_of(40, 9, 33, 17, 28, limit=5) + prompts_of(10, limit=3)
    answers = written(model, prompts, rows=4)
    assert [answer.text for answer in answers] == [last_two(p.tokens) for p in prompts]
    sizes = [[len(prompt) for prompt in batch] for _, batch, _ in calls]
    # the last batch is filled up with one chunk of its last prompt
    assert sizes == [[10, 9, 17, 28], [33, 40, 16, 16]]
    assert [options.max_new_tokens for _, _, options in calls] == [5, 5]
    assert {options.policy for _, _, options in calls} == {"fixed"}


def test_prompts_that_together_exceed_the_length_are_no_batch(model, monkeypatch):
    """A batch makes room for its longest prompt and its longest answer, which may be of two."""
    long, short = prompts_of(58, limit=6)[0], prompts_of(10, limit=20, seed=1)[0]
    together, alone = (
        [generated(monkeypatch, some, model, length=64, rows=2)[1] for some in lists]
        for lists in ([[long, short]], [[long], [short]])
    )
    assert together[0] == [answers[0] for answers in alone]
    assert [answer.num_tokens <= n for answer, n in zip(together[0], (6, 20), strict=True)]
    calls = replace_generation(monkeypatch, TOKENIZER, last_two)
    written(model, [long, short, *prompts_of(9, 44, limit=20)], rows=4)
    # filled up with one chunk of the last prompt, so that the number of rows is the same
    sizes = [[len(prompt) for prompt in batch] for _, batch, _ in calls]
    assert sizes == [[58, 16, 16, 16], [9, 10, 44, 16]]
    assert [options.max_new_tokens for _, _, options in calls] == [6, 20]


def test_batch_tokens_bound_the_cache_and_the_mesh_divides_a_batch(model):
    prompts = prompts_of(45, 20, 20, 20, 20, 20, 20)  # 50 tokens at most
    assert answering.batch_size(model, prompts, 200) == 4  # 7 rows: 4 and 3
    assert answering.batch_size(model, prompts, 10) == 1
    settings = dataclasses.replace(
        model.settings, mesh=sharding.make_mesh(dict(data=8, fsdp=1, context=1, tensor=1))
    )
    assert answering.batch_size(dataclasses.replace(model, settings=settings), prompts, 200) == 8


@pytest.mark.parametrize(
    ("text", "stops", "limit", "wanted", "count"),
    [
        ("abc", (), 9, "abc", 4),  # eos is a token that was made, and no text
        ("abcdefgh", (), 3, "abc", 3),
        ("ab\ncd", ("\n",), 9, "ab", 3),
        ("ab-/-cd", ("-/-",), 4, "ab-/", 4),  # the stop had not come out
        ("aé", (), 2, "a\ufffd", 2),  # half a character
    ],
)
def test_an_answer_ends_at_eos_its_limit_or_a_stop(
    model, monkeypatch, text, stops, limit, wanted, count
):
    replace_generation(monkeypatch, TOKENIZER, lambda prompt: text)
    prompts = prompts_of(9, 20, limit=limit)
    assert written(model, prompts, stops=stops) == [(wanted, count)] * 2


def test_an_answer_ends_at_its_own_limit_and_not_at_its_mates(model, monkeypatch):
    replace_generation(monkeypatch, TOKENIZER, lambda prompt: "abcdefgh")
    prompts = prompts_of(9, limit=3) + prompts_of(20, limit=7)
    assert written(model, prompts) == [("abc", 3), ("abcdefg", 7)]


def test_ticks_add_up_to_what_was_planned(model, monkeypatch):
    replace_generation(monkeypatch, TOKENIZER, lambda prompt: "a")
    prompts, told = prompts_of(9, 20, 11, limit=7), []
    list(answering.write(model, prompts, Writing(64, (), 2, 16), tick=told.append))
    assert sum(told) == sum(prompt.planned for prompt in prompts) == 40 + 21
    assert told[:3] == [9 + 11 + 2, 2, 10]


def test_a_task_yields_a_result_for_each_length(model, sums, monkeypatch):
    def text_fn(prompt):
        return "no" if last_two(prompt)[1] in "036" else last_two(prompt)

    calls = replace_generation(monkeypatch, TOKENIZER, text_fn)
    bench = make_bench(lengths=(48, 64))
    results = list(evaluate.run(model, bench))
    assert [(r.suite, r.length, r.label) for r in results] == [
        ("lines", 48, "none"),
        ("lines", 64, "none"),
    ]
    result = results[1]
    assert result.items["text"] == ["no", "01", "02", "no", "04", "05", "no"]
    assert result.items["score"] == [0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 0.0]
    assert list(result.metrics.items())[0] == ("score", 4 / 7)
    low, high = statistics.wilson_interval(4, 7)
    assert (result.metrics["low"], result.metrics["high"]) == (low, high)
    asked = make_sums(Request(TOKENIZER, 64, 7, 3, None, None))
    assert result.items["item"] == [item.fingerprint() for item in asked]
    assert result.items["depth"] == [i / 7 for i in range(7)]
    assert result.items["prompt_tokens"] == [1 + len(item.prompt) for item in asked]
    assert result.tokens == sum(result.items["prompt_tokens"]) + 7 * 3
    assert result.chance == 0.0 and result.columns == ("depth",)
    assert result.fingerprint != results[0].fingerprint
    assert all(prompt[0] == 256 for _, prompts, _ in calls for prompt in prompts)  # bos
    assert [len(prompts) for _, prompts, _ in calls] == [4] * 4  # two batches at each length
    most = sum(1 + len(item.prompt) + 4 for item in asked)
    assert answering.forward_tokens(SUMS, model, make_bench(), 64) == most
    assert answering.steps(SUMS, model, make_bench(), 64) == 2 * 4


def test_chance_is_what_copying_scores(model, sums, monkeypatch):
    replace_generation(monkeypatch, TOKENIZER, last_two)
    for stops, wanted in (((), 1 / 32), ((".",), 0.0)):
        sums(copying_scores=True, stops=stops, score=lambda text, item: float("06" in text))
        (result,) = evaluate.run(model, make_bench())
        # of the 32 stretches of 4 tokens of prompt 6 of 7 the last one has its number
        assert result.chance == pytest.approx(wanted / 7)


def tenths(text, item):
    return int(text) / 10 if text.isdecimal() else 0.0


def test_scores_between_0_and_1_have_the_bootstraps_interval(model, sums, monkeypatch):
    sums(score=tenths)
    replace_generation(monkeypatch, TOKENIZER, last_two)
    (result,) = evaluate.run(model, make_bench())
    values = np.arange(7) / 10
    assert result.metrics["score"] == pytest.approx(0.3)
    wanted = statistics.bootstrap_interval(values, num_samples=200, seed=3)
    assert (result.metrics["low"], result.metrics["high"]) == wanted


def test_a_model_whose_window_slides_is_not_asked(model, sums, monkeypatch):
    replace_generation(monkeypatch, TOKENIZER, lambda prompt: pytest.fail("it was asked"))
    sliding = dataclasses.replace(model, window=32)
    assert list(evaluate.run(sliding, make_bench())) == []
    assert answering.forward_tokens(SUMS, sliding, make_bench(), 64) == 0


def test_what_does_not_fit_is_refused_and_nothing_is_cut(model, sums, monkeypatch):
    item = Item("." * 60, ("7",), 4, {})
    for asked in (item, dataclasses.replace(item, tokens=np.zeros(61, np.int32))):
        sums(make=lambda r, i=asked: [i])
        with pytest.raises(InputError) as refused:
            evaluate.check(model, make_bench())
        assert str(refused.value) == (
            "eval.lengths: item 1 of 'lines' has 61 tokens and its answer 4, 65 in all, got length "
            "64. Leave the length out, or 'lines' out of eval.suites."
        )
    asked = dataclasses.replace(item, tokens=np.arange(60, dtype=np.int32))
    sums(make=lambda r: [asked])
    calls = replace_generation(monkeypatch, TOKENIZER, lambda prompt: "7")
    list(evaluate.run(model, make_bench()))
    assert calls[0][1] == [list(range(60))]  # the tokens themselves, no bos put before them


def test_chunks_that_do_not_suit_the_mesh_and_tasks_without_items_are_refused(model, sums):
    message = r"eval.chunk_tokens must be a multiple of 16 \(16 \* mesh.context\), got 20. Near"
    with pytest.raises(InputError, match=message):
        evaluate.check(model, make_bench(chunk_tokens=20))
    sums(make=lambda request: [])
    with pytest.raises(InputError, match="eval.suites: 'lines' has no item at 64 tokens"):
        evaluate.check(model, make_bench())


def test_questions_are_made_once_for_all_rows(model, sums, monkeypatch):
    made = []
    sums(make=lambda r: made.append(r.length) or make_sums(r))
    replace_generation(monkeypatch, TOKENIZER, last_two)
    bench = make_bench()
    evaluate.check(model, bench)
    for label in ("a", "b"):
        list(evaluate.run(dataclasses.replace(model, label=label), bench))
    assert made == [64]
    monkeypatch.setattr(answering, "_CACHED_TOKENS", 10)  # too many to be kept
    list(evaluate.run(model, make_bench()))
    list(evaluate.run(model, dataclasses.replace(bench, seed=4)))
    assert made == [64] * 3


def test_finished_items_are_not_asked_again(model, sums, monkeypatch, tmp_path):
    model = dataclasses.replace(model, identity="weights")
    calls = replace_generation(monkeypatch, TOKENIZER, last_two)

    def answered(model=model, **values):
        """Returns (the result, items that were asked, tokens that were skipped)."""
        calls.clear()
        kept, skipped = journal.Journal(tmp_path), []
        before = len(lines_of(tmp_path))
        bench = dataclasses.replace(make_bench(**values), journal=kept, skip=skipped.append)
        (result,) = evaluate.run(model, bench)
        asked = len(lines_of(tmp_path)) - before
        assert bool(calls) == (asked > 0 or not model.identity)
        return result, asked, sum(skipped)

    first, asked, skipped = answered()
    assert (asked, skipped) == (7, 0)
    again, asked, skipped = answered()
    assert asked == 0 and skipped == sum(first.items["prompt_tokens"]) + 7 * 4
    assert dataclasses.replace(again, seconds=0) == dataclasses.replace(first, seconds=0)
    assert again.seconds >= sum(line["seconds"] for line in lines_of(tmp_path))
    # what has been changed is asked anew, and nothing else
    assert answered(trials=9)[1] == 2
    assert [len(prompts) for _, prompts, _ in calls] == [3]  # as large as for 9
    other = decoder.own_rope(dataclasses.replace(model.config, theta=5e3))
    assert answered(dataclasses.replace(model, rope_fn=other))[1] == 7
    assert answered(dataclasses.replace(model, identity="other"))[1] == 7
    assert answered(dataclasses.replace(model, label="renamed"))[1] == 0
    assert answered(dataclasses.replace(model, identity=""))[1] == 0
    sums(stops=("\n",))
    assert answered()[1] == 7
    sums(stops=("\n",), score=lambda text, item: 0.5)
    rescored, asked, _ = answered()
    assert asked == 0 and rescored.metrics["score"] == 0.5


def test_an_item_that_may_write_more_is_asked_anew_and_no_other(model, sums, monkeypatch, tmp_path):
    model = dataclasses.replace(model, identity="weights")
    replace_generation(monkeypatch, TOKENIZER, last_two)
    for limits, asked in (((4, 5, 6), 3), ((4, 7, 6), 1), ((4, 5, 6), 0)):
        items = [Item(f"{i:02d}", ("0",), limit, {}) for i, limit in enumerate(limits)]
        sums(make=lambda request, items=items: items, columns=())
        before = len(lines_of(tmp_path))
        bench = dataclasses.replace(make_bench(), journal=journal.Journal(tmp_path))
        list(evaluate.run(model, bench))
        assert len(lines_of(tmp_path)) - before == asked


def lines_of(folder):
    path = folder / "items.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()[1:]] if path.exists() else []


def test_a_line_says_what_was_asked_of_whom(model, sums, monkeypatch, tmp_path):
    replace_generation(monkeypatch, TOKENIZER, last_two)
    bench = dataclasses.replace(make_bench(trials=2), journal=journal.Journal(tmp_path))
    model = dataclasses.replace(model, identity="weights")
    (result,) = evaluate.run(model, bench)
    lines = lines_of(tmp_path)
    assert {line["item"] for line in lines} == set(result.items["item"])
    assert {(line["label"], line["suite"], line["length"]) for line in lines} == {
        ("none", "lines", 64)
    }
    assert sorted(line["text"] for line in lines) == ["00", "01"]
    row = journal.row_digest("weights", model.rope_fn(64))
    assert {line["row"] for line in lines} == {row} and len(row) == 16


def test_a_prompt_of_128k_needs_nothing_of_its_square(model):
    """The step that reads a chunk, traced for a prompt of 131,072 tokens: its largest array."""
    from jaxrope.generate import program
    from jaxrope.generate import state as states

    length, chunk = 131_072, 512
    config = dataclasses.replace(model.config, max_len=length)
    settings = dataclasses.replace(model.settings, attention_block=512)
    slots = states.capacity(length, chunk, 16)
    r = jax.tree.map(lambda x: jnp.asarray(x)[None], model.rope_fn(64))
    state = jax.eval_shape(
        lambda: states.empty(config, settings, (slots, chunk), r, np.zeros((1, 2), np.uint32))
    )
    of_chunk = program.Chunk(
        *(jax.ShapeDtypeStruct(s, jnp.int32) for s in ((1, chunk), (1,), (), ()))
    )
    traced = jax.make_jaxpr(
        lambda p, s, c: program.read_chunk.__wrapped__(p, s, c, config=config, settings=settings)
    )(model.params, state, of_chunk)
    largest = max(biggest(traced.jaxpr))
    cache = config.num_layers * slots * config.num_kv_heads * config.head_dim
    assert largest == cache < chunk * length


def biggest(jaxpr):
    """Yields the elements of every array that a program makes, in inner programs too."""

    def is_program(value):
        return hasattr(value, "eqns") or hasattr(value, "jaxpr")

    for equation in jaxpr.eqns:
        yield from (int(np.prod(variable.aval.shape)) for variable in equation.outvars)
        values = jax.tree.leaves(list(equation.params.values()), is_leaf=is_program)
        for value in filter(is_program, values):
            yield from biggest(getattr(value, "jaxpr", value))
