"""Refusals in the API's own shape: {"error": {"message", "type", "param", "code"}}."""

from typing import Any

from fastapi.responses import JSONResponse


class ApiError(Exception):
    """A request that is not answered. `retry_seconds` becomes the header Retry-After."""

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None, retry_seconds: int = 0
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.retry_seconds = retry_seconds

    @property
    def content(self) -> dict[str, Any]:
        """The body."""
        kinds = {401: "authentication_error", 429: "rate_limit_error", 503: "server_error", 504: "server_error"}
        kind = kinds.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The whole answer."""
        headers = {"Retry-After": str(self.retry_seconds)} if self.retry_seconds else None
        return JSONResponse(self.content, self.status, headers)
