"""Conversations back out of packed rows: what is asked, and the last answer that stood there."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from model.text.batch import Batch


@dataclass(frozen=True)
class Asked:
    """A conversation up to its last answer, as token ids; `reference` is that answer without the EOS that closes it.

    It stood in row `row` of the batch, the answer from `column` on.
    """

    prompt: list[int]
    reference: list[int]
    row: int
    column: int


def asked_in(batch: Batch, eos_id: int) -> Iterator[Asked]:
    """Every conversation of the rows that asks and is answered, in their order."""
    for row, (tokens, documents, graded) in enumerate(zip(batch.tokens, batch.documents, batch.graded, strict=True)):
        for number in range(int(documents.max()) + 1):
            here = documents == number
            ids, answers = tokens[here].tolist(), graded[here]
            places = torch.nonzero(answers).flatten()
            if not len(places):
                continue
            gaps = torch.nonzero(places.diff() > 1).flatten()
            begin = int(places[gaps[-1] + 1] if len(gaps) else places[0])
            answer = ids[begin:]
            end = answer.index(eos_id) if eos_id in answer else len(answer)
            if begin and end:
                yield Asked(ids[:begin], answer[:end], row, int(torch.nonzero(here)[begin]))
