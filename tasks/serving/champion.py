"""Keeps the right model in its place: loads it, looks whether the alias has moved, and lets the old one finish its rows."""

import asyncio
import logging
from pathlib import Path

from model.apps.engine import Engine
from tasks.serving.figures import ServerFigures
from tasks.serving.models import Served, Source, find_source, load
from tasks.serving.settings import ServeConfig

LOG = logging.getLogger("unmask.serve")


class Champion:
    """The served model. Everything here runs in the event loop's thread; what takes time is loaded beside it."""

    def __init__(self, root: Path, config: ServeConfig) -> None:
        self.root, self.config = root, config
        self.current: Served | None = None
        self.retired: list[Served] = []
        self.figures = ServerFigures(self.running)
        self._refused: Source | None = None
        self._engines: list[Engine] = []  # of every model loaded here, also of one that nobody waits for any more

    def running(self) -> list[Served]:
        """The model that answers, then those that still finish their rows."""
        self.retired = [served for served in self.retired if served.engine.is_running]
        return [*([self.current] if self.current else []), *self.retired]

    async def start(self, source: Source) -> None:
        """Loads the first model."""
        self._take(await asyncio.to_thread(self._load, source))

    async def watch(self) -> None:
        """Looks for ever, every `reload_seconds`; a registry that is away, or a version that does not load, changes nothing."""
        while True:
            await asyncio.sleep(self.config.reload_seconds)
            try:
                await self.look()
            except Exception as error:
                LOG.warning("the model that answers stays: %s", error)

    async def look(self) -> None:
        """Loads another model where the alias names one; requests meanwhile go to the one that is there."""
        assert self.current is not None
        source = await asyncio.to_thread(find_source, self.root, self.config.model)
        if source in (self.current.source, self._refused):
            return
        LOG.info("%s is being loaded, %s answers meanwhile", source.label, self.current.source.label)
        try:
            served = await asyncio.to_thread(self._load, source)
        except Exception:
            self._refused = source  # said once; the next version is tried again
            self.figures.reloads.labels("failed").inc()
            raise
        old = self.current
        self.retired.append(old)
        self._take(served)
        old.engine.close()
        self.figures.reloads.labels("done").inc()

    def close(self) -> None:
        """The engines end when their rows are done."""
        for served in self.running():
            served.engine.close()

    def end(self) -> None:
        """Returns when no decoder's thread is left: the interpreter must not end under one. For after the event loop."""
        for engine in self._engines:
            engine.close()
            engine.join(self.config.drain_seconds)

    def _load(self, source: Source) -> Served:
        served = load(source, self.config)
        self._engines = [*(engine for engine in self._engines if engine.is_running), served.engine]
        return served

    def _take(self, served: Served) -> None:
        self.current = served
        self.figures.serves(served)
        guesses = "speculative" if served.speculation["used"] else "plain"
        LOG.info("%s answers now, decoding is %s: %s", served.source.label, guesses, served.speculation["why"])
