"""A router in front of servers that each have the factors of one length: OpenAI's interface.

Each request goes to the shortest server in which its prompt and its answer have room. Requests
without a prompt go to the longest. aiohttp is the server and the client.
"""

import asyncio
import json
from collections.abc import Mapping, Sequence

from aiohttp import ClientError, ClientSession, ClientTimeout, TCPConnector, web

from jaxrope import data
from jaxrope.convert import profile
from jaxrope.errors import InputError

_COMPLETION_TOKENS = 16  # of OpenAI, where a completion names no max_tokens
_MAX_BYTES = 2**28
_OF_HOP = ("connection", "keep-alive", "transfer-encoding", "upgrade", "host", "content-length")


class Router:
    """Counts tokens, and passes requests on.

    Attributes:
      servers: length in tokens -> address, ascending.
    """

    def __init__(self, folder: str, servers: Sequence[str], answer_tokens: int):
        """Reads the tokenizer and the chat template.

        Args:
          folder: that `profile.write` made.
          servers: addresses, by ascending length.
          answer_tokens: room for the answer to a chat that names no max_tokens.

        Raises:
          InputError: there is not one server for each length, or no tokenizer.
        """
        lengths = profile.lengths_of(folder)
        if len(servers) != len(lengths):
            raise InputError(
                f"--servers must name {len(lengths)} servers, those for"
                f" {', '.join(map(str, lengths))} tokens in this order, got {len(servers)}."
            )
        self.servers = dict(zip(lengths, (s.rstrip("/") for s in servers), strict=True))
        self._answer_tokens = answer_tokens
        place = f"{folder}/{lengths[-1]}"
        self._tokenizer, self._template = data.load_tokenizer(place), data.chat.load_template(place)

    def app(self) -> web.Application:
        """Returns the application."""
        app = web.Application(client_max_size=_MAX_BYTES)
        app.cleanup_ctx.append(self._client)
        app.router.add_get("/health", self._health)
        app.router.add_post("/v1/chat/completions", self._routed)
        app.router.add_post("/v1/completions", self._routed)
        app.router.add_route("*", "/{path:.*}", self._pass_on)
        return app

    async def _client(self, app: web.Application):
        how = dict(timeout=ClientTimeout(total=None, connect=10), auto_decompress=False)
        connector = TCPConnector(limit=0, force_close=True)  # a kept one may end as it is used
        async with ClientSession(connector=connector, **how) as self._session:
            yield

    async def _health(self, request: web.Request) -> web.StreamResponse:
        for server in self.servers.values():
            try:
                async with self._session.get(f"{server}/health") as answer:
                    answer.raise_for_status()
            except (ClientError, TimeoutError) as error:
                return _error(503, f"{server} is not ready: {error!r}", "server_error")
        return web.Response()

    async def _routed(self, request: web.Request) -> web.StreamResponse:
        try:
            body = json.loads(await request.read())
            prompt, answer = await asyncio.to_thread(self.count, body)
        except InputError as error:
            return _error(400, str(error))
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            return _error(400, f"The request is not one of OpenAI's interface: {error!r}")
        room = [length for length in self.servers if length >= prompt + answer]
        if not room:
            message = f"The longest context here is {max(self.servers)} tokens. This request needs"
            message += f" {prompt + answer}: {prompt} of the prompt and {answer} of the answer."
            return _error(400, message, code="context_length_exceeded")
        return await self._pass_on(request, room[0])

    def count(self, body: Mapping) -> tuple[int, int]:
        """Returns the tokens of a request's (longest) prompt, and those of its answer.

        Raises:
          InputError: there is no chat template, or it refuses the messages.
        """
        limit = body.get("max_completion_tokens") or body.get("max_tokens")
        if "messages" in body:
            if self._template is None:
                raise InputError("This model has no chat template. Use /v1/completions.")
            variables = {"tools": body.get("tools"), "documents": body.get("documents")}
            text = data.chat.render(
                self._template,
                [_in_words(message) for message in body["messages"]],
                add_generation_prompt=body.get("add_generation_prompt", True),
                variables=variables | (body.get("chat_template_kwargs") or {}),
            ).text
            return len(self._tokenizer.encode(text)), int(limit or self._answer_tokens)
        prompts = body["prompt"]
        if isinstance(prompts, str) or (prompts and isinstance(prompts[0], int)):
            prompts = [prompts]
        counts = [len(self._tokenizer.prompt(p) if isinstance(p, str) else p) for p in prompts]
        return max(counts, default=0), int(limit or _COMPLETION_TOKENS)

    async def _pass_on(self, request: web.Request, length: int = 0) -> web.StreamResponse:
        """Hands the request to the server of a length, and its answer back, piece by piece."""
        server = self.servers[length or max(self.servers)]
        headers = {k: v for k, v in request.headers.items() if k.lower() not in _OF_HOP}
        content = await request.read()
        try:
            answer = await self._session.request(
                request.method, server + request.path_qs, headers=headers, data=content
            )
        except (ClientError, TimeoutError) as error:
            return _error(502, f"The server {server} does not answer: {error!r}", "server_error")
        async with answer:
            response = web.StreamResponse(status=answer.status, reason=answer.reason)
            kept = ((k, v) for k, v in answer.headers.items() if k.lower() not in _OF_HOP)
            response.headers.extend(kept)
            await response.prepare(request)
            async for piece in answer.content.iter_any():
                await response.write(piece)
            await response.write_eof()
            return response


def _in_words(message: Mapping) -> dict:
    """Returns a message whose content is one text, as vLLM joins the parts of one."""
    content = message.get("content")
    if isinstance(content, list):
        content = "\n".join(part.get("text") or "" for part in content)
    return {**message, "content": content}


def _error(
    status: int, message: str, kind: str = "invalid_request_error", code: str | None = None
) -> web.Response:
    content = {"message": message, "type": kind, "param": None, "code": code}
    return web.json_response({"error": content}, status=status)
