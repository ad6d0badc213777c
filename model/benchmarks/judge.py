"""Right or wrong for an answer to a toy_world question: by its final answer, or by running the program it wrote in the sandbox."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from model.benchmarks.sandbox import Sandbox, SandboxLimits

Judge = Callable[[dict[str, Any], str], bool]


@contextmanager
def open_judge(limits: SandboxLimits = SandboxLimits()) -> Iterator[Judge]:
    """A judge of (row, answer text); its sandbox starts with the first program and ends with the context.

    Raises SandboxUnavailable at the first program where the machine cannot confine one. What a program should print never enters
    the sandbox.
    """
    from model.corpora.toy_world import is_correct

    with ExitStack() as stack:
        sandboxes: list[Sandbox] = []

        def execute(source: str) -> str:
            if not sandboxes:
                sandboxes.append(stack.enter_context(Sandbox(limits)))
            result = sandboxes[0].run(source)
            return result.stdout if result.succeeded else ""

        yield lambda row, text: is_correct(row, text, execute)
