"""python -m jaxrope.generate for instruct models: templates, turns, every eos, judged by torch."""

import io
import json
import re
import sys
import types

import chat_test
import jax
import jax.numpy as jnp
import pytest
import tiny_tokenizers
from hf_models import CASES, write
from tiny_tokenizers import template

from jaxrope import generate
from jaxrope.convert import pretrained
from jaxrope.generate import command
from jaxrope.generate.__main__ import add_arguments, main

FAMILIES = ("llama", "mistral", "qwen2", "phi3", "llama yarn")
BEGIN = template("<s> $A")


def folder_of(place, family="llama", name="chatml", **settings):
    """Writes a tiny instruct model."""
    write(place, CASES[family] | dict(vocab_size=320, bos_token_id=0, eos_token_id=[1, 5]))
    tokenizer = tiny_tokenizers.bpe(None if family == "qwen2" else BEGIN)
    settings = {"chat_template": chat_test.TEMPLATES[name]} | settings
    return tiny_tokenizers.write(place, tokenizer, tokenizer_config=settings)


def parsed(folder, *arguments):
    """Returns the arguments as the program gets them."""
    import argparse

    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args([f"--checkpoint={folder}", "--chunk=32", *arguments])


def ours_of(folder, *arguments) -> tuple[command.Prepared, list[int]]:
    """Returns (what is prepared, the new tokens of the first prompt)."""
    prepared = command.prepare(parsed(folder, *arguments))
    params = jax.tree.map(jnp.asarray, pretrained.load(folder).params)
    model = generate.Model(prepared.model.config, params, prepared.model.rope_fn, _settings())
    return prepared, generate.generate(model, prepared.prompts, prepared.options)[0]


def _settings():
    from jaxrope import decoder

    return decoder.ForwardSettings()


def theirs_of(folder, ids, **how) -> list[int]:
    """Returns transformers' new tokens, greedy, with the folder's own stops."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    how = dict(max_new_tokens=16, do_sample=False, pad_token_id=0) | how
    ids_BT = torch.as_tensor([ids])
    with torch.no_grad():  # the mask: else it takes bos, which is 0 here, for padding
        whole = model.generate(ids_BT, attention_mask=torch.ones_like(ids_BT), **how)
    return whole[0, len(ids) :].tolist()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("chat", [False, True])
def test_greedy_tokens_are_those_of_transformers(tmp_path, family, chat):
    tokenizers = pytest.importorskip("transformers")
    folder = folder_of(tmp_path, family)
    tokenizer = tokenizers.AutoTokenizer.from_pretrained(folder)
    text, system = "What is the answer?", "Be brief."
    messages = [{"role": "system", "content": system}, {"role": "user", "content": text}]
    if chat:
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True).input_ids
        arguments = ["--chat", f"--system={system}"]
    else:
        ids, arguments = tokenizer(text).input_ids, []
    arguments += [f"--prompt={text}", "--max_new_tokens=16"]
    prepared, new = ours_of(folder, *arguments)
    assert prepared.prompts == [ids] and (ids[0] == 0) == (family != "qwen2" and not chat)
    free = theirs_of(folder, ids, eos_token_id=None)
    assert new == theirs_of(folder, ids) and len(set(free)) > 1
    last = free[9]  # now one of several ids that end a text
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, last]}))
    prepared, new = ours_of(folder, *arguments)
    assert set(prepared.options.stop) == {1, 5, last}
    assert new == theirs_of(folder, ids) == free[: free.index(last) + 1]


def test_a_bos_of_the_templates_own_is_not_doubled(tmp_path):
    folder = folder_of(tmp_path, name="strict turns")
    prepared = command.prepare(parsed(folder, "--chat", "--prompt=Hello", "--max_new_tokens=9"))
    assert prepared.prompts[0][0] == 0 and prepared.prompts[0].count(0) == 1
    prepared = command.prepare(parsed(folder, "--prompt=<s>Hello", "--max_new_tokens=9"))
    assert prepared.prompts[0].count(0) == 1


def talk(folder, monkeypatch, capsys, lines, *arguments) -> str:
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    main([f"--checkpoint={folder}", "--chat", "--chunk=32", "--max_new_tokens=6", *arguments])
    return capsys.readouterr().out


def test_several_turns_on_standard_input(tmp_path, monkeypatch, capsys):
    """Each turn is what the model answers to all that was said."""
    tokenizer = pytest.importorskip("transformers").AutoTokenizer
    folder = folder_of(tmp_path)
    out = talk(folder, monkeypatch, capsys, ["Hello", "", "again"], "--system=Be brief.")
    tokenizer, messages, expected = tokenizer.from_pretrained(folder), [], ""
    messages.append({"role": "system", "content": "Be brief."})
    for line in ("Hello", "again"):
        messages.append({"role": "user", "content": line})
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True).input_ids
        new = theirs_of(folder, ids, max_new_tokens=6)
        answer = tokenizer.decode(new, skip_special_tokens=True)
        messages.append({"role": "assistant", "content": answer})
        expected += answer + "\n"
    assert out == expected


def test_what_ends_an_answer_is_not_shown(tmp_path, monkeypatch, capsys):
    """Of an eos that the tokenizer does not call special, too."""
    folder = folder_of(tmp_path)
    _, new = ours_of(folder, "--chat", "--prompt=Hello", "--max_new_tokens=6")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": new[2]}))
    shown = talk(folder, monkeypatch, capsys, ["Hello"])
    ids = types.SimpleNamespace(new=new[: new.index(new[2])])
    assert shown == tiny_tokenizers.backend(folder).decode(ids.new) + "\n"


@pytest.mark.parametrize(
    "settings, arguments, message",
    [
        ({"chat_template": None}, ["--chat"], r"--chat needs a chat template, .* has none"),
        ({}, ["--system=x", "--prompt=a"], "--system is the first message of a chat: pass --chat"),
        (
            {"chat_template": "{{ raise_exception('System role not supported') }}"},
            ["--chat", "--system=x"],
            "chat template refuses the messages: System role not supported",
        ),
    ],
)
def test_refusals_before_weights_are_read(tmp_path, capsys, settings, arguments, message):
    folder = folder_of(tmp_path, **settings)
    with pytest.raises(SystemExit) as caught:
        main([f"--checkpoint={folder}", *arguments])
    err = capsys.readouterr().err
    assert caught.value.code == 2 and err.count("\n") == 1 and re.search(message, err)


def test_a_dry_run_of_a_chat(tmp_path, capsys):
    main([f"--checkpoint={folder_of(tmp_path)}", "--chat", "--dry_run", "--max_new_tokens=9"])
    assert "1 prompts of " in capsys.readouterr().out
