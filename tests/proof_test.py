"""What `make proof` keeps, compiles again, and says of it; nothing is compiled here."""

import dataclasses
import json
import os
import re
import signal
import subprocess

import pytest

from tests import proof

ATTENTION = {"peak": 400 * 2**20, "hops": 126, "hidden": 126, "home": 0, "exposed": 0}
STEP = {"rows": 32, "remat": "save_mlp", "mesh": {"fsdp": 8, "context": 8}, "peak": 71 * 2**30}
STEP |= {
    "usable": 96 * 2**30,
    "step": 157.4,
    "mfu": 0.4461,
    "ceiling": 0.455,
    "sent": 2**41,
    "exposed": 2**27,
}
LOOPS = {"unknown_loops": []}


def figures_of(row):
    """Returns figures within every limit."""
    if isinstance(row, proof.Step):
        return STEP | LOOPS
    home = dict(hidden=124, home=2) if row.gradient else dict(peak=200 * 2**20)
    return ATTENTION | home | LOOPS


@pytest.fixture
def figures():
    return {row: figures_of(row) for row in proof.ROWS}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(proof, "KEPT", tmp_path / "kept")
    for kind in (proof.Attention, proof.Step):
        monkeypatch.setattr(kind, "measure", figures_of)
    return tmp_path / "kept"


def test_a_row_is_kept_until_its_code_or_its_compiler_changes(folder, monkeypatch):
    first, step = proof.ROWS[0], next(row for row in proof.ROWS if isinstance(row, proof.Step))
    assert proof.kept(first) is proof.last(first) is None
    for row in (first, step):
        proof.measure(row)
        assert proof.kept(row)["figures"] == figures_of(row)
    code = proof.kept(step)["code"]
    assert {"jaxrope/attention/ring.py", "configs/256k.py", "lower_attention"} <= set(code)
    assert "configs/256k.py" not in proof.kept(first)["code"] and all(code.values())
    digest = proof.digest
    monkeypatch.setattr(proof, "digest", lambda name: digest(name) + "x" * ("256k" in name))
    assert proof.kept(first) and proof.kept(step) is None and proof.last(step)
    monkeypatch.setattr(proof, "digest", lambda name: digest(name) + "x" * (name == "ring"))
    assert proof.kept(first) is None
    monkeypatch.setattr(proof, "digest", digest)
    monkeypatch.setattr(proof, "versions", lambda: {"libtpu": "0", "jax": "0"})
    assert proof.kept(first) is None


def test_a_failure_loses_its_row_alone(folder, monkeypatch, capfd):
    wrong, *others = proof.ROWS[:4]
    started = []

    def start(row):
        started.append(row)
        if row is wrong:
            text = "echo a line; echo error: it does not fit; exit 3"
        else:
            proof.measure(row)
            text = "exit 0"
        with proof.path_of(row).with_suffix(".txt").open("w") as log:
            return subprocess.Popen(["sh", "-c", text], stdout=log)

    monkeypatch.setattr(proof, "_start", start)
    assert proof.compile_rows(proof.ROWS[:4], 2) == [wrong]
    assert set(started) == {wrong, *others}
    told = capfd.readouterr().err
    assert f"FAILED {wrong.name}: error: it does not fit (whole output: {folder}/" in told
    assert told.count("compiling ") == 4 and "4/4 rows" in told
    proof.compile_rows([others[0]], 1)
    assert f"compiling {others[0].name}, which took 0s before" in capfd.readouterr().err


def test_an_interruption_ends_what_is_compiled_and_keeps_the_rest(folder, monkeypatch, capsys):
    first, second = proof.ROWS[:2]
    processes, outcome = {}, proof._outcome

    def start(row):
        if row is first:
            proof.measure(row)
        processes[row] = subprocess.Popen(["sleep", "0" if row is first else "600"])
        return processes[row]

    def interrupted(row, record):
        assert row is first and second in processes
        os.kill(os.getpid(), signal.SIGTERM)
        return outcome(row, record)

    monkeypatch.setattr(proof, "_start", start)
    monkeypatch.setattr(proof, "_outcome", interrupted)
    monkeypatch.setattr("sys.argv", ["proof.py", "--jobs=2"])
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert proof.main() == 130
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "the rows that are done are kept" in capsys.readouterr().out
    assert proof.kept(first) and proof.kept(second) is None
    assert [processes[row].returncode for row in (first, second)] == [0, -signal.SIGKILL]


