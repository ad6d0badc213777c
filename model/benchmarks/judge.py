"""Right or wrong for a written answer: by its final answer, or by running its program in the sandbox."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache

from model.benchmarks.sandbox import Sandbox

# Numbers alone and together: what a program over a list of small numbers keeps, changes and makes of it shows in these.
_PROBES = [[number] for number in range(25)] + [list(range(24, -1, -1)), [7, 3, 3, 12, 0, 8], []]


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

    def ends_alike(self, reference: str, text: str) -> bool:
        """Whether an answer ends as the marked reference does: in the same words, or in a program over `xs` that does the same.

        False where either marks no final answer (####).
        """
        from model.corpora.toy_world import final_answer, program_of

        wanted, found = final_answer(reference), final_answer(text)
        if wanted is None or found is None:
            return False
        if _plain(wanted) == _plain(found):
            return True
        if "xs" not in wanted:
            return False
        printed = [self._printed_before(_probed(program_of(each))) for each in (reference, text)]
        return bool(printed[0]) and printed[0] == printed[1]

    def _printed(self, source: str) -> str:
        if self._sandbox is None:
            self._sandbox = self._stack.enter_context(Sandbox())
        result = self._sandbox.run(source)
        return result.stdout if result.succeeded else ""


def _plain(final: str) -> str:
    """A final answer without what does not matter: case, spaces, the commas and the dollar sign of a number."""
    text = "".join(final.casefold().split()).translate(str.maketrans("，、", ",,"))
    is_number = re.fullmatch(r"-?\$?(\d+|\d{1,3}(,\d{3})+)(\.\d+)?", text)
    return text.replace(",", "").replace("$", "") if is_number else text


def _probed(program: str) -> str:
    """The program, printing what it makes of the probes; of a list that it cannot work on, that it could not."""
    tried = "    try:\n        print(repr(f(xs)))\n    except ValueError:\n        print('none')"
    return f"{program}\nfor xs in {_PROBES}:\n{tried}\n"


@contextmanager
def open_judge() -> Iterator[SandboxJudge]:
    """A judge whose sandbox, if it needed one, ends with the context."""
    with ExitStack() as stack:
        yield SandboxJudge(stack)
