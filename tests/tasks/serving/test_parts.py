"""The server's parts in this process: parameters, growing text, the gate, the time limit, speculation, sources, settings."""

import json
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from model.text.tokenizer import load_tokenizer
from tasks import serve
from tasks.register import DRAFT, SPECULATION_TAG
from tasks.serving import speculation
from tasks.serving.app import make_app
from tasks.serving.champion import Champion
from tasks.serving.errors import ApiError
from tasks.serving.growing_text import GrowingText
from tasks.serving.models import find_source, load
from tasks.serving.requests import read_request
from tasks.serving.settings import ServeConfig
from tasks.speculation_costs import Costs
from tests.tasks.serving.conftest import NAME, SETTINGS, add_version, config, write_checkpoint

BODY = {"model": NAME, "messages": [{"role": "user", "content": "What is 3 + 4?"}]}


def read(**changes):
    return read_request(json.dumps(BODY | changes).encode(), 0.25, 99)


def test_parameters_mean_what_the_api_says() -> None:
    plain = read(user="me", metadata={"a": "b"}, n=1, tools=None, logprobs=False, presence_penalty=0.0)
    assert (plain.sampling.temperature, plain.sampling.top_p, plain.sampling.seed) == (0.25, None, 99)
    assert (plain.max_new_tokens, plain.stop, plain.is_streamed, plain.has_usage) == (None, (), False, False)
    full = read(
        temperature=1,
        top_p=0.5,
        seed=3,
        max_completion_tokens=7,
        stop="x",
        stream=True,
        stream_options={"include_usage": True},
    )
    assert (full.sampling.temperature, full.sampling.top_p, full.sampling.seed) == (1.0, 0.5, 3)
    assert (full.max_new_tokens, full.stop, full.is_streamed, full.has_usage) == (7, ("x",), True, True)
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    turns = read(messages=[{"role": "developer", "content": "d"}, {"role": "user", "content": parts}]).turns
    assert turns == [{"role": "system", "content": "d"}, {"role": "user", "content": "ab"}]


