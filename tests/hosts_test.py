"""Several processes as one program: joining, agreeing, training, searching, dying."""

import json
import signal
import threading
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxrope import data
from jaxrope.errors import InputError
from jaxrope.mesh import hosts, replicas, rollcall, sharding
from jaxrope.store import steps
from jaxrope.train import loop
from jaxrope.train import run as training
from tests import processes, search_config, tiny_run

MEET = """
import sys, time
from jaxrope import errors
from jaxrope.mesh import hosts

def tell(call):
    try:
        print(call(), flush=True)
    except (errors.InputError, errors.HostsError) as error:
        print(error, flush=True)

def refuse():
    raise errors.InputError("only one folder")

hosts.initialize(timeout_seconds=3, heartbeat_seconds=10, work_seconds=20)
me = hosts.index()
tell(lambda: (hosts.count(), hosts.is_main()))
tell(lambda: hosts.agree("start", {"seed": 0, "steps": me} | hosts.code()))
tell(lambda: hosts.agree("again", {"seed": 0}))
tell(lambda: len(hosts.from_main("text", lambda: "x" * 3_000_000)))
for again in range(2):
    tell(lambda: hosts.from_main("step", lambda: [me, None, 0.1 + again]))
tell(lambda: hosts.from_main("lock", refuse))
hosts.build("tokens", __import__("pathlib").Path(sys.argv[1]), lambda: print("built", flush=True))
if me == 0:
    tell(lambda: hosts.barrier("the end"))
else:
    time.sleep(4)
    hosts.leave(3, "no more room")
time.sleep(60)
"""


def meet(count, *, timeout, numbers, address):
    """Returns {number: why it did not go on, or ""} of threads that meet."""
    told = {}

    def one(number):
        try:
            rollcall.meet(address, number, count, timeout=timeout)
            told[number] = ""
        except InputError as error:
            told[number] = str(error)

    threads = [threading.Thread(target=one, args=(number,)) for number in numbers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout + 10)
    return told


def address():
    return f"127.0.0.1:{processes.free_port()}"


def test_those_that_all_come_go_on():
    assert meet(3, timeout=10, numbers=(2, 0, 1), address=address()) == {0: "", 1: "", 2: ""}


def test_the_missing_ones_are_named_to_all():
    told = meet(4, timeout=1.5, numbers=(0, 2), address=address())
    wanted = (
        "hosts: of 4 processes, number 1, 3 did not come within 1.5 s (hosts.timeout_seconds). "
        "Look at their logs, and start all again."
    )
    assert told == {0: wanted, 2: wanted}


def test_nobody_waits_for_ever_for_process_0():
    told = meet(2, timeout=1.0, numbers=(1,), address=address())
    assert "process 0 did not answer" in told[1] and "within 1 s" in told[1]


def test_a_port_that_is_taken_is_said():
    place = address()
    with rollcall._listen(int(place.rpartition(":")[2])):
        told = meet(2, timeout=1.0, numbers=(0,), address=place)
    assert "cannot listen on port" in told[0]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"JAX_NUM_PROCESSES": "2"}, "JAX_COORDINATOR_ADDRESS, JAX_PROCESS_ID is not set"),
        (("h:1", "two", "0"), "JAX_NUM_PROCESSES must be a whole number, got 'two'"),
        (("h:1", "2", "2"), "JAX_PROCESS_ID must be from 0 to 1"),
        (("h", "2", "1"), "JAX_COORDINATOR_ADDRESS must be host:port, got 'h'"),
    ],
)
def test_variables_that_do_not_fit_are_refused(monkeypatch, given, told):
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    for name, value in (
        given if isinstance(given, dict) else dict(zip(names, given, strict=True))
    ).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=told):
        hosts.initialize(timeout_seconds=1, heartbeat_seconds=1, work_seconds=1)


def test_one_process_needs_nobody(tmp_path):
    hosts.initialize(timeout_seconds=1, heartbeat_seconds=1, work_seconds=1)
    assert (hosts.count(), hosts.index(), hosts.is_main()) == (1, 0, True)
    hosts.barrier("nobody")
    hosts.agree("alone", {"a": 1})
    assert hosts.from_main("value", lambda: 5) == 5
    assert not hosts.preempted(3)
    done = []
    hosts.build("tokens", tmp_path, lambda: done.append(1))
    assert done == [1]


def test_who_is_late_is_read_from_the_error_of_a_barrier():
    told = "The first task at the barrier: 0. Some timed out task names:\n1\n12\n\n\nRPC: /xla"
    assert hosts.late(told) == "1, 12"
    assert hosts.late("UNAVAILABLE: no names") == ""


