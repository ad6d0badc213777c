"""What speculation costs here, and the depth that pays: the cost model of methods section 3, fitted to measured times."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from model.network.transformer import Transformer
from model.samplers.adaptive_depth import speed_up
from model.samplers.rows import Entry, Rows
from model.samplers.sampling import GREEDY, Proposer
from model.samplers.sources import make_source
from model.samplers.states import Grid, State
from model.samplers.targets import SourceSettings
from tasks.guessing import draft_price

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
        return speed_up(acceptance, depth, self.row_cost, *draft_price(source, self.draft))

    def recommend(self, source: str, acceptance: float, maximum: int) -> tuple[int, float]:
        """The depth up to `maximum` with the highest speed-up, and that speed-up; (0, 1.0): better not guess."""
        best = max(range(maximum + 1), key=lambda depth: self.speed_up(source, acceptance, depth))
        return best, self.speed_up(source, acceptance, best)

    def as_dict(self) -> dict[str, Any]:
        """For a JSON file."""
        return {**vars(self), "verify": {str(depth): value for depth, value in self.verify.items()}}


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
