"""Oddities of a folder and of its tokenizer: every program tells each of them, once."""

import pytest
import tiny_tokenizers

from jaxrope import evaluate, search, train
from jaxrope.analyse import comparing
from jaxrope.analyse.__main__ import main as analyse
from jaxrope.evaluate import program as evaluation
from jaxrope.generate import command
from jaxrope.generate.__main__ import main as generate_main
from jaxrope.search import run as searching
from jaxrope.train import run as training
from tests.search_config import tiny, write_model

NOTES = ("is taken for the length that the linear scaling", "no bos before texts, as the post_proc")


class Enough(Exception):
    """The program has said what it has to say."""


def stop(*_args, **_keys):
    raise Enough


@pytest.fixture
def config(tmp_path):
    """The config of a model whose folder and whose tokenizer leave something open."""
    config = tiny(tmp_path)
    place = tmp_path / "odd"
    own = dict(type="linear", factor=4.0)
    write_model(place, rope_scaling=own, max_position_embeddings=64)
    settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True}
    tiny_tokenizers.write(place, tiny_tokenizers.unigram(), tokenizer_config=settings)
    config.model.path, config.data.tokenizer, config.target_len = str(place), "", 80
    config.data.eval_files = config.data.train_files
    config.eval.suites, config.eval.lengths, config.eval.num_windows = ("perplexity",), (64,), 1
    config.rope = dict(method="model")
    config.optimizer.schedule = dict(name="constant", warmup_steps=0)
    config.train.seq_len, config.train.batch_size, config.train.steps = 64, 8, 2
    return config


def compared(config, _workdir):
    analyse(comparison(config))


def comparison(config):
    text, ropes = f"--text={config.data.train_files[0]}", "--ropes=none,yarn"
    return ["compare", f"--checkpoint={config.model.path}", text, ropes, "--length=80"]


def spoken(config, _workdir):
    prompt = ["--prompt=a dark night", "--max_new_tokens=4"]
    generate_main([f"--checkpoint={config.model.path}", *prompt])


# program -> (what runs it, what it begins with once it has said what it reads)
PROGRAMS = {
    "evaluate": (evaluate.evaluate, (evaluation, "_measured")),
    "search": (search.search, (searching, "_bench")),
    "train": (train.train, (training, "_begin")),
    "compare": (compared, (comparing, "_measured")),
    "generate": (spoken, (command, "_answer")),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_program_tells_them_once(tmp_path, monkeypatch, capsys, config, name):
    run, (module, function) = PROGRAMS[name]
    monkeypatch.setattr(module, function, stop)
    with pytest.raises(Enough):
        run(config, tmp_path / "run")
    said = "".join(capsys.readouterr())
    assert [said.count(note) for note in NOTES] == [1, 1], said


def test_a_dry_run_of_a_comparison_tells_them_once(config, capsys):
    analyse([*comparison(config), "--dry_run"])
    said = capsys.readouterr().out
    assert [said.count(note) for note in NOTES] == [1, 1]
