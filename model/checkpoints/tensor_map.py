"""Where every tensor of a checkpoint lies in our network: one list of places, read in either direction."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from model.checkpoints.families.family import Family
from model.network.config import NetworkConfig

HEAD = "unembedding.weight"


@dataclass(frozen=True)
class Place:
    """One stored tensor and the part of ours that it is: rows start..stop, of one expert where ours is a stack."""

    theirs: str
    ours: str
    shape: tuple[int, ...]
    rows: tuple[int, int]
    expert: int | None = None

    def part(self, whole: Tensor) -> Tensor:
        """The view of our tensor that this stored tensor fills."""
        stack = whole if self.expert is None else whole[self.expert]
        start, stop = self.rows
        return stack.narrow(max(stack.dim() - 2, 0), start, stop - start)


def places(family: Family | None, config: NetworkConfig, shapes: Mapping[str, tuple[int, ...]]) -> list[Place]:
    """Every tensor a checkpoint of this network has, in our order; without a family it has our own names.

    `shapes` are our network's (`owned_shapes`). ValueError for a tensor that the family has no name for.
    """
    return [place for ours, shape in shapes.items() for place in _places_of(family, config, ours, shape)]


def tied_head(family: Family | None, config: NetworkConfig) -> str | None:
    """Name under which a checkpoint may repeat the embedding as the head; None where the head is a tensor of its own."""
    if not config.tie_embeddings:
        return None
    return HEAD if family is None else str(family.tensors[HEAD])


def _places_of(family: Family | None, config: NetworkConfig, ours: str, shape: tuple[int, ...]) -> Iterator[Place]:
    names = (ours,) if family is None else _their_names(family, ours)
    is_per_expert = "{expert}" in names[0]
    one = shape[1:] if is_per_expert else shape
    axis = max(len(one) - 2, 0)
    start = 0
    for name, count in zip(names, _row_counts(config, len(names), one[axis]), strict=True):
        part = (*one[:axis], count, *one[axis + 1 :])
        rows = (start, start + count)
        if is_per_expert:
            yield from (Place(name.format(expert=expert), ours, part, rows, expert) for expert in range(shape[0]))
        else:
            yield Place(name, ours, part, rows)
        start += count


def _row_counts(config: NetworkConfig, parts: int, rows: int) -> list[int]:
    if parts == 3:  # queries, keys, values
        shared = config.key_value_heads * config.width_per_head
        return [rows - 2 * shared, shared, shared]
    return [rows // parts] * parts


def _their_names(family: Family, ours: str) -> tuple[str, ...]:
    for pattern, theirs in family.tensors.items():
        expression = (
            re.escape(pattern).replace(r"\{layer\}", r"(?P<layer>\d+)").replace(r"\{part\}", "(?P<part>weight|bias)")
        )
        if found := re.fullmatch(expression, ours):
            names = (theirs,) if isinstance(theirs, str) else theirs
            return tuple(_filled(name, found.groupdict()) for name in names)
    raise ValueError(f"the layout of {family.name} has no name for {ours}: export this network as another family")


def _filled(name: str, values: Mapping[str, str]) -> str:
    for key, value in values.items():
        name = name.replace(f"{{{key}}}", value)
    return name