def test_the_program_compiles_what_is_missing_and_writes_all_rows(folder, monkeypatch, capsys):
    page, compiled = folder.parent / "performance.md", []
    marks = [f"{proof.BEGIN.format(name)}\nold\n{proof.END}" for name in proof.tables({})]
    page.write_text("\n\nbetween\n\n".join(["Above.", *marks, "Below."]), encoding="utf-8")
    monkeypatch.setattr(proof, "PAGE", page)

    def compile_rows(rows, num_jobs):
        compiled.extend(rows)
        for row in rows:
            folder.mkdir(exist_ok=True)
            record = {"row": row.name, "versions": proof.versions(), "code": {}, "seconds": 1}
            content = json.dumps(record | {"figures": figures_of(row)})
            proof.path_of(row).write_text(content, encoding="utf-8")
        return []

    monkeypatch.setattr(proof, "compile_rows", compile_rows)

    def run(*flags):
        compiled.clear()
        monkeypatch.setattr("sys.argv", ["proof.py", *flags])
        return proof.main()

    assert run("--only=v5e", "--write") == 1
    part = len(compiled)
    assert 0 < part < len(proof.ROWS) and all("v5e" in row.name for row in compiled)
    printed = capsys.readouterr().out
    missing = f"not written: {len(proof.ROWS) - part} of {len(proof.ROWS)} rows are missing"
    assert missing in printed and "old" in page.read_text()
    assert run("--write") == 0 and len(compiled) == len(proof.ROWS) - part
    assert f"{len(proof.ROWS)} rows: {part} are kept from before" in capsys.readouterr().out
    text = page.read_text(encoding="utf-8")
    assert text.startswith("Above.") and text.endswith("Below.") and "old" not in text
    assert text.count("between") == 4
    assert "| 256k.py, 32 rows | v5p:4x4x4 | save_mlp | 8 x 8 | 71.0 GiB |" in text
    assert run("--write") == 0 and compiled == [] and page.read_text(encoding="utf-8") == text


def test_the_tables(figures, monkeypatch, tmp_path):
    found = proof.tables(figures)
    assert found["memory"][2:] == [
        "| 32k | v5p:2x2x2 | 8 |  | 400.0 MiB |",
        "| 256k | v5p:4x4x4 | 64 | 200.0 MiB | 400.0 MiB |",
        "| 2048k | v5p:8x8x8 | 512 |  | 400.0 MiB |",
    ]
    hidden = "126 of 126 hidden | 124 of 126 hidden; the other 2 return dK and dV |"
    slices = (("v5p:4x4x4", 64), ("v5e:16x16", 16), ("v6e:16x16", 16))
    assert found["hops"][2:] == [f"| {where} | {size} | {hidden}" for where, size in slices]
    steps = found["steps"][2:]
    assert len(steps) == 12 and steps[0] == (
        "| 256k.py, 32 rows | v5p:4x4x4 | save_mlp | 8 x 8 | 71.0 GiB | 96.00 GiB | 157 s | "
        "44.6% of 45.5% | 128 MiB of 2 TiB |"
    )
    assert steps[2].startswith("| 256k.py, mesh.data=2, train.accumulation=2, 32 rows | 2xv5p:4")
    assert [proof._size(n) for n in (0, 2**20, 7.9 * 2**20)] == ["0", "1 MiB", "7.9 MiB"]
    page = proof.PAGE.read_text(encoding="utf-8")
    for name, (head, *_) in found.items():  # each table between its marks
        assert page.count(f"\n{proof.BEGIN.format(name)}\n{head}\n") == 1
    assert page.count(f"\n{proof.END}\n") == len(found)
    monkeypatch.setattr(proof, "PAGE", tmp_path / "page.md")
    proof.PAGE.write_text(page.replace("proof`: hops", ""), encoding="utf-8")
    with pytest.raises(ValueError, match="no place for the table 'hops'"):
        proof.write_page(found)


@pytest.mark.parametrize(
    "kind, change, message",
    [
        ("step", dict(peak=97 * 2**30), "97 GiB of 96 GiB usable"),
        ("step", dict(exposed=2**33), "0.39% of its hops are exposed, not 0.01%"),
        ("step", dict(unknown_loops=["while.3"]), r"loops of unknown length \['while.3'\]"),
        ("both", dict(peak=410 * 2**20), "410 MiB, not within 1% of shorter rows"),
        ("both", dict(peak=560 * 2**20), "560 MiB, not 553 MiB or less"),
        ("forward", dict(peak=250 * 2**20), "250 MiB, not 245 MiB or less"),
        ("step", dict(mfu=0.443), "97.4% of the highest MFU, not 98.0%"),
        ("both", dict(exposed=1), "2 return dK and dV, 1 exposed, not none"),
        ("both", dict(home=3), "the other 3 return dK and dV, 0 exposed, not none"),
        ("forward", dict(hidden=0), "0 of 126 hidden, 0 exposed, not none"),
    ],
)
def test_a_figure_beyond_its_limit_is_told(figures, kind, change, message):
    assert list(proof.beyond(figures)) == []
    rows = {
        "step": proof.Step("256k.py", "v5p:4x4x4", reaches=0.98),
        "both": proof.Attention("v5p:4x4x4", 64, 2**18, True),
    }
    rows["forward"] = dataclasses.replace(rows["both"], gradient=False)
    figures[rows[kind]] |= change
    lines = "\n".join(proof.beyond(figures))
    assert rows[kind].name in lines
    assert re.search(message, lines)