def test_seconds_must_be_positive():
    with pytest.raises(InputError, match="hosts.heartbeat_seconds must be at least 1, got 0"):
        hosts.initialize(timeout_seconds=1, heartbeat_seconds=0, work_seconds=1)


def test_two_processes_agree_and_end_together(tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    with processes.Job(
        tmp_path / "logs", "-c", MEET, processes=2, devices=1, extra={0: [shared], 1: [shared]}
    ) as job:
        assert job.wait(60) == [3, 3]
    first, second = job.log(0).splitlines(), job.log(1).splitlines()
    assert (first[0], second[0]) == ("(2, True)", "(2, False)")
    for lines in (first, second):
        assert lines[1].startswith("hosts: the processes are not alike. process 1: steps (1, ")
        assert "process 0 has 0). Start all of them" in lines[1]
        assert lines[2:5] == ["None", "3000000", "[0, None, 0.1]"]
        assert lines[5:7] == ["[0, None, 1.1]", "only one folder"]
    assert first[7] == "built" and "built" not in second
    assert first[8].startswith("hosts: 'the end' was not reached within 3 s by process 1 of 2")
    assert first[9] == "error: process 1 of 2 ended: no more room"
    assert not list(shared.iterdir())


def flipped(x, device, bit):
    """Returns `x` with one bit changed in the copy of one device."""
    parts = []
    for shard in x.addressable_shards:
        values = np.array(shard.data)
        if shard.device.id == device:
            values.reshape(-1).view(np.uint32)[-1] ^= np.uint32(1 << bit)
        parts.append(jax.device_put(values, shard.device))
    return jax.make_array_from_single_device_arrays(x.shape, x.sharding, parts)


@pytest.mark.parametrize("bit", [0, 17, 31])
def test_a_flipped_bit_in_one_copy_is_found(bit):
    mesh = jax.make_mesh((2, 2, 1, 2), sharding.AXES)
    split = NamedSharding(mesh, PartitionSpec(("fsdp", "context"), "tensor"))
    tree = {
        "whole": jax.device_put(np.ones((3, 5), np.float32), NamedSharding(mesh, PartitionSpec())),
        "split": jax.device_put(np.arange(64, dtype=np.float32).reshape(8, 8), split),
    }
    check = replicas.make_check(mesh, tree)
    assert replicas.any_copies(tree)
    assert replicas.differences(mesh, tree, np.asarray(check(tree))) == []
    wrong = tree | {"split": flipped(tree["split"], 6, bit)}
    (line,) = replicas.differences(mesh, wrong, np.asarray(check(wrong)))
    assert line == "split differs: cpu:2 of process 0 against cpu:6 of process 0"
    wrong = tree | {"whole": flipped(tree["whole"], 3, bit)}
    (line,) = replicas.differences(mesh, wrong, np.asarray(check(wrong)))
    assert line.startswith("whole differs: ") and "against cpu:3 of process 0" in line


def test_a_run_with_a_wrong_copy_stops(tmp_path, monkeypatch, capfd):
    """After step 4 a device has another bit in its copy of a norm."""
    tiny_run.write_texts(tmp_path / "texts")
    config = tiny_run.make_config(tmp_path / "texts")
    config.mesh = dict(data=2, fsdp=1, context=1, tensor=1)
    config.train.check_every = 2
    config.checkpoint.every = 100
    config.train.eval_every = 0
    make = loop.replicas.make_check

    def make_check(mesh, like):
        check, calls = make(mesh, like), []

        def digests(params):
            calls.append(1)
            norm_D = params["final_norm_D"]
            wrong = norm_D if len(calls) < 2 else flipped(norm_D, 1, 3)
            return check(params | {"final_norm_D": wrong})

        return digests

    monkeypatch.setattr(loop.replicas, "make_check", make_check)
    assert training.train(config, tmp_path / "run", devices=jax.devices()[:2]) == 1
    said = capfd.readouterr().err
    assert "error: stopped at step 4: copies of a parameter are not equal: final_norm_D" in said
    assert "against cpu:1 of process 0" in said and "of step 2 or before" in said
    assert steps.whole_steps(tmp_path / "run") == []


def test_a_step_that_does_not_fit_is_one_line(tmp_path, monkeypatch):
    tiny_run.write_texts(tmp_path / "texts")

    def refuse(*_):
        raise jax.errors.JaxRuntimeError(
            "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 35.20G of 15.75G hbm."
        )

    monkeypatch.setattr(training, "compile_step", refuse)
    told = r"memory of a device \(Used 35.20G of 15.75G\). Less is needed with: optimizer.offload"
    with pytest.raises(InputError, match=told):
        training.train(tiny_run.make_config(tmp_path / "texts"), tmp_path / "run")


@pytest.mark.parametrize("hosts_", [1, 2, 4])
def test_the_rows_of_all_hosts_are_the_batch_and_nobody_is_out_first(tmp_path, hosts_):
    tiny_run.write_texts(tmp_path)
    documents = data.load_documents(
        [f"{tmp_path}/train-*.txt"], data.load_tokenizer("bytes"), cache_dir=tmp_path / "cache"
    )
    loader = data.TrainLoader(
        documents, seq_len=64, batch_size=8, seed=3, mode="pack", bos_id=256, eos_id=257
    )
    epoch = -(-loader.num_rows // 8)
    each = 8 // hosts_
    for step in (0, epoch - 1, epoch, 3 * epoch):  # within an epoch, and across its end
        whole = loader.batch(step)
        parts = [loader.batch(step, rows=slice(i * each, (i + 1) * each)) for i in range(hosts_)]
        for key, rows in whole.items():
            assert {len(part[key]) for part in parts} == {each}
            np.testing.assert_array_equal(np.concatenate([part[key] for part in parts]), rows)


def test_what_lies_on_one_device_only_has_no_copies():
    mesh = jax.make_mesh((1, 8, 1, 1), sharding.AXES)
    where = NamedSharding(mesh, PartitionSpec("fsdp"))
    assert not replicas.any_copies({"a": jax.device_put(np.ones(16, np.float32), where)})


def test_a_peer_that_never_comes_ends_the_program(tmp_path):
    write_experiment(tmp_path, steps=4)
    changed = ["--config.hosts.timeout_seconds=2"]
    with train(tmp_path, "run", processes_=2, only=[1], extra={1: changed}) as job:
        assert job.wait(60) == [2]
    last = job.log(1).splitlines()[-1]
    assert last.startswith("error: hosts: process 0 did not answer") and "within 2 s" in last


def test_processes_with_different_configs_are_refused(tmp_path):
    write_experiment(tmp_path, steps=4)
    with train(tmp_path, "run", processes_=2, extra={1: ["--config.train.steps=5"]}) as job:
        assert job.wait(120) == [2, 2]
    for number in (0, 1):
        told = 'process 1: train.steps ("5", process 0 has "4")'
        assert f"error: hosts: the processes are not alike. {told}" in job.log(number)
    assert not (tmp_path / "run" / "config.json").exists()


EXPERIMENT = """from pathlib import Path

from tests import tiny_run


def get_config():
    config = tiny_run.make_config(Path({texts!r}))
    config.train.steps = {steps}
    config.train.eval_every = 0
    config.train.check_every = 4
    config.train.log_every = 1
    config.checkpoint.every = 5
    config.mesh = dict(data=2, fsdp=4, context=1, tensor=1)
    config.hosts = dict(timeout_seconds=120, heartbeat_seconds=10, work_seconds=120)
    return config
"""


def write_experiment(folder, *, steps):
    tiny_run.write_texts(folder / "texts")
    text = EXPERIMENT.format(texts=str(folder / "texts"), steps=steps)
    (folder / "experiment.py").write_text(text)


def train(folder, name, *, processes_, only=None, extra=None):
    return processes.Job(
        folder / f"{name}.logs",
        "train.py",
        f"--config={folder / 'experiment.py'}",
        f"--workdir={folder / name}",
        processes=processes_,
        devices=8 // processes_,
        only=only,
        extra=extra,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with "one", trained by one process, and "two", by two; 30 steps."""
    folder = tmp_path_factory.mktemp("trained")
    write_experiment(folder, steps=30)
    for name, count in (("one", 1), ("two", 2)):
        with train(folder, name, processes_=count) as job:
            assert job.wait() == [0] * count, job.log(0) + job.log(count - 1)
    return folder


@pytest.mark.slow
def test_two_processes_train_as_one_does(trained):
    one, two = tiny_run.rows(trained / "one"), tiny_run.rows(trained / "two")
    assert len(one) == len(two) == 31
    for ours, theirs in zip(two[:-1], one[:-1], strict=True):
        # Sums over processes are added up in another order; AdamW's first steps divide by their
        # own size, which makes a difference of 1e-7 one of 1e-5.
        assert ours == pytest.approx(theirs, rel=2e-5)
    assert two[-1]["eval"] == pytest.approx(one[-1]["eval"], rel=1e-4)
    ours, theirs = (tiny_run.final_arrays(trained / name) for name in ("two", "one"))
    for name in theirs:  # read here by one process, from the files of two
        np.testing.assert_allclose(ours[name], theirs[name], atol=2e-4, rtol=0)


@pytest.mark.slow
def test_another_number_of_processes_goes_on(trained, tmp_path):
    """Two processes of 4 devices stop after a signal to one; one of 8 goes on; and back."""
    write_experiment(tmp_path, steps=30)
    for name, counts in (("down", (2, 1)), ("up", (1, 2))):
        with train(tmp_path, name, processes_=counts[0]) as job:
            job.until("step 7/")
            job.processes[counts[0] - 1].send_signal(signal.SIGTERM)
            assert job.wait() == [143] * counts[0], job.log(0)
        stopped = steps.whole_steps(tmp_path / name)[-1]
        if counts[0] > 1:
            said = f"SIGTERM: saving and stopping after step {stopped}, on all processes"
            assert said in job.log(0)
        with train(tmp_path, name, processes_=counts[1]) as job:
            assert job.wait() == [0] * counts[1], job.log(0)
        assert f"going on from step {stopped} of 30" in job.log(0)
        losses = [row.get("loss") for row in tiny_run.rows(tmp_path / name)[:-1]]
        wanted = [row.get("loss") for row in tiny_run.rows(trained / "one")[:-1]]
        assert losses == pytest.approx(wanted, rel=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [1, 0])
def test_a_killed_process_ends_the_others_and_a_restart_ends_the_same(trained, tmp_path, victim):
    write_experiment(tmp_path, steps=30)
    with train(tmp_path, "run", processes_=2) as job:
        job.until("step 12/")
        job.processes[victim].kill()
        codes = job.wait(10 + 60)  # the heartbeat's, and what a busy machine takes
    assert codes[victim] == -signal.SIGKILL and codes[1 - victim] != 0
    newest = steps.whole_steps(tmp_path / "run")[-1]
    with train(tmp_path, "run", processes_=2) as job:
        assert job.wait() == [0, 0], job.log(0)
    assert f"going on from step {newest} of 30" in job.log(0)
    assert differences(tmp_path / "run", trained / "two") == []


def differences(workdir, reference):
    return tiny_run.differences(workdir, reference)


def search(folder, name, *, processes_):
    return processes.Job(
        folder / f"{name}.logs",
        "search.py",
        f"--config=tests/search_config.py:{folder}",
        f"--workdir={folder / name}",
        "--config.search.method=hybrid",
        "--config.search.algorithm.iterations=12",
        "--config.search.batch_size=8",
        "--config.hosts.heartbeat_seconds=10",
        processes=processes_,
        devices=8 // processes_,
    )


def journal(workdir):
    found = [json.loads(line) for line in (workdir / "journal.jsonl").read_text().splitlines()]
    of_clock = ("seconds", "sha256")  # a digest goes over the seconds, too
    return [{key: value for key, value in row.items() if key not in of_clock} for row in found]


@pytest.mark.slow
def test_two_processes_search_as_one_does_and_a_restart_goes_on(tmp_path):
    search_config.tiny(tmp_path)
    for name, count in (("one", 1), ("two", 2)):
        with search(tmp_path, name, processes_=count) as job:
            assert job.wait() == [0] * count, job.log(0) + job.log(count - 1)
    one, two = journal(tmp_path / "one"), journal(tmp_path / "two")
    assert two == one  # no sum goes over devices: bit for bit
    with search(tmp_path, "killed", processes_=2) as job:
        path = tmp_path / "killed" / "journal.jsonl"
        while not path.exists() or len(path.read_bytes().splitlines()) < 12:
            assert job.processes[0].poll() is None
        job.processes[1].kill()
        codes = job.wait(10 + 60)
    if codes[0]:  # a search this small may be done before it notices
        with search(tmp_path, "killed", processes_=2) as job:
            assert job.wait() == [0, 0], job.log(0)
    assert journal(tmp_path / "killed") == two
    for name in ("rope.json", "result.json"):
        ours, theirs = (json.loads((tmp_path / n / name).read_text()) for n in ("killed", "two"))
        for content in (ours, theirs) if name == "result.json" else ():
            del content["seconds"], content["sha256"]
        assert ours == theirs


def test_processes_compare_the_code_of_the_whole_package(monkeypatch):
    rooms = set()
    monkeypatch.setattr(Path, "read_bytes", lambda path: rooms.add(path.parent.name) or b"")
    hosts.code()
    assert {"jaxrope", "search", "train", "mesh", "ruler"} <= rooms
