"""Conversations as rows: which tokens count is what transformers' assistant masks say."""

import json

import jax
import numpy as np
import pytest

from jaxrope import data, evaluate, train
from jaxrope.data import ReadSettings, answers, chat, load_documents, load_tokenizer
from jaxrope.data.fields import Conversation
from jaxrope.errors import InputError
from jaxrope.train import plan as plan_lib
from tests import tiny_run, tiny_tokenizers

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MARKED = (
    "{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{%- if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + '<|im_end|>' }}"
    "{% endgeneration %}{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}\n{% endfor %}"
)
LLAMA_2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + m['content'].strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
DROPPING = (  # as Qwen3: reasoning of earlier answers is not written
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' "
    "and loop.last %}{{ '<think>\n</think>\n' }}{% endif %}{{ m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TURNS = (
    {"role": "user", "content": "What is the answer?"},
    {"role": "assistant", "content": "I think so, naïve as I am."},
    {"role": "user", "content": "Again, by the sea?"},
    {"role": "assistant", "content": "The old house, écoute 日本."},
)


def tokenizer_at(place, template, post_processor=None):
    backend = tiny_tokenizers.bpe(post_processor)
    settings = dict(chat_template=template)
    return tiny_tokenizers.write(place, backend, tokenizer_config=settings)


def ours(folder, messages=TURNS):
    template, tokenizer = chat.load_template(folder), load_tokenizer(folder)
    chats = answers.render(template, Conversation(tuple(messages)))
    if not chats:  # nothing is learned: as it is written
        chats = [chat.render(template, messages)]
    (rendered,) = chats
    return answers.encode(tokenizer, rendered)


@pytest.mark.parametrize("messages", [TURNS, TURNS[:2], TURNS[:3], TURNS[1:], TURNS[:1]])
@pytest.mark.parametrize("adds_bos", [False, True])
def test_marked_answers_are_transformers_assistant_masks(tmp_path, messages, adds_bos):
    processor = tiny_tokenizers.template("<s> $A") if adds_bos else None
    folder = tokenizer_at(tmp_path, MARKED, processor)
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(folder).apply_chat_template(
        list(messages), return_dict=True, return_assistant_tokens_mask=True
    )
    ids, roles = ours(folder, messages)
    assert ids.tolist() == theirs["input_ids"] and ids.tolist().count(0) == 1  # one bos
    assert (roles == answers.ANSWER).astype(int).tolist() == theirs["assistant_masks"]
    assert set(roles.tolist()) <= {answers.PROMPT, answers.ANSWER}


@pytest.mark.parametrize("template", [CHATML, LLAMA_2])
def test_unmarked_answers_are_what_the_template_adds_for_them(tmp_path, template):
    """The same template, with its markers, is judged by transformers."""
    folder = tokenizer_at(tmp_path / "a", template)
    ids, roles = ours(folder)
    text = load_tokenizer(folder)
    counted = text.backend.decode(ids[roles == answers.ANSWER].tolist(), skip_special_tokens=False)
    ends = {CHATML: ("{}<|im_end|>\n", 0), LLAMA_2: (" {} </s>", 0)}[template][0]
    assert counted == "".join(ends.format(m["content"]) for m in TURNS[1::2])
    transformers = pytest.importorskip("transformers")
    plain = transformers.AutoTokenizer.from_pretrained(folder).apply_chat_template(list(TURNS))
    assert ids.tolist() == plain["input_ids"]


def test_chatml_without_and_with_markers_count_alike(tmp_path):
    marked = CHATML.replace(
        "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}",
        "{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}{% generation %}"
        "{{ m['content'] + '<|im_end|>\n' }}{% endgeneration %}{% else %}"
        "{{ m['content'] + '<|im_end|>\n' }}{% endif %}",
    )
    assert marked != CHATML
    transformers = pytest.importorskip("transformers")
    folder = tokenizer_at(tmp_path / "marked", marked)
    theirs = transformers.AutoTokenizer.from_pretrained(folder).apply_chat_template(
        list(TURNS), return_dict=True, return_assistant_tokens_mask=True
    )
    ids, roles = ours(tokenizer_at(tmp_path / "plain", CHATML))
    assert ids.tolist() == theirs["input_ids"]
    assert (roles == answers.ANSWER).astype(int).tolist() == theirs["assistant_masks"]


