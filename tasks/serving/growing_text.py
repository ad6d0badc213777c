"""A text that grows block by block: what may already be shown of it, and where a stop sequence ends it."""

from collections.abc import Callable, Sequence

UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what a tokenizer makes of the first bytes of a character


class GrowingText:
    """The pieces that `grow` returns, end to end, are the whole answer's text: stripped, cut before the first stop."""

    def __init__(self, decode: Callable[[list[int]], str], stop: Sequence[str] = ()) -> None:
        self._decode, self._stop = decode, tuple(stop)
        self.shown = ""
        self.is_stopped = False

    def grow(self, tokens: list[int], is_last: bool) -> str:
        """What the tokens (all of the answer so far) add that nothing to come can change."""
        text = self._decode(tokens).lstrip()
        found = [place for place in map(text.find, self._stop) if place >= 0]
        if found:
            self.is_stopped = True
            text = text[: min(found)]
        text = text.rstrip() if is_last or self.is_stopped else self._safe(text)
        if not text.startswith(
            self.shown
        ):  # the tokenizer joined what follows to what was shown: nothing can be taken back
            return ""
        new, self.shown = text[len(self.shown) :], text
        return new

    def _safe(self, text: str) -> str:
        """Without an end that may still become another character, a stripped space or a stop sequence."""
        text = text.rstrip(UNFINISHED)
        lengths = (
            length
            for stop in self._stop
            for length in range(min(len(stop) - 1, len(text)), 0, -1)
            if text.endswith(stop[:length])
        )
        return text[: len(text) - max(lengths, default=0)].rstrip()
