"""What speculation costs on this machine, and the depth that pays: the cost model of methods section 3, fitted to measured times.

S(k) = E(k) / (v(k) + c d(k)): plain forwards replaced per target forward, over that forward's cost and its d(k) draft forwards'.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from model.network.transformer import Transformer
from model.samplers.rows import Entry, Grid, Rows, State
from model.samplers.sampling import GREEDY, Proposer
from model.samplers.targets import SourceSettings, make_source

ROUNDS = 7


@dataclass(frozen=True)
class Costs:
    """Relative to a target forward over one block per row: `verify[k]` = v(k), a forward over k + 1 candidates; `draft` = c.

    `row_cost` r is the least-squares fit of v(k) = 1 + r k: 0 where reading the weights is all that costs, 1 where computing is.
    """

    rows: int
    seconds: float  # of a target forward over one block per row
    verify: dict[int, float]
    draft: float
    row_cost: float

    def speed_up(self, source: str, acceptance: float, depth: int) -> float:
        """S(depth) at a match probability per step."""
        return expected_steps(acceptance, depth) / (
            1.0 + self.row_cost * depth + self.draft * draft_forwards(source, depth)
        )

    def recommend(self, source: str, acceptance: float, maximum: int) -> tuple[int, float]:
        """The depth up to `maximum` with the highest speed-up, and that speed-up; (0, 1.0): better not guess."""
        best = max(range(maximum + 1), key=lambda depth: self.speed_up(source, acceptance, depth))
        return best, self.speed_up(source, acceptance, best)

    def as_dict(self) -> dict[str, Any]:
        """For a JSON file."""
        return {**vars(self), "verify": {str(depth): value for depth, value in self.verify.items()}}


def expected_steps(acceptance: float, depth: int) -> float:
    """E = 1 + a + ... + a^depth: steps per target forward."""
    return sum(acceptance**level for level in range(depth + 1))


def draft_forwards(source: str, depth: int) -> int:
    """Draft forwards per target forward: `both` takes its first guess from the target's last logits."""
    return {"stale": 0, "draft": depth, "both": max(depth - 1, 0)}[source]


def costs_of(costs: Costs, row: dict[str, Any], maximum: int) -> dict[str, Any]:
    """The costs beside what they say of a measured combination: the speed-up to expect, and the best depth up to `maximum`."""
    source, acceptance = row["source"], row["match_probability"]
    best, speed_up = costs.recommend(source, acceptance, maximum)
    predicted = costs.speed_up(source, acceptance, row["depth"])
    words = {"match_probability": acceptance, "predicted": predicted}
    return costs.as_dict() | words | {"recommended_depth": best, "recommended_speed_up": speed_up}


def measure_costs(
    target: Transformer, draft: Transformer, prompts: Sequence[list[int]], depths: Sequence[int]
) -> Costs:
    """v and c for as many rows as there are prompts, whose first block is asked about again and again."""
    candidates = [1, *(depth + 1 for depth in depths)]
    seconds = forward_seconds(target, prompts, candidates)
    verify = {depth: seconds[depth + 1] / seconds[1] for depth in depths}
    row_cost = sum(depth * (value - 1) for depth, value in verify.items()) / sum(depth**2 for depth in depths)
    draft_seconds = forward_seconds(draft, prompts, [1])[1]
    return Costs(len(prompts), seconds[1], verify, draft_seconds / seconds[1], max(row_cost, 0.0))


@torch.no_grad()
def forward_seconds(network: Transformer, prompts: Sequence[list[int]], candidates: Sequence[int]) -> dict[int, float]:
    """Candidates -> median seconds of a forward over so many states of every prompt's current block; counts take turns."""
    config = network.config
    grid = Grid(config.block_tokens, config.mask_token_id, config.eos_token_id)
    settings = SourceSettings(grid, Proposer(GREEDY, config.mask_token_id), edits=False)
    capacity = max(grid.canvas(len(prompt), 1) for prompt in prompts)
    cache = "prefix" if config.attention == "block_causal" else "none"
    source = make_source(network, settings, len(prompts), capacity, cache, max(candidates))
    rows = Rows(grid, len(prompts), capacity)
    for index, prompt in enumerate(prompts):
        rows.enter(Entry(index, prompt, 1))
    source.admit(rows, 0, len(prompts))
    state = rows.state()
    taken: dict[int, list[float]] = {count: [] for count in candidates}
    for _ in range(ROUNDS):
        for count in candidates:
            states = State(
                state.tokens[:, None].expand(-1, count, -1),
                state.step[:, None].expand(-1, count),
                state.full_steps[:, None].expand(-1, count),
            )
            started = time.perf_counter()
            source.forward(rows, states, torch.ones(len(prompts), count, dtype=torch.bool))
            taken[count].append(time.perf_counter() - started)
    return {count: median(values[1:]) for count, values in taken.items()}  # the first one warms up
