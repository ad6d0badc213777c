"""The model that is served, without a server around it."""

import asyncio
import logging
import threading
from pathlib import Path

import pytest

from tasks.serving.champion import Champion
from tasks.serving.models import find_source
from tests.tasks.serving.conftest import add_version, config


def decoders() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "decoder"]


def test_no_decoder_outlives_a_server_that_ends_while_another_version_is_loaded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    add_version(tmp_path, 1, "champion")
    champion = Champion(tmp_path, config())

    async def serve() -> None:
        await champion.start(find_source(tmp_path, champion.config.model))
        add_version(tmp_path, 2, "champion")
        looking = asyncio.create_task(champion.look())
        while "is being loaded" not in caplog.text:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.05)  # its thread has begun
        looking.cancel()
        champion.close()

    asyncio.run(serve())
    assert champion.current is not None and champion.current.source.version == "1"
    champion.end()
    assert not decoders()
