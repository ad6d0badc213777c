"""What every request passes before it is read: the key, the size of its body; and its status and seconds are counted."""

import hmac
import time
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tasks.serving.errors import ApiError
from tasks.serving.figures import ServerFigures

CHAT = "/v1/chat/completions"
CLIENT_WENT = 499


class Gate:
    """Middleware. A body is measured as it arrives, whatever its header says."""

    def __init__(self, app: ASGIApp, body_bytes: int, api_key: str | None, figures: ServerFigures) -> None:
        self.app, self.body_bytes, self.api_key, self.figures = app, body_bytes, api_key, figures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, watched = time.perf_counter(), _Watched(send)
        try:
            await self._pass(scope, receive, watched)
        finally:
            if scope["path"] == CHAT:
                self.figures.requests.labels(str(watched.status if watched.is_whole else CLIENT_WENT)).inc()
                self.figures.latency.observe(time.perf_counter() - began)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        try:
            if self.api_key and scope["path"].startswith("/v1"):
                given = headers.get(b"authorization", "").removeprefix("Bearer ")
                if not hmac.compare_digest(given.encode(), self.api_key.encode()):
                    raise ApiError(
                        401, "the API key is missing or wrong (Authorization: Bearer KEY)", code="invalid_api_key"
                    )
            declared = headers.get(b"content-length", "0")
            if declared.isdecimal() and int(declared) > self.body_bytes:
                raise self._too_large()
        except ApiError as error:
            await error.response()(scope, receive, send)
            return
        taken = 0

        async def counted() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self.body_bytes:
                raise self._too_large()
            return message

        await self.app(scope, counted, send)

    def _too_large(self) -> ApiError:
        return ApiError(
            413, f"the body is larger than {self.body_bytes} bytes (serve.body_bytes)", code="body_too_large"
        )


class _Watched:
    """A `send` that remembers how the response went."""

    def __init__(self, send: Send) -> None:
        self._send, self.status, self.is_whole = send, 0, False

    async def __call__(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        elif message["type"] == "http.response.body":
            self.is_whole = not message.get("more_body", False)
        await self._send(message)
