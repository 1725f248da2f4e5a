"""A tiny instruct model as a Hugging Face folder, all that lies beside one, and its training."""

import json
from pathlib import Path

import numpy as np
import tiny_tokenizers
from hf_models import CASES, write
from tiny_run import make_config, write_texts

BESIDE = {
    "special_tokens_map.json": '{"bos_token": "<s>",   "eos_token": "</s>"}',
    "chat_template.jinja": "{{ bos_token }}{{ messages[0].content }}\r\n",
    "additional_chat_templates/tool_use.jinja": "{{ tools }}",
    "generation_config.json": '{"eos_token_id": [1, 5],\n"temperature": 0.6, "pad_token_id": 3}',
    "merges.txt": "#version: 0.2\n",
}
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content }}<|im_end|>"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
)
IDS = dict(bos_token_id=0, eos_token_id=[1, 5], pad_token_id=320)


def write_base(folder: Path, case: str = "llama", *, ids=IDS, dtype=np.float32, **more) -> Path:
    """Writes the folder; `more` goes into tokenizer_config.json."""
    write(folder, CASES[case] | dict(vocab_size=320) | ids, dtype=dtype)
    settings = {"model_max_length": 128, "chat_template": "{{ messages }}", "é": "ü"} | more
    tokenizer = tiny_tokenizers.bpe(tiny_tokenizers.template("<s> $A"))
    tiny_tokenizers.write(folder, tokenizer, tokenizer_config=settings)
    for name, text in BESIDE.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(text.encode())
    return folder


def write_chats(path: Path, count: int = 80) -> None:
    """Writes conversations of one question and its answer as JSON Lines."""
    rng = np.random.default_rng(0)

    def words(role: str) -> dict:
        drawn = ("".join(rng.choice(list("abcdef"), 4)) for _ in range(12))
        return {"role": role, "content": " ".join(drawn)}

    rows = ({"messages": [words("user"), words("assistant")]} for _ in range(count))
    path.write_text("\n".join(map(json.dumps, rows)))


def train_on(base: Path, workdir: Path, *, target_len: int = 0, **lora) -> Path:
    """Trains three steps on made-up words, everything or (rank=2) adapters; returns the workdir."""
    from jaxrope.train import train

    texts = workdir.parent / "texts"
    write_texts(texts)
    config = make_config(texts)
    config.model = dict(source="checkpoint", path=str(base), shape="")
    config.rope = dict(method="model")
    if target_len:
        config.rope = dict(method="yarn", factor=target_len / 128, beta_fast=32.0, beta_slow=1.0)
        config.target_len = target_len
    config.data.tokenizer = ""
    config.eval.suites = ()
    config.train.steps = 3
    config.lora.update(lora)
    train(config, workdir)
    return workdir


def beside(folder: Path) -> dict[str, bytes]:
    """Returns what lies beside the weights and config.json, by name."""
    names = [*BESIDE, "tokenizer.json", "tokenizer_config.json"]
    return {name: (folder / name).read_bytes() for name in names}


def config_of(folder: Path) -> dict:
    """Returns config.json."""
    return json.loads((folder / "config.json").read_text())
