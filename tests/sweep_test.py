"""Sweeps: the members and their folders, what is checked before, going on, the table."""

import json
from types import SimpleNamespace

import pytest

from configs import base
from jaxrope import schema
from jaxrope.errors import InputError
from jaxrope.evaluate.__main__ import PROGRAM as EVALUATE
from jaxrope.search.__main__ import PROGRAM as SEARCH
from jaxrope.shell import cli, sweep
from jaxrope.shell.program import Program
from jaxrope.store import sealed
from jaxrope.train.__main__ import PROGRAM as TRAIN
from tests import tiny_run
from tests.search_config import tiny

BASE = schema.read(base.get_config())


def swept(*axes):
    return schema.replace(BASE, {"sweep": axes})


class Pretended:
    """A program that writes its seed, and says of each call what it was."""

    def __init__(self, monkeypatch, fails=(), code=0):
        self.calls, self.fails, self.code = [], fails, code
        door = SimpleNamespace(prepare=self.prepare, finished=self.finished, dry_run=self.dry_run)
        monkeypatch.setattr(Program, "door", door)
        self.program = Program(package="jaxrope.search", doc="", run=self.run)

    def prepare(self, config):
        self.calls.append(f"prepare {config.seed}")
        if config.seed in self.fails:
            raise InputError("seed: not this one.")

    def dry_run(self, config, *, timing):
        return f"seed {config.seed}, {'measured' if timing else 'counted'}"

    def run(self, config, folder):
        self.calls.append(f"run {config.seed}")
        folder.mkdir(parents=True, exist_ok=True)
        if not self.code:
            (folder / "seed").write_text(str(config.seed))
        return self.code

    def finished(self, config, folder):
        file = folder / "seed"
        if not file.exists() or file.read_text() != str(config.seed):
            return None
        return {"loss": config.seed / 2, "tokens": 1000 * config.seed, "unit": "nats"}


def test_all_members_are_prepared_before_the_first_runs(tmp_path, monkeypatch, capsys):
    pretended = Pretended(monkeypatch)
    config = swept(("seed", (1, 2)), ("target_len", (64,)))
    assert sweep.run(pretended.program, config, tmp_path) == 0
    assert pretended.calls == ["prepare 1", "prepare 2", "run 1", "run 2"]
    *_, heading, first, second, last = capsys.readouterr().out.splitlines()
    assert heading.split() == ["member", "loss", "tokens", "unit"]
    assert first.split() == ["seed=1,target_len=64", "0.5000", "1,000", "nats"]
    assert (
        second.split()[0] == "seed=2,target_len=64" and last == f"wrote sweep.json into {tmp_path}"
    )
    rows = sealed.read_json(tmp_path / "sweep.json", form=sweep.FORMAT)["rows"]
    assert rows[1] == {
        "folder": "seed=2,target_len=64",
        "values": {"seed": 2, "target_len": 64},
        "columns": {"loss": 1.0, "tokens": 2000, "unit": "nats"},
    }
    pretended.calls.clear()
    assert (
        sweep.run(pretended.program, swept(("seed", (1, 3)), ("target_len", (64,))), tmp_path) == 0
    )
    assert pretended.calls == ["prepare 3", "run 3"]
    assert "finished before, in" in capsys.readouterr().out


def test_a_member_that_cannot_run_is_named_before_any_runs(tmp_path, monkeypatch):
    pretended = Pretended(monkeypatch, fails=(2,))
    with pytest.raises(InputError, match=r"^sweep member seed=2: seed: not this one\.$"):
        sweep.run(pretended.program, swept(("seed", (1, 2))), tmp_path)
    assert pretended.calls == ["prepare 1", "prepare 2"]


def test_the_exit_code_of_a_member_ends_the_sweep(tmp_path, monkeypatch, capsys):
    pretended = Pretended(monkeypatch, code=143)
    assert sweep.run(pretended.program, swept(("seed", (1, 2))), tmp_path) == 143
    assert pretended.calls[2:] == ["run 1"]
    assert "stopped in member seed=1; the same command goes on" in capsys.readouterr().out


