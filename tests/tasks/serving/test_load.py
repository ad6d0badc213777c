"""Fifty clients at once for a minute: everybody is answered, and the server's memory stays where it is."""

import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.tasks.serving.conftest import NAME, Server, serving

CLIENTS, SECONDS = 50, 60


def resident_bytes(server: Server) -> int:
    lines = Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmRSS"))) * 1024


def keep_asking(server: Server, number: int, until: float) -> list[tuple[int, float]]:
    """Tokens and seconds of every answer; any error ends the test."""
    client, rng, found = server.client, random.Random(number), []
    while time.monotonic() < until:
        began, tokens = time.monotonic(), rng.randrange(8, 64)
        options = {"temperature": rng.choice([0.0, 1.0]), "seed": number, "max_tokens": tokens, "model": NAME}
        messages = [{"role": "user", "content": "Mira " * rng.randrange(1, 12)}]
        if number % 2:
            chunks = client.chat.completions.create(
                messages=messages, stream=True, stream_options={"include_usage": True}, **options
            )
            usage = [chunk.usage for chunk in chunks][-1]
        else:
            usage = client.chat.completions.create(messages=messages, **options).usage
        assert 0 < usage.completion_tokens <= tokens  # an EOS may be drawn
        found.append((usage.completion_tokens, time.monotonic() - began))
    return found


@pytest.mark.slow
def test_fifty_clients_for_a_minute(registry: Path) -> None:
    with serving(registry, batch_rows=16) as server, ThreadPoolExecutor(CLIENTS) as pool:
        until = time.monotonic() + 5  # caches, pools and code that are used for the first time
        list(pool.map(lambda number: keep_asking(server, number, until), range(CLIENTS)))
        before, began = resident_bytes(server), time.monotonic()
        answers = [
            each
            for one in pool.map(lambda number: keep_asking(server, number, began + SECONDS), range(CLIENTS))
            for each in one
        ]
        seconds, grown = time.monotonic() - began, resident_bytes(server) - before
        latency = sorted(seconds for _, seconds in answers)
        print(
            f"{len(answers)} answers, {len(answers) / seconds:.1f} a second, {sum(t for t, _ in answers) / seconds:.0f} tokens a "
            f"second, latency median {latency[len(latency) // 2]:.2f} s, 99 % {latency[len(latency) * 99 // 100]:.2f} s; "
            f"resident {before / 2**20:.0f} MB, grown by {grown / 2**20:.1f} MB"
        )
        assert len(answers) > 2 * CLIENTS
        assert grown < 32 * 2**20
        health = server.get("/health").json()
        assert (health["rows"], health["queue"], server.figure("unmask_decoder_errors_total")) == (0, 0, 0)
