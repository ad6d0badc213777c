"""Which tokens of a packed batch the network must read at all, laid out as one flat row of whole documents.

Padding, documents without a graded token and clean copies that nothing looks at cost as much as tokens that matter: they are
left out, and neither the loss nor its gradients can tell (tests prove it).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from model.text.batch import Batch

GRAIN = (
    16  # rows: documents are padded to a multiple, so that few lengths occur and few groups have to attend one by one
)


@dataclass(frozen=True)
class FlatRows:
    """A `real` row i is copy `copy[i]` (from 0) of place `source[i]` of the flattened batch; `groups` as for FlatDocuments."""

    source: Int[Tensor, " rows"]
    copy: Int[Tensor, " rows"]
    real: Bool[Tensor, " rows"]
    groups: tuple[tuple[int, int], ...]

    def take(self, values: Tensor) -> Tensor:
        """[1, rows] of values [batch, length]; of booleans False, of numbers anything, where not real."""
        taken = values.flatten()[self.source]
        return (taken & self.real if taken.dtype == torch.bool else taken)[None]


def document_numbers(batch: Batch) -> Int[Tensor, "batch length"]:
    """One number per document of the whole batch; -1 at padding."""
    most = int(batch.documents.max()) + 1
    first = torch.arange(len(batch.documents), device=batch.documents.device)[:, None] * most
    return torch.where(batch.documents >= 0, batch.documents + first, -1)


def flat_rows(documents: Int[Tensor, "batch length"], *kept: Bool[Tensor, "batch length"]) -> FlatRows:
    """The kept tokens of every copy (first copy first inside a document), documents sorted by how many rows they take."""
    row, copy, column = torch.stack(kept, 1).nonzero(as_tuple=True)
    owner = documents[row, column]
    lengths = torch.bincount(owner)
    padded = (lengths + GRAIN - 1) // GRAIN * GRAIN
    order = torch.argsort(padded, stable=True)
    begin = torch.zeros_like(padded).scatter_(0, order, padded[order].cumsum(0) - padded[order])
    by_owner = torch.argsort(owner, stable=True)
    inside = torch.arange(len(owner), device=owner.device) - (lengths.cumsum(0) - lengths)[owner[by_owner]]
    place = begin[owner[by_owner]] + inside
    source = torch.zeros(int(padded.sum()), dtype=torch.long, device=owner.device)
    real, copies = torch.zeros_like(source, dtype=torch.bool), torch.zeros_like(source)
    source[place], copies[place], real[place] = (row * documents.shape[1] + column)[by_owner], copy[by_owner], True
    groups = torch.stack(torch.unique(padded[padded > 0], return_counts=True), 1).tolist()
    return FlatRows(source, copies, real, tuple((count, length) for length, count in groups))


def with_graded(
    documents: Int[Tensor, "batch length"], graded: Bool[Tensor, "batch length"]
) -> Bool[Tensor, "batch length"]:
    """Every token of the documents that have a graded one."""
    counts = torch.zeros(int(documents.max()) + 2, dtype=torch.long, device=documents.device)
    counts.scatter_add_(0, (documents + 1).flatten(), graded.flatten().long())
    return (documents >= 0) & (counts[documents + 1] > 0)