def test_a_dry_run_is_of_all_members_and_measures_the_first(tmp_path, monkeypatch):
    pretended = Pretended(monkeypatch)
    config = swept(("seed", (1, 2, 3)))
    sweep.program(pretended.program).start(swept(("seed", (1,))), tmp_path)
    text = sweep.program(pretended.program).describe(config, tmp_path, timing=True)
    finished = f"seed=1: finished, in {tmp_path / 'seed=1'}"
    assert text.split("\n\n") == [finished, "seed=2\nseed 2, measured", "seed=3\nseed 3, counted"]


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ((("target_length", (1, 2)),), r"^sweep: Unknown key 'target_length'\. Did you mean targe"),
        ((("sweep", (1, 2)),), r"^sweep: sweep is of the whole job"),
        (
            (("hosts.timeout_seconds", (1, 2)),),
            r"^sweep: hosts.timeout_seconds is of the whole job",
        ),
        ((("target_len", ("a",)),), r"^sweep: target_len must be a whole number of tokens"),
        ((("seed", (1,)), ("seed", (2,))), r"^sweep lists a key twice: seed, seed"),
        ((("seed", (1, 1)),), r"^sweep lists seed=1 twice"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused(axes, message):
    with pytest.raises(InputError, match=message):
        sweep.members(swept(*axes))


def test_a_sweep_has_pairs_with_values():
    for axes in (("target_len", (1, 2)), (("target_len", ()),)):
        with pytest.raises(InputError, match=r"^sweep\[0\]"):
            swept(*axes)


def test_folders_are_readable_and_each_has_its_own():
    sections = tuple(dict(name="perplexity", num_samples=n, offset_tokens=0) for n in (1, 2))
    plain = dict(name="none"), dict(name="decay", oversample=4)
    config = swept(
        ("search.objective", sections),
        ("search.prefilter", plain),
        ("data.tokenizer", ("bytes", "a b/c", "a_b_c")),
        ("eval.lengths", ((512, 1024), (2048,))),
        ("search.gradient.steps", (5,)),
        ("train.steps", (5,)),
    )
    names = list(sweep.members(config))
    assert len(set(names)) == len(names) == 24
    first = names[0].split(",")
    assert first[0].startswith("objective=perplexity-") and len(first[0]) == 29
    assert first[1:] == [
        *("prefilter=none", "tokenizer=bytes", "lengths=512+1024"),
        *("search.gradient.steps=5", "train.steps=5"),
    ]
    tokenizers = {part for name in names for part in name.split(",") if part.startswith("tokeniz")}
    assert {t.partition("-")[0] for t in tokenizers} == {"tokenizer=bytes", "tokenizer=a_b_c"}
    last = list(sweep.members(config).values())[-1]
    assert last.search.objective.num_samples == 2 and last.eval.lengths == (2048,)
    assert last.sweep == ()
    long = swept(
        *((f"eval.ruler.{k}", ("x" * 90,)) for k in ("squad", "hotpotqa")), ("seed", (1, 2))
    )
    assert all(len(name) < 255 for name in sweep.members(long))


def command(program, config, *argv):
    """Runs a program on a config, as from the command line."""
    from jaxrope.shell import experiment

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "load", lambda _: config)
        cli.main(program, argv=["--config=x", *argv])


def test_a_sweep_of_searches(tmp_path, capsys):
    config = tiny(tmp_path)
    config.sweep = (("search.attention_factor", ("su", 1.0)),)
    command(SEARCH, config, f"--workdir={tmp_path / 'sweep'}")
    rows = sealed.read_json(tmp_path / "sweep" / "sweep.json")["rows"]
    for row, law in zip(rows, ("su", 1.0), strict=True):
        result = json.loads((tmp_path / "sweep" / row["folder"] / "result.json").read_text())
        assert row["folder"] == f"attention_factor={law}"
        assert row["columns"]["fitness"] == result["perplexity"]
    capsys.readouterr()
    (tmp_path / "sweep" / "attention_factor=1.0" / "result.json").unlink()
    command(SEARCH, config, f"--workdir={tmp_path / 'sweep'}")
    assert capsys.readouterr().out.count("finished before") == 1
    assert sealed.read_json(tmp_path / "sweep" / "sweep.json")["rows"] == rows


def test_a_sweep_of_trainings_and_of_evaluations(tmp_path, capsys):
    tiny_run.write_texts(tmp_path / "texts")
    config = tiny_run.make_config(tmp_path / "texts")
    config.train.steps, config.train.eval_every, config.optimizer.schedule.warmup_steps = 1, 0, 0
    config.sweep = (("seed", (0, 1)),)
    for program, place in ((TRAIN, "trained"), (EVALUATE, "measured")):
        command(program, config, f"--workdir={tmp_path / place}")
        rows = sealed.read_json(tmp_path / place / "sweep.json")["rows"]
        assert [row["folder"] for row in rows] == ["seed=0", "seed=1"]
        assert rows[0]["columns"] != rows[1]["columns"]
        assert "perplexity" in " ".join(rows[0]["columns"])
        assert (tmp_path / place / "seed=1").is_dir()
    assert (tmp_path / "trained" / "seed=1" / "loss.png").exists()
    capsys.readouterr()
    command(EVALUATE, config, f"--workdir={tmp_path / 'measured'}", "--dry_run")
    assert capsys.readouterr().out.count(": finished, in") == 2
