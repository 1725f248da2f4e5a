"""A folder for each length bucket, and the router that chooses between their servers."""

import asyncio
import contextlib
import dataclasses
import json
import shlex

import numpy as np
import pytest
import tiny_tokenizers
from hf_models import CASES, write

from jaxrope import rope
from jaxrope.convert import exporting, pretrained, profile
from jaxrope.errors import InputError
from tests.rope_samples import LONG, SHORT, run

TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
TEMPLATE += "{% if add_generation_prompt %}<|im_start|>{% endif %}"


def model(folder, *borders, **changes):
    """A tiny Llama of 32 tokens with a bucket for each border; the first has plain frequencies."""
    write(folder / "in", CASES["llama"] | dict(vocab_size=320, max_position_embeddings=32))
    tokenizer = tiny_tokenizers.bpe(tiny_tokenizers.template("<s> $A"))
    settings = {"chat_template": TEMPLATE}
    tiny_tokenizers.write(folder / "in", tokenizer, tokenizer_config=settings)
    factors = [[1.0] * 8, SHORT, LONG]
    rows = [
        dict(max_len=n, factors=f, start_tokens=0, attention_factor=a) | changes
        for n, f, a in zip(borders, factors, (1.0, 1.1, 1.2), strict=False)
    ]
    plain = pretrained.load(folder / "in", dtype=None)
    geometry = dataclasses.asdict(plain.rope_fn.geometry)
    rope.save(folder / "rope.json", rope.make("longrope", buckets=rows, **geometry), {})
    return pretrained.with_rope(plain, folder / "rope.json")