@pytest.mark.parametrize(
    ("changes", "param", "code"),
    [
        ({"n": 2}, "n", "unsupported_parameter"),
        ({"tools": [{"type": "function"}]}, "tools", "unsupported_parameter"),
        ({"logprobs": True}, "logprobs", "unsupported_parameter"),
        ({"response_format": {"type": "json_object"}}, "response_format", "unsupported_parameter"),
        ({"frequency_penalty": 0.5}, "frequency_penalty", "unsupported_parameter"),
        ({"temprature": 1}, "temprature", "unknown_parameter"),
        ({"temperature": 2.5}, "temperature", "invalid_value"),
        ({"top_p": 0}, "top_p", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_tokens": "7"}, "max_tokens", "invalid_value"),
        ({"max_tokens": 7, "max_completion_tokens": 8}, "max_tokens", "invalid_value"),
        ({"seed": 2**63}, "seed", "invalid_value"),
        ({"stop": [""]}, "stop", "invalid_value"),
        ({"stop": list("abcde")}, "stop", "invalid_value"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role", "invalid_value"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages", "invalid_value"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_by_name(changes: dict, param: str, code: str) -> None:
    with pytest.raises(ApiError) as refused:
        read(**changes)
    error = refused.value.content["error"]
    assert (refused.value.status, error["type"], error["param"], error["code"]) == (
        400,
        "invalid_request_error",
        param,
        code,
    )
    assert param.split(".")[-1].split("[")[0].rstrip("s") in error["message"]


@pytest.mark.parametrize("body", [b"{", b"[]", b"\xff"])
def test_a_body_that_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(ApiError, match="JSON"):
        read_request(body, 0.0, 0)


def test_pieces_add_up_to_the_whole_and_never_show_what_may_change(registry: Path) -> None:
    tokenizer = load_tokenizer(registry / "tokenizer")
    rng = random.Random(0)
    for text in ("Zoë’s größter Fuß: 北京 ☃ ", " a b  c \n d ", "stop here STOP there", "STSTOP", "ST"):
        ids = tokenizer.encode(text)
        for stop in ((), ("STOP",), ("OP th", "北")):
            growing, pieces, count = GrowingText(tokenizer.decode, stop), [], 0
            while count < len(ids) and not growing.is_stopped:
                count = min(count + rng.randrange(1, 4), len(ids))
                pieces.append(growing.grow(ids[:count], count == len(ids)))
                assert "\ufffd" not in pieces[-1]
            stripped = text.lstrip()
            ends = [stripped.index(one) for one in stop if one in stripped]
            assert "".join(pieces) == stripped[: min(ends, default=len(stripped))].rstrip()
            assert growing.is_stopped == bool(ends)


@contextmanager
def in_process(root: Path, key: str | None = None, is_loaded: bool = True, **changes) -> Iterator[TestClient]:
    champion = Champion(root, config(**changes))

    async def begin() -> None:
        if is_loaded:
            await champion.start(find_source(root, champion.config.model))

    with TestClient(make_app(champion, begin, key, random.Random(0))) as client:
        while is_loaded and champion.current is None:
            client.get("/health")
        yield client


def test_while_a_model_is_loaded_the_server_lives_and_is_not_ready(registry: Path) -> None:
    with in_process(registry, is_loaded=False) as client:
        assert client.get("/health").json() == {"status": "loading"}
        assert client.get("/ready").status_code == 503
        refused = client.post("/v1/chat/completions", json=BODY)
        assert refused.status_code == 503 and int(refused.headers["retry-after"]) > 0
        assert refused.json()["error"]["code"] == "not_ready"


def test_a_key_opens_the_api_and_watching_needs_none(registry: Path) -> None:
    with in_process(registry, key="secret") as client:
        for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer ü"}):
            refused = client.post("/v1/chat/completions", json=BODY, headers={k: v.encode() for k, v in header.items()})
            assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
        answered = client.post(
            "/v1/chat/completions", json=BODY | {"max_tokens": 3}, headers={"Authorization": "Bearer secret"}
        )
        assert answered.status_code == 200 and answered.json()["usage"]["completion_tokens"] == 3
        assert client.get("/ready").json() == {"ready": True}
        page = client.get("/metrics").text
        assert 'unmask_requests_total{status="401"} 3.0' in page and 'unmask_requests_total{status="200"} 1.0' in page
        assert 'unmask_model{name="unmask-target",version="1"} 1.0' in page
        assert client.get("/v2").json()["error"]["message"] == "GET /v2: Not Found"


def test_a_full_queue_says_when_to_come_back_and_loses_nobody_else(registry: Path) -> None:
    with in_process(registry, batch_rows=1, queue_requests=2) as client, ThreadPoolExecutor(10) as pool:
        body = BODY | {"max_tokens": 200}
        found = list(pool.map(lambda _: client.post("/v1/chat/completions", json=body), range(10)))
        refused = [one for one in found if one.status_code == 429]
        answered = [one.json()["choices"][0]["message"]["content"] for one in found if one.status_code == 200]
        assert 3 <= len(answered) == 10 - len(refused) < 10 and len(set(answered)) == 1
        assert all(
            int(one.headers["retry-after"]) >= 1 and one.json()["error"]["code"] == "queue_full" for one in refused
        )
        assert f'unmask_requests_total{{status="429"}} {len(refused)}.0' in client.get("/metrics").text


def test_an_answer_that_takes_too_long_is_given_up(registry: Path) -> None:
    with in_process(registry, request_seconds=0.01) as client:
        late = client.post("/v1/chat/completions", json=BODY | {"max_tokens": 300})
        assert (late.status_code, late.json()["error"]["code"]) == (504, "timeout")
        streamed = client.post("/v1/chat/completions", json=BODY | {"max_tokens": 300, "stream": True}).text
        assert json.loads(streamed.strip().splitlines()[-1].removeprefix("data: "))["error"]["code"] == "timeout"
        while client.get("/health").json()["rows"]:
            pass  # the rows become free


@pytest.mark.parametrize("source", ["draft", "both"])
def test_guesses_are_made_where_they_pay_and_change_no_answer(registry: Path, monkeypatch, source: str) -> None:
    monkeypatch.setattr(
        speculation,
        "measure_costs",
        lambda target, draft, prompts, depths: Costs(len(prompts), 1.0, {}, 0.2, len(prompts) / 4),
    )
    client, _ = speculation_registry(registry)
    rows = [
        {"policy": SETTINGS["policy"], "source": "draft", "depth": 4, "match_probability": 0.9},
        {
            "policy": SETTINGS["policy"],
            "source": "both",
            "depth": 4,
            "match_probability": 0.9 if source == "both" else 0.7,
        },
        {"policy": {"name": "one_token"}, "source": "stale", "depth": 4, "match_probability": 0.99},
    ]
    version = add_version(registry, 1, tags={SPECULATION_TAG: json.dumps(rows), "unmask.draft_version": client})
    texts = []
    for changes in ({"speculation": "off"}, {}):
        with in_process(registry, model=f"{NAME}/{version}", **changes) as http:
            answer = http.post("/v1/chat/completions", json=BODY | {"model": NAME, "max_tokens": 40}).json()
            texts.append(answer["choices"][0]["message"]["content"])
            health = http.get("/health").json()["speculation"]
    assert texts[0] == texts[1]
    assert health["used"] and health["source"] == source and health["recorded_match_probability"] == 0.9
    assert health["predicted_speed_up_by_rows"]["1"] > 1.05 >= health["predicted_speed_up_by_rows"]["4"]
    if source == "draft":
        assert health["match_probability"] > 0.9  # the draft of this test is the target itself


def speculation_registry(registry: Path) -> tuple[str, Path]:
    """A registered draft with the target's own weights: its version and folder."""
    from model.training.tracking import open_store

    client, _ = open_store(registry)
    folder = registry / "versions/draft"
    write_checkpoint(registry, folder / "artifacts/checkpoint", 1)
    if not client.search_registered_models(f"name = '{DRAFT}'"):
        client.create_registered_model(DRAFT)
    return str(client.create_model_version(DRAFT, folder.as_uri()).version), folder


def test_without_a_record_or_a_gain_decoding_stays_plain(registry: Path) -> None:
    served = load(find_source(registry, f"{NAME}/1"), config())
    assert not served.speculation["used"] and "no acceptance is recorded" in served.speculation["why"]
    served.engine.close()
    served.engine.join(30)
    assert not served.engine.is_running


def test_a_model_is_found_by_alias_number_and_folder(registry: Path) -> None:
    first = find_source(registry, f"{NAME}@champion")
    assert find_source(registry, f"{NAME}/1") == first and first.label == f"{NAME}/1"
    folder = find_source(registry, "versions/1/artifacts/checkpoint")
    assert (folder.label, folder.folder) == ("checkpoint/folder", registry / "versions/1/artifacts/checkpoint")
    for wrong in ("nothing", f"{NAME}@", f"{NAME}@other", f"{NAME}/99"):
        with pytest.raises(ValueError, match=r"serve\.model|has no"):
            find_source(registry, wrong)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batchrows": 4}, "Did you mean batch_rows"),
        ({"port": "80"}, "serve.port"),
        ({"speculation": "yes"}, "when_it_pays, off"),
        ({"request_seconds": 0}, "above 0"),
        ({"temperature": 3}, "between 0 and 2"),
        ({"api_key_variable": "UNMASK_NO_SUCH_KEY"}, "which is not set"),
        ({"model": "nothing"}, "neither a checkpoint folder"),
        ({"host": "203.0.113.1"}, "cannot listen"),
    ],
)
def test_what_a_person_got_wrong_is_one_message(registry: Path, monkeypatch, capsys, changes: dict, words: str) -> None:
    monkeypatch.chdir(registry)
    text = json.dumps({"threads": 1, "serve": SETTINGS | changes})
    (registry / "params.yaml").write_text(text)
    assert serve.main([]) == serve.BAD_INPUT
    error = capsys.readouterr().err
    assert words in error and error.startswith("serve: ") and error.count("\n") == 1


def test_a_missing_key_is_named() -> None:
    with pytest.raises(ValueError, match=r"serve\.policy is missing"):
        ServeConfig.from_section({name: value for name, value in SETTINGS.items() if name != "policy"})
