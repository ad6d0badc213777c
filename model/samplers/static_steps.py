"""Forwards of a decode that come again and again in one shape, captured as CUDA graphs: one launch instead of dozens a layer.

Most steps ask about the same number of tokens of every row (one block, or a block with its guesses). With the columns they look
at rounded up, few shapes occur. All of the tokens come out, not the asked ones alone: their number changes with every step.
"""

from collections import Counter

import torch
from jaxtyping import Float, Int
from torch import Tensor

from model.network.cache import KeyValueCache, Placement, Visible
from model.network.transformer import Transformer

GRAIN = 256  # columns
CAPTURED_AFTER, MOST_SHAPES = 3, 32  # a shape is captured when it has come so often; so many graphs are kept


def static_steps(network: Transformer, cache: KeyValueCache) -> "StaticSteps | None":
    """For a dense network on a GPU; None elsewhere. A CPU starts kernels for nothing, and experts wait for their counts."""
    return StaticSteps(network, cache) if cache.storage.is_cuda and not network.config.num_experts else None


class StaticSteps:
    """The network's forward over flat lines in which every row has equally many tokens, rows standing in the first slots."""

    def __init__(self, network: Transformer, cache: KeyValueCache) -> None:
        self.network, self.cache = network, cache
        self.seen: Counter[tuple[int, int, int]] = Counter()
        self.steps: dict[tuple[int, int, int], _Step] = {}

    def __call__(
        self,
        tokens: Int[Tensor, " tokens"],
        positions: Int[Tensor, " tokens"],
        rows: Int[Tensor, " tokens"],
        columns: Int[Tensor, " tokens"],
        visible: Visible,
        num_rows: int,
        extent: int,
    ) -> Float[Tensor, "tokens hidden"] | None:
        """Normalised hidden states of every token, overwritten by the next call; None where rows have different numbers of
        tokens, or the shape is not a frequent one (yet)."""
        counts = torch.bincount(rows, minlength=num_rows)
        if bool((counts != counts[0]).any()):
            return None
        shape = (num_rows, int(counts[0]), min(-(-extent // GRAIN) * GRAIN, self.cache.capacity))
        self.seen[shape] += 1
        if self.seen[shape] < CAPTURED_AFTER or (shape not in self.steps and len(self.steps) == MOST_SHAPES):
            return None
        offsets = torch.arange(rows.shape[0]) % shape[1]
        line = torch.stack((tokens, positions, rows, columns, offsets, *vars(visible).values()))
        if shape not in self.steps:
            self.steps[shape] = _Step(self.network, self.cache, line, num_rows, shape[2])
        return self.steps[shape](line)


class _Step:
    """One shape; on a GPU captured at once."""

    def __init__(self, network: Transformer, cache: KeyValueCache, line: Tensor, num_rows: int, extent: int) -> None:
        self.network, self.cache, self.num_rows, self.extent = network, cache, num_rows, extent
        self.line = line.to(cache.storage.device)  # read by every replay
        self.graph = None
        if cache.storage.is_cuda:
            self._capture()

    def _capture(self) -> None:
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(
            aside
        ):  # libraries allocate at first use, which a capture forbids; the same keys are written again
            self._forward()
        torch.cuda.current_stream().wait_stream(aside)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.out = self._forward()

    def __call__(self, line: Int[Tensor, "values tokens"]) -> Float[Tensor, "tokens hidden"]:
        self.line.copy_(line, non_blocking=True)
        if self.graph is None:
            return self._forward()
        self.graph.replay()
        return self.out

    def _forward(self) -> Float[Tensor, "tokens hidden"]:
        placement = Placement.of_equal_rows(self.cache, self.line[2:], self.num_rows, self.extent)
        return self.network.forward_cached(self.line[0], self.line[1], placement, None)
