"""What a client may ask for: the chat completion's parameters, each taken as meant, ignored harmlessly, or refused by name."""

import difflib
import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from model.samplers.sampling import Sampling
from tasks.serving.errors import ApiError

# Parameters that this server does not have, with the values under which they ask for nothing. null always does.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,), "logprobs": (False,), "top_logprobs": (0,), "presence_penalty": (0,), "frequency_penalty": (0,),
    "logit_bias": ({},), "response_format": ({"type": "text"},), "modalities": (["text"],), "tools": (),
    "tool_choice": ("none",), "parallel_tool_calls": (), "functions": (), "function_call": ("none",), "audio": (),
    "prediction": (), "reasoning_effort": (), "verbosity": (), "web_search_options": (), "best_of": (1,),
}  # fmt: skip
# Say something about the client or its bookkeeping and nothing about the answer.
IGNORED = {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"}
SPOKEN = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Text(_Strict):
    """A part of a message's content; images, sounds and files have none."""

    type: Literal["text"]
    text: str


class Message(_Strict):
    """One turn. What an earlier answer of this API carries beside its content may come back, empty as it was."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[Text], Field(min_length=1)]
    refusal: None = None
    annotations: Annotated[list, Field(max_length=0)] | None = None
    audio: None = None
    function_call: None = None
    tool_calls: Annotated[list, Field(max_length=0)] | None = None

    @property
    def turn(self) -> dict[str, str]:
        """As the chat template wants it."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": SPOKEN[self.role], "content": content}


class StreamOptions(_Strict):
    """`include_usage`: a last piece counts the tokens."""

    include_usage: bool | None = None


class ChatRequest(_Strict):
    """What is read of a request's body."""

    model: str
    messages: Annotated[list[Message], Field(min_length=1)]
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    stop: str | Annotated[list[str], Field(max_length=4)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None


@dataclass(frozen=True)
class Asked:
    """A checked request. `max_new_tokens` None: as many as there is room for, up to the server's limit."""

    model: str
    turns: list[dict[str, str]]
    sampling: Sampling
    max_new_tokens: int | None
    limit_name: str
    stop: tuple[str, ...]
    is_streamed: bool
    has_usage: bool


def read_request(body: bytes, default_temperature: float, fresh_seed: int) -> Asked:
    """The request in a body; ApiError 400 that names the parameter that is wrong, unknown or not supported."""
    try:
        values = json.loads(body)
    except ValueError as error:  # UnicodeDecodeError is one, too
        raise ApiError(400, f"the body is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ApiError(400, f"the body must be a JSON object, not {type(values).__name__}")
    kept = {name: value for name, value in values.items() if name not in IGNORED and _is_asking(name, value)}
    try:
        request = ChatRequest.model_validate_json(json.dumps(kept))
    except ValidationError as error:
        raise _refusal(error) from error
    return _checked(request, default_temperature, fresh_seed)


def _is_asking(name: str, value: Any) -> bool:
    """Whether a parameter is one of ours; a neutral one is not; ApiError for one that asks for what there is not."""
    if name in ChatRequest.model_fields:
        return True
    if name not in NEUTRAL:
        near = difflib.get_close_matches(name, [*ChatRequest.model_fields, *NEUTRAL], n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ApiError(400, f"unknown parameter: {name}.{hint}", name, "unknown_parameter")
    neutral = NEUTRAL[name]
    if value is None or any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in neutral):
        return False
    raise ApiError(
        400,
        f"{name} is not supported here (it was {json.dumps(value)[:80]}): leave it out",
        name,
        "unsupported_parameter",
    )


def _refusal(error: ValidationError) -> ApiError:
    """The first thing that pydantic found wrong, with its place written as the API does: messages[0].content."""
    first = error.errors()[0]
    place = ""
    for part in first["loc"]:
        if isinstance(part, int):
            place += f"[{part}]"
        elif (
            part.islower() and part.isidentifier()
        ):  # names of union members (`list[Text]`, `constrained-str`) are left out
            place += f".{part}" if place else part
    place = place.removesuffix(".str").removesuffix(".text") if first["type"].endswith("_type") else place
    code = "missing_required_parameter" if first["type"] == "missing" else "invalid_value"
    given = "" if first["type"] == "missing" else f" (it was {json.dumps(first['input'], default=str)[:80]})"
    return ApiError(400, f"{place}: {first['msg']}{given}", place, code)


def _checked(request: ChatRequest, default_temperature: float, fresh_seed: int) -> Asked:
    if request.messages[-1].role != "user":
        raise ApiError(
            400, "the last message must be the user's: that is what is answered", "messages", "invalid_value"
        )
    limits = {name: getattr(request, name) for name in ("max_completion_tokens", "max_tokens")}
    given = {name: value for name, value in limits.items() if value is not None}
    if len(set(given.values())) > 1:
        raise ApiError(
            400, "max_tokens and max_completion_tokens differ: give one of them", "max_tokens", "invalid_value"
        )
    stop = (request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ())
    if "" in stop:
        raise ApiError(400, "stop holds an empty text, which would end every answer at once", "stop", "invalid_value")
    options = request.stream_options
    if options is not None and not request.stream:
        raise ApiError(400, "stream_options is for stream: true", "stream_options", "invalid_value")
    return Asked(
        model=request.model,
        turns=[message.turn for message in request.messages],
        sampling=Sampling(
            temperature=default_temperature if request.temperature is None else request.temperature,
            top_p=request.top_p,
            seed=fresh_seed if request.seed is None else request.seed,
        ),
        max_new_tokens=next(iter(given.values()), None),
        limit_name=next(iter(given), "max_tokens"),
        stop=stop,
        is_streamed=bool(request.stream),
        has_usage=bool(options and options.include_usage),
    )
