"""Right or wrong for an answer to a toy_world question: by its final answer, or by running its program in the sandbox."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from model.benchmarks.sandbox import Sandbox
from model.benchmarks.task_forms import Judge


@contextmanager
def open_judge() -> Iterator[Judge]:
    """A judge of (row, answer text); its sandbox starts with the first program and ends with the context.

    Raises SandboxUnavailable at the first program where the machine cannot confine one. What a program should print never enters
    the sandbox.
    """
    from model.corpora.toy_world import is_correct

    with ExitStack() as stack:
        sandboxes: list[Sandbox] = []

        def execute(source: str) -> str:
            if not sandboxes:
                sandboxes.append(stack.enter_context(Sandbox()))
            result = sandboxes[0].run(source)
            return result.stdout if result.succeeded else ""

        yield lambda row, text: is_correct(row, text, execute)
