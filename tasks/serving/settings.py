"""Section `serve` of params.yaml."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tasks.parameters import check_keys

SPECULATION = ("when_it_pays", "off")
PRECISIONS = ("float32", "bfloat16")
LAST_PORT = 65535


@dataclass(frozen=True)
class ServeConfig:
    """What is served, where, and how much of everything a client may have. Seconds and bytes as the names say."""

    model: str
    host: str
    port: int
    api_key_variable: str | None
    policy: dict[str, Any]
    speculation: str
    precision: str
    batch_rows: int
    context_tokens: int | None
    max_new_tokens: int
    temperature: float
    queue_requests: int
    request_seconds: float
    drain_seconds: float
    body_bytes: int
    reload_seconds: float

    def __post_init__(self) -> None:
        for name in ("batch_rows", "max_new_tokens", "queue_requests", "body_bytes"):
            _check_whole(name, getattr(self, name), 1)
        _check_whole("port", self.port, 0)
        if self.port > LAST_PORT:
            raise ValueError(f"serve.port is {self.port}; it must be at most {LAST_PORT}")
        if self.context_tokens is not None:
            _check_whole("context_tokens", self.context_tokens, 1)
        for name in ("request_seconds", "drain_seconds", "reload_seconds"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
                raise ValueError(f"serve.{name} is {value!r}; it must be a number of seconds above 0")
        if not isinstance(self.temperature, int | float) or not 0 <= self.temperature <= 2:
            raise ValueError(f"serve.temperature is {self.temperature!r}; it must lie between 0 and 2")
        for name, known in (("speculation", SPECULATION), ("precision", PRECISIONS)):
            if getattr(self, name) not in known:
                raise ValueError(f"serve.{name} is {getattr(self, name)!r}; it must be one of {', '.join(known)}")
        for name in ("model", "host"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise ValueError(f"serve.{name} is {getattr(self, name)!r}; it must be a text")

    @classmethod
    def from_section(cls, section: Mapping[str, Any]) -> "ServeConfig":
        """The settings of a params section (`threads` is the process' business)."""
        check_keys("serve", section, cls.__dataclass_fields__)
        return cls(**{name: value for name, value in section.items() if name != "threads"})


def _check_whole(name: str, value: Any, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"serve.{name} is {value!r}; it must be a whole number of at least {least}")
