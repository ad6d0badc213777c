"""The HTTP side: /v1/chat/completions and /v1/models as OpenAI's API has them, /health, /ready and /metrics."""

import asyncio
import json
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from tasks.serving.answering import Answering
from tasks.serving.champion import Champion
from tasks.serving.errors import ApiError
from tasks.serving.gate import CHAT, CLIENT_WENT, Gate
from tasks.serving.models import Served
from tasks.serving.requests import Asked, read_request

LOG = logging.getLogger("unmask.serve")
LOADING_RETRY_SECONDS = 5


def make_app(
    champion: Champion, begin: Callable[[], Awaitable[None]], api_key: str | None, rng: random.Random
) -> FastAPI:
    """The application. `begin` loads the first model while the server already says that it is not ready; `rng` seeds the draws of
    requests that name no seed, and ids."""
    config = champion.config
    created = int(time.time())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(_begin_and_watch(champion, begin))]
        yield
        for task in tasks:
            task.cancel()
        champion.close()

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Gate, body_bytes=config.body_bytes, api_key=api_key, figures=champion.figures)

    @app.exception_handler(ApiError)
    async def refused(request: Request, error: ApiError) -> JSONResponse:
        return error.response()

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> JSONResponse:
        return ApiError(error.status_code, f"{request.method} {request.url.path}: {error.detail}").response()

    @app.get("/health")
    async def health() -> JSONResponse:
        served = champion.current
        content: dict[str, Any] = {"status": "loading" if served is None else "ok"}
        if served is not None:
            engine = served.engine
            content |= {"model": served.source.name, "version": served.source.version, "queue": engine.num_waiting}
            content |= {"rows": engine.num_live, "draft": served.source.draft_version, "speculation": served.guessing()}
            if not engine.is_running:
                return JSONResponse(content | {"status": "the decoder has stopped"}, 500)
        return JSONResponse(content)

    @app.get("/ready")
    async def ready() -> JSONResponse:
        is_ready = champion.current is not None and champion.current.engine.is_running
        return JSONResponse({"ready": is_ready}, 200 if is_ready else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(champion.figures.text(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        served = served_by(champion)
        return {"object": "list", "data": [_describe(name, created) for name in names_of(served, config.model)]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        _check_name(name, names_of(served_by(champion), config.model))
        return _describe(name, created)

    @app.post(CHAT)
    async def chat(request: Request) -> Response:
        asked = read_request(await request.body(), config.temperature, rng.getrandbits(63))
        served = served_by(champion)
        _check_name(asked.model, names_of(served, config.model))
        answering = Answering(served, asked, config, champion.figures)
        head = {"id": f"chatcmpl-{rng.getrandbits(96):024x}", "created": int(time.time()), "model": served.source.label}
        if asked.is_streamed:
            return StreamingResponse(_stream(answering, asked, head), media_type="text/event-stream")
        return await _whole(request, answering, head)

    return app


async def _begin_and_watch(champion: Champion, begin: Callable[[], Awaitable[None]]) -> None:
    await begin()
    if champion.current is not None:
        await champion.watch()


def served_by(champion: Champion) -> Served:
    """The model that answers; ApiError 503 while there is none."""
    if champion.current is None:
        raise ApiError(503, "the model is being loaded", code="not_ready", retry_seconds=LOADING_RETRY_SECONDS)
    return champion.current


def names_of(served: Served, model: str) -> list[str]:
    """What a request may call the model: its name, what the server was told to serve, its version."""
    return list(dict.fromkeys([served.source.name, model, served.source.label]))


def _check_name(name: str, known: list[str]) -> None:
    if name not in known:
        raise ApiError(404, f"there is no model {name!r} here; there is {', '.join(known)}", "model", "model_not_found")


def _describe(name: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": "unmask"}


async def _whole(request: Request, answering: Answering, head: dict[str, Any]) -> Response:
    """The answer at once. A client that goes away meanwhile ends it."""
    listening = asyncio.create_task(_wait_for_disconnect(request))
    listening.add_done_callback(lambda task: None if task.cancelled() else answering.give_up())
    try:
        text = "".join([piece async for piece in answering.pieces()])
    finally:
        is_gone = listening.done()
        listening.cancel()
    if is_gone:
        return Response(status_code=CLIENT_WENT)
    message = {"role": "assistant", "content": text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": answering.finish_reason}
    return JSONResponse(head | {"object": "chat.completion", "choices": [choice], "usage": answering.usage})


async def _wait_for_disconnect(request: Request) -> None:
    with suppress(ApiError):
        while (await request.receive())["type"] != "http.disconnect":
            pass


async def _stream(answering: Answering, asked: Asked, head: dict[str, Any]) -> AsyncIterator[str]:
    """Server-sent events, one for every finished block. When the client goes away the server cancels this iterator."""
    head = head | {"object": "chat.completion.chunk"} | ({"usage": None} if asked.has_usage else {})

    def event(delta: dict[str, str], finish_reason: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return _event(head | {"choices": [choice]})

    try:
        yield event({"role": "assistant", "content": ""})
        async for piece in answering.pieces():
            yield event({"content": piece})
        yield event({}, answering.finish_reason)
        if asked.has_usage:
            yield _event(head | {"choices": [], "usage": answering.usage})
    except ApiError as error:  # the status has been sent: the error is the last event
        LOG.warning("a streamed answer ended early: %s", error.message)
        yield _event(error.content)
    else:
        yield "data: [DONE]\n\n"
    finally:
        answering.give_up()


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"