QWEN3 = """{%- set ns = namespace(last=-1) %}
{%- for m in messages %}
    {%- if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}
{%- endfor %}
{%- for m in messages %}
    {%- if m.role != 'assistant' %}
        {{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}
    {%- else %}
        {%- set content, thought = m.content, m.reasoning_content | default('') %}
        {%- if '</think>' in content %}
            {%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\n' }}
        {%- if loop.index0 > ns.last and (loop.last or thought) %}
            {{- '<think>\n' + thought + '\n</think>\n\n' }}
        {%- endif %}
        {{- content + '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
THINKING = (
    TURNS[0],
    TURNS[1] | {"content": "<think>\nthe sea\n</think>\n\nI think so."},
    TURNS[2],
    TURNS[3],
    {"role": "user", "content": "Be brief."},
    {"role": "assistant", "content": "by the sea", "reasoning_content": "old"},
)


@pytest.mark.parametrize("template", [DROPPING, QWEN3])
@pytest.mark.parametrize("messages", [TURNS, THINKING, TURNS[:3]])
def test_answers_that_no_text_holds_together_have_one_each(tmp_path, template, messages):
    """What transformers writes for the messages up to each answer; its prompt does not count."""
    folder = tokenizer_at(tmp_path, template)
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    turns = [n for n, message in enumerate(messages) if message["role"] == "assistant"]
    chats = answers.render(chat.load_template(folder), Conversation(tuple(messages)))
    assert len(chats) == len(turns)
    for turn, rendered in zip(turns, chats, strict=True):
        ids, roles = answers.encode(load_tokenizer(folder), rendered)
        upto = list(messages[: turn + 1])
        assert ids.tolist() == theirs.apply_chat_template(upto).input_ids
        prompt = theirs.apply_chat_template(upto[:-1], add_generation_prompt=True).input_ids
        assert roles.tolist() == [answers.PROMPT] * len(prompt) + [answers.ANSWER] * (
            len(ids) - len(prompt)
        )


def test_a_template_that_keeps_what_it_wrote_has_one_text(tmp_path):
    """Qwen3's, of answers to one question (its reasoning stays), and of a single one."""
    template = chat.load_template(tokenizer_at(tmp_path, QWEN3))
    tool = {"role": "tool", "content": "4"}
    asked = TURNS[1] | {"content": "<think>\na\n</think>\n\nb"}
    [whole] = answers.render(template, Conversation((TURNS[0], asked, tool, asked)))
    assert len(whole.answers) == 2 and whole.text.count("<think>") == 2
    assert len(answers.render(template, Conversation(TURNS[:2]))) == 1


def test_a_template_without_borders_is_refused(tmp_path):
    """It writes the question otherwise once the answer follows."""
    template = "{{ messages | length }}" + CHATML
    folder = tokenizer_at(tmp_path, template)
    with pytest.raises(InputError, match="message 2 of 4.*no border. Give a template that marks"):
        ours(folder)
    with pytest.raises(InputError, match="begins with an answer"):
        ours(tokenizer_at(tmp_path / "b", DROPPING), TURNS[1:])


# ---- documents, rows and runs ----


@pytest.fixture
def folder(tmp_path):
    return tokenizer_at(tmp_path / "model", MARKED)


