"""Right or wrong for a written answer: by its final answer, or by running its program in the sandbox."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache

from model.benchmarks.sandbox import Sandbox


class SandboxJudge:
    """Judges answers; programs run in one sandbox, which starts with the first of them.

    Raises SandboxUnavailable at the first program where the machine cannot confine one.
    """

    def __init__(self, stack: ExitStack) -> None:
        self._stack, self._sandbox = stack, None
        self._printed_before = cache(self._printed)  # operating points differ little, and so do the programs they write

    def __call__(self, row: dict, text: str) -> bool:
        """Whether a toy_world question is answered. What its program should print never enters the sandbox."""
        from model.corpora.toy_world import is_correct

        return is_correct(row, text, self._printed_before)

    def passes(self, program: str, tests: str) -> bool:
        """Whether the tests run to their end after the program: leaving early, however quietly, does not pass them."""
        end = secrets.token_hex(8)
        return self._printed(f"{program}\n{tests}\nprint({end!r})\n").endswith(f"{end}\n")

    def _printed(self, source: str) -> str:
        if self._sandbox is None:
            self._sandbox = self._stack.enter_context(Sandbox())
        result = self._sandbox.run(source)
        return result.stdout if result.succeeded else ""


@contextmanager
def open_judge() -> Iterator[SandboxJudge]:
    """A judge whose sandbox, if it needed one, ends with the context."""
    with ExitStack() as stack:
        yield SandboxJudge(stack)
