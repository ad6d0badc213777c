"""Keys and values in preallocated storage, and where the tokens of one forward stand in it.

A forward over a cache takes the tokens of all rows as one flat line: rows of different lengths, a finished block together
with the first state of the next one, or several candidate states of one block share it without padding any linear layer.
Each layer writes the new keys and values into their columns in place and attends to a view of the storage: no prefix is
copied.
Exact for causal and block-causal networks: what stands in an earlier block never changes (methods section 2).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from model.network.config import NetworkConfig


class KeyValueCache:
    """Storage [layer, keys/values, slot, head, column, width]; rotated keys, so that columns may stand in any order."""

    def __init__(self, config: NetworkConfig, num_slots: int, capacity: int, device=None, dtype=torch.float32) -> None:
        shape = (config.num_layers, 2, num_slots, config.key_value_heads, capacity, config.width_per_head)
        self.storage = torch.zeros(shape, device=device, dtype=dtype)

    @property
    def capacity(self) -> int:
        """Columns that every slot holds."""
        return self.storage.shape[4]

    @property
    def num_bytes(self) -> int:
        """Size of the storage."""
        return self.storage.numel() * self.storage.element_size()

    def move(self, source: int, destination: int) -> None:
        """Slot `destination` gets what slot `source` holds."""
        self.storage[:, :, destination] = self.storage[:, :, source]


@dataclass(frozen=True)
class Visible:
    """The columns that each flat token sees: [0, end), [resume, stop) and [own, own_end); empty ranges are allowed."""

    end: Int[Tensor, " tokens"]
    resume: Int[Tensor, " tokens"]
    stop: Int[Tensor, " tokens"]
    own: Int[Tensor, " tokens"]
    own_end: Int[Tensor, " tokens"]


class Placement:
    """Where the flat tokens of one forward stand: token i belongs to slot first_slot + rows[i] and fills columns[i] of it.

    Tokens come row by row; index tensors arrive on the host and travel to the cache's device in one piece.
    """

    def __init__(
        self,
        cache: KeyValueCache,
        rows: Int[Tensor, " tokens"],
        columns: Int[Tensor, " tokens"],
        visible: Visible,
        num_rows: int,
        extent: int,
        first_slot: int = 0,
    ) -> None:
        assert extent <= cache.capacity
        device, dtype = cache.storage.device, cache.storage.dtype
        counts = torch.bincount(rows, minlength=num_rows)
        self.num_rows, self.width = num_rows, int(counts.max())
        self.uniform = rows.shape[0] == num_rows * self.width
        offsets = torch.arange(rows.shape[0]) - (counts.cumsum(0) - counts)[rows]
        ranges = (visible.end, visible.resume, visible.stop, visible.own, visible.own_end)
        packed = torch.stack((rows, columns, offsets, *ranges)).to(device, non_blocking=True)
        self.rows, self.columns, self.offsets = packed[:3]
        self.slots = slice(first_slot, first_slot + num_rows)
        self.storage = cache.storage[:, :, self.slots]
        self.extent = extent
        self.bias = self._bias(packed[3:], dtype) if _sees_less(visible, extent) or not self.uniform else None

    @classmethod
    def of_equal_rows(
        cls, cache: KeyValueCache, line: Int[Tensor, "8 tokens"], num_rows: int, extent: int, see_all: bool = False
    ) -> "Placement":
        """Rows of equally many tokens in the first slots; `line` (rows, columns, offsets and the five bounds of Visible) is on
        the device, and nothing here asks the device for a number. `see_all`: every token sees all columns up to `extent`."""
        made = cls.__new__(cls)
        made.num_rows, made.width, made.uniform, made.extent = num_rows, line.shape[1] // num_rows, True, extent
        made.rows, made.columns, made.offsets = line[:3]
        made.slots = slice(0, num_rows)
        made.storage = cache.storage[:, :, made.slots]
        made.bias = None if see_all else made._bias(line[3:], cache.storage.dtype)
        return made

    def _bias(self, ranges: Int[Tensor, "5 tokens"], dtype: torch.dtype) -> Float[Tensor, "rows 1 width extent"]:
        """0 where a query may look and -inf elsewhere; places without a token see everything and are never read."""
        end, resume, stop, own, own_end = (bound[:, None] for bound in ranges)
        column = torch.arange(self.extent, device=ranges.device)[None]
        allowed = (column < end) | ((column >= resume) & (column < stop)) | ((column >= own) & (column < own_end))
        bias = torch.zeros(allowed.shape, dtype=dtype, device=ranges.device).masked_fill_(~allowed, -torch.inf)
        if self.uniform:
            return bias.view(self.num_rows, 1, self.width, self.extent)
        padded = torch.zeros(self.num_rows, self.width, self.extent, dtype=dtype, device=ranges.device)
        padded[self.rows, self.offsets] = bias
        return padded[:, None]

    def attend(
        self,
        layer: int,
        query: Float[Tensor, "1 heads asked width"],
        key: Float[Tensor, "1 shared tokens width"],
        value: Float[Tensor, "1 shared tokens width"],
        asked: Int[Tensor, "1 asked"] | None,
    ) -> Float[Tensor, "1 heads asked width"]:
        """Stores the new keys and values, then the attention of every asked token (all of them when None)."""
        keys, values = self.storage[layer, 0], self.storage[layer, 1]
        keys[self.rows, :, self.columns] = key[0].transpose(0, 1)
        values[self.rows, :, self.columns] = value[0].transpose(0, 1)
        if asked is not None and not asked.numel():
            return query
        if asked is None and self.uniform:
            padded = query[0].unflatten(1, (self.num_rows, self.width)).transpose(0, 1)
            mixed = self._mix(padded, keys, values)
            return mixed.transpose(0, 1).flatten(1, 2)[None]
        rows, offsets = (self.rows, self.offsets) if asked is None else (self.rows[asked[0]], self.offsets[asked[0]])
        padded = query.new_zeros(self.num_rows, query.shape[1], self.width, query.shape[3])
        padded[rows, :, offsets] = query[0].transpose(0, 1)
        return self._mix(padded, keys, values)[rows, :, offsets].transpose(0, 1)[None]

    def _mix(self, query: Float[Tensor, "rows heads width size"], keys: Tensor, values: Tensor) -> Tensor:
        """Attention of padded queries; query heads that share a key head stand beside each other as further queries of it."""
        keys, values = keys[:, :, : self.extent], values[:, :, : self.extent]
        group, bias = query.shape[1] // keys.shape[1], self.bias
        if group == 1:
            return functional.scaled_dot_product_attention(query, keys, values, attn_mask=bias)
        folded = query.unflatten(1, (keys.shape[1], group)).flatten(2, 3)
        if bias is not None:
            bias = bias.repeat(1, 1, group, 1)
        mixed = functional.scaled_dot_product_attention(folded, keys, values, attn_mask=bias)
        return mixed.unflatten(2, (group, self.width)).flatten(1, 2)


def _sees_less(visible: Visible, extent: int) -> bool:
    """Whether any token sees less than all columns."""
    return bool((visible.end < extent).any())
