"""A real server process and real clients: answers, streams, neighbours, limits, disconnects, a moving alias, a drain."""

import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest

from model.apps.answer import encode_prompt
from model.checkpoints.store import load_checkpoint
from model.samplers.decode import make_decoder
from model.text.tokenizer import load_tokenizer
from model.training.tracking import open_store
from tests.tasks.serving.conftest import NAME, Server, add_version, serving, wait_until

QUESTIONS = ["What is 3 + 4?", "Who has pens?", "Zoë?", "none at all", "北京 ☃", "Mira and Tom and Mira"]


def ask(server: Server, question: str, client: openai.OpenAI | None = None, **options):
    options = {"model": NAME, "max_tokens": 48, **options}
    messages = [{"role": "system", "content": "Be short."}, {"role": "user", "content": question}]
    return (client or server.client).chat.completions.create(messages=messages, **options)


def in_stream(server: Server, question: str, **options) -> tuple[str, str, object, int]:
    """Text, finish reason, usage and number of pieces of a streamed answer."""
    pieces, reason, usage = [], "", None
    for chunk in ask(server, question, stream=True, stream_options={"include_usage": True}, **options):
        if chunk.usage:
            usage = chunk.usage
        else:
            pieces += [chunk.choices[0].delta.content] if chunk.choices[0].delta.content else []
            reason = chunk.choices[0].finish_reason or reason
    return "".join(pieces), reason, usage, len(pieces)


@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 1.5, "seed": 7}, {"temperature": 1.2, "top_p": 0.7, "seed": -3}],
    ids=["greedy", "drawn", "top_p"],
)
def test_a_stream_is_the_whole_answer_in_blocks(server: Server, options: dict) -> None:
    for question in QUESTIONS[:3]:
        whole = ask(server, question, **options)
        text, reason, usage, pieces = in_stream(server, question, **options)
        assert (text, reason, usage) == (whole.choices[0].message.content, whole.choices[0].finish_reason, whole.usage)
        assert pieces >= 3 and reason == "length" and usage.completion_tokens == 48
        assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert whole.model == f"{NAME}/1"


