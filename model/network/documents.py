"""Attention over a flat row of whole documents: no padding between them and no mask that keeps them apart.

Documents of one length stand side by side, so that each group is a view [count, length] of the flat row and attends within
itself. Everything else in the network (norms, projections, feed-forward) sees one long row.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from model.network.attention import attend
from model.network.masks import AttentionPattern, asked_columns


@dataclass(frozen=True)
class FlatDocuments:
    """An attention rule (see AttentionPattern) of a row [1, rows] that is `groups` of (count, length) documents in order."""

    kind: str
    groups: tuple[tuple[int, int], ...]
    positions: Int[Tensor, "1 rows"]
    real: Bool[Tensor, "1 rows"]  # False where a document is padded at its end
    block_tokens: int = 1
    noisy: Int[Tensor, "1 rows"] | None = None

    def allowed(self) -> "DocumentMasks":
        """What SDPA needs for every group, built once for all layers."""
        masks: list[Tensor | None] = []
        everything = bool(self.real.all())
        for positions, real, noisy in zip(*map(self._groups, (self.positions, self.real, self.noisy)), strict=True):
            if self.kind == "causal" or (self.kind == "bidirectional" and everything):
                masks.append(None)
                continue
            documents = real.long() - 1
            allowed = AttentionPattern(self.kind, documents, positions, self.block_tokens, noisy).allowed()
            # SDPA turns a boolean mask into this anew in every layer.
            masks.append(torch.zeros(allowed.shape, device=allowed.device).masked_fill_(~allowed, float("-inf")))
        return DocumentMasks(self.groups, tuple(masks), self.kind == "causal")

    def _groups(self, values: Tensor | None) -> list[Tensor | None]:
        if values is None:
            return [None] * len(self.groups)
        parts = values[0].split([count * length for count, length in self.groups])
        return [part.view(group) for part, group in zip(parts, self.groups, strict=True)]


@dataclass(frozen=True)
class DocumentMasks:
    """Additive masks by group, None where nothing inside a document is hidden or it is just causal."""

    groups: tuple[tuple[int, int], ...]
    masks: tuple[Float[Tensor, "count 1 length length"] | None, ...]
    causal: bool

    def attend(
        self,
        layer: int,
        query: Float[Tensor, "1 heads asked width"],
        key: Float[Tensor, "1 shared rows width"],
        value: Float[Tensor, "1 shared rows width"],
        columns: Int[Tensor, "1 asked"] | None,
    ) -> Float[Tensor, "1 heads asked width"]:
        """Scaled dot-product attention inside every document; the queries are those of the given rows, in order (None: all).

        Rows behind the last document are nobody's: they take nothing.
        """
        sizes = counts = [count * length for count, length in self.groups]
        query, key, value = (part.squeeze(0).transpose(0, 1) for part in (query, key, value))
        asked: list[Tensor | None] = [None] * len(sizes)
        if columns is not None:
            chosen = torch.zeros(len(key), dtype=torch.bool, device=columns.device)
            asked = list(chosen.index_fill_(0, columns[0], True)[: sum(sizes)].split(sizes))
            counts = torch.stack([part.sum() for part in asked]).tolist()
        (query, nobodys), key, value = query.tensor_split([sum(counts)]), key[: sum(sizes)], value[: sum(sizes)]
        parts = zip(
            self.groups, self.masks, asked, query.split(counts), key.split(sizes), value.split(sizes), strict=True
        )
        mixed = [self._group(*part) for part in parts]
        if len(nobodys):
            mixed.append(torch.zeros_like(nobodys, dtype=mixed[0].dtype))
        return torch.cat(mixed).transpose(0, 1)[None]

    def _group(self, group, mask, asked, query, key, value) -> Float[Tensor, "asked heads width"]:
        key, value = (part.unflatten(0, group).transpose(1, 2) for part in (key, value))
        if asked is None:
            query = query.unflatten(0, group).transpose(1, 2)
            mixed = attend(query, key, value, mask, self.causal and mask is None)
            return mixed.transpose(1, 2).flatten(0, 1)
        columns, real = asked_columns(asked.view(group))
        padded = query.new_zeros(*real.shape, *query.shape[1:]).index_put((real,), query).transpose(1, 2)
        if mask is not None:
            mask = mask[:, 0].gather(1, columns[:, :, None].expand(-1, -1, group[1]))[:, None]
        elif self.causal:
            mask = (torch.arange(group[1], device=columns.device) <= columns[:, :, None])[:, None]
        mixed = attend(padded, key, value, mask)
        return mixed.transpose(1, 2)[real]
