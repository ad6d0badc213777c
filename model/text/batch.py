"""What every objective is given: rows of token ids with their documents, positions and graded places."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Packed rows; every tensor is [batch, length].

    A row holds several documents. Each starts on a multiple of the block length and its positions restart at 0.
    """

    tokens: Tensor  # int64
    documents: Tensor  # int64, number of the document inside its row (0, 1, 2, ...); -1 where the row is padded
    positions: Tensor  # int64, 0 where the row is padded
    graded: Tensor  # bool, where the model is asked to be right: never at padding, never inside a prompt
    samples: Tensor | None = None  # int64 [batch, 2]: a row's number among all rows, and how often it came before

    def tensors(self) -> list[Tensor]:
        """The four tensors of tokens."""
        return [self.tokens, self.documents, self.positions, self.graded]

    def rows(self, wanted: slice) -> "Batch":
        """Some of the rows."""
        samples = None if self.samples is None else self.samples[wanted]
        return Batch(*(value[wanted] for value in self.tensors()), samples)

    def to(self, device: torch.device | str) -> "Batch":
        """The same rows on `device`; copies from pinned memory overlap with computing. `samples` stay where they are."""
        return Batch(*(value.to(device, non_blocking=True) for value in self.tensors()), self.samples)
