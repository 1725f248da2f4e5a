"""Chat templates: text and answers are those of transformers' apply_chat_template."""

import json
import sys
from pathlib import Path

import pytest
import tiny_tokenizers

from jaxrope.data import chat
from jaxrope.errors import InputError

TURNS = [
    {"role": "user", "content": "What is 2 < 3 & 1?"},
    {"role": "assistant", "content": " Four, I think. "},
    {"role": "user", "content": "Écoute\n\nagain"},
]
SYSTEM = [{"role": "system", "content": "Be brief."}]
TEMPLATES = {
    "chatml": (
        "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' +"
        " message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "default system": (
        "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}"
        "{% endif %}{%- for m in messages %}\n    {%- if m.role == 'tool' %}\n{% continue %}\n"
        "    {%- endif %}\n<|{{ m.role }}|>{{ m.content | trim }}{{ eos_token }}\n{% endfor %}\n"
        "{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"
    ),
    "strict turns": (
        "{{ bos_token }}{% for m in messages %}"
        "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Roles must alternate user/assistant') }}{% endif %}"
        "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'].strip() + ' [/INST]' }}"
        "{% else %}{{ ' ' + m['content'].strip() + eos_token }}{% endif %}{% endfor %}"
    ),
    "namespace and json": (
        "{%- set ns = namespace(count=0) %}\n{{- bos_token }}\n"
        "{%- if tools is not none %}{{ tools | tojson }}{% endif %}\n"
        "{%- for m in messages %}\n  {%- set ns.count = ns.count + 1 %}\n"
        "  {{- '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' }}"
        "{{- m | tojson(indent=2) }}<|eot_id|>{{ ns.count }}\n{%- endfor %}"
    ),
    "date": "{{ strftime_now('%Y') }} {{ messages[-1].content }} {{ pad_token }}|{{ nothing }}",
    "marked": (
        "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>\n"
        "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
        "{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
    ),
    "reasoning": (
        "{% for m in messages %}{% if m.reasoning_content is defined %}<think>"
        "{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}{% endfor %}"
    ),
}


def folder_of(place: Path, **settings) -> Path:
    return tiny_tokenizers.write(place, tokenizer_config=settings)


def theirs_of(folder: Path):
    return pytest.importorskip("transformers").AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("messages", [TURNS, SYSTEM + TURNS, TURNS[:1]])
@pytest.mark.parametrize("prompt", [False, True])
def test_a_chat_is_rendered_as_transformers_renders_it(tmp_path, name, messages, prompt):
    folder = folder_of(tmp_path, chat_template=TEMPLATES[name], pad_token="<|im_end|>")
    theirs = theirs_of(folder)
    try:
        expected = theirs.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=prompt
        )
    except Exception as error:
        with pytest.raises(InputError, match="Roles must alternate user/assistant"):
            chat.render(chat.load_template(folder), messages, add_generation_prompt=prompt)
        assert "alternate" in str(error)
        return
    ours = chat.render(chat.load_template(folder), messages, add_generation_prompt=prompt)
    assert ours.text == expected


def test_a_message_may_hold_reasoning_or_nothing(tmp_path):
    folder = folder_of(tmp_path, chat_template=TEMPLATES["reasoning"])
    rows = [
        {"role": "assistant", "content": "4", "thinking": "2 + 2"},
        {"role": "assistant", "content": "5", "reasoning": None},
    ]
    expected = theirs_of(folder).apply_chat_template(rows, tokenize=False)
    assert chat.render(chat.load_template(folder), rows).text == expected
    assert expected == "<think>2 + 2</think>45"


def test_variables_and_tools_reach_the_template(tmp_path):
    source = TEMPLATES["namespace and json"] + "{{ enable_thinking }}{{ bos_token }}"
    folder = folder_of(tmp_path, chat_template=source)
    tools = [{"type": "function", "function": {"name": "add", "parameters": {"a<b": "é"}}}]
    more = dict(tools=tools, enable_thinking=False, bos_token="B")
    expected = theirs_of(folder).apply_chat_template(TURNS, tokenize=False, **more)
    assert chat.render(chat.load_template(folder), TURNS, variables=more).text == expected


def test_answers_are_those_of_transformers_masks(tmp_path):
    folder = folder_of(tmp_path, chat_template=TEMPLATES["marked"])
    ours = chat.render(chat.load_template(folder), TURNS)
    assert [ours.text[begin:end] for begin, end in ours.answers] == [" Four, I think. <|im_end|>"]
    theirs = theirs_of(folder)
    theirs = theirs.apply_chat_template(TURNS, return_dict=True, return_assistant_tokens_mask=True)
    encoded = tiny_tokenizers.backend(folder).encode(ours.text, add_special_tokens=False)
    [(begin, end)] = ours.answers
    mask = [int(first < end and last > begin) for first, last in encoded.offsets]
    assert mask == theirs["assistant_masks"] and sum(mask) > 1


def test_files_come_before_the_config_and_have_names(tmp_path):
    listed = [{"name": "default", "template": "old"}, {"name": "tool_use", "template": "older"}]
    folder = folder_of(tmp_path, chat_template=listed)
    assert chat.load_template(folder, "tool_use").source == "older"
    (folder / chat.FOLDER).mkdir()
    (folder / chat.FOLDER / "rag.jinja").write_text("with {{ documents }}")
    (folder / chat.TEMPLATE).write_text("new")
    theirs = theirs_of(folder).chat_template
    assert theirs == {"default": "new", "rag": "with {{ documents }}"}
    assert {name: chat.load_template(folder, name).source for name in theirs} == theirs
    with pytest.raises(InputError, match=r"no chat template 'tool_use'. Known: default, rag\."):
        chat.load_template(folder, "tool_use")


def test_a_folder_without_a_template_has_none(tmp_path):
    folder = folder_of(tmp_path)
    assert chat.load_template(folder) is None and chat.load_template("bytes") is None
    assert chat.load_template(folder / "tokenizer.json") is None


@pytest.mark.parametrize(
    "source, message",
    [
        ("{% for m in messages %}", "line 1: Unexpected end of template"),
        ("{{ messages[9].content.x }}", "refuses the messages: .*has no element 9"),
        ("{{ ''.__class__.__mro__ }}", "refuses the messages: .*unsafe"),
        ("{{ messages.append(1) }}", "refuses the messages: .*unsafe"),
        ("{{ 1 // 0 }}", "refuses the messages"),
    ],
)
def test_a_template_that_fails_is_one_line(tmp_path, source, message):
    folder = folder_of(tmp_path, chat_template=source)
    with pytest.raises(InputError, match=message):
        chat.render(chat.load_template(folder), TURNS)


def test_without_the_library(tmp_path, monkeypatch):
    template = chat.load_template(folder_of(tmp_path, chat_template="x"))
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(InputError, match=r"needs the package `jinja2`, .* 'jaxrope\[chat\]'"):
        chat.render(template, TURNS)


def test_messages_are_objects(tmp_path):
    template = chat.load_template(folder_of(tmp_path, chat_template="x"))
    with pytest.raises(InputError, match=r"messages\[1\] must be an object .* got 'b'"):
        chat.render(template, [{"role": "user"}, "b"])
    with pytest.raises(InputError, match="at least one message"):
        chat.render(template, [])


def test_the_config_is_read_as_it_is(tmp_path):
    folder = folder_of(
        tmp_path, chat_template="{{ bos_token }}{{ image_token }}", image_token="<i>"
    )
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert config["image_token"] == "<i>"
    assert chat.render(chat.load_template(folder), TURNS).text == "<s><i>"
