"""What speculation costs here, and the depth that pays: the cost model of methods section 3, fitted to measured times."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from model.network.transformer import Transformer
from model.samplers.adaptive_depth import speed_up
from model.samplers.block_loop import BlockDecoder
from model.samplers.compatibility import Quirks
from model.samplers.guesses import DraftGuesser, Guesser, StaleGuesser
from model.samplers.policies import FixedSteps
from model.samplers.rows import Entry
from tasks.guessing import draft_price

ROUNDS, STEPS, NEW_TOKENS = 3, 4, 64


@dataclass(frozen=True)
class Costs:
    """Relative to a step of plain decoding: `verify[k]` = v(k), one that makes, reads and compares k free guesses; `draft` = c.

    `row_cost` r is the least-squares fit of v(k) = 1 + r k: 0 where reading the weights is all that costs, 1 where computing is.
    """

    rows: int
    seconds: float  # of a step of plain decoding
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
    """v and c for as many rows as there are prompts, from whole steps: forwards, and guessing and walking on the host."""
    ways: dict[str, Guesser | None] = {"plain": None, "stale": StaleGuesser(1), "draft": DraftGuesser(draft, target, 1)}
    ways |= {str(depth): StaleGuesser(depth) for depth in depths}
    policy, quirks = FixedSteps(target.config.block_tokens), Quirks(stop="never")
    taken: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(ROUNDS):
        for way, guesser in ways.items():
            taken[way] += step_seconds(
                BlockDecoder(target, policy, len(prompts), guesser=guesser, quirks=quirks), prompts
            )
    seconds = {way: median(values) for way, values in taken.items()}
    plain = seconds["plain"]
    verify = {depth: seconds[str(depth)] / plain for depth in depths}
    row_cost = sum(depth * (value - 1) for depth, value in verify.items()) / sum(depth**2 for depth in depths)
    drafted = seconds["draft"] - seconds["stale"]  # the same step, but for where its guess comes from
    return Costs(len(prompts), plain, verify, max(drafted, 0.0) / plain, max(row_cost, 0.0))


def step_seconds(decoder: BlockDecoder, prompts: Sequence[list[int]]) -> list[float]:
    """Seconds of steps over all prompts, without the one that reads them; of that one where the context has no room for more."""
    block, taken = decoder.block_tokens, list[float]()
    on_gpu = next(decoder.network.parameters()).is_cuda
    clock = time.perf_counter if on_gpu else time.thread_time  # of the processor's time no other program takes a part
    longest = min(decoder.network.config.maximum_positions, max(map(len, prompts)) + NEW_TOKENS + block)
    batch = decoder.open(longest // block * block)
    batch.waiting.extend(Entry(index, prompt, decoder.room(longest, prompt)) for index, prompt in enumerate(prompts))
    while len(taken) <= STEPS and (batch.waiting or batch.rows.num_live == len(prompts)):
        started = clock()
        decoder.step(batch)
        taken.append(clock() - started)
    return taken[1:] or taken