def test_each_folder_has_the_factors_of_its_bucket_at_every_length(tmp_path, capsys):
    wanted = model(tmp_path, 32, 64, 256)
    source, out = tmp_path / "in", tmp_path / "out"
    code, said, _ = run(capsys, "serve", source, out, f"--rope={tmp_path / 'rope.json'}")
    assert code == 0 and [path.name for path in sorted(out.iterdir())] == ["256", "32", "64"]
    for length in (32, 64, 256):
        folder = out / str(length)
        read = pretrained.load(folder, dtype=None)
        for number in {1, length // 2, length}:
            there, here = read.rope_fn.bucket(number), wanted.rope_fn.bucket(length)
            np.testing.assert_allclose(there.factors, here.factors, rtol=1e-12)
            assert there.attention_factor == pytest.approx(here.attention_factor, rel=1e-12)
        config = json.loads((folder / "config.json").read_text())
        assert config["max_position_embeddings"] == length
        # vLLM opens a longrope at this length
        assert config.get("original_max_position_embeddings", length) == length
        assert (folder / "model.safetensors").stat().st_nlink == 3
        assert exporting.unlike(read.config, wanted, tolerance=1, lossless=False) == set()
    commands = [shlex.split(line) for line in said.splitlines()[:-1]]
    assert [words[2:5] for words in commands[:3]] == [
        [f"{out}/{n}", "--served-model-name=out", f"--port={8001 + i}"]
        for i, n in enumerate((32, 64, 256))
    ]
    assert commands[3][:5] == ["python", "-m", "jaxrope.convert", "route", str(out)]


def test_what_cannot_be_served_by_length(tmp_path, capsys):
    settings = exporting.Settings()
    with pytest.raises(InputError, match="has no length buckets: there is nothing to choose"):
        profile.write(model(tmp_path, 32), tmp_path / "out", settings)
    starts = model(tmp_path, 32, 64, start_tokens=4)
    with pytest.raises(InputError, match="cannot express this rope: start_tokens 4"):
        profile.write(starts, tmp_path / "out", settings)
    assert not (tmp_path / "out").exists()
    code, _, error = run(capsys, "route", tmp_path, "--servers=http://x")
    assert code == 2 and "has no folders by length" in error or "aiohttp" in error


def test_dry_run(tmp_path, capsys):
    model(tmp_path, 32, 64)
    words = ("serve", tmp_path / "in", tmp_path / "out", f"--rope={tmp_path / 'rope.json'}")
    code, said, _ = run(capsys, *words, "--dry_run")
    assert code == 0 and "folders for up to 32, 64 tokens" in said
    assert not (tmp_path / "out").exists()


# --- the router, before two servers that say who they are


@contextlib.asynccontextmanager
async def running(app):
    from aiohttp import web

    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def fake(name, events):
    """A server that answers with its name; streams, at the pace of `events`."""
    from aiohttp import web

    async def complete(request):
        body = await request.json()
        if not body.get("stream"):
            return web.json_response({"by": name, "body": body, "path": request.path_qs})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        try:
            for number in range(3):
                await response.write(f"data: {name} {number}\n\n".encode())
                await events["go"].wait()
                events["go"].clear()
        except asyncio.CancelledError:
            events["gone"].set()
            raise
        return response

    async def other(request):
        return web.json_response({"by": name})

    app = web.Application()
    app.router.add_post("/v1/{path:.*}", complete)
    app.router.add_get("/{path:.*}", other)
    return app


def routed(tmp_path, scenario, *, second=True):
    """Runs `scenario(session, router's address, events)`."""
    aiohttp = pytest.importorskip("aiohttp", reason="needs aiohttp (the extra router has it)")
    from jaxrope.convert import router

    profile.write(model(tmp_path, 32, 64), tmp_path / "out", exporting.Settings())

    async def everything():
        events = {name: asyncio.Event() for name in ("go", "gone")}
        async with contextlib.AsyncExitStack() as stack:
            names = ("short", "long")
            servers = [await stack.enter_async_context(running(fake(n, events))) for n in names]
            servers[1] = servers[1] if second else "http://127.0.0.1:9"
            front = router.Router(str(tmp_path / "out"), servers, answer_tokens=16).app()
            front = await stack.enter_async_context(running(front))
            session = await stack.enter_async_context(aiohttp.ClientSession())
            await scenario(session, front, events)

    asyncio.run(everything())


async def post(session, address, **body):
    async with session.post(address, json=body) as answer:
        return answer.status, await answer.json()


def words(count):
    """Token ids."""
    return list(range(10, 10 + count))


def test_requests_go_to_the_shortest_server_that_they_fit(tmp_path):
    async def scenario(session, front, events):
        plain, chat = f"{front}/v1/completions", f"{front}/v1/chat/completions"
        sizes = ((16, 16, "short"), (17, 16, "long"), (63, 1, "long"), (16, None, "short"))
        for count, limit, name in sizes:
            more = {} if limit is None else {"max_tokens": limit}
            status, answer = await post(session, plain, prompt=words(count), model="m", **more)
            assert (status, answer["by"]) == (200, name)
            assert answer["body"] == {"prompt": words(count), "model": "m", **more}
        # several prompts: the longest counts; a text is begun with <s>
        several = [words(3), words(40)]
        assert (await post(session, plain, prompt=several, max_tokens=1))[1]["by"] == "long"
        for letters, name in ((27, "short"), (28, "long")):
            text = "#" * letters
            answer = await post(session, plain, prompt=text, max_tokens=4)
            assert answer[1]["by"] == name
        # <|im_start|> and <|im_end|> around each message, and <|im_start|> before the answer
        for letters, name in ((25, "short"), (26, "long")):
            for content in ("#" * letters, [{"type": "text", "text": "#" * letters}]):
                message = {"role": "user", "content": content}
                body = dict(messages=[message], max_completion_tokens=4)
                assert (await post(session, chat, **body))[1]["by"] == name
        for letters, name in ((13, "short"), (14, "long")):  # with room for 16
            body = dict(messages=[{"role": "user", "content": "#" * letters}])
            assert (await post(session, chat, **body))[1]["by"] == name
        status, answer = await post(session, f"{chat}?a=1", messages=[message], max_tokens=9)
        assert answer["path"] == "/v1/chat/completions?a=1"
        async with session.get(f"{front}/v1/models") as answer:
            assert (await answer.json()) == {"by": "long"}
        async with session.get(f"{front}/health") as answer:
            assert answer.status == 200

    routed(tmp_path, scenario)


def test_what_no_server_can_answer(tmp_path):
    async def scenario(session, front, events):
        plain, chat = f"{front}/v1/completions", f"{front}/v1/chat/completions"
        status, answer = await post(session, plain, prompt=words(60), max_tokens=5)
        assert status == 400 and answer["error"]["code"] == "context_length_exceeded"
        assert answer["error"]["message"] == (
            "The longest context here is 64 tokens. This request needs 65: 60 of the prompt and 5"
            " of the answer."
        )
        for body in ({}, {"prompt": 3}, {"prompt": [1], "max_tokens": "many"}):
            status, answer = await post(session, plain, **body)
            assert status == 400 and answer["error"]["type"] == "invalid_request_error"
        status, answer = await post(session, chat, messages=[])
        assert status == 400 and "A chat needs at least one message" in answer["error"]["message"]
        # the second server is down
        status, answer = await post(session, plain, prompt=words(40), max_tokens=5)
        assert status == 502 and "http://127.0.0.1:9 does not answer" in answer["error"]["message"]
        assert (await post(session, plain, prompt=words(4), max_tokens=5))[0] == 200
        async with session.get(f"{front}/health") as answer:
            assert answer.status == 503

    routed(tmp_path, scenario, second=False)


def test_streams_come_piece_by_piece_and_end_with_the_client(tmp_path):
    async def scenario(session, front, events):
        body = dict(prompt=words(3), max_tokens=4, stream=True)
        async with session.post(f"{front}/v1/completions", json=body) as answer:
            assert answer.headers["Content-Type"] == "text/event-stream"
            for number in range(3):  # the server waits until this piece has come
                piece = await asyncio.wait_for(answer.content.readuntil(b"\n\n"), 10)
                assert piece == f"data: short {number}\n\n".encode()
                events["go"].set()
            assert await answer.content.read() == b""
        answer = await session.post(f"{front}/v1/completions", json=body)
        await answer.content.readuntil(b"\n\n")
        answer.close()
        await asyncio.wait_for(events["gone"].wait(), 10)

    routed(tmp_path, scenario)


def test_the_number_of_servers(tmp_path):
    pytest.importorskip("aiohttp", reason="needs aiohttp (the extra router has it)")
    from jaxrope.convert import router

    profile.write(model(tmp_path, 32, 64), tmp_path / "out", exporting.Settings())
    with pytest.raises(InputError, match="must name 2 servers, those for 32, 64 tokens in this"):
        router.Router(str(tmp_path / "out"), ["http://x"], 16)
