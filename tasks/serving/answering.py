"""One request's way through the engine: submitted, followed block by block, given up when its time is over or nobody listens."""

import asyncio
import math
from collections.abc import AsyncIterator

from model.apps.engine import Job, News, QueueFull
from tasks.serving.errors import ApiError
from tasks.serving.figures import ServerFigures
from tasks.serving.growing_text import GrowingText
from tasks.serving.models import Served
from tasks.serving.requests import Asked
from tasks.serving.settings import ServeConfig


class Answering:
    """An answer in the making; `pieces` may be followed once."""

    def __init__(self, served: Served, asked: Asked, config: ServeConfig, figures: ServerFigures) -> None:
        self.served, self.figures = served, figures
        self.finish_reason, self.completion_tokens = "", 0
        self._loop, self._news = asyncio.get_running_loop(), asyncio.Queue[News]()
        self._began = self._loop.time()
        self._seconds = config.request_seconds
        prompt = served.prompt(asked.turns)
        self.prompt_tokens = len(prompt)
        self._text = GrowingText(served.text, asked.stop)
        self._job = Job(prompt, self._limit(asked, config, prompt), asked.sampling, self._hear)
        engine = served.engine
        try:
            engine.submit(self._job)
        except QueueFull:
            raise ApiError(
                429,
                f"{engine.num_waiting} requests wait already (serve.queue_requests): try again later",
                code="queue_full",
                retry_seconds=self._retry_seconds(),
            ) from None
        except ValueError as error:
            raise ApiError(400, str(error), "messages", "invalid_value") from error

    @property
    def usage(self) -> dict[str, int]:
        """Tokens: of the prompt with its template, and decoded ones with the EOS."""
        total = self.prompt_tokens + self.completion_tokens
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": total,
        }

    async def pieces(self) -> AsyncIterator[str]:
        """The text, a piece for every finished block that adds to it; afterwards `finish_reason` and `usage` hold."""
        try:
            while not self.finish_reason:
                piece = await self._next()
                if piece:
                    yield piece
        finally:
            self.give_up()
            self.figures.prompt_tokens.inc(self.prompt_tokens)
            self.figures.completion_tokens.inc(self.completion_tokens)

    def give_up(self) -> None:
        """The row is free after the current forward; nothing happens to an answer that is whole."""
        self.served.engine.cancel(self._job)

    async def _next(self) -> str:
        try:
            async with asyncio.timeout_at(self._began + self._seconds):
                news = await self._news.get()
        except TimeoutError:
            raise ApiError(
                504, f"the answer took more than {self._seconds:g} s (serve.request_seconds)", code="timeout"
            ) from None
        if news.error is not None:
            raise ApiError(500, f"the decoder failed: {news.error}", code="decoder_failed")
        if not self.completion_tokens:
            self.figures.first_block.observe(self._loop.time() - self._began)
        is_last = news.decoded is not None
        piece = self._text.grow(news.tokens, is_last)
        self.completion_tokens = len(news.tokens)
        if is_last or self._text.is_stopped:
            is_ended = self._text.is_stopped or self._ends_with_eos(news.tokens)
            self.finish_reason = "stop" if is_ended else "length"
        return piece

    def _ends_with_eos(self, tokens: list[int]) -> bool:
        return bool(tokens) and tokens[-1] == self.served.engine.decoder.network.config.eos_token_id

    def _limit(self, asked: Asked, config: ServeConfig, prompt: list[int]) -> int:
        """Tokens of the answer; ApiError where the context or the server's limit is too small for what is asked."""
        room, wanted = self.served.room(prompt), asked.max_new_tokens
        if wanted and wanted > config.max_new_tokens:
            raise ApiError(
                400,
                f"{asked.limit_name} is {wanted}; at most {config.max_new_tokens} are given here (serve.max_new_tokens)",
                asked.limit_name,
                "invalid_value",
            )
        if room < (wanted or 1):
            also = f" and {wanted} new ones" if wanted else ""
            raise ApiError(
                400,
                f"the context holds {len(prompt) + room} tokens: the messages have {len(prompt)}{also}",
                "messages",
                "context_length_exceeded",
            )
        return wanted or min(room, config.max_new_tokens)

    def _retry_seconds(self) -> int:
        """About when a place in the queue is free, from the mean latency so far."""
        sums = {sample.name: sample.value for metric in self.figures.latency.collect() for sample in metric.samples}
        count = sums.get("unmask_request_seconds_count", 0)
        mean = sums["unmask_request_seconds_sum"] / count if count else 1.0
        return max(1, min(60, math.ceil(mean / self.served.engine.decoder.batch_rows)))

    def _hear(self, news: News) -> None:
        """Called in the decoder's thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._news.put_nowait, news)