def write_rows(path, count=40, seed=0):
    rng = np.random.default_rng(seed)
    words = "the answer is a dark night and old house by the sea again".split()

    def say(least, most):
        return " ".join(rng.choice(words, rng.integers(least, most)))

    rows = [
        {"messages": [dict(role=r, content=say(1, 6)) for r in ("user", "assistant")]}
        for _ in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def load(folder, path, **settings):
    settings = ReadSettings("data.train_files", **settings)
    read = dict(cache_dir=folder.parent / "cache", template_at=folder, settings=settings)
    return load_documents([str(path)], load_tokenizer(folder), **read)


def test_the_cache_keeps_what_counts(folder, tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"messages": list(TURNS)}, {"messages": list(TURNS[:1])}, {"messages": list(TURNS[:2])}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (tmp_path / "text.txt").write_text("It was a dark night.")
    first = load(folder, tmp_path / "*.*")
    again = load(folder, tmp_path / "*.*")
    assert first.names == ("rows.jsonl:1", "rows.jsonl:3", "text.txt") and first.num_empty == 1
    assert first.are_chats.tolist() == [True, True, False]
    for documents in (first, again):
        for doc, messages in enumerate((TURNS, TURNS[:2])):
            ids, roles = ours(folder, messages)
            assert np.array_equal(documents.doc(doc), ids)
            assert np.array_equal(documents.counted(doc, 0, 999), roles == answers.ANSWER)
        assert documents.counted(2, 0, 999).all()
    assert "1 JSON Lines, conversations in 'messages'; 1 plain text" in first.summary
    assert first.fingerprint == again.fingerprint
    roles = next((tmp_path / "cache").glob("*/roles.npy"))
    raw = bytearray(roles.read_bytes())
    raw[-1] ^= 1
    roles.write_bytes(raw)
    assert load(folder, tmp_path / "*.*").fingerprint == first.fingerprint  # made anew
    other = tokenizer_at(tmp_path / "other", MARKED.replace("bos_token", "eos_token"))
    assert load(other, tmp_path / "*.*").fingerprint != first.fingerprint


def test_a_training_says_that_answers_are_apart(tmp_path):
    folder = tokenizer_at(tmp_path / "model", DROPPING)
    config = run_config(tmp_path, folder)
    rows = [{"messages": list(TURNS)}, {"messages": list(TURNS[:2])}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plan = train.prepare(config, devices=jax.devices()[:1])
    assert plan.documents.names == ("rows.jsonl:1", "rows.jsonl:1", "rows.jsonl:2")
    assert any("own, 2 records are 3 conversations, 1 more" in line for line in plan.remarks)
    assert "conversations: 3; answers alone" in "\n".join(plan.remarks)


def test_without_a_template_conversations_are_refused(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl")
    bare = tiny_tokenizers.write(tmp_path / "bare", tokenizer_config={})
    with pytest.raises(InputError, match="the tokenizer has no chat template to write them"):
        load(bare, path)
    broken = tokenizer_at(tmp_path / "broken", "{{ raise_exception('no') }}")
    with pytest.raises(InputError, match="data.train_files: 'rows.jsonl:1': .*refuses .*no"):
        load(broken, path)


def run_config(tmp_path, folder, **changes):
    config = tiny_run.make_config(tmp_path)
    config.model.update(vocab_size=320)
    config.data.update(
        train_files=(str(write_rows(tmp_path / "rows.jsonl")),),
        eval_files=(str(write_rows(tmp_path / "held.jsonl", seed=1)),),
        tokenizer=str(folder),
        cache_dir=str(tmp_path / "cache"),
        mode="pack",
    )
    config.train.seq_len, config.train.steps, config.checkpoint.every = 96, 4, 2
    config.target_len = 96
    config.rope = dict(method="pi", factor=3.0)
    config.train.eval_every, config.train.log_every = 4, 1
    config.data.update(changes)
    return config


def test_a_run_learns_answers_alone_and_is_resumed_to_the_bit(tmp_path, folder, monkeypatch):
    config, one = run_config(tmp_path, folder), jax.devices()[:1]
    plan = train.prepare(config, devices=one)
    told = "\n".join(plan.remarks)
    assert "conversations: 40; answers alone are learned, " in told
    batch = plan.loader.batch(0)
    tokenizer = load_tokenizer(folder)
    for row in range(len(batch["tokens_BT"])):
        counted = batch["targets_BT"][row][batch["loss_weights_BT"][row] == 1]
        text = tokenizer.backend.decode(counted.tolist(), skip_special_tokens=False)
        assert text.endswith("<|im_end|>") and "user" not in text and "<|im_start|>" not in text
        assert np.count_nonzero(batch["segment_ids_BT"][row]) > 0.7 * 96
        assert batch["segment_ids_BT"][row].max() > 1
    assert train.train(config, tmp_path / "whole", devices=one) == 0
    rows = [row for row in tiny_run.rows(tmp_path / "whole") if "loss" in row]
    expected = [int(plan.loader.batch(step)["loss_weights_BT"].sum()) for step in range(4)]
    assert [row["tokens"] for row in rows] == expected
    real = plan_lib.Plan.put_batch

    def put_batch(plan, step):
        if step == 3:
            raise KeyboardInterrupt
        return real(plan, step)

    monkeypatch.setattr(plan_lib.Plan, "put_batch", put_batch)
    with pytest.raises(KeyboardInterrupt):
        train.train(config, tmp_path / "cut", devices=one)
    monkeypatch.undo()
    assert train.train(config, tmp_path / "cut", devices=one) == 0
    assert tiny_run.differences(tmp_path / "cut", tmp_path / "whole") == []


def test_an_evaluation_scores_answers_alone(tmp_path, folder):
    """Against the losses of the answers' tokens, one by one."""
    config, one = run_config(tmp_path, folder), jax.devices()[:1]
    config.eval.lengths, config.eval.num_windows = (24,), 4
    plan = train.prepare(config, devices=one)
    params = train.plan.first_state(plan, {}, train.program.abstract_state(plan.program)[1]).params
    model = plan.eval_model(params)
    (result,) = evaluate.run(model, plan.bench)
    windows = data.eval_windows(plan.bench.documents, length=24, num_windows=4, bos_id=None)
    nll_WT, _ = evaluate.scoring.score(model, windows.tokens_WT, batch_tokens=96)
    means = []
    for row, doc in enumerate(windows.doc_ids_W):
        counted = plan.bench.documents.counted(int(doc), 1, 25)
        means.append(nll_WT[row][: len(counted)][counted].mean())
    assert result.metrics["nll"] == pytest.approx(np.mean(means), rel=1e-5)
    assert result.metrics["nll"] != pytest.approx(nll_WT.mean(), rel=1e-3)
