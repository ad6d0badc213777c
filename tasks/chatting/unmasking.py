"""One answer as it appears, and what it was when it was finished."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from model.samplers.results import Decoded, Step
from tasks.chatting.voices import Voice
from tasks.reporting.pieces import ACCEPTED, EDITED, PLAIN, REFUSED, Mark, Piece, cut, text_of_tokens

Show = Callable[[list[Piece]], None]


@dataclass(frozen=True)
class Answer:
    """A finished (or stopped) answer. `seconds` are of decoding alone: what showing it took is not counted."""

    title: str
    text: str
    pieces: list[Piece]
    decoded: Decoded
    seconds: float

    @property
    def forwards(self) -> int:
        """Decoding forwards of the target."""
        return self.decoded.target_forwards

    @property
    def figures(self) -> str:
        """One line of what the answer cost."""
        tokens, counters = len(self.decoded.tokens), self.decoded.counters
        words = [
            f"{tokens} tokens, {self.forwards} forwards, {tokens / max(self.forwards, 1):.2f} tokens per forward, "
            f"{tokens / self.seconds:.0f} tokens/s"
        ]
        tried = sum(value for name, value in counters.items() if name.startswith("tried_"))
        if tried:
            matched = sum(value for name, value in counters.items() if name.startswith("matched_"))
            words.append(f"{matched} of {tried} guesses right, {counters['draft_forwards']} draft forwards")
        return ", ".join(words + ["stopped"] * self.decoded.cancelled)


class Unmasking:
    """Listens to a decoder and keeps what every token of one answer went through; `stop` makes it end the answer.

    Positions from the prompt's end on; those of the current block that are still hidden are there from its beginning.
    """

    def __init__(self, prompt_tokens: int, block_tokens: int, show: Callable[[list[Mark]], None]) -> None:
        self.prompt_tokens, self.block_tokens, self._show = prompt_tokens, block_tokens, show
        self.marks: list[Mark] = []
        self.stopped, self.showing_seconds = False, 0.0

    def __call__(self, step: Step) -> bool:
        """Takes a step of the decoder in; true ends decoding."""
        for position, *written in zip(step.positions, step.tokens, step.confidence, step.edited, strict=True):
            self._write(position - self.prompt_tokens, *written, step)
        started = time.perf_counter()
        self._show(self.marks)
        self.showing_seconds += time.perf_counter() - started
        return self.stopped

    def _write(self, place: int, token: int, confidence: float, edited: bool, step: Step) -> None:
        end = (self.prompt_tokens + place) // self.block_tokens * self.block_tokens + self.block_tokens
        self.marks += [Mark()] * (end - self.prompt_tokens - len(self.marks))
        how = EDITED if edited else PLAIN if not step.drafted else ACCEPTED if step.accepted else REFUSED
        old = self.marks[place]
        before = (*old.before, (old.revealed_at, old.token)) if edited and old.token is not None else old.before
        self.marks[place] = replace(
            old, token=token, revealed_at=step.forward, confidence=confidence, how=how, before=before
        )


def speak(voice: Voice, prompt: list[int], max_new_tokens: int, show: Show) -> Answer:
    """The voice's answer, shown after every step; Ctrl-C ends it with what stands there without a gap."""
    assistant = voice.assistant
    texts = text_of_tokens(assistant.tokenizer.backend_tokenizer)
    block = 1 if assistant.is_causal else assistant.checkpoint.config.block_tokens
    unmasking = Unmasking(len(prompt), block, lambda marks: show(cut(marks[:max_new_tokens], texts)))
    with stoppable(unmasking):
        started = time.perf_counter()
        (decoded,) = assistant.answer([prompt], max_new_tokens, observer=unmasking)
        seconds = time.perf_counter() - started - unmasking.showing_seconds
    pieces = cut(unmasking.marks[: len(decoded.tokens)], texts)
    return Answer(voice.title, assistant.text(decoded.tokens), pieces, decoded, seconds)


@contextmanager
def stoppable(unmasking: Unmasking) -> Iterator[None]:
    """The first Ctrl-C inside ends the answer after its current forward, the next one raises KeyboardInterrupt."""

    def stop(signum: int, frame: Any) -> None:
        unmasking.stopped = True
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
