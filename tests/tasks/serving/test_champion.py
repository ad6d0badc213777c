"""The model that is served, without a server around it."""

import asyncio
import threading
from pathlib import Path

from tasks.serving.champion import Champion
from tasks.serving.models import Served, Source, find_source
from tests.tasks.serving.conftest import add_version, config


class Told(Champion):
    """Says when it begins to load a version."""

    begins = threading.Event()

    def _load(self, source: Source) -> Served:
        self.begins.set()
        return super()._load(source)


def test_no_decoder_outlives_a_server_that_ends_while_another_version_is_loaded(tmp_path: Path) -> None:
    of_other_tests = set(threading.enumerate())
    add_version(tmp_path, 1, "champion")
    champion = Told(tmp_path, config())

    async def serve() -> None:
        await champion.start(find_source(tmp_path, champion.config.model))
        champion.begins.clear()
        add_version(tmp_path, 2, "champion")
        looking = asyncio.create_task(champion.look())
        while not champion.begins.is_set():
            await asyncio.sleep(0.001)
        looking.cancel()
        champion.close()

    asyncio.run(serve())
    assert champion.current is not None and champion.current.source.version == "1"
    champion.end()
    assert "decoder" not in [thread.name for thread in set(threading.enumerate()) - of_other_tests]
