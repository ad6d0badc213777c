"""How answers look: in a terminal side by side and unmasking as they are decoded, elsewhere as plain lines when they are done."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from tasks.chatting.unmasking import Answer
from tasks.reporting.pieces import ACCEPTED, EDITED, END, HIDDEN, Piece

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

# Confidence from which a style holds, readable on dark and light terminals alike; certain tokens look like any text.
STYLES = ((0.99, ""), (0.9, "black on color(194)"), (0.7, "black on color(229)"), (0.5, "black on color(223)"),
          (0.0, "black on color(217)"))  # fmt: skip
MARKS = {ACCEPTED: " underline", EDITED: " bold italic"}
FRAME_SECONDS = 0.03


class Screen:
    """Shows the answers of one turn. `pace`: seconds that a step stays on the screen at least, so that eyes can follow."""

    def __init__(self, console: "Console", titles: Sequence[str], pace: float) -> None:
        self.console, self.titles, self.pace = console, titles, pace
        self.is_live = console.is_terminal
        self._shown_at = 0.0

    def __enter__(self) -> "Screen":
        self._columns: list[list[Piece]] = [[] for _ in self.titles]
        self._figures = ["" for _ in self.titles]
        if self.is_live:
            from rich.live import Live

            self._live = Live(console=self.console, auto_refresh=False, vertical_overflow="ellipsis")
            self._silence = ExitStack()
            self._silence.enter_context(without_echo())
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.is_live:
            self._live.update(self._picture(), refresh=True)
            self._live.stop()
            self._silence.close()

    def show(self, voice: int, pieces: list[Piece]) -> None:
        """The answer as far as it is; a frame that would come too soon is left out, or waited for with a pace."""
        self._columns[voice] = pieces
        if not self.is_live:
            return
        now = time.monotonic()
        if self.pace:
            time.sleep(max(0.0, self._shown_at + self.pace - now))
        elif now - self._shown_at < FRAME_SECONDS:
            return
        self._shown_at = time.monotonic()
        self._live.update(self._picture(), refresh=True)

    def finish(self, voice: int, answer: Answer) -> None:
        """The answer as it stays."""
        self._columns[voice], self._figures[voice] = answer.pieces, answer.figures
        if self.is_live:
            self._live.update(self._picture(), refresh=True)
        else:
            self.console.print(f"{answer.title}: {answer.text}", markup=False)
            self.console.print(f"  {answer.figures}", markup=False)

    def _picture(self) -> "RenderableType":
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        if len(self.titles) == 1:
            return Group(coloured(self._columns[0]), Text(self._figures[0], style="dim"))
        table = Table(expand=True, show_lines=True)
        for title in self.titles:
            table.add_column(Text(title), ratio=1)
        table.add_row(*map(coloured, self._columns))
        table.add_row(*(Text(figures, style="dim") for figures in self._figures))
        return table


@contextmanager
def without_echo() -> Iterator[None]:
    """What is typed while an answer is drawn does not appear in it (a ^C would shift it by a line); it is read afterwards."""
    if not sys.stdin.isatty():
        yield
        return
    import termios

    before = termios.tcgetattr(sys.stdin)
    silent = [*before[:3], before[3] & ~termios.ECHO, *before[4:]]
    termios.tcsetattr(sys.stdin, termios.TCSANOW, silent)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSANOW, before)


def coloured(pieces: Sequence[Piece]) -> "Text":
    """The answer with every token in the colour of its confidence."""
    from rich.text import Text

    text = Text()
    for piece in pieces:
        if piece.text == HIDDEN and not piece.revealed_at:
            text.append(HIDDEN, style="dim")
            continue
        style = next(style for least, style in STYLES if piece.confidence >= least)
        text.append(END if piece.is_end else piece.text, style=(style + MARKS.get(piece.how, "")).strip())
    return text


def legend() -> "Text":
    """What the colours mean."""
    from rich.text import Text

    text = Text("confidence ", style="dim")
    for least, style in reversed(STYLES):
        text.append(f" from {least:g} " if least else " below 0.5 ", style=style or "default")
    return text.append(f"  underlined: guessed beforehand; {HIDDEN} hidden, {END} ends the answer", style="dim")