def test_a_stop_sequence_ends_the_answer_before_it(server: Server) -> None:
    text = ask(server, "Tom").choices[0].message.content
    for begin in (3, len(text) // 2, len(text) - 4):
        stop = text[begin : begin + 3]
        before = text[: text.index(stop)].rstrip()
        whole = ask(server, "Tom", stop=["never said", stop])
        assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == (before, "stop")
        assert in_stream(server, "Tom", stop=["never said", stop])[:3] == (before, "stop", whole.usage)
        assert whole.usage.completion_tokens <= 48


def test_an_answer_does_not_depend_on_its_neighbours(server: Server) -> None:
    options = [{}, {"temperature": 1.5, "seed": 7}, {"temperature": 0.8, "seed": 7, "top_p": 0.9}]
    asked = [(question, option) for question in QUESTIONS for option in options]
    alone = [ask(server, question, **option).choices[0].message.content for question, option in asked]
    batches = server.figure("unmask_forward_rows_total"), server.figure("unmask_forwards_total")
    with ThreadPoolExecutor(len(asked)) as pool:
        together = list(pool.map(lambda pair: ask(server, pair[0], **pair[1]).choices[0].message.content, asked))
    rows, forwards = (
        server.figure(name) - before
        for name, before in zip(("unmask_forward_rows_total", "unmask_forwards_total"), batches, strict=True)
    )
    assert together == alone
    assert len(set(alone)) == len(asked)
    assert rows / forwards > 2  # they did share forwards


def test_models_are_listed_and_another_name_is_refused(server: Server) -> None:
    assert [model.id for model in server.client.models.list()] == [NAME, f"{NAME}@champion", f"{NAME}/1"]
    assert server.client.models.retrieve(f"{NAME}/1").id == f"{NAME}/1"
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt'"):
        ask(server, "x", model="gpt")


def test_what_is_too_much_is_refused_with_the_limit(server: Server) -> None:
    with pytest.raises(openai.BadRequestError, match="at most 400") as refused:
        ask(server, "x", max_completion_tokens=401, max_tokens=openai.omit)
    assert refused.value.body["param"] == "max_completion_tokens"
    with pytest.raises(openai.BadRequestError) as refused:
        ask(server, "pens " * 200, max_tokens=300)
    assert refused.value.body["code"] == "context_length_exceeded"
    with pytest.raises(openai.APIStatusError, match="20000 bytes") as refused:
        ask(server, "x" * 30_000)
    assert refused.value.status_code == 413
    content = (b"x" * 1000 for _ in range(30))  # no length is declared
    assert httpx.post(f"{server.address}/v1/chat/completions", content=content).status_code == 413


def test_a_causal_model_answers_token_by_token_whoever_stands_beside_it(tmp_path: Path) -> None:
    add_version(tmp_path, 5, "champion", attention="causal")
    with serving(tmp_path) as server:
        options = [{}, {"temperature": 1.5, "seed": 7}, {"temperature": 1.2, "top_p": 0.7, "seed": -3}]
        asked = [(question, option) for question in QUESTIONS[:2] for option in options]
        alone = [ask(server, question, **option).choices[0] for question, option in asked]
        with ThreadPoolExecutor(len(asked)) as pool:
            streamed = list(pool.map(lambda pair: in_stream(server, pair[0], **pair[1]), asked))
        assert [text for text, *_ in streamed] == [choice.message.content for choice in alone]
        assert len({text for text, *_ in streamed}) == len(asked)
        tokens, pieces = (
            sum(values) for values in zip(*((u.completion_tokens, n) for _, _, u, n in streamed), strict=True)
        )
        assert tokens >= 96 and pieces > tokens / 4  # blocks of 8 give an eighth; a character may have several tokens
        text = alone[0].message.content
        stop = text[len(text) // 2 : len(text) // 2 + 3]
        assert in_stream(server, QUESTIONS[0], stop=[stop])[:2] == (text[: text.index(stop)].rstrip(), "stop")
        health = server.get("/health").json()
        assert not health["speculation"]["used"] and "causal" in health["speculation"]["why"]
        assert server.figure("unmask_tokens_per_forward") == 1.0
    checkpoint = load_checkpoint(tmp_path / "versions/5/artifacts/checkpoint")
    tokenizer = load_tokenizer(str(checkpoint.folder))
    turns = [{"role": "system", "content": "Be short."}, {"role": "user", "content": QUESTIONS[0]}]
    (answer,) = make_decoder(checkpoint.network)([encode_prompt(tokenizer, turns)], 48)
    assert tokenizer.decode(answer.tokens, skip_special_tokens=True).strip() == text


@pytest.mark.parametrize("is_streamed", [True, False])
def test_a_client_that_goes_away_frees_its_row(server: Server, is_streamed: bool) -> None:
    went = server.figure('unmask_requests_total{status="499"}')
    written = server.figure('unmask_tokens_total{kind="completion"}')
    if is_streamed:
        stream = ask(server, "Tom", max_tokens=400, stream=True)
        assert next(iter(stream)) is not None
        assert server.get("/health").json()["rows"] == 1
        stream.close()
    else:
        with pytest.raises(openai.APITimeoutError):
            ask(server, "Tom", server.client.with_options(timeout=0.3), max_tokens=400)
    wait_until(lambda: server.figure('unmask_requests_total{status="499"}') == went + 1)
    wait_until(lambda: server.get("/health").json()["rows"] == 0)
    assert server.figure('unmask_tokens_total{kind="completion"}') - written < 300


@pytest.mark.slow
def test_the_alias_moves_under_load_and_nobody_notices_but_by_the_version(registry: Path, server: Server) -> None:
    client, _ = open_store(registry)
    expected = {f"{NAME}/1": ask(server, "Who?", max_tokens=100).choices[0].message.content}
    seen: list[tuple[str, str]] = []

    def keep_asking(number: int) -> None:
        while len({model for model, _ in seen}) < 2 or number > len(seen) / 10:
            answer = ask(server, "Who?", max_tokens=100)
            seen.append((answer.model, answer.choices[0].message.content))

    with ThreadPoolExecutor(8) as pool:
        asking = [pool.submit(keep_asking, number) for number in range(8)]
        wait_until(lambda: len(seen) >= 8)
        second = add_version(registry, 2, "champion")
        for one in asking:
            one.result(120)
    try:
        expected[f"{NAME}/{second}"] = ask(server, "Who?", max_tokens=100).choices[0].message.content
        assert expected[f"{NAME}/1"] != expected[f"{NAME}/{second}"]
        assert {model for model, _ in seen} == set(expected)
        assert all(text == expected[model] for model, text in seen)
        assert server.figure('unmask_reloads_total{result="done"}') == 1
        assert server.figure(f'unmask_model{{name="{NAME}",version="{second}"}}') == 1
        # A version that cannot be loaded changes nothing.
        broken = client.create_model_version(NAME, (registry / "nowhere").as_uri()).version
        client.set_registered_model_alias(NAME, "champion", broken)
        server.wait("the model that answers stays")
        assert ask(server, "Who?", max_tokens=100).choices[0].message.content == expected[f"{NAME}/{second}"]
    finally:
        client.set_registered_model_alias(NAME, "champion", "1")
        wait_until(lambda: server.get("/health").json()["version"] == "1")


@pytest.mark.slow
def test_sigterm_lets_answers_end_and_new_ones_are_not_begun(registry: Path) -> None:
    with serving(registry) as server:
        whole = ask(server, "Mira", max_tokens=300).choices[0].message.content
        stream = ask(server, "Mira", max_tokens=300, stream=True)
        pieces = [next(iter(stream)).choices[0].delta.content]
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: not _listens(server))
        pieces += [chunk.choices[0].delta.content or "" for chunk in stream]
        assert "".join(pieces) == whole
        assert server.process.wait(60) == 0
        assert "every answer that had begun is out" in "".join(server.lines)


def _listens(server: Server) -> bool:
    try:
        return bool(server.get("/health"))
    except httpx.TransportError:
        return False
