"""Keys and values of finished blocks, preallocated, each batch row with its own length.

Exact for block-causal and causal networks: nothing that comes later can change a finished block (methods section 2).
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from model.network.config import NetworkConfig


class PrefixCache:
    """Storage [layer][slot, head, position, width] with `lengths[slot]` valid positions in every slot.

    A forward reads through `view(slots, extent)` and the loop stores what it decides to keep with `write`.
    """

    def __init__(self, config: NetworkConfig, num_slots: int, capacity: int, device=None, dtype=torch.float32) -> None:
        shape = (config.num_layers, 2, num_slots, config.key_value_heads, capacity, config.width_per_head)
        self.storage = torch.zeros(shape, device=device, dtype=dtype)
        self.lengths = torch.zeros(num_slots, dtype=torch.long, device=device)

    @property
    def capacity(self) -> int:
        """Positions every slot can hold."""
        return self.storage.shape[4]

    def layer(self, index: int, slots: Int[Tensor, " rows"], extent: int) -> tuple[Tensor, Tensor]:
        """Keys and values [rows, heads, extent, width] of one layer for the given slots."""
        keys, values = self.storage[index, 0], self.storage[index, 1]
        if slots.shape[0] == keys.shape[0]:  # every slot in order: a view instead of a copy
            return keys[:, :, :extent], values[:, :, :extent]
        return keys[slots, :, :extent], values[slots, :, :extent]

    def visible(self, slots: Int[Tensor, " rows"], extent: int) -> Bool[Tensor, "rows extent"]:
        """Which of the first `extent` positions hold something."""
        return torch.arange(extent, device=slots.device)[None] < self.lengths[slots][:, None]

    def append(
        self, slots: Int[Tensor, " rows"], new: list[tuple[Tensor, Tensor]], counts: Int[Tensor, " rows"]
    ) -> None:
        """Store the first counts[r] of the new positions [rows, heads, new, width] behind what slot r holds."""
        num_new = new[0][0].shape[2]
        keep = torch.arange(num_new, device=slots.device)[None] < counts[:, None]
        row, offset = keep.nonzero(as_tuple=True)
        slot, position = slots[row], self.lengths[slots][row] + offset
        for index, (keys, values) in enumerate(new):
            self.storage[index, 0][slot, :, position] = keys[row, :, offset]
            self.storage[index, 1][slot, :, position] = values[row, :, offset]
        self.lengths[slots] += counts

    def clear(self, slots: Int[Tensor, " rows"]) -> None:
        """Forget what the given slots hold."""
        self.lengths[slots] = 0


CachedPart = tuple[PrefixCache, Int[Tensor, " rows"], int]
NewKeysValues = list[tuple[Float[Tensor, "rows heads new width"], Float[Tensor, "rows heads new width"]]]
